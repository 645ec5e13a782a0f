"""GPU memory, one stream and its graphs, by whichever library is there: torch, PyCUDA, cuda-python. No torch needed.

    TorchMemory    where the process has torch loaded already: its allocator and context are in use anyway
    PyCudaMemory   where it has PyCUDA loaded, or only that is installed; always the primary context, which all share
    CudaMemory     NVIDIA's cuda-python, without either

Nothing here is called for a frame but copies, a wait and a graph's launch; memory is taken once for each size of frame.
"""

from __future__ import annotations

import ctypes
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_sfda.errors import EngineError

Launch = Callable[[], None]


class DeviceMemory(Protocol):
    """Memory and one stream of one GPU. Addresses are plain integers; a buffer lives until `free` or `close`.

    Attributes:
        stream: handle of the stream, as an integer.
        name: the library, for messages.
    """

    stream: int
    name: str

    @abstractmethod
    def current(self) -> AbstractContextManager[Any]:
        """Make the GPU the calling thread's own within a `with` block, as whoever queues work on it must."""

    @abstractmethod
    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the GPU."""

    @abstractmethod
    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a host array that the GPU reads and writes without a copy in between."""

    @abstractmethod
    def free(self) -> None:
        """Let go of all that was allocated or pinned."""

    @abstractmethod
    def to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """Queue a copy of a pinned array to the GPU."""

    @abstractmethod
    def to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """Queue a copy from the GPU into a pinned array."""

    @abstractmethod
    def wait(self) -> None:
        """Wait for all that was queued."""

    @abstractmethod
    def capture(self, queue: Launch) -> Launch | None:
        """Record what `queue` queues on the stream as a CUDA graph; return what launches it, None if it cannot be."""

    @abstractmethod
    def close(self) -> None:
        """Free everything and destroy the stream."""


def open_memory(device: int) -> DeviceMemory:
    """Return device memory by the library that the process uses already, else by one that is installed.

    Raises:
        EngineError: there is none, or the GPU cannot be used; the message has what installs one.
    """
    kinds: dict[str, Callable[[int], DeviceMemory]] = {"torch": TorchMemory, "pycuda": PyCudaMemory, "cuda": CudaMemory}
    loaded = [name for name in ("torch", "pycuda") if name in sys.modules]
    # torch last: loading it takes seconds and much memory, which is what an engine was exported to be rid of
    installed = [name for name in ("cuda", "pycuda", "torch") if _has(name)]
    reasons = []
    for name in dict.fromkeys([*loaded, *installed]):
        try:
            return kinds[name](device)
        except EngineError as error:
            reasons.append(str(error))
    why = "; ".join(reasons) or "none of torch, pycuda, cuda-python is installed"
    raise EngineError(f"no GPU memory for the engine: {why}. Install cuda-python (pip install 'edge-sfda[gpu]')")


def synchronize_stream(stream: int) -> None:
    """Wait on the host for a stream of any library, given by its handle (1: the legacy default stream).

    Raises:
        EngineError: neither torch is loaded nor cuda-python installed, or the driver fails.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        handle = 0 if stream == 1 else stream
        torch.cuda.ExternalStream(handle).synchronize()
        return
    runtime = _runtime()
    _call(runtime.cudaStreamSynchronize(stream), "waiting for a stream")


def _has(name: str) -> bool:
    try:
        return find_spec("cuda.bindings" if name == "cuda" else name) is not None
    except (ModuleNotFoundError, ValueError):  # the parent is missing; or it is loaded, and tells nothing of itself
        return name in sys.modules


class TorchMemory(DeviceMemory):
    """By torch: its allocator, and a stream of its pool."""

    name = "torch"

    def __init__(self, device: int) -> None:
        torch: Any = import_module("torch")

        if not torch.cuda.is_available() or device >= torch.cuda.device_count():
            raise EngineError(f"torch has no GPU {device}")
        self._torch = torch
        self._device = torch.device("cuda", device)
        self._stream = torch.cuda.Stream(self._device)
        self.stream = int(self._stream.cuda_stream)
        self._tensors: dict[int, Any] = {}  # by address, on the GPU and pinned alike

    def current(self) -> AbstractContextManager[Any]:
        """See `DeviceMemory.current`."""
        inside: AbstractContextManager[Any] = self._torch.cuda.device(self._device)
        return inside

    def allocate(self, size: int) -> int:
        """See `DeviceMemory.allocate`."""
        tensor = self._torch.empty(max(1, size), dtype=self._torch.uint8, device=self._device)
        return self._keep(tensor)

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `DeviceMemory.pinned`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        tensor = self._torch.empty(max(1, size), dtype=self._torch.uint8, pin_memory=True)
        self._keep(tensor)
        array: npt.NDArray[Any] = tensor.numpy()[:size].view(dtype).reshape(shape)
        return array

    def free(self) -> None:
        """See `DeviceMemory.free`."""
        self.wait()
        self._tensors = {}

    def to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `DeviceMemory.to_device`."""
        self._copy(self._tensors[address], self._tensors[array.ctypes.data], array.nbytes)

    def to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """See `DeviceMemory.to_host`."""
        self._copy(self._tensors[array.ctypes.data], self._tensors[address], array.nbytes)

    def wait(self) -> None:
        """See `DeviceMemory.wait`."""
        self._stream.synchronize()

    def capture(self, queue: Launch) -> Launch | None:
        """See `DeviceMemory.capture`."""
        graph = self._torch.cuda.CUDAGraph()
        try:
            with self._torch.cuda.graph(graph, stream=self._stream):
                queue()
        except (RuntimeError, EngineError):
            return None

        def launch() -> None:
            with self._torch.cuda.stream(self._stream):
                graph.replay()

        return launch

    def close(self) -> None:
        """See `DeviceMemory.close`."""
        self.free()

    def _keep(self, tensor: Any) -> int:
        address = int(tensor.data_ptr())
        self._tensors[address] = tensor
        return address

    def _copy(self, to: Any, source: Any, size: int) -> None:
        with self._torch.cuda.stream(self._stream):
            to[:size].copy_(source[:size], non_blocking=True)


class PyCudaMemory(DeviceMemory):
    """By PyCUDA, in the primary context: `pycuda.autoinit` would make another, in which torch's memory is not valid."""

    name = "PyCUDA"

    def __init__(self, device: int) -> None:
        try:
            driver: Any = import_module("pycuda.driver")
            driver.init()
            self._context: Any = driver.Device(device).retain_primary_context()
        except Exception as error:  # its errors share no base class, and the import needs a driver
            raise EngineError(f"PyCUDA cannot use GPU {device} ({error})") from error
        self._driver = driver
        self._stream = self._inside(driver.Stream)
        self.stream = int(self._stream.handle)
        self._kept: list[Any] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `DeviceMemory.current`."""
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def allocate(self, size: int) -> int:
        """See `DeviceMemory.allocate`."""
        memory = self._inside(lambda: self._driver.mem_alloc(max(1, size)))
        self._kept.append(memory)
        return int(memory)

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `DeviceMemory.pinned`."""
        array: npt.NDArray[Any] = self._inside(lambda: self._driver.pagelocked_empty(tuple(shape), dtype))
        return array

    def free(self) -> None:
        """See `DeviceMemory.free`."""
        self.wait()
        for memory in self._kept:
            self._inside(memory.free)
        self._kept = []

    def to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `DeviceMemory.to_device`."""
        self._inside(lambda: self._driver.memcpy_htod_async(address, array, self._stream))

    def to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """See `DeviceMemory.to_host`."""
        self._inside(lambda: self._driver.memcpy_dtoh_async(array, address, self._stream))

    def wait(self) -> None:
        """See `DeviceMemory.wait`."""
        self._inside(self._stream.synchronize)

    def capture(self, queue: Launch) -> Launch | None:
        """Return None: PyCUDA has no graphs."""
        return None

    def close(self) -> None:
        """See `DeviceMemory.close`."""
        self.free()
        self._context.detach()

    def _inside(self, call: Callable[[], Any]) -> Any:
        with self.current():
            return call()


class CudaMemory(DeviceMemory):
    """By cuda-python's runtime API, which works in the primary context by itself."""

    name = "cuda-python"

    def __init__(self, device: int) -> None:
        self._cuda = _runtime()
        self._device = device
        self._use("using the GPU")
        (handle,) = _call(self._cuda.cudaStreamCreate(), "making a stream")
        self._stream = handle
        self.stream = int(handle)
        self._device_memory: list[int] = []
        self._host_memory: list[int] = []
        self._graphs: list[Any] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        """See `DeviceMemory.current`."""
        (before,) = _call(self._cuda.cudaGetDevice(), "asking for the GPU in use")
        self._use("using the GPU")
        try:
            yield
        finally:
            _call(self._cuda.cudaSetDevice(before), "going back to the GPU in use before")

    def allocate(self, size: int) -> int:
        """See `DeviceMemory.allocate`."""
        self._use("allocating")
        (address,) = _call(self._cuda.cudaMalloc(max(1, size)), f"allocating {size} bytes")
        self._device_memory.append(int(address))
        return int(address)

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `DeviceMemory.pinned`."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._use("pinning")
        (address,) = _call(self._cuda.cudaMallocHost(max(1, size)), f"pinning {size} bytes")
        self._host_memory.append(int(address))
        buffer = memoryview((ctypes.c_uint8 * size).from_address(int(address)))
        array: npt.NDArray[Any] = np.frombuffer(buffer, np.uint8).view(dtype).reshape(shape)
        return array

    def free(self) -> None:
        """See `DeviceMemory.free`."""
        self.wait()
        for graph in self._graphs:
            _call(self._cuda.cudaGraphExecDestroy(graph), "destroying a graph")
        for address in self._device_memory:
            _call(self._cuda.cudaFree(address), "freeing")
        for address in self._host_memory:
            _call(self._cuda.cudaFreeHost(address), "freeing")
        self._graphs, self._device_memory, self._host_memory = [], [], []

    def to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        """See `DeviceMemory.to_device`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        _call(self._cuda.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._stream), "copying")

    def to_host(self, array: npt.NDArray[Any], address: int) -> None:
        """See `DeviceMemory.to_host`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _call(self._cuda.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, kind, self._stream), "copying")

    def wait(self) -> None:
        """See `DeviceMemory.wait`."""
        _call(self._cuda.cudaStreamSynchronize(self._stream), "running the network")

    def capture(self, queue: Launch) -> Launch | None:
        """See `DeviceMemory.capture`."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _call(self._cuda.cudaStreamBeginCapture(self._stream, mode), "recording")
        queued = True
        try:
            queue()
        except EngineError:
            queued = False
        status, graph = self._cuda.cudaStreamEndCapture(self._stream)
        if int(status) != 0 or not queued:
            return None
        status, executable = self._cuda.cudaGraphInstantiate(graph, 0)
        self._cuda.cudaGraphDestroy(graph)
        if int(status) != 0:
            return None
        self._graphs.append(executable)
        return lambda: _nothing(_call(self._cuda.cudaGraphLaunch(executable, self._stream), "launching the graph"))

    def close(self) -> None:
        """See `DeviceMemory.close`."""
        self.free()
        _call(self._cuda.cudaStreamDestroy(self._stream), "closing")

    def _use(self, what: str) -> None:
        _call(self._cuda.cudaSetDevice(self._device), f"{what} {self._device}")


def _runtime() -> Any:
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EngineError(f"cuda-python is not installed ({error})") from error


def _call(result: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    """Return what a call of cuda-python gave besides its status.

    Raises:
        EngineError: the status is an error.
    """
    status, *values = result
    if int(status) != 0:
        raise EngineError(f"CUDA failed in {what}: {getattr(status, 'name', status)} ({int(status)})")
    return tuple(values)


def _nothing(result: tuple[Any, ...]) -> None:
    assert not result, "a launch gives no value"
