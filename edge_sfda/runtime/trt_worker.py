"""What runs in a process of its own to build or refit an engine: a crash, a leak or a hang ends with it.

    python -m edge_sfda.runtime.trt_worker REQUEST.json

Writes one JSON object a line to standard output: {"phase", "done", "total"} while it works, and at the end {"ok": true}
or {"error", "kind"}. One code path for tensorrt 10.3 to 11 and tensorrt_rtx: precision stands in the graph, the network
is strongly typed, there are no precision flags and no calibrator. Imports nothing of torch.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

MODULES = {"enterprise": "tensorrt", "rtx": "tensorrt_rtx"}

_MB = 2**20
_KEPT_MESSAGES = 5  # of the builder; the first ones have the cause


class _Failed(Exception):
    """Building or refitting came to nothing; the text says why."""


def main(request_path: str) -> int:
    """Do what the request says; returns the exit status."""
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    messages: list[str] = []
    try:
        trt = importlib.import_module(MODULES[request["flavor"]])
        logger = _logger(trt, messages)
        work = _build if request["job"] == "build" else _refit
        engine = work(trt, logger, request)
        Path(request["out"]).write_bytes(engine)
    except Exception as error:  # noqa: BLE001  the last resort of the process
        said = "; ".join(messages[:_KEPT_MESSAGES])
        _say({"error": f"{error}" + (f" ({said})" if said else ""), "kind": type(error).__name__})
        return 1
    _say({"ok": True})
    return 0


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201  the pipe to the parent


def _logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                messages.append(" ".join(message.split()))

    return Logger()


def _monitor(trt: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._totals[phase_name] = num_steps
            _say({"phase": phase_name, "done": 0, "total": num_steps})

        def step_complete(self, phase_name: str, step: int) -> bool:
            _say({"phase": phase_name, "done": step + 1, "total": self._totals.get(phase_name)})
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._totals.pop(phase_name, None)

    return Monitor()


def _build(trt: Any, logger: Any, request: dict[str, Any]) -> bytes:
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # the network must outlive its parser, or the process crashes
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        errors = "; ".join(str(parser.get_error(i)) for i in range(min(parser.num_errors, _KEPT_MESSAGES)))
        raise _Failed(f"the ONNX parser refuses the model: {errors}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_mb"] * _MB)
    if request["refittable"]:
        config.set_flag(trt.BuilderFlag.REFIT)
    if hasattr(trt, "IProgressMonitor"):  # since TensorRT 10
        config.progress_monitor = _monitor(trt)
    profile = builder.create_optimization_profile()
    for name, shapes in request["shapes"].items():
        profile.set_shape(name, *(tuple(shape) for shape in shapes))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _Failed("the builder gave no engine")
    return bytes(engine)


def _refit(trt: Any, logger: Any, request: dict[str, Any]) -> bytes:
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(Path(request["engine"]).read_bytes())
    if engine is None:
        raise _Failed("the engine does not load here")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_bytes(Path(request["onnx"]).read_bytes()):
        raise _Failed("the new weights do not fit the engine")
    missing = list(refitter.get_missing_weights())
    if missing:
        raise _Failed(f"{len(missing)} weights would stay old, {missing[0]} among them")
    if not refitter.refit_cuda_engine():
        raise _Failed("the engine did not take the new weights")
    return bytes(engine.serialize())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
