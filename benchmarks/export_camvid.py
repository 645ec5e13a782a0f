"""An adapted checkpoint as ONNX in fp32, fp16 and int8, and as TensorRT-RTX engines: mIoU at dusk, sizes, times.

    python benchmarks/export_camvid.py --checkpoint adapted.safetensors --data DIR [--precisions fp32 fp16 int8]

The first half of 0001TP, without its labels, gives int8 its ranges; mIoU and agreement are of the last 62 frames. torch
is the checkpoint itself on the same frames. Engines are built without a GPU where there is none, and not run.
"""

from __future__ import annotations

import argparse
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import rows
import torch

from edge_sfda.data.datasets import open_dataset
from edge_sfda.nets import load
from edge_sfda.runtime import trt_build
from edge_sfda.runtime.artefact import PRECISIONS
from edge_sfda.runtime.export import ExportConfig, to_onnx
from edge_sfda.runtime.parity import Sample, measure

TARGET = "0001TP"
TESTED = 62  # frames at the sequence's end


def measure_precision(checkpoint: Path, data: Path, precision: str, out: Path) -> dict[str, Any]:
    """Export, measure and build one precision; returns its row."""
    net, manifest = load(checkpoint)
    pre = manifest.preprocessing
    target = open_dataset([str(data / TARGET)], classes="camvid")
    first = len(target) - TESTED
    calibration = [target[index][0] for index in range(first)]
    tested = [Sample(*target[index]) for index in range(first, len(target))]
    assert all(image.shape[:2] == (pre.height, pre.width) for image in calibration), "frames of the network's size"
    start = time.perf_counter()
    model = to_onnx(net, manifest, ExportConfig(precision=precision), calibration=calibration)
    seconds = time.perf_counter() - start
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{checkpoint.stem}-{precision}.onnx"
    path.write_bytes(model.SerializeToString())
    parity = measure(model, net, manifest, tested, on_frame=lambda done, total: print(end=f"\r{done}/{total}"))
    assert parity.miou_torch is not None
    assert parity.miou_artefact is not None
    row = {
        "checkpoint": manifest.tensors_sha256[:16],
        "net": manifest.net.architecture,
        "size": [pre.height, pre.width],
        "precision": precision,
        "frames": parity.frames,
        "miou_torch": round(parity.miou_torch, 4),
        "miou_onnx": round(parity.miou_artefact, 4),
        "miou_lost": round(parity.miou_torch - parity.miou_artefact, 4),
        "agreement": round(parity.agreement, 6),
        "max_logit_error": round(parity.max_logit_error, 5),
        "accepted": not parity.problems(),
        "onnx_bytes": path.stat().st_size,
        "checkpoint_bytes": checkpoint.stat().st_size,
        "export_s": round(seconds, 1),
        "onnx_ms": [round(ms, 2) for ms in parity.artefact_ms],
        "torch_ms": [round(ms, 2) for ms in parity.torch_ms],
        "layers_asked": dict(parity.layers_asked),
        "layers_reached": dict(parity.layers_reached),
        "onnxruntime": parity.conditions["onnxruntime"],
        "threads": parity.conditions["threads"],
    }
    if find_spec("tensorrt_rtx") is not None:
        start = time.perf_counter()
        engine, record = trt_build.build_engine(model, trt_build.BuildConfig(flavor="rtx"))
        row |= {
            "engine_bytes": len(engine),
            "engine_s": round(time.perf_counter() - start, 1),  # near 0 where the cache had it
            "tensorrt_rtx": record.tensorrt,
            "verified_on_gpu": record.verified_on_gpu,
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the CamVid sequences")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--out", type=Path, default=Path("artefacts"), help="folder for the models")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = []
    for precision in arguments.precisions:
        results.append(measure_precision(arguments.checkpoint, arguments.data, precision, arguments.out))
        print("\r" + str(results[-1]), flush=True)
    print(rows.write("export_camvid", results))


if __name__ == "__main__":
    main()
