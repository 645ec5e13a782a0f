"""`edge-sfda evaluate`: hold a checkpoint's predictions against labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from edge_sfda.cli import options
from edge_sfda.cli.screen import OUT, note, percent, print_json, progress

if TYPE_CHECKING:
    from edge_sfda.manifest import Classes
    from edge_sfda.train.evaluation import Evaluation

EXAMPLES = options.examples(
    "edge-sfda evaluate source.safetensors camvid/Seq05VD",
    "edge-sfda evaluate adapted.safetensors drive-1 drive-2 --classes map.toml -o eval/",
    "edge-sfda evaluate adapted.safetensors scene:dusk --json | jq .miou",
)


def evaluate(
    checkpoint: options.Checkpoint,
    data: Annotated[list[str], typer.Argument(help="Labelled folders, or scene:DOMAIN.", show_default=False)],
    classes: options.ClassMap = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for report.json and confusion.png.", show_default=False),
    ] = None,
    as_json: options.Json = False,
    net: options.Net = None,
    device: options.Device = "auto",
) -> None:
    """Measure a checkpoint on labelled frames: IoU of each class, mIoU, accuracy, calibration error."""
    from edge_sfda.data.datasets import check_same_classes, open_dataset
    from edge_sfda.nets import Predictor, load
    from edge_sfda.report.run_folder import make_folder
    from edge_sfda.train import evaluation

    network, manifest = load(checkpoint, allow=net, device=options.resolve_device(device))
    labelled = open_dataset(data, classes=classes, default=manifest.classes)
    check_same_classes(labelled.classes, manifest.classes)
    if out is not None:
        make_folder(out)
    with progress("evaluating") as step:
        result = evaluation.evaluate(Predictor(network, manifest), labelled, on_frame=step)
    summary = {"checkpoint": checkpoint, "data": data, "frames": len(labelled), **_numbers(result, manifest.classes)}
    if out is not None:
        _write(out, summary, result, manifest.classes)
    if as_json:
        print_json(summary)
    else:
        _show(summary)


def _numbers(result: Evaluation, classes: Classes) -> dict[str, Any]:
    confusion = result.confusion
    labelled = confusion.counts.sum(axis=1)
    return {
        "miou": confusion.miou(),
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
    OUT.print(
        f"\n[bold]mIoU {percent(summary['miou'])} %[/bold]   accuracy {percent(summary['accuracy'])} %   "
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
