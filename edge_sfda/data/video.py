"""A video file, written frame by frame: under its name only once it is whole."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from edge_sfda.data.capture import quiet
from edge_sfda.errors import FrameError, UsageError, WriteError

if TYPE_CHECKING:
    from typing_extensions import Self  # typing.Self came with Python 3.11

U8 = npt.NDArray[np.uint8]

_CODECS = {".mp4": "mp4v", ".avi": "MJPG"}  # what OpenCV's wheels write without a licensed encoder
_FPS = 10.0  # of a source that tells no rate


class VideoWriter:
    """Writes pictures of one size as a video; leaving its `with` block, also by an interrupt, puts it in place.

    Args:
        path: ends in .mp4 or .avi; the file that is there is replaced at the end.
        fps: frames a second; None: 10.

    Raises:
        UsageError: another suffix.
        WriteError: the folder is missing or not writable, or the video cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: float | None = None) -> None:
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in _CODECS:
            raise UsageError(f"video {path} has the suffix {suffix!r}; expected one of {', '.join(_CODECS)}")
        if not self.path.parent.is_dir() or not os.access(self.path.parent, os.W_OK) or self.path.is_dir():
            raise WriteError(f"cannot write {path}: no folder that may be written to; choose another place")
        self.fps = fps or _FPS
        self._codec = _CODECS[suffix]
        self._temporary = self.path.with_name(f".edge-sfda-{secrets.token_hex(8)}{suffix}")
        self._writer: Any = None
        self._size: tuple[int, int] | None = None

    def write(self, picture: U8) -> None:
        """Append a picture, HWC uint8 BGR; all have the size of the first.

        Raises:
            FrameError: of another size.
            WriteError: OpenCV cannot write the video.
        """
        size = (int(picture.shape[0]), int(picture.shape[1]))
        if self._size is None:
            self._open(size)
        if size != self._size:
            raise FrameError(
                f"frame of {size[0]}x{size[1]} in a video of {self._size}; frames of several sizes make no video, "
                "write overlays instead"
            )
        self._writer.write(picture)

    def close(self, *, keep: bool = True) -> None:
        """End the video and put it under its name; without `keep`, or with no picture, nothing is left of it.

        Raises:
            WriteError: it cannot be put there, or the disk is full.
        """
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        try:
            if keep and self._whole():
                os.replace(self._temporary, self.path)
            elif keep:
                raise WriteError(f"cannot write {self.path}: the video came out empty or cut short; is the disk full?")
        except OSError as error:
            raise WriteError(f"cannot write {self.path}: {error.strerror}; choose another place") from error
        finally:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # an interrupt keeps what there is, as masks are kept; after an error a video would only look whole
        self.close(keep=kind is None or kind is KeyboardInterrupt)

    def _open(self, size: tuple[int, int]) -> None:
        with quiet():
            code = cv2.VideoWriter.fourcc(*self._codec)
            writer = cv2.VideoWriter(str(self._temporary), code, self.fps, (size[1], size[0]))
        if not writer.isOpened():
            writer.release()
            self._temporary.unlink(missing_ok=True)
            raise WriteError(f"cannot write {self.path}: OpenCV has no encoder {self._codec} here; try .avi or .mp4")
        self._writer, self._size = writer, size

    def _whole(self) -> bool:
        """OpenCV does not tell that a write failed; a video that was cut short does not open."""
        with quiet():
            reader = cv2.VideoCapture(str(self._temporary))
            opened = reader.isOpened() and reader.read()[0]
            reader.release()
        return bool(opened)
