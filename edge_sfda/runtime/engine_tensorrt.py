"""An engine file in TensorRT: fixed buffers, one stream, a CUDA graph where it can be had. No torch needed.

Memory is taken when frames of a new size come, never for a frame: host frames go through one pinned buffer, results
come back into pinned arrays that are handed out as views.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sfda.errors import EngineError
from edge_sfda.runtime.artefact import INPUT
from edge_sfda.runtime.device_memory import DeviceMemory, Launch, open_memory, synchronize_stream
from edge_sfda.runtime.engine import Engine, EngineConfig, Outputs
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.gpu import find_gpu
from edge_sfda.runtime.intake import DeviceFrames, Frames

_MODULES = {"enterprise": "tensorrt", "rtx": "tensorrt_rtx"}
_INSTALL = {"enterprise": "JetPack brings it; elsewhere pip install tensorrt", "rtx": "pip install tensorrt-rtx"}
_DTYPES: dict[str, np.dtype[Any]] = {
    "mask": np.dtype(np.uint8),
    "confidence": np.dtype(np.float32),
    "logits": np.dtype(np.float32),
}
_KEPT_MESSAGES = 3  # of TensorRT's log; the first ones have the cause

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]


def open_tensorrt(path: Path, config: EngineConfig) -> TensorRtEngine:
    """Load an engine that `edge-sfda export --trt` built.

    Args:
        path: the engine, its record beside it.
        config: the GPU; an engine runs nowhere else.

    Raises:
        ArtefactError: engine or record are missing, damaged, or do not belong together.
        EngineError: no GPU, another one, another TensorRT, or it does not load; the message says which.
    """
    record, data = EngineFile.read(path)
    check_fits(record, path, config)
    trt = _import(record)
    messages: list[str] = []
    logger = _logger(trt, messages)
    memory = open_memory(config.gpu)
    try:
        with memory.current():
            runtime = trt.Runtime(logger)
            engine = runtime.deserialize_cuda_engine(data)
            if engine is None:
                raise EngineError(
                    f"TensorRT {trt.__version__} does not load {path}: {_said(messages)}; build it anew on this machine"
                )
            return TensorRtEngine(record, engine, memory, gpu=config.gpu, keep=(logger, runtime))
    except BaseException:
        memory.close()
        raise


def check_fits(record: EngineFile, path: Path, config: EngineConfig) -> None:
    """See that an engine can run here, before a gigabyte is deserialised to find out.

    Raises:
        EngineError: it runs on a GPU alone and there is none, or it was built for another GPU or TensorRT.
    """
    if config.device == "cpu":
        raise EngineError(f"{path} is a TensorRT engine, which runs on a GPU alone; take the .onnx for the device cpu")
    trt = _import(record)
    if _release(trt.__version__) != _release(record.tensorrt):
        raise EngineError(
            f"{path} was built by TensorRT {record.tensorrt}, installed here is {trt.__version__}; engines load in "
            "the version that built them alone: build it anew with edge-sfda export --trt"
        )
    gpu = find_gpu()
    if gpu is None:
        raise EngineError(f"{path} is a TensorRT engine, and there is no GPU or driver here; take the .onnx instead")
    if record.gpu is not None and config.gpu == 0 and record.gpu != gpu.name:  # the driver was asked for the first
        raise EngineError(
            f"{path} was built on {record.gpu}, here is {gpu.name}; engines belong to one GPU: build it anew here"
        )
    if record.driver is not None and record.driver != gpu.driver:
        _log.warning(
            "%s was built with driver %s, here is %s; build it anew if it fails", path, record.driver, gpu.driver
        )


@dataclass(frozen=True, eq=False)
class _Plan:
    """Everything for one size of batch: addresses, pinned arrays, and the graph."""

    shape: Shape
    address: int
    frames: npt.NDArray[np.uint8]
    addresses: dict[str, int]
    results: dict[str, npt.NDArray[Any]]
    graph: Launch | None


class TensorRtEngine(Engine):
    """A deserialised engine with its buffers; made by `open_tensorrt`.

    Args:
        record: of the engine.
        engine: TensorRT's `ICudaEngine`.
        memory: of its GPU; closed with this.
        gpu: its number.
        keep: what must live as long as the engine: logger and runtime.

    Raises:
        EngineError: the engine's tensors are not those of its record.
    """

    def __init__(
        self, record: EngineFile, engine: Any, memory: DeviceMemory, *, gpu: int = 0, keep: tuple[Any, ...] = ()
    ) -> None:
        self.info = record.info
        self.device = gpu
        self._keep = keep
        self._engine = engine
        self._memory: DeviceMemory | None = memory
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError("TensorRT gives no execution context: too little GPU memory; close other programs")
        self._smallest, _, self._largest = (tuple(s) for s in engine.get_tensor_profile_shape(INPUT, 0))
        self.max_batch = int(self._largest[0])
        self._plan: _Plan | None = None
        self.runs_on = f"TensorRT {record.tensorrt} ({record.flavor}), {record.gpu or 'GPU'}, memory by {memory.name}"
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        if names != {INPUT, *self.info.outputs}:
            raise EngineError(f"the engine has {sorted(names)}, its record says {[INPUT, *self.info.outputs]}")

    def run(self, frames: Frames, outputs: tuple[str, ...]) -> Outputs:
        """Segment a batch; see `Engine.run`."""
        if self._memory is None:
            raise EngineError("the engine is closed; load the artefact again")
        self._check(frames.shape)
        with self._memory.current():
            return self._run(self._memory, frames, outputs)

    def _run(self, memory: DeviceMemory, frames: Frames, outputs: tuple[str, ...]) -> Outputs:
        plan = self._plan
        if plan is None or plan.shape != frames.shape:
            plan = self._make_plan(frames.shape)
        if isinstance(frames, DeviceFrames):
            self._run_where_they_lie(plan, frames)
        else:
            np.copyto(plan.frames, frames)
            memory.to_device(plan.address, plan.frames)
            self._launch(plan)
        wanted = [name for name in plan.results if name == "mask" or name in outputs]
        for name in wanted:
            memory.to_host(plan.results[name], plan.addresses[name])
        memory.wait()
        return Outputs(**{name: plan.results[name] for name in wanted})

    def close(self) -> None:
        """Free buffers, context and engine; see `Engine.close`."""
        memory, self._memory = self._memory, None
        if memory is None:
            return
        memory.wait()
        self._plan = self._context = self._engine = None
        self._keep = ()
        memory.close()

    def _check(self, shape: Shape) -> None:
        low, high = self._smallest, self._largest
        if not all(least <= side <= most for least, side, most in zip(low, shape, high, strict=True)):
            raise EngineError(
                f"frames {list(shape)} are outside what the engine was built for, {list(low)} to {list(high)}; build "
                "it with --size for them or a larger --max-size"
            )

    def _make_plan(self, shape: Shape) -> _Plan:
        """Take memory for frames of a new shape in the place of the old, and record the graph."""
        assert self._memory is not None, "checked by run"
        memory, self._plan = self._memory, None
        memory.free()
        if not self._context.set_input_shape(INPUT, shape):
            raise EngineError(f"TensorRT refuses frames {list(shape)}; build the engine for them")
        frames = memory.pinned(shape, np.uint8)
        address = memory.allocate(frames.nbytes)
        results, addresses = {}, {}
        for name in self.info.outputs:
            results[name] = memory.pinned(tuple(self._context.get_tensor_shape(name)), _DTYPES[name])
            addresses[name] = memory.allocate(results[name].nbytes)
            self._context.set_tensor_address(name, addresses[name])
        self._context.set_tensor_address(INPUT, address)
        # once without recording: a new shape makes TensorRT choose and allocate, which no graph can hold
        frames.fill(0)
        memory.to_device(address, frames)
        self._execute()
        memory.wait()
        graph = memory.capture(self._execute)
        if graph is None:
            _log.info("no CUDA graph with %s; the network is launched kernel by kernel", memory.name)
        self._plan = _Plan(shape, address, frames, addresses, results, graph)
        return self._plan

    def _launch(self, plan: _Plan) -> None:
        if plan.graph is not None:
            plan.graph()
        else:
            self._execute()

    def _run_where_they_lie(self, plan: _Plan, frames: DeviceFrames) -> None:
        # the graph holds the address of the engine's own buffer, so this one goes without
        if frames.stream is not None:
            synchronize_stream(frames.stream)
        self._context.set_tensor_address(INPUT, frames.pointer)
        try:
            self._execute()
        finally:
            self._context.set_tensor_address(INPUT, plan.address)

    def _execute(self) -> None:
        assert self._memory is not None, "checked by run"
        if not self._context.execute_async_v3(self._memory.stream):
            raise EngineError("TensorRT failed to queue the network; see its log, and build the engine anew")


def _import(record: EngineFile) -> Any:
    name = _MODULES[record.flavor]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise EngineError(
            f"this engine needs the package {name} {record.tensorrt}, which does not import here ({error}); "
            f"{_INSTALL[record.flavor]}"
        ) from error


def _release(version: str) -> tuple[str, ...]:
    """Return what of a version must agree: major and minor, and the patch, by which plans are stamped as well."""
    return tuple(version.split(".")[:3])


def _logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(" ".join(message.split()))

    return Logger()


def _said(messages: list[str]) -> str:
    return "; ".join(messages[:_KEPT_MESSAGES]) or "it does not say why"
