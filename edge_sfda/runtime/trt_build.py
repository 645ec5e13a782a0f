"""Engines from ONNX models: which TensorRT, in a process of its own with limits, kept by all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sfda.errors import ArtefactError, EngineError, UsageError, WriteError
from edge_sfda.ops.compile_cache import cache_folder
from edge_sfda.runtime import trt_worker
from edge_sfda.runtime.artefact import INPUT, ArtefactInfo
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.export import read_info
from edge_sfda.runtime.gpu import Gpu, find_gpu

if TYPE_CHECKING:
    from onnx import ModelProto

CHOICES = ("auto", "enterprise", "rtx")
OnPhase = Callable[[str, int, "int | None"], None]

_INSTALL: Mapping[str, str] = {
    "enterprise": "on a Jetson it comes with JetPack (apt install python3-libnvinfer, and a virtual environment with "
    "--system-site-packages); elsewhere pip install tensorrt from the vendor's package index",
    "rtx": "pip install 'edge-sfda[tensorrt-rtx]'; it serves GeForce and workstation cards, no Jetson",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How an engine is built.

    Raises:
        UsageError: a value is not one of those.
    """

    # auto: enterprise where it is installed and there is a GPU, else rtx, which builds without one
    flavor: str = "auto"
    # weights can be swapped later; costs a little speed
    refittable: bool = False
    # of the builder's scratch memory; a board with 8 GB shares them with everything else
    workspace_mb: int = 1024
    # of the whole build; boards take minutes, and a hang must not look like one
    limit_s: float = 3600.0
    # frames of a fixed size a call at most; of any size it is one
    max_batch: int = 4
    # H, W of frames of any size, at most: memory is set aside for it; 4 frames of twice this needed more than 1 GB
    max_size: tuple[int, int] = (1080, 1920)

    def __post_init__(self) -> None:
        if self.flavor not in CHOICES:
            raise UsageError(f"TensorRT flavor {self.flavor!r} is not known; choose one of {', '.join(CHOICES)}")
        for name, value in (("workspace_mb", self.workspace_mb), ("limit_s", self.limit_s), ("batch", self.max_batch)):
            if value <= 0:
                raise UsageError(f"{name} is {value}, must be above 0")


@dataclass(frozen=True)
class Toolchain:
    """Flavor and version of the TensorRT that builds, and the GPU it builds on, where there is one."""

    flavor: str
    version: str
    gpu: Gpu | None


def find_toolchain(flavor: str, gpu: Gpu | None) -> Toolchain:
    """Return the TensorRT to build with.

    Args:
        flavor: one of `CHOICES`.
        gpu: of this machine.

    Raises:
        EngineError: the package is missing or does not import, or it needs a GPU and there is none; the message says
            what to install or where to build.
    """
    if flavor == "auto":
        flavor = "enterprise" if gpu is not None and find_spec("tensorrt") is not None else "rtx"
    module = trt_worker.MODULES[flavor]
    if find_spec(module) is None:
        raise EngineError(f"building an engine needs the package {module}, not installed here; {_INSTALL[flavor]}")
    if flavor == "enterprise" and gpu is None:
        raise EngineError(
            "tensorrt builds on the GPU that will run the engine, and there is none here; run this command on that "
            "machine, or build for RTX cards with --trt-flavor rtx"
        )
    try:
        version = str(importlib.import_module(module).__version__)
    except (ImportError, OSError, AttributeError) as error:
        raise EngineError(
            f"the package {module} does not import ({error}); install it again: {_INSTALL[flavor]}"
        ) from error
    return Toolchain(flavor, version, gpu)


def build_engine(
    model: ModelProto, config: BuildConfig, *, on_phase: OnPhase = lambda phase, done, total: None
) -> tuple[bytes, EngineFile]:
    """Build an engine, or take the one that was built before from all the same.

    Args:
        model: as `export.to_onnx` gives it.
        config: how.
        on_phase: called with (phase, done, total) while it is built.

    Returns:
        the engine's bytes and its record, `verified_on_gpu` false.

    Raises:
        EngineError: no TensorRT or no GPU, the model does not build, or the time is up.
    """
    info = read_info(model)
    tools = find_toolchain(config.flavor, find_gpu())
    if config.refittable and tools.gpu is None:
        raise EngineError("a refittable engine builds on a GPU alone; run this command on the machine that has it")
    data = model.SerializeToString()
    record = EngineFile(
        info=info,
        flavor=tools.flavor,
        tensorrt=tools.version,
        gpu=tools.gpu.name if tools.gpu else None,
        driver=tools.gpu.driver if tools.gpu else None,
        refittable=config.refittable,
        verified_on_gpu=False,
        onnx_sha256=hashlib.sha256(data).hexdigest(),
    )
    request = {
        "job": "build",
        "flavor": tools.flavor,
        "refittable": config.refittable,
        "workspace_mb": config.workspace_mb,
        "shapes": {INPUT: shapes(info, config)},
    }
    kept = cache_folder().parent / "engines" / f"{_key(request, record)}.engine"
    with contextlib.suppress(ArtefactError):  # none yet, or a damaged one: built anew
        old, engine = EngineFile.read(kept)
        return engine, old
    engine = run_worker(request, {"onnx": data}, limit_s=config.limit_s, on_phase=on_phase)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        record = record.write(kept, engine)
    except (OSError, WriteError) as error:
        _log.warning("the engine is not kept for the next time: %s", error)
    return engine, record


def shapes(info: ArtefactInfo, config: BuildConfig) -> list[tuple[int, int, int, int]]:
    """Return the smallest, the usual and the largest shape of `frame`, each (B, H, W, 3)."""
    if info.frame_size is not None:
        height, width = info.frame_size
        return [(1, height, width, 3), (1, height, width, 3), (config.max_batch, height, width, 3)]
    usual = info.network_size
    largest = [max(a, b) for a, b in zip(config.max_size, usual, strict=True)]
    return [
        (1, info.min_side, info.min_side, 3),
        (1, usual[0], usual[1], 3),
        (1, largest[0], largest[1], 3),
    ]


def run_worker(
    request: Mapping[str, Any],
    inputs: Mapping[str, bytes],
    *,
    limit_s: float,
    on_phase: OnPhase = lambda phase, done, total: None,
) -> bytes:
    """Run `trt_worker` on a request and return the engine.

    Args:
        request: without its files.
        inputs: bytes by the request's name for them.
        limit_s: after so many seconds the process is ended.
        on_phase: called with (phase, done, total).

    Raises:
        EngineError: it failed, crashed, or took too long.
        WriteError: no room for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="edge-sfda-") as name:
        folder = Path(name)
        whole = {**request, "out": str(folder / "out.engine")}
        try:
            for key, data in inputs.items():
                (folder / key).write_bytes(data)
                whole[key] = str(folder / key)
            (folder / "request.json").write_text(json.dumps(whole), encoding="utf-8")
        except OSError as error:
            raise WriteError(f"no room for temporary files in {folder.parent}: {error.strerror}; free some") from error
        last = _converse(folder, limit_s, on_phase)
        if not last.get("ok"):
            raise EngineError(f"TensorRT ({request['flavor']}) failed to {request['job']}: {last['error']}")
        return (folder / "out.engine").read_bytes()


def _converse(folder: Path, limit_s: float, on_phase: OnPhase) -> Mapping[str, Any]:
    """Read the worker's lines to the end and return the last word."""
    command = [sys.executable, "-m", trt_worker.__name__, str(folder / "request.json")]
    last: Mapping[str, Any] = {}
    with (
        (folder / "stderr").open("w+b") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment()) as worker,
    ):
        expired = threading.Event()

        def end() -> None:
            expired.set()
            worker.kill()

        timer = threading.Timer(limit_s, end)
        timer.start()
        try:
            assert worker.stdout is not None, "it is a pipe"
            for text in worker.stdout:
                line = _parsed(text)
                if "phase" in line:
                    on_phase(str(line["phase"]), int(line["done"]), line.get("total"))
                elif line:
                    last = line
            status = worker.wait()
        finally:  # Ctrl-C ends the worker as well
            timer.cancel()
            worker.kill()
        if expired.is_set():
            return {"error": f"it took longer than {limit_s:.0f} s; allow more with --limit"}
        if not last:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            return {"error": f"its process ended with status {status}{': ' + said[-1] if said else ''}"}
    return last


def _environment() -> dict[str, str]:
    """Return the environment in which the worker finds this package, and nothing of the folder it starts in."""
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _parsed(text: str) -> Mapping[str, Any]:
    """Return a line of the worker; nothing for what a library printed in between."""
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def _key(request: Mapping[str, Any], record: EngineFile) -> str:
    parts = {**request, **vars(record), "info": record.info.to_json()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
