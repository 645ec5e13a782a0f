"""The inference API on a CPU: ONNX Runtime against torch, what the API itself costs, memory, and the time to import it.

    python benchmarks/runtime_cpu.py --threads 2 --rounds 60 --frames 10000

lite0 at 360x480 with fresh weights: speed does not depend on what they are. torch and ONNX Runtime take turns, frame by
frame; the memory run and the imports follow. Writes results/runtime_cpu.jsonl.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rows import write

from edge_sfda import Segmenter, checkpoint
from edge_sfda.data.frames import U8
from edge_sfda.live.sensors import resident_mb
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing
from edge_sfda.nets import build
from edge_sfda.runtime.export import ExportConfig, to_onnx
from edge_sfda.runtime.latency import Latency

HEIGHT, WIDTH, COUNT = 360, 480, 11
IMPORT = "import edge_sfda; edge_sfda.Segmenter"
WARM_UP = 5


def main() -> None:
    """Measure everything and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=60, help="calls of each engine, in turn")
    parser.add_argument("--frames", type=int, default=10_000, help="of the memory run")
    parser.add_argument("--imports", type=int, default=10, help="interpreters started to time the import")
    args = parser.parse_args()
    frames = list(np.random.default_rng(0).integers(0, 256, (8, HEIGHT, WIDTH, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        paths = make_artefacts(Path(folder))
        rows = [*speed(paths, frames, args.threads, args.rounds), memory(paths["onnx"], frames, args)]
    rows.append(imports(args.imports))
    for row in rows:
        print(row)
    print(write("runtime_cpu", [row | {"onnxruntime": onnxruntime.__version__} for row in rows]))


def make_artefacts(folder: Path) -> dict[str, Path]:
    """Write lite0 as a checkpoint and as ONNX in float32, with and without the confidence."""
    torch.manual_seed(0)
    classes = Classes(tuple(f"class {i}" for i in range(COUNT)), tuple((i, i, i) for i in range(COUNT)))
    manifest = Manifest(NetSpec("lite0"), classes, Preprocessing(HEIGHT, WIDTH))
    net = build(manifest.net, COUNT).eval()
    paths = {"torch": folder / "lite0.safetensors", "onnx": folder / "lite0.onnx", "onnx mask": folder / "mask.onnx"}
    manifest = checkpoint.save(paths["torch"], net.state_dict(), manifest)
    for name, confidence in (("onnx", True), ("onnx mask", False)):
        paths[name].write_bytes(to_onnx(net, manifest, ExportConfig(confidence=confidence)).SerializeToString())
    return paths


def speed(paths: dict[str, Path], frames: list[U8], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Let the engines take turns; the masks are compared before any time is taken."""
    segmenters = {name: Segmenter.load(path, device="cpu", threads=threads) for name, path in paths.items()}
    expected = segmenters["torch"](frames[0])
    for name, segment in segmenters.items():
        agreement = float((segment(frames[0]) == expected).mean())
        assert agreement >= 0.999, f"{name} agrees with torch on {agreement:.4f} of the pixels"
    found = {name: Latency() for name in segmenters}
    names = list(segmenters)
    for index in range(WARM_UP + rounds):
        for name in names[index % len(names) :] + names[: index % len(names)]:
            seen = segmenters[name].predict(frames[index % len(frames)])
            if index >= WARM_UP:
                found[name].add(seen.times)
    torch_ms = found["torch"].percentiles()["total"].p50_ms
    rows = []
    for name, latency in found.items():
        part = latency.percentiles()
        rows.append(
            {
                "what": "speed",
                "engine": name,
                "net": "lite0",
                "size": [HEIGHT, WIDTH],
                "threads": threads,
                "rounds": rounds,
                "total_p50_ms": part["total"].p50_ms,
                "total_p90_ms": part["total"].p90_ms,
                "net_p50_ms": part["net"].p50_ms,
                "pre_p50_ms": part["pre"].p50_ms,
                "post_p50_ms": part["post"].p50_ms,
                "fps": 1e3 / part["total"].p50_ms,
                "against_torch": torch_ms / part["total"].p50_ms,
                "api_share": (part["pre"].p50_ms + part["post"].p50_ms) / part["net"].p50_ms,
            }
        )
    for segment in segmenters.values():
        segment.close()
    return rows


def memory(path: Path, frames: list[U8], args: argparse.Namespace) -> dict[str, Any]:
    """Segment many frames and read what the process holds after a tenth of them and at the end."""
    with Segmenter.load(path, device="cpu", threads=args.threads) as segment:
        early = max(1, args.frames // 10)
        start = time.perf_counter()
        for index in range(args.frames):
            segment.predict(frames[index % len(frames)])
            if index + 1 == early:
                gc.collect()
                first = resident_mb()
        gc.collect()
        last = resident_mb()
    return {
        "what": "memory",
        "frames": args.frames,
        "rss_early_mb": first,
        "rss_end_mb": last,
        "growth_mb": last - first,
        "seconds": time.perf_counter() - start,
    }


def imports(count: int) -> dict[str, Any]:
    """Time the import in fresh interpreters, less what starting one takes."""
    taken: dict[str, list[float]] = {"pass": [], IMPORT: []}
    for _ in range(count + 1):  # the first one reads files that are not in memory yet
        for code, times in taken.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - start)
    plain, whole = (statistics.median(times[1:]) for times in taken.values())
    return {"what": "import", "interpreters": count, "python_s": plain, "import_s": whole - plain}


if __name__ == "__main__":
    main()
