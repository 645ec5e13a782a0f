"""ROS image messages to pictures and back, by their fields alone: a bag's reader and a ROS node share them; no ROS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sfda.errors import FrameError

U8 = NDArray[np.uint8]

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"


def _swap(code: int) -> Callable[[U8], U8]:
    return lambda raw: np.asarray(cv2.cvtColor(raw, code), np.uint8)


# bytes a pixel, and how they become BGR; the names are those of sensor_msgs/image_encodings
_ENCODINGS: dict[str, tuple[int, Callable[[U8], U8]]] = {
    "bgr8": (3, lambda raw: raw),
    "8UC3": (3, lambda raw: raw),
    "rgb8": (3, _swap(cv2.COLOR_RGB2BGR)),
    "bgra8": (4, _swap(cv2.COLOR_BGRA2BGR)),
    "rgba8": (4, _swap(cv2.COLOR_RGBA2BGR)),
    "mono8": (1, _swap(cv2.COLOR_GRAY2BGR)),
    "8UC1": (1, _swap(cv2.COLOR_GRAY2BGR)),
    "bayer_rggb8": (1, _swap(cv2.COLOR_BayerRGGB2BGR)),
    "bayer_bggr8": (1, _swap(cv2.COLOR_BayerBGGR2BGR)),
    "bayer_gbrg8": (1, _swap(cv2.COLOR_BayerGBRG2BGR)),
    "bayer_grbg8": (1, _swap(cv2.COLOR_BayerGRBG2BGR)),
    "yuv422": (2, _swap(cv2.COLOR_YUV2BGR_UYVY)),
    "uyvy": (2, _swap(cv2.COLOR_YUV2BGR_UYVY)),
    "yuv422_yuy2": (2, _swap(cv2.COLOR_YUV2BGR_YUYV)),
    "yuyv": (2, _swap(cv2.COLOR_YUV2BGR_YUYV)),
}
ENCODINGS = tuple(_ENCODINGS)

_MAX_SIDE = 16384  # pixels: beyond it a message is damaged


def to_bgr(data: Any, *, encoding: str, height: int, width: int, step: int) -> U8:
    """Return the picture of a `sensor_msgs/Image`, HWC uint8 BGR, a copy of its own.

    Args:
        data: the bytes, as bytes or anything that shows them as such.
        encoding: one of `ENCODINGS`.
        height: pixels.
        width: pixels.
        step: bytes a row, padding included.

    Raises:
        FrameError: an encoding not known, or fields that contradict each other.
    """
    if encoding not in _ENCODINGS:
        raise FrameError(f"image of encoding {encoding!r}; expected one of {', '.join(ENCODINGS)}")
    depth, convert = _ENCODINGS[encoding]
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise FrameError(f"image of {height}x{width} pixels; expected 1..{_MAX_SIDE} a side")
    raw = np.frombuffer(data, np.uint8)
    if step < width * depth or raw.size < height * step:
        raise FrameError(
            f"image of {height}x{width} in {encoding} with {step} bytes a row has {raw.size} bytes; expected rows of "
            f"at least {width * depth}, and {height} of them"
        )
    if depth == 2 and width % 2:
        raise FrameError(f"image of {height}x{width} in {encoding}: its pixels come in pairs; expected an even width")
    rows = raw[: height * step].reshape(height, step)[:, : width * depth]
    picture = convert(np.ascontiguousarray(rows.reshape(height, width, depth)))
    return np.array(picture, copy=picture.base is not None or not picture.flags.writeable, order="C")


def decode(data: Any) -> U8:
    """Return the picture of a `sensor_msgs/CompressedImage` (JPEG, PNG, ...), HWC uint8 BGR.

    Raises:
        FrameError: the bytes are no picture.
    """
    raw = np.frombuffer(data, np.uint8)
    # an empty buffer is refused by an exception, a damaged one by None
    picture = cv2.imdecode(raw, cv2.IMREAD_COLOR) if raw.size else None
    if picture is None:
        raise FrameError(f"compressed image of {raw.size} bytes cannot be decoded; expected a whole JPEG or PNG")
    return np.asarray(picture, np.uint8)


def bytes_a_pixel(encoding: str) -> int:
    """Return how many bytes a pixel takes in one of `ENCODINGS`."""
    return _ENCODINGS[encoding][0]
