"""What of TensorRT a machine without a GPU can show: refusals, and the plan of buffers on a stand-in for the GPU."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_sfda.errors import ArtefactError, EngineError
from edge_sfda.runtime import device_memory, engine_tensorrt
from edge_sfda.runtime.device_memory import DeviceMemory, open_memory
from edge_sfda.runtime.engine import EngineConfig
from edge_sfda.runtime.engine_fake import bright, fake_info
from edge_sfda.runtime.engine_file import EngineFile, record_path
from edge_sfda.runtime.engine_tensorrt import TensorRtEngine, check_fits, open_tensorrt
from edge_sfda.runtime.gpu import Gpu, find_gpu
from edge_sfda.runtime.intake import DeviceFrames
from edge_sfda.runtime.predict import Segmenter

AUTO = EngineConfig()
CARD = Gpu("a card", "580.1")


def _record(**changes: Any) -> EngineFile:
    record = EngineFile(
        info=fake_info(),
        flavor="rtx",
        tensorrt="1.7.1.116",
        gpu=None,
        driver=None,
        refittable=False,
        verified_on_gpu=False,
        onnx_sha256="0" * 64,
    )
    return replace(record, **changes)


class _Memory(DeviceMemory):
    """A GPU of numpy arrays by address, which writes down what is asked of it."""

    name = "numpy"
    stream = 77

    def __init__(self, *, graphs: bool = True) -> None:
        self.arrays: dict[int, npt.NDArray[np.uint8]] = {}
        self.said: list[str] = []
        self.closed = False
        self._graphs = graphs

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        yield

    def allocate(self, size: int) -> int:
        self.said.append("allocate")
        address = 1000 * (len(self.arrays) + 1)
        self.arrays[address] = np.zeros(size, np.uint8)
        return address

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        self.said.append("pin")
        return np.zeros(tuple(shape), dtype)

    def free(self) -> None:
        self.said.append("free")
        self.arrays = {}

    def to_device(self, address: int, array: npt.NDArray[Any]) -> None:
        self.said.append("up")
        self.arrays[address][:] = array.reshape(-1).view(np.uint8)

    def to_host(self, array: npt.NDArray[Any], address: int) -> None:
        self.said.append("down")
        array[...] = self.arrays[address].view(array.dtype).reshape(array.shape)

    def wait(self) -> None:
        self.said.append("wait")

    def capture(self, queue: Callable[[], None]) -> Callable[[], None] | None:
        if not self._graphs:
            return None
        self.said.append("capture")

        def launch() -> None:
            self.said.append("graph")
            queue()

        return launch

    def close(self) -> None:
        self.closed = True


class _Context:
    """An execution context whose network is `bright`."""

    def __init__(self, memory: _Memory) -> None:
        self.memory, self.shape, self.addresses = memory, (0, 0, 0, 0), dict[str, int]()
        self.works = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape[:3]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        self.memory.said.append("execute")
        arrays = self.memory.arrays
        frames = arrays[self.addresses["frame"]].reshape(self.shape)
        arrays[self.addresses["mask"]][:] = bright(frames).reshape(-1)
        arrays[self.addresses["confidence"]].view(np.float32)[:] = 0.5
        return self.works


def _engine(memory: _Memory, names: tuple[str, ...] = ("frame", "mask", "confidence")) -> Any:
    context = _Context(memory)
    return SimpleNamespace(
        create_execution_context=lambda: context,
        get_tensor_profile_shape=lambda name, profile: ((1, 8, 8, 3), (1, 16, 24, 3), (2, 64, 64, 3)),
        num_io_tensors=len(names),
        get_tensor_name=lambda index: names[index],
        context=context,
    )


def _made(**settings: Any) -> tuple[TensorRtEngine, _Memory, Any]:
    memory = _Memory(**settings)
    engine = _engine(memory)
    return TensorRtEngine(_record(), engine, memory), memory, engine


def _frames(count: int = 1, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_frame_after_the_first_takes_no_memory_and_one_graph() -> None:
    engine, memory, _ = _made()
    engine.run(_frames(), ("mask", "confidence"))
    memory.said.clear()
    found = engine.run(_frames(seed=1), ("mask", "confidence"))
    assert memory.said == ["up", "graph", "execute", "down", "down", "wait"]
    assert (found.mask == bright(_frames(seed=1))).all()
    assert found.confidence is not None
    assert (found.confidence == 0.5).all()


def test_first_frame_runs_once_before_the_graph_is_recorded() -> None:
    engine, memory, _ = _made()
    engine.run(_frames(), ("mask",))
    said = memory.said
    assert said.index("execute") < said.index("capture") < said.index("graph")


def test_output_that_is_not_asked_for_is_not_copied() -> None:
    engine, memory, _ = _made()
    engine.run(_frames(), ("mask",))
    memory.said.clear()
    assert engine.run(_frames(), ("mask",)).confidence is None
    assert memory.said.count("down") == 1


def test_results_come_into_the_same_pinned_arrays() -> None:
    engine, _, _ = _made()
    first = engine.run(_frames(), ("mask",)).mask
    assert engine.run(_frames(seed=1), ("mask",)).mask is first


def test_another_size_frees_the_old_buffers_first() -> None:
    engine, memory, _ = _made()
    engine.run(_frames(), ("mask",))
    memory.said.clear()
    found = engine.run(_frames(2, 32, 32), ("mask",))
    assert memory.said[0] == "free"
    assert found.mask.shape == (2, 32, 32)
    assert (found.mask == bright(_frames(2, 32, 32))).all()


def test_without_graphs_the_network_is_queued_each_time() -> None:
    engine, memory, _ = _made(graphs=False)
    engine.run(_frames(), ("mask",))
    memory.said.clear()
    engine.run(_frames(), ("mask",))
    assert memory.said == ["up", "execute", "down", "wait"]


def test_frames_on_the_gpu_are_read_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, memory, fake = _made()
    engine.run(_frames(), ("mask",))
    waited: list[int] = []
    monkeypatch.setattr(engine_tensorrt, "synchronize_stream", waited.append)
    own = fake.context.addresses["frame"]
    memory.arrays[5] = _frames(seed=3).reshape(-1)
    memory.said.clear()
    found = engine.run(DeviceFrames(5, (1, 16, 24, 3), 0, 9, None), ("mask",))
    assert (found.mask == bright(_frames(seed=3))).all()
    assert memory.said == ["execute", "down", "wait"]  # no copy up, and not the graph, which knows another address
    assert waited == [9]
    assert fake.context.addresses["frame"] == own


@pytest.mark.parametrize("shape", [(3, 16, 24), (1, 65, 24), (1, 16, 7)])
def test_frames_outside_what_it_was_built_for_are_named(shape: tuple[int, int, int]) -> None:
    engine, _, _ = _made()
    with pytest.raises(EngineError, match=r"outside what the engine was built for, \[1, 8, 8, 3\] to \[2, 64, 64, 3\]"):
        engine.run(_frames(*shape), ("mask",))


def test_larger_batches_are_cut_to_what_it_was_built_for() -> None:
    engine, _, _ = _made()
    frames = _frames(5)
    assert (Segmenter(engine).batch(frames).mask == bright(frames)).all()


def test_failed_launch_is_an_error() -> None:
    engine, _, fake = _made()
    fake.context.works = False
    with pytest.raises(EngineError, match="failed to queue"):
        engine.run(_frames(), ("mask",))


def test_closing_frees_everything_and_is_final() -> None:
    engine, memory, _ = _made()
    engine.run(_frames(), ("mask",))
    engine.close()
    engine.close()
    assert memory.closed
    with pytest.raises(EngineError, match="closed"):
        engine.run(_frames(), ("mask",))


def test_engine_with_other_tensors_than_its_record_is_refused() -> None:
    memory = _Memory()
    with pytest.raises(EngineError, match="its record says"):
        TensorRtEngine(_record(), _engine(memory, ("frame", "mask")), memory)


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_tensorrt, "find_gpu", lambda: CARD)
    monkeypatch.setattr(
        engine_tensorrt, "_import", lambda record: SimpleNamespace(__version__="1.7.1.116", ILogger=object)
    )


@pytest.mark.usefixtures("on_card")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensorrt": "10.3.0"}, "built by TensorRT 10.3.0, installed here is 1.7.1.116"),
        ({"gpu": "another card", "driver": "580.1"}, "was built on another card, here is a card"),
    ],
)
def test_engine_of_another_version_or_gpu_says_so(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        check_fits(_record(**changes), Path("x.engine"), AUTO)


@pytest.mark.usefixtures("on_card")
def test_engine_of_another_driver_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    check_fits(_record(gpu="a card", driver="570.0"), Path("x.engine"), AUTO)
    assert "built with driver 570.0, here is 580.1" in caplog.text


@pytest.mark.usefixtures("on_card")
def test_engine_that_fits_is_let_pass() -> None:
    check_fits(_record(gpu="a card", driver="580.1"), Path("x.engine"), AUTO)
    check_fits(_record(), Path("x.engine"), AUTO)


def test_engine_on_the_cpu_is_refused() -> None:
    with pytest.raises(EngineError, match="runs on a GPU alone"):
        check_fits(_record(), Path("x.engine"), EngineConfig(device="cpu"))


def test_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(EngineError, match="needs the package tensorrt 10.3.0.*JetPack"):
        check_fits(_record(flavor="enterprise", tensorrt="10.3.0"), Path("x.engine"), AUTO)


def test_machine_without_a_gpu_is_told(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    if find_gpu() is not None:
        pytest.skip("there is a GPU")
    _record(tensorrt=trt.__version__).write(tmp_path / "x.engine", b"engine")
    with pytest.raises(EngineError, match="no GPU or driver here; take the .onnx"):
        Segmenter.load(tmp_path / "x.engine")


def _no_record(path: Path) -> None:
    record_path(path).unlink()


def _no_engine(path: Path) -> None:
    path.unlink()


def _flipped(path: Path) -> None:
    path.write_bytes(b"Engine")


def _cut(path: Path) -> None:
    path.write_bytes(b"eng")


@pytest.mark.parametrize("spoil", [_no_record, _no_engine, _flipped, _cut])
def test_corrupt_engine_is_told_before_tensorrt_sees_it(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "x.engine"
    _record().write(path, b"engine")
    spoil(path)
    with pytest.raises(ArtefactError, match="x.engine"):
        open_tensorrt(path, AUTO)


def test_engine_that_does_not_load_gives_its_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    memory = _Memory()
    monkeypatch.setattr(engine_tensorrt, "find_gpu", lambda: CARD)
    monkeypatch.setattr(engine_tensorrt, "open_memory", lambda device: memory)
    path = tmp_path / "x.engine"
    _record(tensorrt=trt.__version__).write(path, b"this is no engine, as TensorRT itself will tell" * 10)
    with pytest.raises(EngineError, match="does not load .*x.engine"):
        open_tensorrt(path, AUTO)
    assert memory.closed


def test_memory_without_a_gpu_names_what_was_tried() -> None:
    if find_gpu() is not None:
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match=r"no GPU memory for the engine: torch has no GPU 0.*edge-sfda\[gpu\]"):
        open_memory(0)


class _Status(enum.IntEnum):
    cudaErrorMemoryAllocation = 2


def test_cuda_status_becomes_an_error_with_its_name() -> None:
    status = _Status.cudaErrorMemoryAllocation
    with pytest.raises(EngineError, match=r"CUDA failed in allocating: cudaErrorMemoryAllocation \(2\)"):
        device_memory._call((status,), "allocating")
    assert device_memory._call((0, 5, 6), "adding") == (5, 6)
