"""`edge-sfda predict`: masks and overlays of the frames of a source."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from edge_sfda.cli import options
from edge_sfda.cli.screen import keeping, percent, print_json, progress, say

if TYPE_CHECKING:
    from edge_sfda.data.frames import Frame, FrameSource
    from edge_sfda.manifest import Classes
    from edge_sfda.nets import Predictor

EXAMPLES = options.examples(
    "edge-sfda predict adapted.safetensors frames/ -o out/",
    "edge-sfda predict adapted.safetensors drive.mp4 -o out/ --limit 100 --no-overlays",
    "edge-sfda predict adapted.safetensors /dev/video0 -o out/",
    "edge-sfda predict adapted.safetensors scene:fog -o out/ --json",
)


def predict(
    checkpoint: options.Checkpoint,
    source: Annotated[
        str,
        typer.Argument(help="Folder, picture, video, camera (/dev/video0, 0, rtsp://...), scene:DOMAIN."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for masks/ and overlays/.", show_default=False)],
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.", show_default=False)] = None,
    overlays: Annotated[bool, typer.Option(help="Write overlays beside the masks.")] = True,
    as_json: options.Json = False,
    net: options.Net = None,
    device: options.Device = "auto",
) -> None:
    """Segment the frames of a source: masks as PNG files of class ids, and overlays to look at."""
    from edge_sfda.data.sources import open_source
    from edge_sfda.nets import Predictor, load

    network, manifest = load(checkpoint, allow=net, device=options.resolve_device(device))
    with open_source(source) as frames:
        writer = _Writer(out, manifest.classes, overlays=overlays)
        with keeping(f"the masks so far are in {writer.masks}"):
            _run(frames, Predictor(network, manifest), writer, limit)
    shares = writer.shares()
    if as_json:
        print_json(
            {
                "frames": writer.frames,
                "masks": writer.masks,
                "overlays": writer.overlays,
                "classes": manifest.classes.names,
                "ignore_id": manifest.classes.ignore_id,
                "shares": dict(zip(manifest.classes.names, shares, strict=True)),
                "confidence": writer.confidence / writer.frames,
            }
        )
    else:
        say(f"{writer.frames} frames, mean confidence {percent(writer.confidence / writer.frames)} %")
        say(f"masks    {writer.masks}" + (f"\noverlays {writer.overlays}" if writer.overlays else ""))


def _run(frames: FrameSource, predictor: Predictor, writer: _Writer, limit: int | None) -> None:
    total = min((n for n in (frames.len_hint, limit) if n is not None), default=None)
    with progress("predicting") as step:
        for frame in itertools.islice(frames, limit):
            mask, confidence = predictor(frame.image)
            writer.write(frame, mask, float(confidence.mean()))
            step(writer.frames, total)


class _Writer:
    """Puts masks and overlays under `out`, one name a frame, and counts."""

    def __init__(self, out: Path, classes: Classes, *, overlays: bool) -> None:
        from edge_sfda.report.run_folder import make_folder

        self.masks = out / "masks"
        self.overlays = out / "overlays" if overlays else None
        self.classes = classes
        self.frames = 0
        self.confidence = 0.0
        self._pixels = np.zeros(256, np.int64)
        self._names: set[str] = set()
        for folder in (self.masks, self.overlays):
            if folder is not None:
                make_folder(folder)

    def write(self, frame: Frame, mask: np.ndarray, confidence: float) -> None:
        from edge_sfda.data.frames import write_png
        from edge_sfda.report.pictures import overlay

        name = frame.name or f"{frame.seq:06d}"
        if name in self._names:  # a folder may hold a.jpg and a.png
            name = f"{name}-{frame.seq:06d}"
        self._names.add(name)
        write_png(self.masks / f"{name}.png", mask)
        if self.overlays is not None:
            write_png(self.overlays / f"{name}.png", overlay(frame.image, mask, self.classes))
        self.frames += 1
        self.confidence += confidence
        self._pixels += np.bincount(mask.reshape(-1), minlength=256)

    def shares(self) -> list[float]:
        counted = self._pixels[: len(self.classes)]
        return [float(share) for share in counted / max(1, counted.sum())]
