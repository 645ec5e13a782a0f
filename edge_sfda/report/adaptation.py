"""What an adaptation leaves in its run folder: checkpoint, report, curves, strip; and the numbers to print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sfda.manifest import Classes
from edge_sfda.report.run_folder import RunFolder
from edge_sfda.report.strip import StripRow, strip

if TYPE_CHECKING:  # torch stays out until there is an outcome, which brings it
    from edge_sfda.adapt.session import Outcome, Sample
    from edge_sfda.train.evaluation import Evaluation

CHECKPOINT = "adapted.safetensors"
_ROWS = 4  # of the strip: what fits on a screen


@dataclass(frozen=True)
class Origin:
    """What a report says of its run besides the numbers.

    Args:
        model: the source checkpoint as it was given.
        frames: the source of the frames as it was given.
        measured_on: in words, which frames the labels measured.
        online: each frame was predicted before it was learned from.
    """

    model: str
    frames: str
    measured_on: str
    online: bool

    @property
    def place(self) -> str:
        """The frames in short: a scene without its options, the last two parts of a path."""
        if ":" in self.frames:
            return self.frames.partition("?")[0]
        return "/".join(PurePath(self.frames).parts[-2:])


def write(run: RunFolder, outcome: Outcome, origin: Origin) -> dict[str, Any]:
    """Write checkpoint, report.json, curves.png and strip.png, and return the report.

    Raises:
        WriteError: a file cannot be written.
    """
    from edge_sfda import checkpoint

    manifest = outcome.manifest()
    checkpoint.save(run.path / CHECKPOINT, outcome.method.deployed.state_dict(), manifest)
    report = summarise(outcome, origin, manifest.classes)
    run.write_report(report)
    if any("loss" in row and not np.isnan(row["loss"]) for row in run.rows):
        run.write_curves(title=f"{report['method']} on {origin.place}")
    if outcome.samples:
        run.write_picture("strip", _strip(outcome, origin, manifest.classes))
    return report


def summarise(outcome: Outcome, origin: Origin, classes: Classes) -> dict[str, Any]:
    """Return the report of an outcome, made of plain values and NaN."""
    config = outcome.method.config
    report: dict[str, Any] = {
        "model": origin.model,
        "source": origin.frames,
        "protocol": "online" if origin.online else "offline",
        "method": config.method,
        "seed": config.seed,
        "frames": outcome.frames,
        "steps": outcome.steps,
        "seconds": outcome.seconds,
        "stopped": outcome.stopped,
        "unlabelled": _unlabelled(outcome.samples, classes),
        "labelled": None,
    }
    if outcome.before is not None and outcome.after is not None:
        report["labelled"] = {
            "frames": outcome.labelled,
            "measured_on": origin.measured_on,
            "before": _measures(outcome.before),
            "after": _measures(outcome.after),
            "classes": {
                name: {"before": float(before), "after": float(after)}
                for name, before, after in zip(
                    classes.names, outcome.before.confusion.iou(), outcome.after.confusion.iou(), strict=True
                )
            },
        }
    return report


def _measures(evaluation: Evaluation) -> dict[str, float]:
    return {
        "miou": evaluation.confusion.miou(),
        "accuracy": evaluation.confusion.accuracy(),
        "ece": evaluation.calibration.ece(),
    }


def _unlabelled(samples: tuple[Sample, ...], classes: Classes) -> dict[str, Any] | None:
    """What can be said without labels: how much changed, and towards which classes."""
    if not samples:
        return None
    before, after = (
        np.sum([np.bincount(mask.reshape(-1), minlength=len(classes)) for mask in masks], axis=0)
        for masks in ([s.before for s in samples], [s.after for s in samples])
    )
    changed = sum(int((s.before != s.after).sum()) for s in samples)
    total = int(before.sum())
    return {
        "frames": len(samples),
        "changed": changed / total,
        "shares": {
            name: {"before": float(b) / total, "after": float(a) / total}
            for name, b, a in zip(classes.names, before, after, strict=True)
        },
    }


def _strip(outcome: Outcome, origin: Origin, classes: Classes) -> Any:
    picked = np.linspace(0, len(outcome.samples) - 1, min(_ROWS, len(outcome.samples))).round().astype(int)
    rows = [
        StripRow(s.frame.image, s.before, s.after, s.label, s.reliability, s.frame.name)
        for s in (outcome.samples[index] for index in picked)
    ]
    config = outcome.method.config
    miou = None
    if outcome.before is not None and outcome.after is not None:
        miou = outcome.before.confusion.miou(), outcome.after.confusion.miou()
    note = f"{config.method} · {outcome.frames} frames · {outcome.steps} steps · seed {config.seed}"
    if miou is not None:
        note += f" · mIoU over {outcome.labelled} frames: {origin.measured_on}"
    return strip(rows, classes, title=f"Adapted to {origin.place} from its frames alone", note=note, miou=miou)
