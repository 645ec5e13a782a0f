from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sfda.data import frames
from edge_sfda.errors import FrameError, LabelError, WriteError
from edge_sfda.manifest import Preprocessing

RED_BGR = (0, 0, 255)


def _png(depth: int, colour: int, rows: list[bytes], width: int, palette: bytes = b"") -> bytes:
    """Write a PNG by hand, so that bit depth and colour type are what the test says."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    middle = chunk(b"PLTE", palette) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_read_image_gives_bgr(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(8, 2, [bytes((255, 0, 0, 0, 255, 0))], 2))
    image = frames.read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8
    assert image.tolist() == [[list(RED_BGR), [0, 255, 0]]]


def test_read_image_makes_grey_three_channels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(8, 0, [bytes((7, 9))], 2))
    assert frames.read_image(tmp_path / "a.png").tolist() == [[[7, 7, 7], [9, 9, 9]]]


def _broken(kind: str) -> bytes:
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    png, jpeg = (cv2.imencode(suffix, picture)[1].tobytes() for suffix in (".png", ".jpg"))
    return {
        "empty": b"",
        "text": b"no picture",
        "half a png": png[: len(png) // 2],
        "half a jpeg": jpeg[: len(jpeg) // 2],
        "png with a flipped byte": png[:100] + bytes([png[100] ^ 1]) + png[101:],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("empty", "is an empty file"),
        ("text", "is not a picture"),
        ("half a png", "without an end marker"),
        ("half a jpeg", "without an end marker"),
        ("png with a flipped byte", "wrong checksum at byte 33"),
    ],
)
def test_read_image_names_the_broken_file(tmp_path: Path, kind: str, says: str) -> None:
    (tmp_path / "broken.png").write_bytes(_broken(kind))
    with pytest.raises(FrameError, match=says) as caught:
        frames.read_image(tmp_path / "broken.png")
    assert "broken.png" in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "text", "half a png", "half a jpeg", "png with a flipped byte"])
def test_read_label_refuses_the_broken_file(tmp_path: Path, kind: str) -> None:
    (tmp_path / "broken.png").write_bytes(_broken(kind))
    with pytest.raises(LabelError, match=r"broken\.png"):
        frames.read_label(tmp_path / "broken.png")


def test_broken_files_leave_stderr_to_our_message(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for kind in ("text", "half a png", "half a jpeg", "png with a flipped byte"):
        (tmp_path / "broken.png").write_bytes(_broken(kind))
        with pytest.raises(FrameError):
            frames.read_image(tmp_path / "broken.png")
    assert capfd.readouterr().err == ""


def test_read_of_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="No such file"):
        frames.read_image(tmp_path / "none.png")
    with pytest.raises(LabelError, match="No such file"):
        frames.read_label(tmp_path / "none.png")
    with pytest.raises(FrameError, match="directory"):
        frames.read_image(tmp_path)


def test_read_label_gives_palette_indices_even_where_colours_repeat(tmp_path: Path) -> None:
    same_colour_twice = bytes((10, 20, 30, 10, 20, 30, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(_png(8, 3, [bytes((0, 1, 2)), bytes((2, 1, 0))], 3, same_colour_twice))
    assert frames.read_label(tmp_path / "a.png").tolist() == [[0, 1, 2], [2, 1, 0]]


@pytest.mark.parametrize("colour", [0, 3])
@pytest.mark.parametrize(
    ("depth", "row", "ids"),
    [
        (1, bytes((0b10100000,)), [1, 0, 1, 0]),
        (2, bytes((0b00011011,)), [0, 1, 2, 3]),
        (4, bytes((0x0F, 0x71)), [0, 15, 7, 1]),
    ],
)
def test_read_label_gives_raw_samples_of_few_bits(
    tmp_path: Path, colour: int, depth: int, row: bytes, ids: list[int]
) -> None:
    palette = bytes(range(48)) if colour == 3 else b""
    (tmp_path / "a.png").write_bytes(_png(depth, colour, [row], 4, palette[: 3 << depth]))
    label = frames.read_label(tmp_path / "a.png")
    assert label.dtype == np.uint8
    assert label.tolist() == [ids]


def test_read_label_takes_sixteen_bits_up_to_255(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(16, 0, [struct.pack(">HH", 3, 255)], 2))
    assert frames.read_label(tmp_path / "a.png").tolist() == [[3, 255]]
    (tmp_path / "b.png").write_bytes(_png(16, 0, [struct.pack(">HH", 3, 26001)], 2))
    with pytest.raises(LabelError, match="id 26001"):
        frames.read_label(tmp_path / "b.png")


def test_read_label_refuses_colours_and_jpeg(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(8, 2, [bytes(6)], 2))
    with pytest.raises(LabelError, match="3 channels"):
        frames.read_label(tmp_path / "a.png")
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((8, 8), np.uint8))
    with pytest.raises(LabelError, match="JPEG"):
        frames.read_label(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ([[1]], "is a list"),
        (np.zeros((8, 8, 3), np.float32), "dtype float32"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.zeros((7, 8, 3), np.uint8), "7x8 is too small, expected 8"),
    ],
)
def test_check_frame_says_what_came(image: np.ndarray, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        frames.check_frame(image)


def test_check_frame_takes_the_smallest_side_given() -> None:
    frames.check_frame(np.zeros((8, 9, 3), np.uint8))
    frames.check_frame(np.zeros((1, 1, 3), np.uint8), min_side=1)
    with pytest.raises(FrameError, match="expected 32"):
        frames.check_frame(np.zeros((31, 40, 3), np.uint8), min_side=32)


def test_frame_says_its_own_size() -> None:
    frame = frames.Frame(np.zeros((4, 6, 3), np.uint8), 0, 0.0)
    assert (frame.height, frame.width, frame.name) == (4, 6, "")


def test_to_input_is_planar_rgb_and_a_copy() -> None:
    image = np.zeros((8, 10, 3), np.uint8)
    image[..., 2] = 200
    x = frames.to_input(image, Preprocessing(8, 10))
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((3, 8, 10), np.uint8, True)
    assert [int(plane.min()) for plane in x] == [200, 0, 0]
    image[:] = 1
    assert x.max() == 200


def test_to_input_averages_when_it_shrinks_much() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    x = frames.to_input(stripes, Preprocessing(16, 16))
    assert (int(x.min()), int(x.max())) == (100, 100)


def test_to_input_interpolates_when_it_enlarges() -> None:
    ramp = np.repeat(np.repeat(np.array([[0, 100]], np.uint8), 8, axis=0)[..., None], 3, axis=2)
    assert frames.to_input(ramp, Preprocessing(8, 8))[0, 0].tolist() == [0, 0, 13, 38, 63, 88, 100, 100]


def test_resize_label_keeps_ids_and_repeats_them_evenly() -> None:
    label = np.array([[0, 9], [255, 4]], np.uint8)
    assert frames.resize_label(label, 4, 4).tolist() == [[0, 0, 9, 9], [0, 0, 9, 9], [255, 255, 4, 4], [255, 255, 4, 4]]
    assert frames.resize_label(label, 2, 2) is label


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_mask_to_size_makes_no_new_ids(h: int, w: int, to_h: int, to_w: int) -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 7, 255], np.uint8), (h, w))
    out = frames.mask_to_size(mask, to_h, to_w)
    assert out.shape == (to_h, to_w)
    assert set(np.unique(out)) <= set(np.unique(mask))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_write_png_is_read_back_equal(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    frames.write_png(tmp_path / "a.png", array)
    back = frames.read_label(tmp_path / "a.png") if array.ndim == 2 else frames.read_image(tmp_path / "a.png")
    assert np.array_equal(back, array)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.zeros((0, 4), np.uint8), np.zeros((4, 4, 2), np.uint8)]
)
def test_write_png_refuses_what_is_no_picture(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(WriteError, match="expected uint8"):
        frames.write_png(tmp_path / "a.png", array)
    assert list(tmp_path.iterdir()) == []


def test_write_png_into_missing_folder_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="none"):
        frames.write_png(tmp_path / "none" / "a.png", np.zeros((4, 4), np.uint8))


def test_read_label_takes_the_first_of_several_channels_where_asked(tmp_path: Path) -> None:
    stored = np.zeros((1, 2, 3), np.uint16)
    stored[0, :, 2], stored[0, :, 1] = (3, 21), 60_000  # BGR: class in red, instance in green
    cv2.imwrite(str(tmp_path / "l.png"), stored)
    assert frames.read_label(tmp_path / "l.png", first_channel=True).tolist() == [[3, 21]]
    with pytest.raises(LabelError, match="3 channels"):
        frames.read_label(tmp_path / "l.png")
    stored[0, 0, 2] = 300
    cv2.imwrite(str(tmp_path / "l.png"), stored)
    with pytest.raises(LabelError, match="holds id 300"):
        frames.read_label(tmp_path / "l.png", first_channel=True)


def test_png_header_tells_size_and_colours_without_the_pixels(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((2, 5), np.uint8))
    cv2.imwrite(str(tmp_path / "rgb.png"), np.zeros((4, 3, 3), np.uint8))
    (tmp_path / "head.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:40])
    sizes = [frames.png_size(tmp_path / f"{name}.png") for name in ("grey", "rgb", "head")]
    assert sizes == [(2, 5), (4, 3), (4, 3)]
    assert [frames.has_colours(tmp_path / f"{name}.png") for name in ("grey", "rgb")] == [False, True]


def test_png_header_of_what_is_none_is_none(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.bmp"), np.zeros((2, 5, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("a.bmp", "b.png", "none.png"):
        assert frames.png_size(tmp_path / name) is None
        assert not frames.has_colours(tmp_path / name)
