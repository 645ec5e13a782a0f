"""Artefacts leave with their report or not at all: written under their name, or aside as `*.rejected`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sfda.files import write_atomic, write_text_atomic
from edge_sfda.runtime.artefact import ArtefactInfo
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.export import read_info
from edge_sfda.runtime.parity import Parity
from edge_sfda.runtime.refit import WeightTable

if TYPE_CHECKING:
    from onnx import ModelProto

REJECTED = ".rejected"


@dataclass(frozen=True)
class Delivered:
    """What was written: the artefact, under its name or aside, its report, and why it was kept aside."""

    path: Path
    report: Path
    problems: tuple[str, ...]
    numbers: Mapping[str, Any]


def deliver_onnx(model: ModelProto, parity: Parity, path: Path) -> Delivered:
    """Write a model and its report, the report first: no artefact is found without one.

    Args:
        model: as `export.to_onnx` gives it.
        parity: of that model.
        path: of the artefact; below the bounds it is written to `path` with `.rejected` added, and a file that is there
            under `path` stays.

    Raises:
        WriteError: a file cannot be written; none is half-written.
    """
    data = model.SerializeToString()
    problems = tuple(parity.problems())
    target = path.with_name(path.name + REJECTED) if problems else path
    numbers = _plain(
        {
            "artefact": target.name,
            "accepted": not problems,
            "problems": problems,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "info": asdict(read_info(model)),
            "parity": asdict(parity) | {"miou_lost": parity.miou_lost},
        }
    )
    text = "\n".join([*_head(target, len(data), read_info(model), problems), "", *_parity_lines(parity), ""])
    report = _write_report(target, numbers, text)
    write_atomic(target, data)
    return Delivered(target, report, problems, numbers)


def deliver_engine(engine: bytes, record: EngineFile, path: Path, *, model: ModelProto, parity: Parity) -> Delivered:
    """Write an engine, its record and its report.

    Args:
        engine: the bytes.
        record: of that engine.
        path: of the artefact.
        model: that it was built from, or refitted with.
        parity: of that model: what can be said of an engine where it cannot run.

    Raises:
        WriteError: a file cannot be written; none is half-written.
    """
    verified = "verified on this GPU" if record.verified_on_gpu else "not verified on a GPU"
    numbers = _plain(
        {
            "artefact": path.name,
            "accepted": True,
            "problems": [],
            "bytes": len(engine),
            "verified": verified,
            "engine": asdict(record) | {"engine_sha256": hashlib.sha256(engine).hexdigest()},
            "parity_of_onnx": asdict(parity) | {"miou_lost": parity.miou_lost},
        }
    )
    lines = [
        *_head(path, len(engine), record.info, ()),
        f"engine     {record.flavor}, TensorRT {record.tensorrt}, {record.gpu or 'built without a GPU'}"
        + (f", driver {record.driver}" if record.driver else ""),
        f"weights    {'can be swapped (refit)' if record.refittable else 'fixed'}",
        f"verified   {verified}",
        "",
        "The model that it was built from:",
        *_parity_lines(parity),
        "",
    ]
    report = _write_report(path, numbers, "\n".join(lines))
    if record.refittable:
        WeightTable.of(model).write(path)
    record.write(path, engine)
    return Delivered(path, report, (), numbers)


def _write_report(artefact: Path, numbers: Mapping[str, Any], text: str) -> Path:
    report = artefact.with_name(artefact.name + ".report.json")
    write_text_atomic(report, json.dumps(numbers, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    write_text_atomic(report.with_suffix(".txt"), text)
    return report


def _head(path: Path, size: int, info: ArtefactInfo, problems: tuple[str, ...]) -> list[str]:
    frame = "any size" if info.frame_size is None else "{}x{}".format(*info.frame_size)
    return [
        f"{path.name}: {'REJECTED' if problems else 'accepted'}",
        *(f"  {problem}" for problem in problems),
        "",
        f"made by    {info.producer} from checkpoint {info.checkpoint_sha256[:16]}",
        f"precision  {info.precision}, {size / 1e6:.2f} MB",
        f"frames     {frame}, {info.colour_order.upper()}; the network sees {info.network_size[0]}x"
        f"{info.network_size[1]}",
        f"outputs    {', '.join(info.outputs)}",
    ]


def _parity_lines(parity: Parity) -> list[str]:
    where = parity.conditions
    lines = [
        f"frames compared                {parity.frames}",
        f"same class as torch            {100 * parity.agreement:.4f} % of the pixels (the module that was traced)",
        f"mIoU against torch's masks     {100 * parity.miou_between:.3f}",
        f"largest error of a logit       {parity.max_logit_error:.3g} (largest logit {parity.max_logit:.3g})",
    ]
    if parity.max_confidence_error is not None:
        lines.append(f"largest error of a confidence  {parity.max_confidence_error:.3g}")
    how = "resized in the graph against on the host" if parity.resized else "no resize"
    lines.append(f"same class as the Predictor    {100 * parity.host_agreement:.4f} % of the pixels ({how})")
    if parity.miou_torch is not None and parity.miou_artefact is not None and parity.miou_lost is not None:
        lines.append(
            f"mIoU on {parity.labelled} labelled frames   torch {100 * parity.miou_torch:.2f}, "
            f"this {100 * parity.miou_artefact:.2f}, lost {100 * parity.miou_lost:.2f}"
        )
    return [
        *lines,
        f"layers as written              {_counts(parity.layers_asked)}",
        f"layers as ONNX Runtime ran it  {_counts(parity.layers_reached)} ({where['provider']})",
        f"latency of a frame             {_times(parity.artefact_ms)}, torch {_times(parity.torch_ms)}",
        f"                               {where['threads']} threads, ONNX Runtime {where['onnxruntime']}, "
        f"torch {where['torch']}, {where['machine']}",
    ]


def _counts(layers: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in layers.items()) or "none"


def _times(ms: tuple[float, float, float]) -> str:
    return f"{ms[1]:.1f} ms ({ms[0]:.1f} to {ms[2]:.1f})"


def _plain(value: Any) -> Any:
    """Return `value` for JSON: NaN and infinities, which it lacks, become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
