"""`edge-sfda evaluate`: hold a checkpoint's predictions against labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edge_sfda.cli import options
from edge_sfda.cli.screen import OUT, note, percent, print_json, progress
from edge_sfda.errors import UsageError

if TYPE_CHECKING:
    from edge_sfda.manifest import Classes
    from edge_sfda.train.evaluation import Evaluation

EXAMPLES = options.examples(
    "edge-sfda evaluate source.safetensors camvid/Seq05VD",
    "edge-sfda evaluate adapted.safetensors drive-1 drive-2 --classes map.toml -o eval/",
    "edge-sfda evaluate adapted.safetensors scene:dusk --json | jq .miou",
    "# a network of SYNTHIA's 16 classes, also by the mean over 13 of them",
    "edge-sfda evaluate synthia.safetensors cityscapes/leftImg8bit/val --over cityscapes-13",
)


def evaluate(
    checkpoint: options.Checkpoint,
    data: Annotated[list[str], typer.Argument(help="Labelled folders, or scene:DOMAIN.", show_default=False)],
    classes: options.ClassMap = None,
    over: Annotated[
        str | None,
        typer.Option(
            help="Class map whose classes the mean is over; else those that the labels know.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for report.json and confusion.png.", show_default=False),
    ] = None,
    as_json: options.Json = False,
    net: options.Net = None,
    device: options.Device = "auto",
) -> None:
    """Measure a checkpoint on labelled frames: IoU of each class, mIoU, accuracy, calibration error."""
    from edge_sfda.data.datasets import Renumbered, open_dataset
    from edge_sfda.nets import Predictor, load
    from edge_sfda.report.run_folder import make_folder
    from edge_sfda.train import evaluation

    network, manifest = load(checkpoint, allow=net, device=device)
    labelled = open_dataset(data, classes=classes, default=manifest.classes)
    counted = _counted(over, labelled.classes, manifest.classes)
    if labelled.classes.names != manifest.classes.names:
        labelled = Renumbered(labelled, manifest.classes)
    if out is not None:
        make_folder(out)
    with progress("evaluating") as step:
        result = evaluation.evaluate(Predictor(network, manifest), labelled, on_frame=step)
    summary = {
        "checkpoint": checkpoint,
        "data": data,
        "frames": len(labelled),
        **_numbers(result, manifest.classes, counted),
    }
    if out is not None:
        _write(out, summary, result, manifest.classes)
    if as_json:
        print_json(summary)
    else:
        _show(summary)


def _counted(over: str | None, labelled: Classes, classes: Classes) -> tuple[str, ...]:
    """Return the names of the classes that the mean is over."""
    from edge_sfda.data import class_maps

    wanted = class_maps.resolve(over).classes if over else labelled
    unknown = [name for name in wanted.names if name not in classes.names or name not in labelled.names]
    if unknown and over:
        raise UsageError(
            f"--over {over} names {', '.join(unknown)}; the mean can be over those that network and labels share: "
            + ", ".join(name for name in classes.names if name in labelled.names)
        )
    return wanted.names


def _numbers(result: Evaluation, classes: Classes, counted: tuple[str, ...]) -> dict[str, Any]:
    confusion = result.confusion
    labelled = confusion.counts.sum(axis=1)
    return {
        "miou": confusion.miou([classes.names.index(name) for name in counted]),
        "miou_over": list(counted),
        "accuracy": confusion.accuracy(),
        "ece": result.calibration.ece(),
        "classes": {
            name: {"iou": float(iou), "recall": float(recall), "pixels": int(pixels)}
            for name, iou, recall, pixels in zip(
                classes.names, confusion.iou(), confusion.recall(), labelled, strict=True
            )
        },
    }


def _show(summary: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("class")
    for title in ("IoU %", "recall %", "of the pixels %"):
        table.add_column(title, justify="right")
    total = max(1, sum(entry["pixels"] for entry in summary["classes"].values()))
    for name, entry in summary["classes"].items():
        share = percent(entry["pixels"] / total, digits=2)
        table.add_row(name, percent(entry["iou"]), percent(entry["recall"]), share)
    OUT.print(table)
    counted, known = len(summary["miou_over"]), len(summary["classes"])
    over = f" over {counted} of {known} classes" if counted < known else ""
    OUT.print(
        f"\n[bold]mIoU {percent(summary['miou'])} %{over}[/bold]   accuracy {percent(summary['accuracy'])} %   "
        f"calibration error {percent(summary['ece'])} %   {summary['frames']} frames"
    )


def _write(out: Path, summary: dict[str, Any], result: Evaluation, classes: Classes) -> None:
    from edge_sfda.data.frames import write_png
    from edge_sfda.files import write_text_atomic
    from edge_sfda.report.pictures import confusion_picture
    from edge_sfda.report.plain import to_json

    counts = result.confusion.counts
    write_text_atomic(out / "report.json", to_json({**summary, "confusion": counts}) + "\n")
    write_png(out / "confusion.png", confusion_picture(counts, classes))
    note(f"wrote {out / 'report.json'} and {out / 'confusion.png'}")
