"""Every encoding against a picture whose BGR values are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_sfda.data.ros_images import ENCODINGS, bytes_a_pixel, decode, to_bgr
from edge_sfda.errors import FrameError

BLUE, GREEN, RED = 200, 100, 50
GREY = 90


def _flat(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), (BLUE, GREEN, RED), np.uint8)


def _mosaic(pattern: str, height: int, width: int) -> np.ndarray:
    """Show a flat colour through a Bayer filter."""
    value = {"r": RED, "g": GREEN, "b": BLUE}
    tile = np.array([[value[c] for c in pattern[:2]], [value[c] for c in pattern[2:]]], np.uint8)
    return np.tile(tile, (height // 2, width // 2))


def _yuv(order: str, height: int, width: int) -> np.ndarray:
    """Interleave luma and chroma of the flat colour, two pixels in four bytes."""
    y, u, v = 99, 179, 99  # ITU-R BT.601, video range
    group = {"uyvy": (u, y, v, y), "yuyv": (y, u, y, v)}[order]
    return np.tile(np.array(group, np.uint8), (height, width // 2))


RAW = {
    "bgr8": _flat(6, 8),
    "8UC3": _flat(6, 8),
    "rgb8": _flat(6, 8)[:, :, ::-1],
    "bgra8": np.dstack([_flat(6, 8), np.zeros((6, 8), np.uint8)]),
    "rgba8": np.dstack([_flat(6, 8)[:, :, ::-1], np.zeros((6, 8), np.uint8)]),
    "bayer_rggb8": _mosaic("rggb", 6, 8),
    "bayer_bggr8": _mosaic("bggr", 6, 8),
    "bayer_gbrg8": _mosaic("gbrg", 6, 8),
    "bayer_grbg8": _mosaic("grbg", 6, 8),
    "yuv422": _yuv("uyvy", 6, 8),
    "uyvy": _yuv("uyvy", 6, 8),
    "yuv422_yuy2": _yuv("yuyv", 6, 8),
    "yuyv": _yuv("yuyv", 6, 8),
}


@pytest.mark.parametrize("encoding", sorted(RAW))
@pytest.mark.parametrize("padding", [0, 5])
def test_colours_come_out_right(encoding: str, padding: int) -> None:
    rows = np.ascontiguousarray(RAW[encoding]).reshape(6, -1)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    image = to_bgr(padded.tobytes(), encoding=encoding, height=6, width=8, step=padded.shape[1])
    assert (image.shape, image.dtype, image.flags.c_contiguous) == ((6, 8, 3), np.dtype(np.uint8), True)
    assert np.array_equal(image, _flat(6, 8))


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_becomes_three_equal_channels(encoding: str) -> None:
    image = to_bgr(bytes([GREY] * 12), encoding=encoding, height=3, width=4, step=4)
    assert np.array_equal(image, np.full((3, 4, 3), GREY))


def test_every_encoding_is_covered() -> None:
    assert set(RAW) | {"mono8", "8UC1"} == set(ENCODINGS)


def test_picture_is_a_copy_that_may_be_written() -> None:
    data = bytearray(_flat(2, 2).tobytes())
    image = to_bgr(data, encoding="bgr8", height=2, width=2, step=6)
    data[:] = bytes(len(data))
    image[0, 0] = 7
    assert image[1, 1].tolist() == [BLUE, GREEN, RED]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoding": "16UC1"}, "encoding '16UC1'; expected one of bgr8"),
        ({"encoding": ""}, "encoding ''"),
        ({"height": 0}, "0x4 pixels"),
        ({"width": 10**6}, "3x1000000 pixels"),
        ({"step": 11}, "11 bytes a row"),
        ({"height": 4}, "has 36 bytes; expected rows of at least 12, and 4 of them"),
        ({"encoding": "yuyv", "width": 3}, "expected an even width"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(changed: dict[str, object], message: str) -> None:
    fields = {"encoding": "bgr8", "height": 3, "width": 4, "step": 12} | changed
    with pytest.raises(FrameError, match=message):
        to_bgr(bytes(36), **fields)  # type: ignore[arg-type]


def test_compressed_picture_is_decoded() -> None:
    _, data = cv2.imencode(".png", _flat(5, 7))
    assert np.array_equal(decode(data.tobytes()), _flat(5, 7))


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff"])
def test_damaged_compressed_picture_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError, match=f"of {len(data)} bytes cannot be decoded"):
        decode(data)


def test_bytes_a_pixel_are_those_of_the_encoding() -> None:
    assert [bytes_a_pixel(name) for name in ("mono8", "yuyv", "bgr8", "rgba8")] == [1, 2, 3, 4]
