"""Run kernels through PyCUDA, for stacks that already use it; never `pycuda.autoinit`, whose context is not torch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from edge_sfda.errors import KernelError
from edge_sfda.ops.compilers import cubin, device_compiler, nvrtc_missing
from edge_sfda.ops.launch import Kernel, Launch


class PyCudaLauncher:
    """Queues launches in the order of torch's current stream, in the device's primary context, which torch uses too."""

    name = "pycuda"

    def missing(self) -> str | None:
        """Return what this machine lacks, or None."""
        try:
            import pycuda.driver  # noqa: F401
        except ImportError as error:  # no package, or no driver library
            return f"{error}: pip install 'edge-sfda[pycuda]'"
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        return nvrtc_missing() if device_compiler() is None else None

    def prepare(self, kernel: Kernel, device: torch.device) -> None:
        """Compile and load the kernel's source; see `Launcher.prepare`."""
        index = _index(device)
        with _primary_current(index, kernel):
            _function(kernel, index)

    def launch(self, launch: Launch, device: torch.device) -> None:
        """Queue the launch; see `Launcher.launch`."""
        index = _index(device)
        with _primary_current(index, launch.kernel):
            self._queue(launch, index)

    def _queue(self, launch: Launch, index: int) -> None:
        """Launch on torch's current stream; the primary context is current.

        PyCUDA takes no stream but its own or the default one (2026.1). So where torch's is not the default one, a
        stream of PyCUDA's is put between two events of torch's: the same order, and nothing waits on the host.
        """
        function = _function(launch.kernel, index)
        # One argument: PyCUDA copies it as it is into the driver's argument buffer, whose layout `packed` already has.
        buffer, _ = launch.packed
        args = (np.frombuffer(buffer, dtype=f"V{len(buffer)}")[0],) if buffer else ()
        current = torch.cuda.current_stream(index)
        if current.cuda_stream == 0:
            function(*args, grid=launch.grid, block=launch.block, shared=launch.shared_bytes)
            return
        own = _own_stream(index)
        ours = torch.cuda.ExternalStream(own.handle, device=index)  # type: ignore[no-untyped-call]
        ours.wait_stream(current)
        function(*args, grid=launch.grid, block=launch.block, shared=launch.shared_bytes, stream=own)
        current.wait_stream(ours)


@contextmanager
def _primary_current(index: int, kernel: Kernel) -> Iterator[None]:
    """Make the device's primary context current, pushed and popped, and map PyCUDA's errors.

    Raises:
        KernelError: PyCUDA failed.
    """
    import pycuda.driver

    try:
        _primary_context(index).push()
        try:
            yield
        finally:
            pycuda.driver.Context.pop()
    except pycuda.driver.Error as error:
        raise KernelError(f"{kernel.name} with PyCUDA failed: {error}") from error


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@lru_cache(maxsize=64)
def _primary_context(index: int) -> Any:
    """Return PyCUDA's handle on the device's primary context, kept for the life of the process."""
    import pycuda.driver

    torch.cuda.init()  # type: ignore[no-untyped-call]
    pycuda.driver.init()
    return pycuda.driver.Device(index).retain_primary_context()


@lru_cache(maxsize=64)
def _own_stream(index: int) -> Any:
    """Return PyCUDA's stream on the device; the current context must be the device's."""
    import pycuda.driver

    return pycuda.driver.Stream(1)  # CU_STREAM_NON_BLOCKING: no hidden order with the default stream


@lru_cache(maxsize=256)
def _function(kernel: Kernel, index: int) -> Any:
    return _module(kernel.source, kernel.defines, index).get_function(kernel.name)


@lru_cache(maxsize=256)
def _module(source: str, defines: tuple[tuple[str, str], ...], index: int) -> Any:
    """Return the loaded source; the current context must be the device's."""
    import pycuda.driver

    major, minor = torch.cuda.get_device_capability(index)
    return pycuda.driver.module_from_buffer(cubin(Kernel(source, "", defines), f"sm_{major}{minor}").read_bytes())
