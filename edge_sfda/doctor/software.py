"""The packages: what is there, what really loads, and what gets in each other's way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from edge_sfda.doctor.check import Check, State, probe
from edge_sfda.doctor.machine import board_name
from edge_sfda.runtime.gpu import driver_release

_JETPACK = "on a Jetson, take the vendor's and keep pip away from it"

# an ONNX model of one Identity on a uint8 tensor, opset 18: what every provider takes, or leaves to none
_TINY_MODEL = (
    "08083a3a0a100a017812017922084964656e74697479120474696e795a0f0a017812"
    "0a0a08080212040a020801620f0a0179120a0a08080212040a02080142040a001012"
)


def python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """Python itself."""
    found = ".".join(map(str, version))
    if version < (3, 10):
        return Check("Python", State.FAILURE, found, "install Python 3.10 or later, and edge-sfda in it")
    return Check("Python", State.OK, found)


def torch() -> Check:
    """The framework that adapts; inference does without."""
    said = probe(
        "import torch\n"
        "cuda = torch.cuda.is_available()\n"
        "answer = [torch.__version__, torch.version.cuda, torch.cuda.get_device_name(0) if cuda else None]"
    )
    if said.trouble:
        return Check("torch", State.FAILURE, said.trouble, f"pip install torch; {_JETPACK}")
    version, built_for, device = said.value
    if device is not None:
        return Check("torch", State.OK, f"{version}, CUDA {built_for}, {device}")
    if driver_release():
        why = "built without CUDA" if built_for is None else f"built for CUDA {built_for}, which this driver lacks"
        mend = f"pip install a torch built for the CUDA that nvidia-smi shows; {_JETPACK}"
        return Check("torch", State.WARNING, f"{version}, {why}: everything runs on the CPU", mend)
    return Check("torch", State.OK, f"{version}, CPU")


def opencv(names: tuple[str, ...] | None = None) -> Check:
    """OpenCV: one of it, and whether it reads GStreamer pipelines.

    Args:
        names: of the installed distributions; those of this environment when absent.
    """
    said = probe(
        "import cv2\n"
        "built = cv2.getBuildInformation()\n"
        "line = next((x for x in built.splitlines() if 'GStreamer' in x), '')\n"
        "answer = [cv2.__version__, 'YES' in line]"
    )
    if said.trouble:
        return Check("OpenCV", State.FAILURE, said.trouble, f"pip install opencv-python; {_JETPACK}")
    version, gstreamer = said.value
    several = sorted(name for name in names or _distributions() if name.startswith("opencv-"))
    if len(several) > 1:
        mend = f"pip uninstall -y {' '.join(several)} && pip install opencv-python"
        return Check("OpenCV", State.WARNING, f"{version}; {' and '.join(several)} share one module", mend)
    if gstreamer:
        return Check("OpenCV", State.OK, f"{version}, with GStreamer")
    if board_name(Path("/")):
        mend = "use the system's OpenCV: python3 -m venv --system-site-packages, without opencv-python in it"
        return Check("OpenCV", State.WARNING, f"{version}, without GStreamer: CSI cameras cannot be opened", mend)
    return Check("OpenCV", State.OK, f"{version}, without GStreamer: no pipelines as a camera")


def onnxruntime(names: tuple[str, ...] | None = None) -> Iterator[Check]:
    """ONNX Runtime: one of it, and each provider that it lists, loaded for real.

    Args:
        names: of the installed distributions; those of this environment when absent.
    """
    installed = names or _distributions()
    found = sorted(name for name in installed if name == "onnxruntime" or name.startswith("onnxruntime-"))
    found = [name for name in found if name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino")]
    if len(found) > 1:
        mend = f"pip uninstall -y {' '.join(found)} && pip install {found[-1]}"
        yield Check("ONNX Runtime", State.FAILURE, f"{' and '.join(found)} overwrite each other", mend)
        return
    said = probe("import onnxruntime\nanswer = [onnxruntime.__version__, onnxruntime.get_available_providers()]")
    if said.trouble:
        mend = "pip install 'edge-sfda[cpu]', or 'edge-sfda[gpu]' with an NVIDIA GPU (not both)"
        yield Check("ONNX Runtime", State.WARNING, f"exported models cannot run: {said.trouble}", mend)
        return
    version, listed = said.value
    yield Check("ONNX Runtime", State.OK, version)
    for provider in listed:
        yield _provider(provider)


def _provider(name: str) -> Check:
    title = f"  {name}"
    said = probe(
        "import onnxruntime\n"
        "options = onnxruntime.SessionOptions()\n"
        "options.log_severity_level = 4\n"
        f"model = bytes.fromhex({_TINY_MODEL!r})\n"
        f"answer = onnxruntime.InferenceSession(model, options, providers=[{name!r}]).get_providers()"
    )
    if not said.trouble and said.value[:1] == [name]:
        return Check(title, State.OK, "loads")
    why = said.trouble or f"falls back to {', '.join(said.value)} in silence"
    mend = "see that the CUDA and cuDNN that this ONNX Runtime was built for are installed, or use another provider"
    return Check(title, State.WARNING, f"listed, but does not load: {why}", mend)


def tensorrt(root: Path) -> Check:
    """TensorRT of either flavour; a Jetson's comes with JetPack."""
    found, broken = [], []
    for module in ("tensorrt", "tensorrt_rtx"):
        said = probe(f"import {module}\nanswer = {module}.__version__")
        if not said.trouble:
            found.append(f"{module} {said.value}")
        elif not said.trouble.startswith("ModuleNotFoundError"):
            broken.append(f"{module}: {said.trouble}")
    if board_name(root):
        mend = "apt install python3-libnvinfer, and a virtual environment with --system-site-packages"
    else:
        mend = "pip install 'edge-sfda[tensorrt-rtx]' for RTX cards, 'edge-sfda[tensorrt]' for others"
    if broken:
        return Check("TensorRT", State.WARNING, "; ".join(broken), mend)
    if found:
        return Check("TensorRT", State.OK, ", ".join(found))
    if driver_release() or board_name(root):
        return Check("TensorRT", State.WARNING, "not installed: no engines on this GPU", mend)
    return Check("TensorRT", State.OK, "not installed; without a GPU there is no use for it")


def launchers() -> Iterator[Check]:
    """What each way to run the fused kernels can do here."""
    said = probe(
        "from edge_sfda.ops.launchers import GPU, HOST\n"
        "answer = [[launcher.name, launcher.missing()] for launcher in (*GPU, HOST)]"
    )
    if said.trouble:
        yield Check("kernels", State.FAILURE, said.trouble, "pip install --force-reinstall --no-deps edge-sfda")
        return
    on_gpu = [missing for name, missing in said.value if name != "host"]
    for name, missing in said.value:
        title = f"kernels by {name}"
        if missing is None:
            yield Check(title, State.OK, "ready" if name != "host" else "ready: for tests, on the CPU")
        elif driver_release() and name != "host" and all(on_gpu):
            yield Check(title, State.WARNING, f"plain torch runs in their place: {missing}", missing)
        else:
            yield Check(title, State.OK, f"not here ({missing}); plain torch runs in their place")


def ros() -> Check:
    """ROS 2, for the node."""
    said = probe("import rclpy, sensor_msgs.msg\nanswer = True", seconds=30)
    distribution = os.environ.get("ROS_DISTRO", "")
    if not said.trouble:
        return Check("ROS 2", State.OK, f"rclpy loads{f', {distribution}' if distribution else ''}")
    if distribution:
        mend = f"source /opt/ros/{distribution}/setup.bash, and a Python of the version that it was built for"
        return Check("ROS 2", State.WARNING, f"{distribution} is set up, but {said.trouble}", mend)
    return Check("ROS 2", State.OK, "not here; only the node needs it")


def _distributions() -> tuple[str, ...]:
    names = {str(found.metadata["Name"] or "").lower().replace("_", "-") for found in metadata.distributions()}
    return tuple(sorted(names))
