"""Frames and label maps: read, check, bring to a network's size, write.

Pictures are HWC uint8 BGR, 0..255, as OpenCV has them; label maps and masks are HW uint8 of class ids. The network's
input stays uint8 RGB: normalisation happens on the device, inside the network's wrapper, so buffers stay small.
"""

from __future__ import annotations

import os
import struct
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sfda.data.capture import quiet
from edge_sfda.errors import FrameError, LabelError, WriteError
from edge_sfda.files import write_atomic
from edge_sfda.manifest import Preprocessing

if TYPE_CHECKING:
    from typing_extensions import Self  # typing.Self came with Python 3.11

U8 = NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_TAIL = 32768  # bytes in which a whole JPEG shows its end marker; cameras append data after it


class Stamp(NamedTuple):
    """What a ROS header says of a frame, carried through to its mask: exact, as messages are matched by it.

    Args:
        nanoseconds: since the epoch of whoever stamped it.
        frame_id: of the coordinate frame.
    """

    nanoseconds: int
    frame_id: str


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture as it came from a source.

    Args:
        image: HWC uint8 BGR, 0..255.
        seq: number of the frame in its source, from 0; a live source that drops frames leaves gaps.
        captured_at: seconds; position in the recording, or the monotonic clock of a live source.
        name: what to call results after: the file's stem, or empty.
        stamp: of a ROS message; None of every other source.
    """

    image: U8
    seq: int
    captured_at: float
    name: str = ""
    stamp: Stamp | None = None

    @property
    def height(self) -> int:
        """Rows of the image."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Columns of the image."""
        return int(self.image.shape[1])


class FrameSource(Protocol):
    """An iterator of frames, closed when done; usable in a `with` statement.

    `len_hint` is the number of frames where the source knows it (a container's header may be wrong), else None; `fps`
    the nominal rate, else None. Iterating raises SourceError or FrameError when a frame that should be there cannot be
    had: no frame is skipped in silence.
    """

    len_hint: int | None
    fps: float | None

    def __iter__(self) -> Iterator[Frame]:
        return self

    @abstractmethod
    def __next__(self) -> Frame:
        """Return the next frame; StopIteration after the last one or `close`."""

    @abstractmethod
    def close(self) -> None:
        """Release what the source holds; no more frames come."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_image(path: str | os.PathLike[str]) -> U8:
    """Read a picture file as HWC uint8 BGR; grey becomes three channels, alpha is dropped, 16 bit becomes 8.

    Raises:
        FrameError: missing, unreadable, empty, truncated, or not a picture.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FrameError(f"cannot read frame {path}: {error.strerror}; check the path and its permissions") from error
    if not data:
        raise FrameError(f"frame {path} is an empty file; remove it or write it again")
    if damage := _damage(data):
        raise FrameError(f"frame {path} is damaged: {damage}; copy it again")
    image = _decode(data, cv2.IMREAD_COLOR)
    if image is None or image.size == 0:
        raise FrameError(f"frame {path} is not a picture that OpenCV can decode; expected PNG, JPEG, BMP, TIFF or WebP")
    return image


def read_label(path: str | os.PathLike[str], *, first_channel: bool = False) -> U8:
    """Read a label map as HW uint8 of the ids that are stored: palette indices or grey values, never colours.

    PNGs of 1, 2 or 4 bits give their raw samples (0..15), not the values stretched to 255.

    Args:
        path: the file.
        first_channel: take the first (red) of several channels, for sets that store something else in the others, as
            SYNTHIA stores instances; a file of one channel is read as ever.

    Raises:
        LabelError: missing, unreadable, lossy (JPEG), with colour channels, or with ids above 255.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabelError(f"cannot read label {path}: {error.strerror}; check the path and its permissions") from error
    if data.startswith(_JPEG):
        raise LabelError(f"label {path} is a JPEG, which does not keep class ids; store labels as PNG")
    if damage := _damage(data):
        raise LabelError(f"label {path} is damaged: {damage}; copy it again")
    data, step = _indices_as_grey(data)
    label = _decode(data, cv2.IMREAD_UNCHANGED)
    if label is None or label.size == 0:
        raise LabelError(f"label {path} cannot be decoded; expected a PNG with one channel of class ids")
    if first_channel and label.ndim == 3:
        label = label[:, :, 2]  # OpenCV's order is BGR
    if label.ndim != 2:
        raise LabelError(
            f"label {path} has {label.shape[2]} channels, expected one channel of class ids; "
            "give the classes' colours (palette) if it is colour coded"
        )
    if label.max() > 255:
        raise LabelError(f"label {path} holds id {int(label.max())}, expected ids of 0..255")
    return (label // step).astype(np.uint8) if step > 1 else label.astype(np.uint8, copy=False)


def png_size(path: Path) -> tuple[int, int] | None:
    """Return height and width from a PNG's header, without decoding it; None where the file is no PNG."""
    header = _png_header(path)
    return None if header is None else (header[1], header[0])


def has_colours(path: Path) -> bool:
    """Tell whether a file is a PNG with colour channels, from its header; a palette is one channel of indices."""
    header = _png_header(path)
    return header is not None and header[3] in (2, 6)


def check_frame(image: U8, *, min_side: int = 8) -> None:
    """Check that `image` is HWC uint8 with three channels and at least `min_side` pixels a side.

    Raises:
        FrameError: another type, dtype, number of dimensions or channels, empty, or too small.
    """
    given: Any = image  # callers' frames come from cameras and middleware: trust no annotation here
    if not isinstance(given, np.ndarray):
        raise FrameError(f"frame is a {type(given).__name__}, expected a numpy array HWC uint8 BGR")
    if given.dtype != np.uint8:
        raise FrameError(f"frame has dtype {given.dtype}, expected uint8 of 0..255; scale and convert it first")
    if given.ndim != 3 or given.shape[2] != 3:
        raise FrameError(f"frame has shape {given.shape}, expected (height, width, 3) in BGR order")
    if given.size == 0:
        raise FrameError(f"frame of shape {given.shape} is empty; the source gave no pixels")
    if min(given.shape[:2]) < min_side:
        raise FrameError(f"frame of {given.shape[0]}x{given.shape[1]} is too small, expected {min_side} pixels a side")


def to_input(image: U8, pre: Preprocessing) -> U8:
    """Bring a frame to a network's size and layout.

    Args:
        image: HWC uint8 BGR, 0..255, any size.
        pre: the network's height and width.

    Returns:
        uint8 [3, H, W] RGB, 0..255, contiguous, a copy. Mean and standard deviation are not applied here.

    Raises:
        FrameError: `image` is not a picture (see `check_frame`).
    """
    check_frame(image, min_side=1)
    height, width = image.shape[:2]
    if (height, width) != (pre.height, pre.width):
        # Linear resampling skips pixels when it shrinks more than twice; area averaging does not.
        shrink = max(height / pre.height, width / pre.width)
        how = cv2.INTER_AREA if shrink > 2 else cv2.INTER_LINEAR
        image = cast(U8, cv2.resize(image, (pre.width, pre.height), interpolation=how))
    return to_planes(image)


def to_planes(image: U8) -> U8:
    """Turn HWC uint8 BGR into contiguous uint8 [3, H, W] RGB, a copy."""
    return np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1))


def resize_label(label: U8, height: int, width: int) -> U8:
    """Resize a label map, HW uint8 of class ids, to `height` x `width` by the nearest pixel; ids are never mixed."""
    if label.shape == (height, width):
        return label
    return cast(U8, cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))


def mask_to_size(mask: U8, height: int, width: int) -> U8:
    """Resize a predicted mask, HW uint8 of class ids, to a frame's `height` x `width` by the nearest pixel."""
    return resize_label(mask, height, width)


def write_png(path: str | os.PathLike[str], array: U8) -> None:
    """Write HW uint8 (ids, grey) or HWC uint8 BGR as PNG, whole or not at all.

    The file appears under its name only once complete: a reader or a crash never sees half of it.

    Raises:
        WriteError: the folder is missing or not writable, the disk is full, or `array` is no picture.
    """
    path = Path(path)
    if array.dtype != np.uint8 or array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise WriteError(f"cannot write {path}: array {array.dtype} {array.shape}, expected uint8 HW or HW3")
    done, encoded = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done, "PNG encodes every uint8 picture"
    write_atomic(path, encoded.data)


def _decode(data: bytes, flags: int) -> U8 | None:
    try:
        with quiet():
            return cast("U8 | None", cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    except cv2.error:  # empty, or a header that claims an absurd size: to the caller one more unreadable file
        return None


def _damage(data: bytes) -> str:
    """Return what is wrong with the file as a container, or nothing.

    Decoders give half a picture for half a file, and write to stderr: a damaged file is told before it gets there.
    """
    if data.startswith(_PNG):
        try:
            kinds = [kind for kind, _ in _chunks(data)]
        except ValueError as error:
            return str(error)
        return "" if kinds[-1:] == [b"IEND"] else f"it ends after {len(data)} bytes without an end marker"
    if data.startswith(_JPEG) and _JPEG_END not in data[-_TAIL:]:
        return f"it ends after {len(data)} bytes without an end marker"
    return ""


def _png_header(path: Path) -> tuple[int, int, int, int] | None:
    """Return width, height, bits a sample and colour type of a PNG; None for what is none, or cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError:  # whoever reads the file whole says why
        return None
    if len(head) < 26 or not head.startswith(_PNG) or head[12:16] != b"IHDR":
        return None
    width, height, depth, colour = struct.unpack_from(">IIBB", head, 16)
    return width, height, depth, colour


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and body of each chunk of a PNG up to its end marker; ValueError at a wrong checksum."""
    position = len(_PNG)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        if position + 12 + length > len(data):
            return
        if struct.unpack_from(">I", data, position + 8 + length)[0] != zlib.crc32(kind + body):
            raise ValueError(f"wrong checksum at byte {position}")
        yield kind, body
        if kind == b"IEND":
            return
        position += 12 + length


def _indices_as_grey(data: bytes) -> tuple[bytes, int]:
    """Return a PNG with its palette indices declared as grey, and the step by which decoders stretch its samples.

    OpenCV turns palette PNGs into colours, from which ids cannot be told when colours repeat. The samples themselves
    are ids; only the header says otherwise. Any other file comes back as it is.
    """
    if not data.startswith(_PNG):
        return data, 1
    parts = [_PNG]
    step = 1
    for kind, body in _chunks(data):
        if kind == b"IHDR":
            depth, colour = body[8], body[9]
            if colour not in (0, 3):
                return data, 1
            step = {1: 255, 2: 85, 4: 17}.get(depth, 1)
            body = body[:9] + b"\x00" + body[10:]
        elif kind not in (b"IDAT", b"IEND"):
            continue  # palette, transparency and gamma do not change ids
        parts.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return b"".join(parts), step
