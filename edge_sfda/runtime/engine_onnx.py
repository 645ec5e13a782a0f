"""An exported ONNX model in ONNX Runtime: checked before it is loaded, bound to buffers, on the device asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_sfda.errors import ArtefactError, EngineError
from edge_sfda.runtime.artefact import INPUT, METADATA_KEY, ArtefactInfo
from edge_sfda.runtime.engine import Engine, EngineConfig, Outputs
from edge_sfda.runtime.gpu import find_gpu
from edge_sfda.runtime.intake import DeviceFrames, Frames
from edge_sfda.runtime.onnx_wire import read_head

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

_MAX_BYTES = 2**31 - 1  # of a model in one file: protobuf's limit
_MAX_BATCH = 1024
_QUIET = 3  # errors only: what went wrong is raised, a second copy on stderr helps nobody
_DTYPES: dict[str, np.dtype[Any]] = {
    "mask": np.dtype(np.uint8),
    "confidence": np.dtype(np.float32),
    "logits": np.dtype(np.float32),
}
_TYPES = {"mask": "tensor(uint8)", "confidence": "tensor(float)", "logits": "tensor(float)"}


class OnnxEngine(Engine):
    """A model that `edge-sfda export` made.

    Args:
        path: the `.onnx` file.
        config: device and threads.

    Raises:
        ArtefactError: missing, truncated, foreign, or it names files outside its own folder.
        EngineError: onnxruntime or the device that was asked for is not here.
    """

    max_batch = _MAX_BATCH

    def __init__(self, path: Path, config: EngineConfig) -> None:
        data, self.info = read_onnx(path)
        gpu = _wanted_gpu(config)
        self.device = gpu
        self._session: InferenceSession | None = _open(path, data, config, gpu)
        _check_contract(self._session, self.info, path)
        self._binding = self._session.io_binding()
        self._bound: tuple[tuple[str, ...], tuple[int, ...]] | None = None
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        threads = config.threads or os.cpu_count()
        self.runs_on = "ONNX Runtime, " + (f"CPU, {threads} threads" if gpu is None else f"CUDA, GPU {gpu}")

    def run(self, frames: Frames, outputs: tuple[str, ...]) -> Outputs:
        """Segment a batch; see `Engine.run`."""
        if self._session is None:
            raise EngineError("the engine is closed; load the artefact again")
        wanted = tuple(name for name in self.info.outputs if name == "mask" or name in outputs)
        try:
            self._bind(frames, wanted)
            self._session.run_with_iobinding(self._binding)
            found = dict(self._arrays)
            if "logits" in wanted:
                found["logits"] = self._binding.get_outputs()[wanted.index("logits")].numpy()
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise EngineError(f"ONNX Runtime failed on frames {list(frames.shape)}: {_first_line(error)}") from error
        return Outputs(**found)

    def close(self) -> None:
        """Release the session; see `Engine.close`."""
        self._session = None
        self._binding = None
        self._arrays = {}

    def _bind(self, frames: Frames, wanted: tuple[str, ...]) -> None:
        # the input's address changes with each frame; outputs are bound anew only when their shape does
        if isinstance(frames, DeviceFrames):
            # ONNX Runtime copies and computes on a stream of its own, so what still writes the frames is waited for
            _finish_writing(frames)
            place, number, pointer = "cuda", self.device or 0, frames.pointer
        else:
            place, number, pointer = "cpu", 0, frames.ctypes.data
        self._binding.bind_input(INPUT, place, number, np.uint8, frames.shape, pointer)
        key = (wanted, frames.shape[:3])
        if key == self._bound:
            return
        self._binding.clear_binding_outputs()
        self._bound, self._arrays = None, {}
        for name in wanted:
            if name == "logits":  # of a size that the record does not tell
                self._binding.bind_output(name, "cpu")
                continue
            array: npt.NDArray[Any] = np.empty(frames.shape[:3], _DTYPES[name])
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self._arrays[name] = array
        self._bound = key


def read_onnx(path: Path) -> tuple[bytes, ArtefactInfo]:
    """Return the bytes of a model and what it says about itself, with nothing of it run.

    Raises:
        ArtefactError: missing, no ONNX model, truncated, without a record, or it names files outside its own folder.
    """
    try:
        if not path.is_file():
            raise ArtefactError(f"no ONNX model at {path}; check the path, or make one with edge-sfda export")
        if path.stat().st_size > _MAX_BYTES:
            raise ArtefactError(f"{path} takes {path.stat().st_size} bytes, more than an ONNX model can")
        data = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    try:
        head = read_head(data)
    except ValueError as error:  # also UnicodeDecodeError
        raise ArtefactError(f"{path} is no ONNX model, or is damaged: {error}; export or copy it again") from error
    folder = path.resolve().parent
    for name in head.external:
        if not (folder / name).resolve().is_relative_to(folder) or Path(name).is_absolute():
            raise ArtefactError(f"{path} asks for weights from {name!r}, outside its own folder; it is not loaded")
    if METADATA_KEY not in head.properties:
        raise ArtefactError(f"{path} carries no record of edge-sfda; make it with edge-sfda export")
    try:
        return data, ArtefactInfo.from_json(head.properties[METADATA_KEY])
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error}") from error


def _wanted_gpu(config: EngineConfig) -> int | None:
    """Return the number of the GPU to use, or None for the CPU."""
    if config.device == "cpu":
        return None
    ort = _onnxruntime()
    built_for_gpu = CUDA in ort.get_available_providers()
    if config.device == "auto":
        return 0 if built_for_gpu and find_gpu() is not None else None
    if not built_for_gpu:
        raise EngineError(
            f"device {config.device} was asked for, and the ONNX Runtime installed here has no CUDA; uninstall "
            "onnxruntime, then pip install 'edge-sfda[gpu]', or choose the device cpu"
        )
    if find_gpu() is None:
        raise EngineError(f"device {config.device} was asked for, and there is no GPU or driver; choose the device cpu")
    return config.gpu


def _open(path: Path, data: bytes, config: EngineConfig, gpu: int | None) -> InferenceSession:
    ort = _onnxruntime()
    options = _options(config, path)
    providers = [CPU] if gpu is None else [(CUDA, {"device_id": str(gpu)}), CPU]
    try:
        # from the bytes that were looked at, not from the path, which may be another file by now
        session = ort.InferenceSession(data, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise ArtefactError(f"ONNX Runtime refuses {path}: {_first_line(error)}") from error
    if gpu is not None and CUDA not in session.get_providers():
        # it says so in its log alone, and would go on many times slower
        raise EngineError(
            f"ONNX Runtime did not take GPU {gpu} and fell back to {', '.join(session.get_providers())}; its CUDA and "
            "cuDNN libraries are missing or of another version. Install those, or choose the device cpu"
        )
    return session


def _options(config: EngineConfig, path: Path) -> SessionOptions:
    options = _onnxruntime().SessionOptions()
    options.log_severity_level = _QUIET
    if config.threads is not None:
        options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1  # a network is a chain; what runs side by side are the parts of one operator
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.resolve().parent))
    return options


def _check_contract(session: InferenceSession, info: ArtefactInfo, path: Path) -> None:
    """See that inputs and outputs are those of the record, before any buffer is bound to them."""
    height, width = info.frame_size or (None, None)
    inputs = [(value.name, value.type, value.shape[-1]) for value in session.get_inputs()]
    if inputs != [(INPUT, "tensor(uint8)", 3)]:
        raise ArtefactError(f"{path} takes {inputs}, expected one input {INPUT}, uint8 [B, H, W, 3]; export it again")
    if height is not None and session.get_inputs()[0].shape[1:3] != [height, width]:
        raise ArtefactError(f"{path} takes {session.get_inputs()[0].shape}, its record says frames of {height}x{width}")
    outputs = {value.name: value.type for value in session.get_outputs()}
    if outputs != {name: _TYPES[name] for name in info.outputs}:
        raise ArtefactError(f"{path} gives {outputs}, its record says {', '.join(info.outputs)}; export it again")


def _finish_writing(frames: DeviceFrames) -> None:
    if frames.stream is not None:
        from edge_sfda.runtime.device_memory import synchronize_stream

        synchronize_stream(frames.stream)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "running an ONNX model needs onnxruntime, not installed here; run pip install 'edge-sfda[cpu]', or "
            "'edge-sfda[gpu]' on a machine with a GPU (not both)"
        ) from error
    return onnxruntime


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
