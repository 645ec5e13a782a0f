"""What every face over the loop shows: one snapshot, and the newest frame."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from edge_sfda.data.frames import U8, Frame
from edge_sfda.live.capture import CaptureStatus
from edge_sfda.runtime.engine import F32

STALE_S = 1.0  # without a frame before the newest mask counts as old: a camera of 2 Hz is a camera


class Phase(Enum):
    """What adaptation is doing."""

    OFF = "off"
    PAUSED = "paused"
    WATCHING = "watching"
    COLLECTING = "collecting"
    WAITING = "waiting"  # for the budget
    ADAPTING = "adapting"
    RECOMMENDING = "recommending"  # a candidate was found better and waits for a person


@dataclass(frozen=True)
class LoopStatus:
    """A moment of the loop.

    Args:
        phase: of adaptation.
        detail: in words: why it waits, what was decided last.
        step, steps: of the burst; 0 of 0 outside one.
        generation: deployed; 0 is the source.
        frames: predicted.
        fps: over the last seconds.
        latency_ms: p50 and p99 of a prediction, over the last few hundred frames.
        confidence: mean of the newest prediction.
        doubt: how far the trigger's signals are from their reference, in spreads.
        reliability, loss, agreement: of the burst's newest step; NaN outside one.
        stale: there is no sound frame now: the newest mask is an old one.
        restarts: of the worker, after it died or hung.
        learned_s: seconds of learning in the last hour.
        capture: how the camera does.
    """

    phase: Phase
    detail: str
    step: int
    steps: int
    generation: int
    frames: int
    fps: float
    latency_ms: tuple[float, float]
    confidence: float
    doubt: float
    reliability: float
    loss: float
    agreement: float
    stale: bool
    restarts: int
    learned_s: float
    capture: CaptureStatus


@dataclass(frozen=True, eq=False)
class Latest:
    """The newest prediction; arrays are not written to any more.

    Args:
        frame: as it came.
        mask: uint8 [H, W] of class ids.
        confidence: float32 [H, W] in 0..1, or None.
        fault: what is wrong with the frame, in words; empty for a sound one.
    """

    frame: Frame
    mask: U8
    confidence: F32 | None
    fault: str
