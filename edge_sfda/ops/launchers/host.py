"""Run kernels on the CPU: g++ behind `cuda_kernels/host_emulator.hpp`, one thread per CUDA thread, for the tests."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch

from edge_sfda.errors import KernelError
from edge_sfda.ops.compilers import host_compiler, host_library
from edge_sfda.ops.launch import Kernel, Launch

_Dim3 = ctypes.c_uint * 3
_MESSAGE_BYTES = 256


class HostLauncher:
    """Carries launches out on CPU tensors, before it returns.

    Args:
        options: more options for the C++ compiler, such as `-fsanitize=thread`.
    """

    name = "host"

    def __init__(self, options: tuple[str, ...] = ()) -> None:
        self.options = options

    def missing(self) -> str | None:
        """Return what this machine lacks, or None."""
        return None if host_compiler() is not None else "no C++ compiler: install g++ 11 or later, or name one in CXX"

    def prepare(self, kernel: Kernel, device: torch.device) -> None:
        """Compile and load the kernel's source; see `Launcher.prepare`."""
        _entry(kernel, self.options)

    def launch(self, launch: Launch, device: torch.device) -> None:
        """Run the launch; see `Launcher.launch`."""
        if device.type != "cpu":
            raise KernelError(f"the host emulation reads CPU memory, the tensors are on {device}")
        buffer, offsets = launch.packed
        memory = (ctypes.c_char * max(len(buffer), 1)).from_buffer_copy(buffer or b"\0")
        start = ctypes.addressof(memory)
        addresses = (ctypes.c_void_p * max(len(offsets), 1))(*(start + offset for offset in offsets))
        sizes = (ctypes.c_size_t * max(len(offsets), 1))(*(arg.itemsize for arg in launch.args))
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = _entry(launch.kernel, self.options).edge_sfda_host_launch(
            launch.kernel.name.encode(),
            _Dim3(*launch.grid),
            _Dim3(*launch.block),
            launch.shared_bytes,
            addresses,
            sizes,
            len(offsets),
            message,
            _MESSAGE_BYTES,
        )
        if status != 0:
            raise KernelError(f"{launch.kernel.source}: {message.value.decode()}")


@lru_cache(maxsize=64)
def _entry(kernel: Kernel, options: tuple[str, ...]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(host_library(kernel, extra=options)))
    library.edge_sfda_host_launch.restype = ctypes.c_int
    library.edge_sfda_host_launch.argtypes = [
        ctypes.c_char_p,
        _Dim3,
        _Dim3,
        ctypes.c_size_t,
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.POINTER(ctypes.c_size_t),
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    return library
