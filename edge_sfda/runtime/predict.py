"""The inference API for robotics code: frame in, mask out, over any artefact. Imports no torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

from edge_sfda.data import paint
from edge_sfda.data.frames import Frame, FrameSource, mask_to_size
from edge_sfda.errors import ArtefactError, EngineError, FrameError, UsageError
from edge_sfda.manifest import Classes
from edge_sfda.runtime.artefact import COLOUR_ORDERS, ArtefactInfo
from edge_sfda.runtime.engine import F32, U8, Engine, EngineConfig, Outputs, open_engine, warm
from edge_sfda.runtime.intake import DeviceFrames, Frames, as_frames

if TYPE_CHECKING:
    from typing_extensions import Self  # typing.Self came with Python 3.11

_AREA_FROM = 2.0  # shrinking by more than this, linear sampling skips pixels: as in `data.frames.to_input`


@dataclass(frozen=True)
class Times:
    """Where the time of one call went, in milliseconds.

    Args:
        capture_ms: waiting for the frame; 0 unless it came from `Segmenter.stream`.
        pre_ms: checking, and resizing or swapping channels where the artefact needs it.
        net_ms: the engine, with all that stands inside the artefact.
        post_ms: bringing the results to the frame's size and into arrays of their own.
    """

    capture_ms: float
    pre_ms: float
    net_ms: float
    post_ms: float


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was seen in a frame, in arrays of the caller's own; of a batch, each with B in front.

    Args:
        mask: uint8 [H, W], class ids at the frame's own size.
        confidence: float32 [H, W] in 0..1, the softmax probability of the class; None if the artefact gives none.
        logits: float32 [C, h, w] at the network's stride; None if the artefact gives none.
        times: of the call.
    """

    mask: U8
    confidence: F32 | None
    logits: F32 | None
    times: Times


class Segmenter:
    """Calls an artefact on frames as they come, from any thread, while it may be swapped for another one.

    Frames are HWC uint8, 0..255, of any size from the network's smallest on, BGR unless the artefact was exported for
    RGB or `colour_order` says otherwise. Masks have the frame's own size. An artefact made for one frame size is given
    frames resized to it (area averaging where they shrink more than twice, else linear); its mask goes back by the
    nearest pixel.

        with Segmenter.load("student.onnx") as segment:
            mask = segment(frame)

    Args:
        engine: what runs; `Segmenter.load` makes it from a file. It is closed with this.
        config: of the engines that `swap` loads.
        colour_order: `bgr` or `rgb`, of the frames that callers give; None: as the artefact has it.

    Raises:
        UsageError: an unknown colour order.
    """

    def __init__(self, engine: Engine, *, config: EngineConfig | None = None, colour_order: str | None = None) -> None:
        self.colour_order = engine.info.colour_order if colour_order is None else colour_order
        if self.colour_order not in COLOUR_ORDERS:
            raise UsageError(f"colour order {colour_order!r} is not known; expected {' or '.join(COLOUR_ORDERS)}")
        self._engine: Engine | None = engine
        self._config = config or EngineConfig()
        self._running = threading.Lock()  # an engine has one set of buffers
        self._swapping = threading.Lock()
        self._shape = (1, *(engine.info.frame_size or engine.info.network_size), 3)  # of the last call

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        net: str | None = None,
        colour_order: str | None = None,
    ) -> Self:
        """Load an artefact and run it once, so that the first frame is as quick as the others.

        Args:
            path: `.onnx`, `.engine` with its record beside it, or a checkpoint (which imports torch).
            device: `cpu`, `cuda`, `cuda:N`; `auto` takes a GPU where there is one. Nothing falls back in silence.
            threads: of the CPU; None leaves it to the library.
            net: `module:factory` of a network of your own that a checkpoint may run.
            colour_order: `bgr` or `rgb`, of the frames that will be given; None: as the artefact has it.

        Raises:
            ArtefactError, CheckpointError: the file is missing, damaged or foreign.
            EngineError: its runtime or the device is not here.
            UsageError: an argument is out of range.
        """
        config = EngineConfig(device=device, threads=threads, net=net)
        return cls(_open_warm(path, config, None), config=config, colour_order=colour_order)

    @property
    def info(self) -> ArtefactInfo:
        """What the artefact says about itself."""
        return self._open().info

    @property
    def classes(self) -> Classes:
        """Names, palette and void id; the same after every swap."""
        return self.info.classes

    @property
    def palette(self) -> U8:
        """uint8 [C, 3] RGB: the colour of each class."""
        return np.array(self.classes.palette, np.uint8)

    @property
    def runs_on(self) -> str:
        """Library, device and threads in words."""
        return self._open().runs_on

    def __call__(self, frame: Any) -> U8:
        """Segment one frame: uint8 [H, W, 3] -> uint8 [H, W] of class ids. See `predict`."""
        return _first(self._segment(frame, self.colour_order, outputs=("mask",))).mask

    def predict(self, frame: Any) -> Segmentation:
        """Segment one frame, with all that the artefact gives.

        Args:
            frame: uint8 [H, W, 3], 0..255: a numpy array, or anything with DLPack or `__cuda_array_interface__`. What
                lies on the engine's GPU is read there, without a copy to the host.

        Raises:
            FrameError: wrong type, dtype, layout or size, or it lies where the engine cannot read it.
            EngineError: the engine failed, or is closed.
        """
        return _first(self._segment(frame, self.colour_order))

    def batch(self, frames: Any) -> Segmentation:
        """Segment frames of one size together.

        Args:
            frames: uint8 [B, H, W, 3] as for `predict`, or a list of frames [H, W, 3] of one size.

        Returns:
            arrays with B in front.

        Raises:
            FrameError, EngineError: as for `predict`.
        """
        return self._segment(frames, self.colour_order, batch=True)

    def stream(self, source: str | FrameSource) -> Iterator[tuple[Frame, Segmentation]]:
        """Segment the frames of a source, one after another, and close it at the end.

        Args:
            source: what `open_source` takes (folder, picture, video, camera, `scene:dusk`), or a source that is open.

        Yields:
            the frame, BGR as sources have it, and what was seen in it.

        Raises:
            SourceError, FrameError: it does not open, or a frame that should be there cannot be had.
        """
        from edge_sfda.data.sources import open_source

        with ExitStack() as stack:
            frames = stack.enter_context(open_source(source) if isinstance(source, str) else source)
            while True:
                start = time.perf_counter()
                try:
                    frame = next(frames)
                except StopIteration:
                    return
                capture_ms = 1e3 * (time.perf_counter() - start)
                seen = _first(self._segment(frame.image, "bgr"))
                yield frame, replace(seen, times=replace(seen.times, capture_ms=capture_ms))

    def overlay(self, frame: U8, mask: U8, *, alpha: float = 0.6) -> U8:
        """Return the frame with the mask's colours over it, in the colour order of `self`; uint8 [H, W, 3].

        Args:
            frame: uint8 [H, W, 3].
            mask: uint8 [H, W] of class ids, of the frame's size; void shows the frame alone.
            alpha: share of the colour, 0..1.

        Raises:
            LabelError: the mask has another size, or holds what is no class.
        """
        if self.colour_order == "bgr":
            return paint.overlay(frame, mask, self.classes, alpha=alpha)
        return _swapped(paint.overlay(_swapped(frame), mask, self.classes, alpha=alpha))

    def prepare(self, path: str | Path) -> Prepared:
        """Load and warm another artefact for `swap`, from any thread; calls go on meanwhile.

        Args:
            path: as for `load`.

        Raises:
            ArtefactError, EngineError: as for `load`; nothing is changed.
        """
        return Prepared(_open_warm(path, self._config, self._shape), path)

    def swap(self, new: str | Path | Prepared) -> None:
        """Take another artefact into use between two frames; calls go on meanwhile, on the old one.

        Whatever is wrong with it is raised here, and the old one stays.

        Args:
            new: what `prepare` gave, which is used up; or a path as for `load`, prepared here.

        Raises:
            ArtefactError: as for `load`; or its classes are others, or it lacks an output that the old one gives.
            EngineError: as for `load`; or this is closed.
        """
        prepared = new if isinstance(new, Prepared) else self.prepare(new)
        with self._swapping:
            try:
                _check_exchange(self._open().info, prepared.engine.info, prepared.path)
                with self._running:
                    old, self._engine = self._open(), prepared.engine
            except BaseException:
                prepared.close()
                raise
            old.close()  # no call is in it: those that come now find the new one

    def close(self) -> None:
        """Release the engine after its last call; a second time does nothing."""
        with self._swapping, self._running:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise EngineError("this Segmenter is closed; load the artefact again")
        return engine

    def _segment(
        self, given: Any, order: str, *, batch: bool = False, outputs: tuple[str, ...] | None = None
    ) -> Segmentation:
        """Return the segmentation of a batch, or of one frame as a batch of one."""
        with self._running:
            engine = self._open()
            start = time.perf_counter()
            frames = as_frames(given, min_side=engine.info.min_side, batch=batch)
            self._shape = frames.shape
            fitted = _fitted(frames, engine, order)
            wanted = engine.info.outputs if outputs is None else outputs
            parts, net_s = [], 0.0
            ready = time.perf_counter()
            for part, again in _parts(fitted, engine.max_batch):
                before = time.perf_counter()
                found = engine.run(part, wanted)
                net_s += time.perf_counter() - before
                # copied before the next call takes the engine's buffers
                parts.append(_own(_without(found, again), wanted, frames.shape[1], frames.shape[2]))
            end = time.perf_counter()
        times = Times(0.0, 1e3 * (ready - start), 1e3 * net_s, 1e3 * (end - ready - net_s))
        return Segmentation(
            _joined([part.mask for part in parts]),
            _joined_or_none([part.confidence for part in parts]),
            _joined_or_none([part.logits for part in parts]),
            times,
        )


@dataclass(frozen=True, eq=False)
class Prepared:
    """An artefact that is loaded and warm; `close` it where it is not swapped in after all."""

    engine: Engine
    path: str | Path

    def close(self) -> None:
        """Release it."""
        self.engine.close()


def _open_warm(path: str | Path, config: EngineConfig, shape: tuple[int, int, int, int] | None) -> Engine:
    with ExitStack() as stack:
        engine = stack.enter_context(closing(open_engine(path, config)))
        warm(engine, shape or (1, *(engine.info.frame_size or engine.info.network_size), 3))
        stack.pop_all()  # it stays open
    return engine


def _check_exchange(old: ArtefactInfo, new: ArtefactInfo, path: str | Path) -> None:
    if new.classes != old.classes:
        raise ArtefactError(
            f"{path} has the classes {', '.join(new.classes.names)}, in use are {', '.join(old.classes.names)}, or "
            "their colours differ; load it as a Segmenter of its own"
        )
    missing = [name for name in old.outputs if name not in new.outputs]
    if missing:
        raise ArtefactError(f"{path} gives no {' and no '.join(missing)}, the one in use does; export it with the same")


def _fitted(frames: Frames, engine: Engine, order: str) -> Frames:
    """Bring frames to the artefact's size and colour order, where they are not in it."""
    size = engine.info.frame_size
    resize = size is not None and frames.shape[1:3] != size
    swap = order != engine.info.colour_order
    if isinstance(frames, DeviceFrames):
        _check_device(frames, engine, resize=resize, swap=swap)
        return frames
    if resize:
        assert size is not None, "see above"
        frames = np.stack([_resized(frame, *size) for frame in frames])
    return np.stack([_swapped(frame) for frame in frames]) if swap else frames


def _check_device(frames: DeviceFrames, engine: Engine, *, resize: bool, swap: bool) -> None:
    where = f"frame lies on GPU {'?' if frames.device is None else frames.device}"
    if engine.device is None:
        raise FrameError(
            f"{where} and the engine runs on {engine.runs_on}; bring it to the host first (.cpu(), .get())"
        )
    if frames.device not in (None, engine.device):
        raise FrameError(f"{where} and the engine runs on GPU {engine.device}; bring it there first")
    if resize:
        raise FrameError(
            f"{where} and is {frames.shape[1]}x{frames.shape[2]}, the artefact takes {engine.info.frame_size}; frames "
            "on a GPU are not resized here, export for their size with --size or for any with --dynamic"
        )
    if swap:
        raise FrameError(
            f"{where} in another colour order than the artefact's {engine.info.colour_order}; swap its channels first"
        )


def _resized(frame: U8, height: int, width: int) -> U8:
    shrink = max(frame.shape[0] / height, frame.shape[1] / width)
    how = cv2.INTER_AREA if shrink > _AREA_FROM else cv2.INTER_LINEAR
    return cast(U8, cv2.resize(frame, (width, height), interpolation=how))


def _swapped(frame: U8) -> U8:
    return cast(U8, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


def _parts(frames: Frames, most: int) -> Iterator[tuple[Frames, int]]:
    """Cut a batch into calls that the engine takes, all of one size: a TensorRT engine plans its memory for one.

    Yields:
        the part, and how many of its first frames were in the part before it as well.
    """
    count = frames.shape[0]
    calls = -(-count // most)
    size = -(-count // calls)
    for index in range(calls):
        start = min(index * size, count - size)
        if isinstance(frames, DeviceFrames):
            step = frames.shape[1] * frames.shape[2] * 3  # bytes of a frame
            part: Frames = replace(frames, pointer=frames.pointer + start * step, shape=(size, *frames.shape[1:]))
        else:
            part = frames[start : start + size]
        yield part, index * size - start


def _without(found: Outputs, first: int) -> Outputs:
    """Return the outputs of a batch without those of its first frames."""
    if first == 0:
        return found
    confidence = None if found.confidence is None else found.confidence[first:]
    return Outputs(found.mask[first:], confidence, None if found.logits is None else found.logits[first:])


def _own(found: Outputs, wanted: Sequence[str], height: int, width: int) -> Outputs:
    """Copy results out of the engine's buffers, to the size of the frames."""
    confidence = found.confidence if "confidence" in wanted else None
    if found.mask.shape[1:] == (height, width):
        mask = found.mask.copy()
        confidence = None if confidence is None else confidence.copy()
    else:
        mask = np.stack([mask_to_size(one, height, width) for one in found.mask])
        confidence = None if confidence is None else np.stack([_stretched(one, height, width) for one in confidence])
    logits = found.logits.copy() if "logits" in wanted and found.logits is not None else None
    return Outputs(mask, confidence, logits)


def _stretched(confidence: F32, height: int, width: int) -> F32:
    return cast(F32, cv2.resize(confidence, (width, height), interpolation=cv2.INTER_LINEAR))


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _joined_or_none(parts: list[Any]) -> Any:
    return None if parts[0] is None else _joined(parts)


def _first(batch: Segmentation) -> Segmentation:
    return Segmentation(
        batch.mask[0],
        None if batch.confidence is None else batch.confidence[0],
        None if batch.logits is None else batch.logits[0],
        batch.times,
    )
