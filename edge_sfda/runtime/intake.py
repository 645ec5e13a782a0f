"""Frames as callers hold them, taken without a copy: numpy, DLPack, `__cuda_array_interface__`. No torch.

A frame is uint8 [H, W, 3], a batch uint8 [B, H, W, 3]. What lies in host memory comes out as a contiguous numpy array;
what lies on a GPU (torch tensors, CuPy, PyCUDA's GPUArray, Numba) comes out as an address, with its owner.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sfda.errors import FrameError

U8 = npt.NDArray[np.uint8]

_HOST_DEVICES = (1, 3)  # DLPack's codes: CPU, and CUDA's pinned host memory
_GPU_DEVICES = (2, 13)  # CUDA, CUDA managed
_UNSIGNED = 1  # DLPack's code of unsigned integers
_MAX_SIDE = 16384  # pixels; a larger "frame" is a mistake of layout


@dataclass(frozen=True, eq=False)
class DeviceFrames:
    """Frames that lie on a GPU.

    Args:
        pointer: address on the device, of contiguous uint8 [B, H, W, 3].
        shape: (B, H, W, 3).
        device: number of the GPU; None where the owner does not tell, then that of its context.
        stream: handle of the stream that still writes them, which has to be waited for; None: they are complete.
        owner: what holds the memory; kept alive with this.
    """

    pointer: int
    shape: tuple[int, int, int, int]
    device: int | None
    stream: int | None
    owner: object


Frames = U8 | DeviceFrames


def as_frames(given: Any, *, min_side: int, batch: bool = False) -> Frames:
    """Return what a caller gave as a batch of frames.

    Args:
        given: uint8 [H, W, 3]; with `batch`, [B, H, W, 3] or a sequence of frames of one size in host memory.
        min_side: the smallest H or W that the network takes.
        batch: a batch is expected.

    Returns:
        contiguous uint8 [B, H, W, 3] in host memory, without a copy wherever it was contiguous; or its place on a GPU.

    Raises:
        FrameError: another type, dtype or layout, empty, too small, frames of several sizes, or on a device that is
            neither the CPU nor a CUDA GPU.
    """
    if batch and isinstance(given, Sequence):
        return _stacked(given, min_side)
    on_gpu = _on_gpu(given)
    if on_gpu is not None:
        pointer, shape, device, stream, owner = on_gpu
        whole = _checked(shape, min_side, batch=batch)
        return DeviceFrames(pointer, whole, device, stream, owner)
    array = _on_host(given, batch=batch)
    whole = _checked(array.shape, min_side, batch=batch)
    return np.ascontiguousarray(array).reshape(whole)


def _stacked(frames: Sequence[Any], min_side: int) -> U8:
    if not frames:
        raise FrameError("a batch of no frames; give at least one")
    arrays: list[U8] = []
    for index, frame in enumerate(frames):
        array = as_frames(frame, min_side=min_side)
        if isinstance(array, DeviceFrames):
            raise FrameError("a list of frames on a GPU; give one array [B, H, W, 3] instead")
        if arrays and array.shape != arrays[0].shape:
            first, other = arrays[0].shape[1:3], array.shape[1:3]
            raise FrameError(
                f"frame {index} of the batch is {other[0]}x{other[1]}, the first one {first[0]}x{first[1]}; frames of "
                "one batch share a size, call once for each size"
            )
        arrays.append(array)
    return np.concatenate(arrays)


def _on_host(given: Any, *, batch: bool) -> U8:
    if not isinstance(given, np.ndarray):
        if not hasattr(given, "__dlpack__"):
            raise FrameError(
                f"frame is a {type(given).__name__}, expected a numpy array uint8 {_expected(batch)}, or anything with "
                "DLPack or __cuda_array_interface__; numpy.asarray makes one of a picture"
            )
        try:
            given = np.from_dlpack(given)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise FrameError(f"frame, a {type(given).__name__}, cannot be read through DLPack: {error}") from error
    if given.dtype != np.uint8:
        _refuse_dtype(str(given.dtype))
    array: U8 = given
    return array


def _refuse_dtype(name: str) -> None:
    raise FrameError(f"frame has dtype {name}, expected uint8 of 0..255; scale and convert it first")


def _expected(batch: bool) -> str:
    return "(batch, height, width, 3)" if batch else "(height, width, 3)"


def _checked(shape: Sequence[int], min_side: int, *, batch: bool) -> tuple[int, int, int, int]:
    """Return the shape as that of a batch."""
    given = tuple(int(n) for n in shape)
    if len(given) != (4 if batch else 3) or given[-1] != 3:
        planes = len(given) >= 3 and given[-3] == 3
        hint = "; planes first is another layout: transpose it to channels last" if planes else ""
        one = len(given) == 4 and not batch and given[-1] == 3
        hint = "; for several frames call batch()" if one else hint
        raise FrameError(f"frame has shape {given}, expected {_expected(batch)}{hint}")
    whole = given if batch else (1, *given)
    if 0 in whole:
        raise FrameError(f"frame of shape {given} is empty; the source gave no pixels")
    height, width = whole[1:3]
    if min(height, width) < min_side:
        raise FrameError(f"frame of {height}x{width} is too small, this network takes {min_side} pixels a side or more")
    if max(height, width) > _MAX_SIDE:
        raise FrameError(f"frame of {height}x{width} is too large, expected at most {_MAX_SIDE} pixels a side")
    return (whole[0], height, width, 3)


_OnGpu = tuple[int, tuple[int, ...], int | None, int | None, object]


def _on_gpu(given: Any) -> _OnGpu | None:
    """Return pointer, shape, device, stream and owner of what lies on a GPU, or None for host memory."""
    if isinstance(given, np.ndarray):
        return None
    device = _dlpack_device(given)
    if device is not None and device[0] in _HOST_DEVICES:
        return None
    interface = getattr(given, "__cuda_array_interface__", None)
    if interface is not None:
        return _from_interface(interface, None if device is None else device[1], given)
    if device is None:
        return None
    if device[0] not in _GPU_DEVICES:
        raise FrameError(f"frame lies on a device that DLPack numbers {device[0]}; expected host memory or a CUDA GPU")
    return _from_dlpack(given, device[1])


def _dlpack_device(given: Any) -> tuple[int, int] | None:
    ask = getattr(given, "__dlpack_device__", None)
    if ask is None or not hasattr(given, "__dlpack__"):
        return None
    kind, number = ask()
    return int(kind), int(number)


def _from_interface(interface: dict[str, Any], device: int | None, owner: object) -> _OnGpu:
    if interface["typestr"] not in ("|u1", "<u1", "=u1", "u1"):
        _refuse_dtype(str(interface["typestr"]))
    shape = tuple(int(n) for n in interface["shape"])
    strides = interface.get("strides")
    if strides is not None and not _contiguous(shape, tuple(int(s) for s in strides)):
        _refuse_strides()
    stream = interface.get("stream")
    return int(interface["data"][0]), shape, device, None if stream is None else int(stream), owner


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _refuse_strides() -> None:
    raise FrameError("frame on the GPU is not contiguous (height, width, 3); call .contiguous() or its like first")


class _DLTensor(ctypes.Structure):
    """The head of DLPack's managed tensor: a stable binary interface."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(given: Any, device: int) -> _OnGpu:
    # Stream 1 is the legacy default stream, with which blocking streams are in order; the producer waits for its own.
    # The capsule is read, not taken: it stays the owner and frees itself, as the protocol has it.
    capsule = given.__dlpack__(stream=1)
    tensor = _tensor_of(capsule)
    if (tensor.code, tensor.bits, tensor.lanes) != (_UNSIGNED, 8, 1):
        _refuse_dtype(f"of DLPack's code {tensor.code} with {tensor.bits} bits")
    shape = tuple(int(tensor.shape[i]) for i in range(tensor.ndim))
    if tensor.strides and not _contiguous(shape, tuple(int(tensor.strides[i]) for i in range(tensor.ndim))):
        _refuse_strides()
    return int(tensor.data or 0) + int(tensor.byte_offset), shape, device, 1, (given, capsule)


def _tensor_of(capsule: object) -> _DLTensor:
    """Return the tensor in a capsule of DLPack, which must outlive it."""
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = read(capsule, b"dltensor")
    assert address, "a capsule without a pointer raises"
    return _DLTensor.from_address(address)
