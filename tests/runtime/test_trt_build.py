from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")
from onnx import ModelProto

from edge_sfda.errors import EngineError, UsageError
from edge_sfda.runtime import trt_build
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.export import ExportConfig, describe, to_onnx
from edge_sfda.runtime.gpu import Gpu
from edge_sfda.runtime.trt_build import BuildConfig, build_engine, find_toolchain, run_worker, shapes

RTX = BuildConfig(flavor="rtx")
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the package tensorrt_rtx")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a GPU and with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trt_build, "find_gpu", lambda: None)
    return tmp_path / "cache" / "edge-sfda" / "engines"


@pytest.fixture(scope="module")
def small(make_small: Any) -> ModelProto:
    return to_onnx(*make_small(), ExportConfig())


@needs_rtx
@pytest.mark.parametrize("settings", [{}, {"precision": "fp16"}, {"precision": "int8"}, {"dynamic": True}])
def test_rtx_engine_is_built_of_each_form_without_a_gpu(exported, settings: dict[str, Any]) -> None:
    phases: list[tuple[str, int, int | None]] = []
    model = exported(**settings)
    engine, record = build_engine(model, RTX, on_phase=lambda *phase: phases.append(phase))
    assert len(engine) > 100_000
    assert (record.flavor, record.gpu, record.driver) == ("rtx", None, None)
    assert record.tensorrt == sys.modules["tensorrt_rtx"].__version__
    assert not record.verified_on_gpu
    assert record.info.precision == settings.get("precision", "fp32")
    assert phases
    assert all(total is None or done <= total for _, done, total in phases)


@needs_rtx
def test_engine_built_before_is_taken_from_the_cache(
    small: ModelProto, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_engine(small, RTX)
    (kept,) = cache.glob("*.engine")
    monkeypatch.setattr(trt_build, "run_worker", lambda *args, **kwargs: pytest.fail("it was built again"))
    assert build_engine(small, RTX) == first
    assert EngineFile.read(kept) == (first[1], first[0])


@needs_rtx
def test_damaged_engine_in_the_cache_is_built_anew(small: ModelProto, cache: Path) -> None:
    first = build_engine(small, RTX)
    (kept,) = cache.glob("*.engine")
    kept.write_bytes(b"cut short")
    assert len(build_engine(small, RTX)[0]) == len(first[0])
    assert EngineFile.read(kept)[0].onnx_sha256 == first[1].onnx_sha256


@pytest.mark.parametrize("change", ["model", "workspace", "batch", "gpu", "driver", "version"])
def test_whatever_an_engine_depends_on_is_in_the_caches_key(
    small: ModelProto, cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    gpu, version, model, config = Gpu("A", "1"), "10.3", ModelProto(), BuildConfig()
    model.CopyFrom(small)
    monkeypatch.setattr(trt_build, "run_worker", lambda *args, **kwargs: b"engine")

    def build() -> None:
        tools = trt_build.Toolchain("enterprise", version, gpu)
        monkeypatch.setattr(trt_build, "find_toolchain", lambda flavor, gpu: tools)
        build_engine(model, config)

    build()
    build()
    assert len(list(cache.glob("*.engine"))) == 1
    if change == "model":
        model.graph.initializer[0].name += "x"
    elif change == "workspace":
        config = BuildConfig(workspace_mb=64)
    elif change == "batch":
        config = BuildConfig(max_batch=1)
    elif change == "gpu":
        gpu = Gpu("B", "1")
    elif change == "driver":
        gpu = Gpu("A", "2")
    else:
        version = "10.4"
    build()
    assert len(list(cache.glob("*.engine"))) == 2


@needs_rtx
def test_cache_that_cannot_be_written_costs_a_warning_only(
    small: ModelProto, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file")
    assert build_engine(small, RTX)[0]
    assert "not kept for the next time" in caplog.text


def test_shapes_are_the_frames_of_a_fixed_size_and_a_range_of_any(make_small) -> None:
    net, manifest = make_small(48, 64)
    fixed = describe(net, manifest, ExportConfig(frame_size=(60, 80)))
    assert shapes(fixed, BuildConfig(max_batch=2)) == [(1, 60, 80, 3), (1, 60, 80, 3), (2, 60, 80, 3)]
    free = describe(net, manifest, ExportConfig(dynamic=True))
    assert shapes(free, BuildConfig(max_size=(40, 100))) == [(1, 32, 32, 3), (1, 48, 64, 3), (1, 48, 100, 3)]


@pytest.mark.parametrize(
    ("flavor", "module", "message"),
    [
        ("rtx", "tensorrt_rtx", r"needs the package tensorrt_rtx, not installed here; pip install 'edge-sfda\[tens"),
        ("auto", "tensorrt_rtx", "needs the package tensorrt_rtx"),
        ("enterprise", "tensorrt", "on a Jetson it comes with JetPack"),
    ],
)
def test_missing_package_is_named_with_its_installation(
    monkeypatch: pytest.MonkeyPatch, flavor: str, module: str, message: str
) -> None:
    monkeypatch.setattr(trt_build, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=message) as caught:
        find_toolchain(flavor, None)
    assert module in str(caught.value)


def test_enterprise_without_a_gpu_says_where_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_build, "find_spec", lambda name: object())
    with pytest.raises(EngineError, match="builds on the GPU that will run the engine, and there is none here"):
        find_toolchain("enterprise", None)


def test_auto_takes_enterprise_where_it_can_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.3.0'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    tools = find_toolchain("auto", Gpu("Orin", "540"))
    assert (tools.flavor, tools.version) == ("enterprise", "10.3.0")
    monkeypatch.delitem(sys.modules, "tensorrt")


def test_package_that_does_not_import_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=r"does not import \(libnvinfer.so.10: cannot open"):
        find_toolchain("enterprise", Gpu("Orin", "540"))


@needs_rtx
def test_refittable_engine_without_a_gpu_says_where_to_build(small: ModelProto) -> None:
    with pytest.raises(EngineError, match="a refittable engine builds on a GPU alone"):
        build_engine(small, BuildConfig(flavor="rtx", refittable=True))


@needs_rtx
def test_model_that_the_parser_refuses_is_told() -> None:
    request = {"job": "build", "flavor": "rtx", "refittable": False, "workspace_mb": 64, "shapes": {}}
    with pytest.raises(EngineError, match=r"TensorRT \(rtx\) failed to build: the ONNX parser refuses the model"):
        run_worker(request, {"onnx": b"no model"}, limit_s=120)


def _module(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make `tensorrt` a module of this text for the worker's process."""
    (folder / "tensorrt.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import time\nwhile True:\n    time.sleep(1)\n", "it took longer than 2 s; allow more with --limit"),
        ("import os, sys\nsys.stderr.write('no memory left')\nsys.stderr.flush()\nos._exit(9)\n", "9: no memory left"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "its process ended with status -11"),
        ("print('a library prints')\nprint('[1]')\nraise RuntimeError('broken')\n", "broken"),
    ],
)
def test_worker_that_hangs_crashes_or_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    _module(tmp_path, monkeypatch, text)
    with pytest.raises(EngineError, match=message):
        run_worker({"job": "build", "flavor": "enterprise"}, {}, limit_s=2 if "sleep" in text else 120)


@pytest.mark.parametrize("settings", [{"flavor": "other"}, {"workspace_mb": 0}, {"limit_s": 0.0}, {"max_batch": 0}])
def test_settings_out_of_range_are_wrong_usage(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BuildConfig(**settings)
