"""The seam to OpenCV's video capture: what is used of it, and its noise kept off the terminal."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import cv2


class Capture(Protocol):
    """What of `cv2.VideoCapture` is used."""

    def isOpened(self) -> bool: ...

    def read(self) -> tuple[bool, Any]: ...

    def get(self, propId: int) -> float: ...

    def set(self, propId: int, value: float) -> bool: ...

    def release(self) -> None: ...


_lock = threading.Lock()
_inside = 0
_level_before = 0


@contextmanager
def quiet() -> Iterator[None]:
    """Keep OpenCV's log off stderr within the block, so that the error raised afterwards stands alone.

    The log's level belongs to the process: blocks of several threads are counted, the last one out restores it.
    """
    global _inside, _level_before
    with _lock:
        if _inside == 0:
            _level_before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                cv2.utils.logging.setLogLevel(_level_before)


def open_quietly(source: int | str, *, api: int = cv2.CAP_ANY, limit_s: float | None = None) -> Capture:
    """Open a camera number, device, file, address or pipeline with OpenCV; failing shows in `isOpened`, not on stderr.

    Args:
        source: what to open.
        api: OpenCV's back end, such as `cv2.CAP_V4L2`; any that can.
        limit_s: of an address: longest wait for the connection, and then for each frame; FFmpeg's own is 30 s.
    """
    # FFmpeg's own log does not pass through OpenCV's; it reads its level once, at the first capture of the process.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with quiet():
        if limit_s is not None and cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
            limit_ms = max(1, round(1000 * limit_s))
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms]
            return cast(Capture, cv2.VideoCapture(str(source), cv2.CAP_FFMPEG, limits))
        return cast(Capture, cv2.VideoCapture(source, api))
