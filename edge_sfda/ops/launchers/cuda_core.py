"""Run kernels through NVIDIA's cuda-python (`cuda.bindings.driver`), where PyCUDA is missing."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from edge_sfda.errors import KernelError
from edge_sfda.ops.compilers import cubin, device_compiler, nvrtc_missing
from edge_sfda.ops.launch import Kernel, Launch


class CudaCoreLauncher:
    """Queues launches on torch's current stream, in the device's primary context, which torch uses too."""

    name = "cuda-core"

    def missing(self) -> str | None:
        """Return what this machine lacks, or None."""
        try:
            import cuda.bindings.driver  # noqa: F401
        except ImportError as error:
            return f"{error}: pip install 'edge-sfda[gpu]'"
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        return nvrtc_missing() if device_compiler() is None else None

    def prepare(self, kernel: Kernel, device: torch.device) -> None:
        """Compile and load the kernel's source; see `Launcher.prepare`."""
        index = _index(device)
        with _primary_current(index):
            _function(kernel, index)

    def launch(self, launch: Launch, device: torch.device) -> None:
        """Queue the launch; see `Launcher.launch`."""
        from cuda.bindings import driver

        index = _index(device)
        stream = torch.cuda.current_stream(index).cuda_stream
        buffer, offsets = launch.packed
        memory = (ctypes.c_char * max(len(buffer), 1)).from_buffer_copy(buffer or b"\0")
        start = ctypes.addressof(memory)
        addresses = (ctypes.c_void_p * max(len(offsets), 1))(*(start + offset for offset in offsets))
        # The driver copies the arguments before cuLaunchKernel returns, so the buffers need not outlive the call.
        with _primary_current(index):
            function = _function(launch.kernel, index)
            done = driver.cuLaunchKernel(
                function, *launch.grid, *launch.block, launch.shared_bytes, stream, ctypes.addressof(addresses), 0
            )
            _call(done, f"launching {launch.kernel.name} with grid {launch.grid}, block {launch.block}")


@contextmanager
def _primary_current(index: int) -> Iterator[None]:
    """Make the device's primary context current; pushed and popped, for torch tracks which device is current."""
    from cuda.bindings import driver

    _call(driver.cuCtxPushCurrent(_primary_context(index)), "cuCtxPushCurrent")
    try:
        yield
    finally:
        driver.cuCtxPopCurrent()


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@lru_cache(maxsize=64)
def _primary_context(index: int) -> Any:
    """Return the device's primary context; retained for the life of the process, as torch does."""
    from cuda.bindings import driver

    torch.cuda.init()  # type: ignore[no-untyped-call]
    (device,) = _call(driver.cuDeviceGet(index), "cuDeviceGet")
    return _call(driver.cuDevicePrimaryCtxRetain(device), "cuDevicePrimaryCtxRetain")[0]


@lru_cache(maxsize=256)
def _function(kernel: Kernel, index: int) -> Any:
    """Return the kernel's CUfunction; the current context must be the device's. Its module is never unloaded."""
    from cuda.bindings import driver

    (function,) = _call(
        driver.cuModuleGetFunction(_module(kernel.source, kernel.defines, index), kernel.name.encode()),
        f"finding {kernel.name} in {kernel.source}",
    )
    return function


@lru_cache(maxsize=256)
def _module(source: str, defines: tuple[tuple[str, str], ...], index: int) -> Any:
    from cuda.bindings import driver

    major, minor = torch.cuda.get_device_capability(index)
    image = cubin(Kernel(source, "", defines), f"sm_{major}{minor}").read_bytes()
    return _call(driver.cuModuleLoadData(image), f"loading {source}")[0]


def _call(result: tuple[Any, ...], action: str) -> tuple[Any, ...]:
    """Return what a driver call gave besides its status.

    Raises:
        KernelError: the call failed.
    """
    status, *values = result
    if int(status) != 0:
        raise KernelError(f"{action} failed: {getattr(status, 'name', status)}")
    return tuple(values)
