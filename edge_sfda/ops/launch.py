"""The one seam between the operators and whatever runs their kernels.

An operator describes a launch once, as a `Launch`: kernel, grid, block, shared memory and packed arguments. The
launchers (`ops.launchers`) only carry it out, so that what the host emulation runs in the tests is what a GPU runs.

    operator -> Launch -> launchers.host       g++ and threads, CPU tensors; for the tests
                       -> launchers.pycuda     where PyCUDA is installed
                       -> launchers.cuda_core  NVIDIA's cuda-python, where PyCUDA is missing
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from edge_sfda.errors import KernelError, UsageError

Backend = Literal["auto", "torch", "cuda", "host"]
Settled = Literal["torch", "cuda", "host"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
BACKEND_VARIABLE = "EDGE_SFDA_OPS"

# What every GPU since sm_50 takes without opting in.
MAX_THREADS = 1024
MAX_SHARED_BYTES = 48 * 1024
MAX_GRID = (2**31 - 1, 65535, 65535)
MAX_BLOCK = (1024, 1024, 64)
MAX_ARGUMENT_BYTES = 4096

# What `-DSCALAR=` is for tensors of a type; see cuda_kernels/kernel.hpp.
SCALARS = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "BFloat16"}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Kernel:
    """One `extern "C" __global__` function of a source in `cuda_kernels/`."""

    source: str
    """File name in `cuda_kernels/`, such as `weighted_cross_entropy.cu`; or an absolute path, as tests use."""
    name: str
    """Name of the function."""
    defines: tuple[tuple[str, str], ...] = ()
    """Preprocessor definitions, part of what is compiled: (("SCALAR", "float"),)."""


@dataclass(frozen=True)
class Launch:
    """One launch, complete: nothing about it is left for a launcher to decide.

    Raises:
        KernelError: for a size that no GPU takes, so that the host emulation refuses it too.
    """

    kernel: Kernel
    grid: tuple[int, int, int]
    """Blocks along x, y, z; a launch with a zero here does nothing."""
    block: tuple[int, int, int]
    """Threads along x, y, z; at most 1024 together."""
    shared_bytes: int
    """Dynamic shared memory; at most 48 KiB."""
    args: tuple[np.generic, ...]
    """As `arguments` makes them: pointers as uint64, numbers in the width that the kernel declares, structs as void."""

    def __post_init__(self) -> None:
        threads = int(np.prod(self.block))
        fits = (
            all(0 <= g <= limit for g, limit in zip(self.grid, MAX_GRID, strict=True))
            and all(1 <= b <= limit for b, limit in zip(self.block, MAX_BLOCK, strict=True))
            and threads <= MAX_THREADS
            and 0 <= self.shared_bytes <= MAX_SHARED_BYTES
        )
        if not fits:
            raise KernelError(
                f"{self.kernel.name}: grid {self.grid}, block {self.block} ({threads} threads), {self.shared_bytes} "
                f"bytes of shared memory does not fit a GPU: at most grid {MAX_GRID}, block {MAX_BLOCK}, {MAX_THREADS} "
                f"threads and {MAX_SHARED_BYTES} bytes"
            )

    @property
    def empty(self) -> bool:
        """Whether there is no block to run."""
        return 0 in self.grid

    @cached_property
    def packed(self) -> tuple[bytes, tuple[int, ...]]:
        """The argument buffer in the layout of CUDA's ABI (natural alignment), and where each argument starts in it."""
        buffer, offsets = bytearray(), []
        for arg in self.args:
            buffer.extend(bytes(-len(buffer) % arg.dtype.alignment))
            offsets.append(len(buffer))
            buffer.extend(arg.tobytes())
        if len(buffer) > MAX_ARGUMENT_BYTES:
            raise KernelError(f"{self.kernel.name}: {len(buffer)} bytes of arguments, at most {MAX_ARGUMENT_BYTES}")
        return bytes(buffer), tuple(offsets)


def arguments(*values: Tensor | np.generic | None) -> tuple[np.generic, ...]:
    """Return kernel arguments: a tensor by its address, None as a null pointer, anything else as the number it is.

    Plain Python numbers are refused: their width would be a guess. The caller keeps the tensors alive until the launch
    has been queued; torch's allocator then orders their re-use after it on the same stream.

    Raises:
        UsageError: for a value of another type, or a scalar that cannot be passed by value.
    """
    packed: list[np.generic] = []
    for index, value in enumerate(values):
        if value is None:
            packed.append(np.uint64(0))
        elif isinstance(value, Tensor):
            packed.append(np.uint64(value.data_ptr()))
        elif isinstance(value, np.number | np.void):
            packed.append(value)
        else:
            raise UsageError(
                f"kernel argument {index} is {value!r} ({type(value).__name__}): give a tensor, None or a numpy scalar "
                "of the width that the kernel declares, such as numpy.int32"
            )
    return tuple(packed)


class Launcher(Protocol):
    """What carries a `Launch` out."""

    name: str

    def missing(self) -> str | None:
        """Return what this machine lacks to use this launcher, or None."""
        ...

    def prepare(self, kernel: Kernel, device: torch.device) -> None:
        """Compile and load a kernel, so that launching it has nothing left to do but queue.

        Raises:
            KernelError: when it does not compile or load.
        """
        ...

    def launch(self, launch: Launch, device: torch.device) -> None:
        """Queue the launch on torch's current stream of the device, without waiting for it.

        Raises:
            KernelError: when the kernel does not compile, load or launch.
        """
        ...


def launch_all(launcher: Launcher, launches: Sequence[Launch], device: torch.device) -> None:
    """Queue launches in order, leaving out empty ones."""
    for launch in launches:
        if not launch.empty:
            launcher.launch(launch, device)


def requested_backend(backend: str | None) -> Backend:
    """Return the backend named by the call, else by the variable EDGE_SFDA_OPS, else "auto".

    Raises:
        UsageError: for an unknown name.
    """
    name = backend if backend is not None else (os.environ.get(BACKEND_VARIABLE) or "auto")
    if name not in BACKENDS:
        origin = BACKEND_VARIABLE if backend is None else "backend"
        raise UsageError(f"{origin} is {name!r}: expected one of {', '.join(BACKENDS)}")
    return name


def dispatch(
    backend: str | None, device: torch.device, *, fused: Callable[[Launcher], Result], plain: Callable[[], Result]
) -> Result:
    """Run an operator on the backend that was asked for.

    `auto` means the kernels on a CUDA device and plain torch elsewhere. Only `auto` falls back from a kernel that fails
    to plain torch; it warns once per process and then stays with torch.

    Args:
        backend: "auto", "torch", "cuda", "host", or None for the variable EDGE_SFDA_OPS.
        device: of the operator's tensors.
        fused: carries the operator out with the launcher it is given.
        plain: carries it out in plain torch.

    Raises:
        UsageError: unknown backend, or one that cannot work on tensors of this device.
        KernelError: the kernels fail and the backend was not `auto`.
    """
    name = _fitting(requested_backend(backend), device)
    if name == "torch":
        return plain()
    if name != "auto":
        return fused(launcher_of(name))
    if _Fallback.warned:
        return plain()
    try:
        return fused(launcher_of("cuda"))
    except KernelError as error:
        _Fallback.warn(error)
        return plain()


def settle(backend: str | None, device: torch.device, kernel: Kernel) -> Settled:
    """Choose the backend as `dispatch` does, once for an operator's forward and backward pass.

    For operators whose passes hand each other what only the same backend understands. `auto` finds out by compiling
    and loading the kernel, which is kept; its launches then raise like those of "cuda".

    Args:
        backend: as for `dispatch`.
        device: of the operator's tensors.
        kernel: any of the operator's kernels.

    Raises:
        UsageError, KernelError: as `dispatch`.
    """
    name = _fitting(requested_backend(backend), device)
    if name != "auto":
        return name
    if _Fallback.warned:
        return "torch"
    try:
        launcher_of("cuda").prepare(kernel, device)
    except KernelError as error:
        _Fallback.warn(error)
        return "torch"
    return "cuda"


def launcher_of(backend: Literal["cuda", "host"]) -> Launcher:
    """Return the launcher of a backend that runs kernels.

    Raises:
        KernelError: none is usable here.
    """
    return _host() if backend == "host" else _gpu()


def _fitting(name: Backend, device: torch.device) -> Backend:
    """Return the backend, with "auto" only where a GPU may serve it.

    Raises:
        UsageError: the backend cannot work on tensors of this device.
    """
    if name == "auto" and device.type != "cuda":
        return "torch"
    wanted = {"host": "cpu", "cuda": "cuda"}.get(name, device.type)
    if device.type != wanted:
        raise UsageError(f"backend {name!r} is for tensors on {wanted}, these are on {device}: move them or use 'auto'")
    return name


class _Fallback:
    """Whether `auto` has given up on the kernels in this process."""

    warned = False

    @classmethod
    def warn(cls, error: KernelError) -> None:
        cls.warned = True
        warnings.warn(
            f"the fused kernels are not usable, going on with plain torch (slower, more memory): {error}",
            RuntimeWarning,
            stacklevel=4,
        )


def _host() -> Launcher:
    from edge_sfda.ops.launchers import HOST

    return HOST


def _gpu() -> Launcher:
    """Return the first GPU launcher that is usable.

    Raises:
        KernelError: none is.
    """
    from edge_sfda.ops.launchers import GPU

    reasons = []
    for launcher in GPU:
        reason = launcher.missing()
        if reason is None:
            return launcher
        reasons.append(f"{launcher.name}: {reason}")
    raise KernelError("no launcher can use this GPU. " + "; ".join(reasons))
