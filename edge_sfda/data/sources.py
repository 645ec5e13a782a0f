"""Where frames come from: one iterator of `Frame` over folders, videos, cameras and the built-in scene."""

from __future__ import annotations

import logging
import math
import os
import re
from pathlib import Path
from typing import cast

import cv2

from edge_sfda.data import bags, trees
from edge_sfda.data.camera import CameraSource, is_camera
from edge_sfda.data.camera_options import CameraOptions
from edge_sfda.data.capture import Capture, open_quietly, quiet
from edge_sfda.data.frames import U8, Frame, FrameSource, check_frame, read_image
from edge_sfda.data.pace import PacedSource
from edge_sfda.data.scene_spec import PREFIX, SceneSpec
from edge_sfda.errors import FrameError, SourceError, UsageError

__all__ = [
    "CameraOptions",
    "CameraSource",
    "FolderSource",
    "FrameSource",
    "PacedSource",
    "SceneSource",
    "VideoSource",
    "open_source",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")

_FOLDER_FPS = 10.0  # a folder does not say its rate; times then count tenths of a second

_log = logging.getLogger(__name__)


class FolderSource(FrameSource):
    """The pictures of a folder in natural order (2.png before 10.png), or one picture file.

    A folder of a data set that keeps its images in a tree (see `trees`) gives the images below it, in the set's order.

    Files without a picture's suffix (`IMAGE_SUFFIXES`) and hidden files do not count as frames; every other file must
    be readable. Sizes may differ from frame to frame.

    Raises:
        SourceError: the folder is missing, cannot be listed, or holds no pictures; while iterating FrameError names a
            picture that cannot be read.
    """

    fps: float | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.files = [self.path] if self.path.is_file() else _tree(self.path) or _pictures(self.path)
        self.len_hint: int | None = len(self.files)
        self._next = 0

    def __next__(self) -> Frame:
        if self._next >= len(self.files):
            raise StopIteration
        seq, file = self._next, self.files[self._next]
        image = read_image(file)
        self._next += 1
        return Frame(image, seq, seq / _FOLDER_FPS, file.stem)

    def close(self) -> None:
        """Give no more frames."""
        self._next = len(self.files)


class VideoSource(FrameSource):
    """The frames of a video file, decoded by OpenCV.

    A video that ends before the number of frames in its header is reported by a warning in the log: headers may be
    wrong, so that alone is no error.

    Raises:
        SourceError: the file is missing, does not open as a video, or holds no frame.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise SourceError(f"no video file at {path}; check the path")
        capture = open_quietly(str(self.path))
        if not capture.isOpened():
            capture.release()
            raise SourceError(f"{path} does not open as a video; OpenCV knows no codec for it, or it is damaged")
        self._capture: Capture | None = capture
        self.len_hint: int | None = _positive_int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.fps: float | None = _positive(capture.get(cv2.CAP_PROP_FPS))
        self._seq = 0
        self._ahead = self._read()  # the first frame, read now: an empty video is known before work starts
        if self._ahead is None:
            self.close()
            raise SourceError(f"{path} opens as a video but holds no frame; record it again")

    def __next__(self) -> Frame:
        frame = self._ahead or self._read()
        self._ahead = None
        if frame is None:
            self._end()
            raise StopIteration
        return frame

    def close(self) -> None:
        """Release the file; no more frames come."""
        self._ahead = None
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _read(self) -> Frame | None:
        if self._capture is None:
            return None
        with quiet():
            given, image = self._capture.read()
        if not given or image is None:
            return None
        check_frame(cast(U8, image), min_side=1)
        seq = self._seq
        self._seq += 1
        at = _positive(self._capture.get(cv2.CAP_PROP_POS_MSEC))
        seconds = at / 1000 if at is not None else seq / (self.fps or _FOLDER_FPS)
        return Frame(cast(U8, image), seq, seconds, f"{self.path.stem}-{seq:06d}")

    def _end(self) -> None:
        if self._capture is not None and self.len_hint is not None and self._seq < self.len_hint:
            _log.warning("%s ended after %d frames, its header says %d", self.path, self._seq, self.len_hint)
        self.close()


class SceneSource(FrameSource):
    """The built-in street, from a text such as `scene:dusk?frames=200&seed=3&size=192x256&fps=10` or a `SceneSpec`.

    Frames carry no label, as those of a camera; `label` is kept beside them for measuring.

    Raises:
        UsageError: the text asks for no known domain, option or value.
    """

    def __init__(self, spec: str | SceneSpec) -> None:
        self.spec = SceneSpec.parse(spec) if isinstance(spec, str) else spec
        self.len_hint: int | None = self.spec.frames
        self.fps: float | None = self.spec.fps
        self._scene = self.spec.open()
        self._next = 0
        self._label: U8 | None = None

    @property
    def label(self) -> U8:
        """The label of the frame given last, HW uint8 of ids into `SCENE_CLASSES`; for measuring only.

        Raises:
            UsageError: no frame was given yet.
        """
        if self._label is None:
            raise UsageError("the scene has given no frame yet; take a frame before its label")
        return self._label

    def __next__(self) -> Frame:
        if self._next >= self.spec.frames:
            raise StopIteration
        seq = self._next
        t, domain = self.spec.moment(seq)
        image, self._label = self._scene.render(t, domain)
        self._next += 1
        return Frame(image, seq, t, f"{'-'.join(self.spec.domains)}-{self.spec.start + seq:06d}")

    def close(self) -> None:
        """Give no more frames."""
        self._next = self.spec.frames


def open_source(
    spec: str, *, camera: CameraOptions | None = None, limit_s: float = 10.0, realtime: bool = False
) -> FrameSource:
    """Open what `spec` names.

    `scene:DOMAIN[?options]`; a folder of pictures; a picture file; a video file; a ROS bag, with `?topic=/NAME` where
    it has images on several; a camera as `/dev/videoN`, a number, an rtsp, http or other URL, or a GStreamer pipeline,
    `ELEMENT ! ELEMENT ! ...`. A number is a camera even where a folder has that name: write ./0 for the folder.

    Args:
        spec: see above.
        camera: what is asked of a V4L2 camera.
        limit_s: of a camera: longest wait for its first frame, and then for each next one.
        realtime: give the frames of a recording at their own rate instead of as fast as they are taken.

    Raises:
        SourceError: it does not exist, does not open, or holds no frame.
        UsageError: a scene's text cannot be read, or options of a camera for what is none.
        FrameError: the picture file cannot be read.
    """
    if not spec.startswith(PREFIX) and is_camera(spec):
        return CameraSource(spec, options=camera, limit_s=limit_s)  # as fast as it comes is its own rate
    if camera is not None and camera.given:
        raise UsageError(f"{spec} is no camera, so it takes none of a camera's options; leave them out")
    source = _open_recording(spec)
    return PacedSource(source) if realtime else source


def _open_recording(spec: str) -> FrameSource:
    if spec.startswith(PREFIX):
        return SceneSource(spec)
    if bags.is_bag(spec):
        return bags.BagSource(*bags.split(spec))
    path = Path(spec)
    if path.is_dir():
        return FolderSource(path)
    if not path.exists():
        raise SourceError(
            f"nothing at {spec!r}; expected a folder of pictures, a picture, a video, /dev/videoN, a camera number, "
            "a ROS bag, an rtsp:// or http:// address, a GStreamer pipeline, or scene:dusk"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        read_image(path)  # known to be readable before work starts, as for a video
        return FolderSource(path)
    return VideoSource(path)


def _tree(folder: Path) -> list[Path]:
    """Return the images of the data set's copy that `folder` names; none where it names no such copy."""
    copy = trees.find(folder) if folder.is_dir() else None
    images = list(copy.images) if copy is not None else []
    names = [image.stem for image in images]  # results are called after them
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise SourceError(f"{folder} holds more than one image named {double}; name one of its folders, such as a city")
    return images


def _pictures(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda p: _natural(p.name))
    except OSError as error:
        raise SourceError(f"cannot list folder {folder}: {error.strerror}; check the path") from error
    found = [p for p in entries if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not found:
        inner = [p.name for p in entries if p.is_dir() and any(q.suffix.lower() in IMAGE_SUFFIXES for q in p.iterdir())]
        hint = f"; its folder {inner[0]}/ does: did you mean {folder / inner[0]}?" if inner else ""
        raise SourceError(f"folder {folder} holds no pictures ({', '.join(IMAGE_SUFFIXES)}){hint}")
    folders = [p for p in found if not p.is_file()]
    if folders:
        raise FrameError(f"cannot read frame {folders[0]}: it is no file; move it out of the folder of frames")
    return found


def _natural(name: str) -> list[tuple[int, int, str]]:
    # Numbers before words, and numbers by value; the name itself breaks ties such as 01 and 1.
    parts = [(0, int(p), "") if p.isdigit() else (1, 0, p.lower()) for p in re.split(r"(\d+)", name) if p]
    return [*parts, (2, 0, name)]


def _positive(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None


def _positive_int(value: float) -> int | None:
    return int(value) if math.isfinite(value) and 0 < value < 2**40 else None
