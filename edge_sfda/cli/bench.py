"""`edge-sfda bench`: artefacts compared on one set of frames, in one run in which they take turns."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sfda.cli import options
from edge_sfda.cli.screen import OUT, note, percent, print_json, progress

if TYPE_CHECKING:
    from edge_sfda.data.frames import U8
    from edge_sfda.manifest import Classes
    from edge_sfda.runtime.latency import Latency
    from edge_sfda.runtime.predict import Segmenter

EXAMPLES = options.examples(
    "edge-sfda bench student.onnx adapted.safetensors",
    "edge-sfda bench fp32.onnx int8.onnx --frames dusk/ --rounds 50 --threads 2",
    "edge-sfda bench student.engine student.onnx --json | jq '.artefacts[].fps'",
)

_MOST_FRAMES = 16  # held in memory; enough that no cache knows them


def bench(
    artefacts: Annotated[
        list[Path], typer.Argument(help=".onnx, .engine or checkpoints; the first is the measure.", show_default=False)
    ],
    frames: Annotated[str, typer.Option(help="Source of the frames.")] = "scene:dusk?frames=16",
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="Calls of each artefact.")] = 30,
    as_json: options.Json = False,
    net: options.Net = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Compare artefacts: frames per second, latency, and how far their masks agree with the first one's.

    They take turns, call by call, so that a machine that is busy for a while is busy for all of them.
    """
    from edge_sfda.runtime.predict import Segmenter

    with ExitStack() as stack:
        loaded = [
            stack.enter_context(Segmenter.load(path, device=device, threads=threads, net=net)) for path in artefacts
        ]
        images = _images(frames)
        measured = _measure(loaded, images, rounds)
        rows = [
            _row(path, segmenter, found, measured[0])
            for path, segmenter, found in zip(artefacts, loaded, measured, strict=True)
        ]
    if as_json:
        size = images[0].shape
        print_json({"frames": frames, "size": [size[0], size[1]], "rounds": rounds, "artefacts": rows})
    else:
        _show(rows)
        note(f"{rounds} calls each in turn, frames of {images[0].shape[0]}x{images[0].shape[1]}")


@dataclass(frozen=True)
class _Measured:
    classes: Classes
    latency: Latency
    masks: list[U8]


def _images(source: str) -> list[U8]:
    from edge_sfda.data.sources import open_source

    with open_source(source) as frames:
        return [frame.image for frame, _ in zip(frames, range(_MOST_FRAMES), strict=False)]


def _measure(segmenters: list[Segmenter], images: list[U8], rounds: int) -> list[_Measured]:
    """Return times and, frame by frame, the masks; what is counted begins once each has seen every frame."""
    from edge_sfda.runtime.latency import Latency

    measured = [
        _Measured(segmenter.classes, Latency(), [segmenter(image) for image in images]) for segmenter in segmenters
    ]
    order = list(range(len(segmenters)))
    with progress("measuring") as step:
        for index in range(rounds):
            first = index % len(order)
            # another one first in each round: what a call finds in the caches depends on the call before
            for which in order[first:] + order[:first]:
                seen = segmenters[which].predict(images[index % len(images)])
                measured[which].latency.add(seen.times)
            step(index + 1, rounds)
    return measured


def _row(path: Path, segmenter: Segmenter, found: _Measured, first: _Measured) -> dict[str, Any]:
    from edge_sfda.metrics import ConfusionMatrix

    percentiles = found.latency.percentiles()
    agreement = float("nan")  # between ids of other classes it would say nothing
    if found.classes == first.classes:
        matrix = ConfusionMatrix(256, 256)
        for mask, reference in zip(found.masks, first.masks, strict=True):
            matrix.update(mask, reference)
        agreement = matrix.accuracy()
    total = percentiles["total"]
    return {
        "artefact": path,
        "precision": segmenter.info.precision,
        "runs_on": segmenter.runs_on,
        "bytes": path.stat().st_size,
        "classes": len(segmenter.classes),
        "fps": 1e3 / total.p50_ms,
        "speed": first.latency.percentiles()["total"].p50_ms / total.p50_ms,
        "agreement": agreement,
        "latency": {part: asdict(ms) for part, ms in percentiles.items() if part != "capture"},
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption="milliseconds", caption_justify="right")
    table.add_column("artefact", overflow="fold")
    for title in ("MB", "fps", "speed", "same %", "pre", "net", "post", "p90", "p99"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        ms = row["latency"]
        table.add_row(
            Text(row["artefact"].name),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['fps']:.1f}",
            f"{row['speed']:.2f}x",
            percent(row["agreement"], digits=2),
            *(f"{ms[part]['p50_ms']:.2f}" for part in ("pre", "net", "post")),
            *(f"{ms['total'][key]:.1f}" for key in ("p90_ms", "p99_ms")),
        )
        note(f"{row['artefact'].name}: {row['precision']} on {row['runs_on']}")
    OUT.print(table)
