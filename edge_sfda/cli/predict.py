"""`edge-sfda predict`: masks, overlays and a video of the frames of a source, by any artefact."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from edge_sfda.cli import options
from edge_sfda.cli.screen import OUT, keeping, note, percent, print_json, progress, say

if TYPE_CHECKING:
    from edge_sfda.data.bags import BagWriter
    from edge_sfda.data.frames import Frame, FrameSource
    from edge_sfda.data.video import VideoWriter
    from edge_sfda.manifest import Classes
    from edge_sfda.runtime.latency import Latency
    from edge_sfda.runtime.predict import Segmentation, Segmenter

EXAMPLES = options.examples(
    "edge-sfda predict frames/ --model adapted.safetensors -o out/ --overlay",
    "edge-sfda predict drive.mp4 --model student.onnx --video out.mp4 --limit 100",
    "edge-sfda predict /dev/video0 --model student.engine -o out/",
    "edge-sfda predict scene:fog --model student.onnx --json",
    "edge-sfda predict run.mcap --topic /camera/image_raw --model student.onnx -o masks.mcap",
)


def predict(
    source: Annotated[
        str,
        typer.Argument(help="Folder, picture, video, camera (/dev/video0, 0, rtsp://...), ROS bag, scene:DOMAIN."),
    ],
    model: options.Artefact,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for masks/ and overlays/; with .mcap as --bag.", show_default=False),
    ] = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write overlays beside the masks.")] = False,
    video: Annotated[
        Path | None, typer.Option("--video", help="Write the overlays as a video (.mp4, .avi).", show_default=False)
    ] = None,
    bag: Annotated[
        Path | None,
        typer.Option(
            "--bag",
            help="Write the masks as a ROS 2 bag, a folder or one .mcap, stamped as their frames.",
            show_default=False,
        ),
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Of a ROS bag: the images to read.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.", show_default=False)] = None,
    as_json: options.Json = False,
    net: options.Net = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Segment the frames of a source: masks as PNG files of class ids, overlays to look at, and how long it took.

    The model is an exported .onnx or .engine, or a checkpoint. Without -o, --video and --bag it only takes the time.
    """
    from edge_sfda.data.bags import with_topic
    from edge_sfda.data.sources import open_source
    from edge_sfda.errors import UsageError
    from edge_sfda.runtime.latency import Latency
    from edge_sfda.runtime.predict import Segmenter

    if out is not None and out.suffix.lower() == ".mcap":
        if bag is not None:
            raise UsageError(f"-o {out} and --bag {bag} both name a bag; give one, or -o a folder")
        out, bag = None, out
    if overlay and out is None:
        raise UsageError("--overlay writes into the folder of -o; give one, or --video for a film of them")
    with ExitStack() as stack:
        segmenter = stack.enter_context(Segmenter.load(model, device=device, threads=threads, net=net))
        frames = stack.enter_context(open_source(with_topic(source, topic)))
        film = stack.enter_context(_open_video(video, frames)) if video is not None else None
        messages = stack.enter_context(_open_bag(bag)) if bag is not None else None
        results = _Results(segmenter, out, film, messages, overlays=overlay)
        latency = Latency()
        with keeping(results.kept()):
            _run(frames, segmenter, results, latency, limit)
    _report(results, latency, segmenter_on=results.runs_on, as_json=as_json)


def _open_video(path: Path, frames: FrameSource) -> VideoWriter:
    from edge_sfda.data.video import VideoWriter

    return VideoWriter(path, fps=frames.fps)


def _open_bag(path: Path) -> BagWriter:
    from edge_sfda.data.bags import BagWriter

    return BagWriter(path)


def _run(frames: FrameSource, segmenter: Segmenter, results: _Results, latency: Latency, limit: int | None) -> None:
    total = min((n for n in (frames.len_hint, limit) if n is not None), default=None)
    with progress("predicting") as step:
        for frame, seen in itertools.islice(segmenter.stream(frames), limit):
            latency.add(seen.times)
            results.take(frame, seen)
            step(results.frames, total)


class _Results:
    """Puts masks and overlays under `out`, into a video and into a bag, one name a frame, and counts."""

    def __init__(
        self,
        segmenter: Segmenter,
        out: Path | None,
        video: VideoWriter | None,
        bag: BagWriter | None,
        *,
        overlays: bool,
    ) -> None:
        from edge_sfda.report.run_folder import make_folder

        self.masks = None if out is None else out / "masks"
        self.overlays = out / "overlays" if out is not None and overlays else None
        self.video, self.bag = video, bag
        self.classes: Classes = segmenter.classes
        self.runs_on = segmenter.runs_on
        self.frames = 0
        self._confidence = 0.0
        self._pixels = np.zeros(256, np.int64)
        self._names: set[str] = set()
        for folder in (self.masks, self.overlays):
            if folder is not None:
                make_folder(folder)

    def kept(self) -> str:
        """Return in words what an interrupt leaves."""
        kept = [f"the masks so far are in {self.masks}"] if self.masks is not None else []
        kept += [f"the video so far is {self.video.path}"] if self.video is not None else []
        kept += [f"the bag so far is {self.bag.path}"] if self.bag is not None else []
        return ", ".join(kept) or "nothing was written"

    def take(self, frame: Frame, seen: Segmentation) -> None:
        from edge_sfda.data.frames import write_png
        from edge_sfda.data.paint import overlay

        self.frames += 1
        self._confidence += float("nan") if seen.confidence is None else float(seen.confidence.mean())
        self._pixels += np.bincount(seen.mask.reshape(-1), minlength=256)
        name = self._name(frame)
        if self.masks is not None:
            write_png(self.masks / f"{name}.png", seen.mask)
        if self.bag is not None:
            self.bag.write(seen.mask, frame)
        if self.overlays is None and self.video is None:
            return
        picture = overlay(frame.image, seen.mask, self.classes)
        if self.overlays is not None:
            write_png(self.overlays / f"{name}.png", picture)
        if self.video is not None:
            self.video.write(picture)

    def _name(self, frame: Frame) -> str:
        if self.masks is None:  # no files, so no names to keep apart
            return ""
        name = frame.name or f"{frame.seq:06d}"
        if name in self._names:  # a folder may hold a.jpg and a.png
            name = f"{name}-{frame.seq:06d}"
        self._names.add(name)
        return name

    @property
    def confidence(self) -> float:
        """Mean over all pixels; NaN where the artefact gives none."""
        return self._confidence / max(1, self.frames)

    def shares(self) -> list[float]:
        counted = self._pixels[: len(self.classes)]
        return [float(share) for share in counted / max(1, counted.sum())]


def _report(results: _Results, latency: Latency, *, segmenter_on: str, as_json: bool) -> None:
    video = None if results.video is None else results.video.path
    bag = None if results.bag is None else results.bag.path
    if as_json:
        print_json({**_numbers(results, latency, segmenter_on, video), "bag": bag})
        return
    note(f"ran on {segmenter_on}")
    say(f"{results.frames} frames, mean confidence {percent(results.confidence)} %")
    for title, path in (("masks", results.masks), ("overlays", results.overlays), ("video", video), ("bag", bag)):
        if path is not None:
            say(f"{title:<8} {path}")
    OUT.print(latency_table(latency))


def _numbers(results: _Results, latency: Latency, segmenter_on: str, video: Path | None) -> dict[str, Any]:
    return {
        "frames": results.frames,
        "runs_on": segmenter_on,
        "masks": results.masks,
        "overlays": results.overlays,
        "video": video,
        "classes": results.classes.names,
        "ignore_id": results.classes.ignore_id,
        "shares": dict(zip(results.classes.names, results.shares(), strict=True)),
        "confidence": results.confidence,
        "latency": {part: asdict(ms) for part, ms in latency.percentiles().items()},
    }


def latency_table(latency: Latency) -> Any:
    """Return a table of percentiles: a row for each part of a frame's way."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("latency")
    for title in ("p50 ms", "p90 ms", "p99 ms"):
        table.add_column(title, justify="right")
    for part, ms in latency.percentiles().items():
        table.add_row(part, f"{ms.p50_ms:.2f}", f"{ms.p90_ms:.2f}", f"{ms.p99_ms:.2f}")
    return table
