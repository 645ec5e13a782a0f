"""The packages: this environment as it is, and environments that are broken on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_sfda.doctor import State, software


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that puts a module in front of the real one, for every probe."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def put(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)

    return put


@pytest.mark.parametrize(("version", "state"), [((3, 9), State.FAILURE), ((3, 10), State.OK), ((3, 13), State.OK)])
def test_python_is_judged_by_its_version(version: tuple[int, int], state: State) -> None:
    assert software.python(version).state is state


def test_torch_of_this_environment_is_fine() -> None:
    import torch

    check = software.torch()
    assert check.state is State.OK
    assert check.found.startswith(torch.__version__)


def test_torch_that_does_not_load_is_a_failure(modules: Any) -> None:
    modules("torch", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    check = software.torch()
    assert (check.state, check.found) == (
        State.FAILURE,
        "ImportError: libcudart.so.12: cannot open shared object file",
    )


def test_torch_for_another_cuda_than_the_driver_s_is_a_warning(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    modules(
        "torch",
        "class version: cuda = '12.1'\nclass cuda:\n    is_available = staticmethod(bool)\n__version__ = '2.4'",
    )
    monkeypatch.setattr(software, "driver_release", lambda: "470.1")
    check = software.torch()
    assert check.state is State.WARNING
    assert check.found == "2.4, built for CUDA 12.1, which this driver lacks: everything runs on the CPU"


def test_two_opencvs_are_a_warning() -> None:
    assert software.opencv(("opencv-python", "numpy")).state is State.OK
    check = software.opencv(("opencv-python", "opencv-python-headless"))
    assert (check.state, check.mend) == (
        State.WARNING,
        "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python",
    )


def test_two_onnx_runtimes_are_a_failure() -> None:
    (check,) = software.onnxruntime(("onnxruntime", "onnxruntime-gpu"))
    assert (check.state, check.found) == (State.FAILURE, "onnxruntime and onnxruntime-gpu overwrite each other")
    assert check.mend == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


def test_provider_of_this_environment_loads() -> None:
    pytest.importorskip("onnxruntime")
    checks = {check.name.strip(): check for check in software.onnxruntime()}
    assert checks["CPUExecutionProvider"].state is State.OK


def test_provider_that_falls_back_in_silence_is_a_warning(modules: Any) -> None:
    modules(
        "onnxruntime",
        "__version__ = '1.0'\n"
        "get_available_providers = lambda: ['CUDAExecutionProvider']\n"
        "class SessionOptions: pass\n"
        "class InferenceSession:\n"
        "    def __init__(self, model, options, providers): pass\n"
        "    def get_providers(self): return ['CPUExecutionProvider']\n",
    )
    *_, check = software.onnxruntime(("onnxruntime",))
    assert check.state is State.WARNING
    assert check.found == "listed, but does not load: falls back to CPUExecutionProvider in silence"


def test_environment_without_onnx_runtime_is_a_warning(modules: Any) -> None:
    modules("onnxruntime", "raise ModuleNotFoundError('No module named onnxruntime')")
    (check,) = software.onnxruntime(())
    assert check.state is State.WARNING
    assert "edge-sfda[cpu]" in check.mend


def test_engine_builder_that_crashes_on_import_is_a_warning(modules: Any, tmp_path: Path) -> None:
    modules("tensorrt", "import os, signal; os.kill(os.getpid(), signal.SIGABRT)")
    modules("tensorrt_rtx", "__version__ = '1.7'")
    check = software.tensorrt(tmp_path)
    assert (check.state, check.found) == (State.WARNING, "tensorrt: the process died of signal 6")


def test_jetson_without_its_tensorrt_is_told_to_use_the_vendor_s(modules: Any, tmp_path: Path) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        modules(name, f"raise ModuleNotFoundError('No module named {name}')")
    assert software.tensorrt(tmp_path).state is State.OK
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text("NVIDIA Jetson AGX Orin\0")
    check = software.tensorrt(tmp_path)
    assert check.state is State.WARNING
    assert "python3-libnvinfer" in check.mend


def test_every_launcher_says_what_it_can_do_here() -> None:
    from edge_sfda.ops.launchers import GPU, HOST

    checks = list(software.launchers())
    assert [check.name for check in checks] == [f"kernels by {launcher.name}" for launcher in (*GPU, HOST)]
    missing = HOST.missing()
    assert checks[-1].found.startswith("ready" if missing is None else "not here")


def test_ros_that_is_set_up_but_does_not_load_is_a_warning(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    modules("rclpy", "raise ImportError('built for Python 3.12')")
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    assert software.ros().state is State.OK
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    check = software.ros()
    assert (check.state, check.found) == (State.WARNING, "jazzy is set up, but ImportError: built for Python 3.12")
