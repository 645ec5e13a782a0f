"""An engine without a network, for tests of what stands around one: yours as well."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_sfda.errors import EngineError
from edge_sfda.manifest import Classes
from edge_sfda.runtime.artefact import ArtefactInfo
from edge_sfda.runtime.engine import U8, Engine, Outputs
from edge_sfda.runtime.intake import DeviceFrames, Frames

FAKE_CLASSES = Classes(("dark", "light"), ((20, 20, 60), (250, 250, 200)))


def fake_info(
    classes: Classes = FAKE_CLASSES,
    *,
    frame_size: tuple[int, int] | None = None,
    outputs: tuple[str, ...] = ("mask", "confidence"),
    colour_order: str = "bgr",
    min_side: int = 8,
) -> ArtefactInfo:
    """Return the record of an artefact that never was."""
    return ArtefactInfo(
        classes=classes,
        colour_order=colour_order,
        frame_size=frame_size,
        network_size=frame_size or (64, 96),
        outputs=outputs,
        precision="fp32",
        checkpoint_sha256="0" * 64,
        min_side=min_side,
        producer="edge-sfda fake",
    )


def bright(frames: U8) -> U8:
    """Return 1 where the first channel of frames [B, H, W, 3] is 128 or more, else 0; uint8 [B, H, W]."""
    return (frames[..., 0] >= 128).astype(np.uint8)


class FakeEngine(Engine):
    """Gives what a function makes of the frames, and counts.

    Args:
        info: what it says about itself.
        segment: frames uint8 [B, H, W, 3] -> mask uint8 [B, H, W].
        max_batch: frames in one call at most.

    Attributes:
        calls: shapes of the frames of every call, the warming one first.
        closed: `close` was called.
    """

    def __init__(
        self, info: ArtefactInfo | None = None, *, segment: Callable[[U8], U8] = bright, max_batch: int = 1024
    ) -> None:
        self.info = info or fake_info()
        self.runs_on = "fake"
        self.device = None
        self.max_batch = max_batch
        self.calls: list[tuple[int, ...]] = []
        self.closed = False
        self._segment = segment

    def run(self, frames: Frames, outputs: tuple[str, ...]) -> Outputs:
        """Segment a batch; see `Engine.run`. Its buffers are used again by the next call, as those of real engines."""
        if self.closed:
            raise EngineError("the engine is closed; load the artefact again")
        assert not isinstance(frames, DeviceFrames), "its device is None"
        self.calls.append(frames.shape)
        mask = self._segment(frames)
        confidence = np.ones(mask.shape, np.float32) if "confidence" in outputs else None
        logits = None
        if "logits" in outputs:
            logits = np.zeros((len(mask), len(self.info.classes), 1, 1), np.float32)
        return Outputs(mask, confidence, logits)

    def close(self) -> None:
        """Count as closed; see `Engine.close`."""
        self.closed = True
