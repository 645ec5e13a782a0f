from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from edge_sfda.errors import FrameError
from edge_sfda.runtime import intake
from edge_sfda.runtime.intake import DeviceFrames, as_frames


def _frame(height: int = 10, width: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    return a.ctypes.data == b.ctypes.data


def test_contiguous_numpy_is_taken_without_a_copy() -> None:
    frame = _frame()
    taken = as_frames(frame, min_side=8)
    assert isinstance(taken, np.ndarray)
    assert taken.shape == (1, 10, 12, 3)
    assert _same_memory(taken, frame)


def test_torch_tensor_on_the_host_is_taken_without_a_copy() -> None:
    tensor = torch.from_numpy(_frame())
    taken = as_frames(tensor, min_side=8)
    assert isinstance(taken, np.ndarray)
    assert taken.ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize("view", [lambda f: f[:, ::-1], lambda f: f[..., ::-1], lambda f: f.transpose(1, 0, 2)])
def test_view_comes_out_contiguous_with_its_own_pixels(view) -> None:
    given = view(_frame())
    taken = as_frames(given, min_side=8)
    assert isinstance(taken, np.ndarray)
    assert taken.flags.c_contiguous
    assert (taken[0] == given).all()


def test_list_of_frames_becomes_a_batch() -> None:
    frames = [_frame(), 255 - _frame()]
    taken = as_frames(frames, min_side=8, batch=True)
    assert isinstance(taken, np.ndarray)
    assert (taken == np.stack(frames)).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (_frame().astype(np.float32), "dtype float32, expected uint8"),
        (torch.zeros(10, 12, 3), "dtype float32, expected uint8"),
        (_frame().astype(np.int64), "dtype int64"),
        (_frame()[..., 0], r"shape \(10, 12\), expected \(height, width, 3\)"),
        (_frame().transpose(2, 0, 1), "planes first"),
        (_frame()[None], r"call batch\(\)"),
        (np.zeros((10, 12, 4), np.uint8), r"\(10, 12, 4\)"),
        (np.zeros((0, 12, 3), np.uint8), "is empty"),
        (np.zeros((7, 12, 3), np.uint8), "7x12 is too small, this network takes 8"),
        (np.zeros((8, 20000, 3), np.uint8), "too large"),
        ([[1, 2, 3]], "is a list, expected a numpy array"),
        (None, "is a NoneType"),
        ("frame.png", "is a str"),
    ],
)
def test_what_is_no_frame_is_named(given: Any, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        as_frames(given, min_side=8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "a batch of no frames"),
        (np.zeros((0, 10, 12, 3), np.uint8), "is empty"),
        ([_frame(), _frame(10, 14)], "frame 1 of the batch is 10x14, the first one 10x12"),
        (_frame(), r"expected \(batch, height, width, 3\)"),
        ([_frame(), None], "is a NoneType"),
    ],
)
def test_what_is_no_batch_is_named(given: Any, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        as_frames(given, min_side=8, batch=True)


@dataclass
class _OnGpu:
    """What CuPy, PyCUDA and Numba have."""

    __cuda_array_interface__: dict[str, Any]


def _interface(**changes: Any) -> _OnGpu:
    return _OnGpu({"typestr": "|u1", "shape": (10, 12, 3), "data": (4096, False), "version": 3, **changes})


def test_cuda_array_interface_gives_the_address_and_the_stream() -> None:
    given = _interface(stream=7, strides=(36, 3, 1))
    taken = as_frames(given, min_side=8)
    assert isinstance(taken, DeviceFrames)
    assert (taken.pointer, taken.shape, taken.device, taken.stream) == (4096, (1, 10, 12, 3), None, 7)
    assert taken.owner is given


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (_interface(typestr="<f4"), "dtype <f4"),
        (_interface(strides=(40, 3, 1)), "not contiguous"),
        (_interface(shape=(3, 10, 12)), "planes first"),
        (_interface(shape=(4, 12, 3)), "too small"),
    ],
)
def test_wrong_cuda_array_interface_is_named(given: Any, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        as_frames(given, min_side=8)


class _DlpackOnGpu:
    """A producer that says its memory is a GPU's; the capsule itself is a real one, of numpy."""

    def __init__(self, array: np.ndarray, kind: int = 2) -> None:
        self.array, self.kind = array, kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 3

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        assert stream == 1
        return self.array.__dlpack__()


def test_dlpack_gives_address_shape_and_device() -> None:
    array = _frame()
    taken = as_frames(_DlpackOnGpu(array), min_side=8)
    assert isinstance(taken, DeviceFrames)
    assert (taken.pointer, taken.shape, taken.device) == (array.ctypes.data, (1, 10, 12, 3), 3)
    seen = (ctypes.c_uint8 * array.nbytes).from_address(taken.pointer)
    assert bytes(seen) == array.tobytes()


def test_dlpack_capsule_is_left_to_its_owner() -> None:
    capsule = _frame().__dlpack__()
    before = intake._tensor_of(capsule).data
    assert intake._tensor_of(capsule).data == before  # a taken one would be renamed, and raise


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (_DlpackOnGpu(np.zeros((10, 12, 3), np.float32)), "dtype of DLPack's code 2 with 32 bits"),
        (_DlpackOnGpu(_frame()[:, ::2]), "not contiguous"),
        (_DlpackOnGpu(_frame(), kind=8), "device that DLPack numbers 8"),
    ],
)
def test_wrong_dlpack_is_named(given: Any, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        as_frames(given, min_side=8)


def test_torch_tensor_that_cannot_be_read_is_named() -> None:
    with pytest.raises(FrameError, match="a Tensor, cannot be read through DLPack"):
        as_frames(torch.zeros(10, 12, 3, requires_grad=True), min_side=8)
