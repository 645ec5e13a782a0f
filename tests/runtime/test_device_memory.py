"""The order of calls into CUDA's libraries, on stand-ins whose GPU is host memory: no driver is needed for it."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edge_sfda.errors import EngineError
from edge_sfda.runtime import device_memory
from edge_sfda.runtime.device_memory import CudaMemory, PyCudaMemory, open_memory, synchronize_stream


class _Runtime:
    """`cuda.bindings.runtime`, with addresses of real host memory; each call returns its status first."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}
        self.said: list[str] = []
        self.device = 5
        self.end_status = 0
        self.full = False

    def cudaGetDevice(self) -> tuple[int, int]:
        return 0, self.device

    def cudaSetDevice(self, device: int) -> tuple[int]:
        self.device = device
        return (0 if device < 8 else 101,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        return 0, 77

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self.full:
            return (2,)
        block = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address: int) -> tuple[int]:
        del self.held[address]
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        ctypes.memmove(to, source, size)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        self.said.append(f"wait {stream}")
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.said.append("begin")
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, str]:
        self.said.append("end")
        return self.end_status, "graph"

    def cudaGraphInstantiate(self, graph: str, flags: int) -> tuple[int, str]:
        return 0, "executable"

    def cudaGraphDestroy(self, graph: str) -> tuple[int]:
        return (0,)

    def cudaGraphExecDestroy(self, graph: str) -> tuple[int]:
        self.said.append("destroy graph")
        return (0,)

    def cudaGraphLaunch(self, graph: str, stream: int) -> tuple[int]:
        self.said.append(f"launch {graph} on {stream}")
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.said.append("destroy stream")
        return (0,)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> _Runtime:
    fake = _Runtime()
    monkeypatch.setattr(device_memory, "_runtime", lambda: fake)
    return fake


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_array_goes_to_the_gpu_and_back(runtime: _Runtime, dtype: type) -> None:
    memory = CudaMemory(0)
    up, down = memory.pinned((2, 3), dtype), memory.pinned((2, 3), dtype)
    up[...] = np.arange(6).reshape(2, 3)
    address = memory.allocate(up.nbytes)
    memory.to_device(address, up)
    memory.to_host(down, address)
    assert down.dtype == dtype
    assert (down == up).all()


def test_closing_frees_all_that_was_taken(runtime: _Runtime) -> None:
    memory = CudaMemory(0)
    memory.pinned((2, 3), np.uint8)
    memory.allocate(6)
    assert memory.capture(lambda: None) is not None
    memory.close()
    assert runtime.held == {}
    assert runtime.said[-3:] == ["wait 77", "destroy graph", "destroy stream"]


def test_captured_graph_launches_on_the_stream(runtime: _Runtime) -> None:
    memory = CudaMemory(0)
    launch = memory.capture(lambda: runtime.said.append("queue"))
    assert launch is not None
    launch()
    assert runtime.said == ["begin", "queue", "end", "launch executable on 77"]


def test_what_cannot_be_captured_gives_no_graph_and_ends_the_capture(runtime: _Runtime) -> None:
    def fail() -> None:
        raise EngineError("not on a stream that records")

    memory = CudaMemory(0)
    assert memory.capture(fail) is None
    runtime.end_status = 901
    assert memory.capture(lambda: None) is None
    assert runtime.said == ["begin", "end", "begin", "end"]


def test_gpu_is_current_inside_and_the_one_before_afterwards(runtime: _Runtime) -> None:
    memory = CudaMemory(1)
    runtime.device = 5
    with memory.current():
        assert runtime.device == 1
    assert runtime.device == 5


def test_gpu_without_room_or_that_is_not_there_is_an_error(runtime: _Runtime) -> None:
    memory = CudaMemory(0)
    runtime.full = True
    with pytest.raises(EngineError, match=r"CUDA failed in allocating 10 bytes: 2"):
        memory.allocate(10)
    with pytest.raises(EngineError, match="using the GPU 9"):
        CudaMemory(9)


def test_stream_of_another_library_is_waited_for(runtime: _Runtime) -> None:
    synchronize_stream(12)
    assert runtime.said == ["wait 12"]


class _PyCuda:
    """`pycuda.driver`, with a stack of contexts."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        driver = self
        self.Context = SimpleNamespace(pop=self.stack.pop)
        self.detached = False

        class Memory(bytearray):
            def __int__(self) -> int:
                return 4096

            def free(self) -> None:
                assert driver.stack

        def retain() -> Any:
            return SimpleNamespace(push=lambda: self.stack.append("primary"), detach=self._detach)

        self.Device = lambda number: SimpleNamespace(retain_primary_context=retain)
        self.Stream = lambda: SimpleNamespace(handle=77, synchronize=self._in_context)
        self.mem_alloc = Memory
        self.pagelocked_empty = np.empty

    def init(self) -> None: ...

    def _detach(self) -> None:
        self.detached = True

    def _in_context(self) -> None:
        assert self.stack

    def memcpy_htod_async(self, address: int, array: np.ndarray, stream: Any) -> None:
        assert self.stack
        assert address == 4096

    def memcpy_dtoh_async(self, array: np.ndarray, address: int, stream: Any) -> None:
        assert self.stack
        assert address == 4096


def test_pycuda_works_in_the_primary_context_and_leaves_the_thread_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _PyCuda()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=fake))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    memory = PyCudaMemory(0)
    array = memory.pinned((2, 3), np.uint8)
    address = memory.allocate(array.nbytes)
    memory.to_device(address, array)
    memory.to_host(array, address)
    assert memory.capture(lambda: None) is None
    assert fake.stack == []
    with memory.current():
        assert fake.stack == ["primary"]
    memory.close()
    assert (fake.stack, fake.detached) == ([], True)


def test_memory_is_of_the_library_that_the_process_uses_already(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _PyCuda()
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=fake))
    monkeypatch.setitem(sys.modules, "pycuda.driver", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # torch is loaded here as well
    assert open_memory(0).name == "PyCUDA"


def test_cuda_python_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match="cuda-python is not installed"):
        CudaMemory(0)
