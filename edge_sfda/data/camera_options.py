"""What may be asked of a camera on V4L2: size, rate, pixel format, exposure; and whether it was granted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2

from edge_sfda.data.capture import Capture
from edge_sfda.errors import UsageError

# V4L2's own numbers, which OpenCV passes through since 4.0 (0.25 and 0.75 were OpenCV 3's)
_EXPOSURE_BY_HAND = 1.0
_EXPOSURE_UNIT_MS = 0.1
_FPS_TOLERANCE = 0.05  # 29.97 is 30


@dataclass(frozen=True, kw_only=True)
class CameraOptions:
    """Settings of a V4L2 camera; None leaves what the driver has.

    Args:
        width, height: of a frame, both or neither.
        fps: frames a second.
        fourcc: pixel format on the wire, four characters. MJPG where a USB camera is to give HD at 30 frames a second:
            uncompressed YUYV does not fit USB 2.
        exposure_ms: of every frame, automatic exposure off.
        lock_exposure: let exposure and white balance find their values over the first `settle` frames, then hold them:
            a picture that brightens by itself looks like a new domain.
        settle: frames before the lock; automatic exposure needs about a second.

    Raises:
        UsageError: a value is out of range, one side is without the other, or two settings exclude each other.
    """

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    fourcc: str | None = None
    exposure_ms: float | None = None
    lock_exposure: bool = False
    settle: int = 30

    def __post_init__(self) -> None:
        if (self.width is None) != (self.height is None):
            raise UsageError(f"a camera's size needs width and height, got {self.width} and {self.height}; give both")
        for name in ("width", "height", "fps", "exposure_ms"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 < value < 1e5):
                raise UsageError(f"camera option {name} = {value!r} must be a number above 0 and below 100000")
        if self.fourcc is not None and not (len(self.fourcc) == 4 and self.fourcc.isascii()):
            raise UsageError(f"camera option fourcc = {self.fourcc!r} must have four characters, such as MJPG or YUYV")
        if self.exposure_ms is not None and self.lock_exposure:
            raise UsageError(
                "exposure_ms sets the exposure and lock_exposure lets the camera find it; give one of them"
            )
        if not 1 <= self.settle <= 100_000:
            raise UsageError(f"camera option settle = {self.settle!r} must lie in 1..100000")

    @property
    def given(self) -> bool:
        """Whether anything is asked for at all."""
        return self != CameraOptions(settle=self.settle)


def ask(capture: Capture, options: CameraOptions) -> str:
    """Set the options on an opened camera; return what it did not grant, in words, empty when all is as asked."""
    if options.fourcc is not None:  # before the size: it decides which sizes and rates there are
        capture.set(cv2.CAP_PROP_FOURCC, float(cv2.VideoWriter.fourcc(*options.fourcc)))
    if options.width is not None and options.height is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, float(options.width))
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, float(options.height))
    if options.fps is not None:
        capture.set(cv2.CAP_PROP_FPS, options.fps)
    refused = _refused(capture, options)
    if (
        not refused
        and options.exposure_ms is not None
        and not _expose(capture, options.exposure_ms / _EXPOSURE_UNIT_MS)
    ):
        refused = [f"an exposure of {options.exposure_ms:g} ms"]
    return ", ".join(refused)


def lock(capture: Capture) -> bool:
    """Hold exposure and white balance where they are now; return whether the exposure could be held."""
    found = capture.get(cv2.CAP_PROP_EXPOSURE)
    capture.set(cv2.CAP_PROP_AUTO_WB, 0.0)  # many sensors have none: not a reason to stop
    return _expose(capture, found)


def _expose(capture: Capture, value: float) -> bool:
    if not (math.isfinite(value) and value > 0):  # OpenCV answers 0 or -1 for what a driver does not have
        return False
    return capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, _EXPOSURE_BY_HAND) and capture.set(cv2.CAP_PROP_EXPOSURE, value)


def _refused(capture: Capture, options: CameraOptions) -> list[str]:
    # `set` answers True for what a driver then rounds, so what counts is what the camera says afterwards
    refused = []
    if options.fourcc is not None and (got := _text(capture.get(cv2.CAP_PROP_FOURCC))) != options.fourcc:
        refused.append(f"{options.fourcc} (it gives {got})")
    width, height = capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if options.width is not None and (width, height) != (options.width, options.height):
        refused.append(f"{options.width}x{options.height} (it gives {width:.0f}x{height:.0f})")
    fps = capture.get(cv2.CAP_PROP_FPS)
    if options.fps is not None and not abs(fps - options.fps) <= _FPS_TOLERANCE * options.fps:
        refused.append(f"{options.fps:g} frames a second (it gives {fps:g})")
    return refused


def _text(fourcc: float) -> str:
    code = int(fourcc) & 0xFFFFFFFF if math.isfinite(fourcc) else 0
    return code.to_bytes(4, "little").decode("ascii", errors="replace")
