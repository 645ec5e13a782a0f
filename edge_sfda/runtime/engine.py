"""What runs an artefact: one contract over torch, ONNX Runtime and TensorRT, and what loads a file. No torch."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_sfda.errors import ArtefactError, EngineError, UsageError
from edge_sfda.runtime.artefact import ArtefactInfo
from edge_sfda.runtime.intake import Frames

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

ENGINE_SUFFIXES = (".engine", ".plan")
ONNX_SUFFIX = ".onnx"

_REJECTED = ".rejected"


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where and how an artefact runs.

    Raises:
        UsageError: a value is out of range.
    """

    # cpu, cuda, cuda:N; auto takes a GPU where there is one. What was asked for is what runs, or it is an error
    device: str = "auto"
    # of the CPU for one frame; None leaves it to the library, which takes all cores. Of torch: for the whole process
    threads: int | None = None
    # module:factory of a network of your own that a checkpoint may run; exported artefacts need none
    net: str | None = None

    def __post_init__(self) -> None:
        kind, _, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
            raise UsageError(f"device {self.device!r} is not known; expected auto, cpu, cuda or cuda:NUMBER")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UsageError(f"threads {self.threads} must lie in 1..1024")

    @property
    def gpu(self) -> int:
        """Number of the GPU that is asked for, or 0."""
        return int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True, eq=False)
class Outputs:
    """What an engine gives: views of its own buffers, good until its next call.

    Args:
        mask: uint8 [B, H, W], class ids at the frames' size.
        confidence: float32 [B, H, W] in 0..1, the softmax probability of the winner; None if not asked for.
        logits: float32 [B, C, h, w] at logits size; None if not asked for.
    """

    mask: U8
    confidence: F32 | None = None
    logits: F32 | None = None


class Engine(Protocol):
    """One loaded artefact. Not for several threads at once: `Segmenter` sees to that.

    Attributes:
        info: of the artefact; frames are of `info.frame_size` where that is fixed.
        runs_on: library, device and threads in words, for people.
        device: number of the GPU on which `DeviceFrames` are taken as they lie; None: host memory only.
        max_batch: frames in one call at most.
    """

    info: ArtefactInfo
    runs_on: str
    device: int | None
    max_batch: int

    @abstractmethod
    def run(self, frames: Frames, outputs: tuple[str, ...]) -> Outputs:
        """Segment a batch.

        Args:
            frames: uint8 [B, H, W, 3], contiguous, in the artefact's colour order and size.
            outputs: which of `info.outputs` are wanted; `mask` always comes.

        Raises:
            EngineError: it cannot be run, or is closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Release memory and device; a second time does nothing."""


def open_engine(path: str | Path, config: EngineConfig) -> Engine:
    """Load an artefact: `.onnx` in ONNX Runtime, `.engine` or `.plan` in TensorRT, anything else as a checkpoint.

    Args:
        path: the file; a record belongs beside an engine.
        config: where and how.

    Raises:
        ArtefactError, CheckpointError: the file is missing, damaged or foreign.
        EngineError: its runtime or device is not here; nothing falls back in silence.
    """
    path = Path(path)
    if path.suffix == _REJECTED:
        raise ArtefactError(
            f"{path} did not agree with its checkpoint and was kept aside; its report says in what, export it again"
        )
    if path.suffix == ONNX_SUFFIX:
        from edge_sfda.runtime.engine_onnx import OnnxEngine

        return OnnxEngine(path, config)
    if path.suffix in ENGINE_SUFFIXES:
        from edge_sfda.runtime.engine_tensorrt import open_tensorrt

        return open_tensorrt(path, config)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise EngineError(
            f"running a checkpoint needs torch, which does not import here ({error}); install it, or export {path} to "
            "ONNX where it is"
        ) from error
    from edge_sfda.runtime.engine_torch import TorchEngine

    return TorchEngine(path, config)


def warm(engine: Engine, shape: tuple[int, int, int, int]) -> None:
    """Run an engine once on black frames [B, H, W, 3], so that the first real one finds everything allocated."""
    batch, height, width, _ = shape
    height, width = engine.info.frame_size or (height, width)
    black = np.zeros((min(batch, engine.max_batch), height, width, 3), np.uint8)
    engine.run(black, engine.info.outputs)
