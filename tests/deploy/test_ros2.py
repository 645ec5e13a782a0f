"""The ament package: what it says, what it installs, and that its installed script is the node."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_sfda
from edge_sfda import Segmenter, open_source
from edge_sfda.live.ros.parameters import BY_NAME, PARAMETERS, judge

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "deploy" / "ros2" / "edge_sfda_ros"
LAUNCH = PACKAGE / "launch" / "edge_sfda.launch.xml"
PEER = ROOT / "tests" / "live" / "ros" / "peer.py"
MODEL = ROOT / "edge_sfda" / "assets" / "scene_day_nano.safetensors"

needs_ros = pytest.mark.skipif(
    importlib.util.find_spec("rclpy") is None, reason="ROS 2 is not here; pip install 'edge-sfda[ros]' on Python 3.11"
)


def _parameters() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="needs pyyaml, which comes with ROS 2")
    return dict(yaml.safe_load((PACKAGE / "config" / "edge_sfda.yaml").read_text())["/**"]["ros__parameters"])


def test_package_names_what_the_node_imports() -> None:
    root = ET.parse(PACKAGE / "package.xml").getroot()
    assert root.findtext("name") == "edge_sfda_ros"
    assert root.findtext("version") == edge_sfda.__version__
    assert root.findtext("export/build_type") == "ament_python"
    needed = {element.text for element in root.iter("exec_depend")}
    assert needed >= {"rclpy", "rcl_interfaces", "sensor_msgs", "std_msgs", "std_srvs", "diagnostic_msgs"}


def test_parameter_file_holds_every_parameter_with_its_default() -> None:
    given = _parameters()
    assert given == {parameter.name: parameter.default for parameter in PARAMETERS}
    for name, value in given.items():
        assert judge(name, value, loaded=False) == ""


def test_launch_file_passes_what_the_node_knows() -> None:
    root = ET.parse(LAUNCH).getroot()
    arguments = {arg.get("name") for arg in root.iter("arg")}
    (node,) = root.iter("node")
    assert (node.get("pkg"), node.get("exec")) == ("edge_sfda_ros", "node")
    for param in node.iter("param"):
        assert param.get("from") or param.get("name") in BY_NAME
        used = (param.get("value") or param.get("from") or "").removeprefix("$(var ").removesuffix(")")
        assert used in arguments
    (remap,) = node.iter("remap")
    assert remap.get("from") == "image"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prefix that the package was installed to, as a build with colcon does it."""
    if importlib.util.find_spec("setuptools") is None:  # looked for, not imported: it replaces distutils, once only
        pytest.skip("needs setuptools, which comes with ROS 2")
    place = tmp_path_factory.mktemp("ament")
    shutil.copytree(PACKAGE, place / "source")
    command = ["-q", "install", "--prefix", "/prefix", "--root", "../root", "--single-version-externally-managed"]
    ran = subprocess.run(
        [sys.executable, "setup.py", *command, "--record", "../record"],
        cwd=place / "source",
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return place / "root" / "prefix"


def test_installed_files_are_where_ros_looks_for_them(installed: Path) -> None:
    share = installed / "share"
    assert (share / "ament_index" / "resource_index" / "packages" / "edge_sfda_ros").is_file()
    for file in ("package.xml", "launch/edge_sfda.launch.xml", "config/edge_sfda.yaml"):
        assert (share / "edge_sfda_ros" / file).is_file()
    assert os.access(installed / "lib" / "edge_sfda_ros" / "node", os.X_OK)


@pytest.fixture
def environment(installed: Path) -> dict[str, str]:
    (site,) = installed.glob("lib/python3*/site-packages")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def peer(environment: dict[str, str]) -> Iterator[Any]:
    """A process that publishes and listens; see its file."""
    with subprocess.Popen(
        [sys.executable, str(PEER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        reader, writer = process.stdout, process.stdin
        assert reader is not None
        assert writer is not None

        def ask(**command: Any) -> Any:
            writer.write(json.dumps(command) + "\n")
            writer.flush()
            answer = json.loads(reader.readline())
            assert "error" not in answer, answer["error"]
            return answer

        yield ask
        writer.close()
        process.wait(timeout=30)


@needs_ros
def test_installed_script_is_the_node_and_takes_the_parameter_file(
    installed: Path, environment: dict[str, str], peer: Any, tmp_path: Path
) -> None:
    with open_source("scene:day?frames=3&fps=2&seed=5&size=96x128") as source:
        frames = np.stack([frame.image for frame in source])
    np.savez(tmp_path / "frames.npz", frames=frames)
    parameters = str(installed / "share" / "edge_sfda_ros" / "config" / "edge_sfda.yaml")
    words = ["--params-file", parameters, "-p", f"model:={MODEL}", "-r", "image:=/camera/image_raw"]
    script = str(installed / "lib" / "edge_sfda_ros" / "node")
    with subprocess.Popen([sys.executable, script, "--ros-args", *words], env=environment) as node:
        try:
            peer(do="publish", file=str(tmp_path / "frames.npz"), topic="/camera/image_raw")
            out = tmp_path / "out.npz"
            told = peer(do="listen", topic="/edge_sfda/mask", kind="Image", count=2, file=str(out))
        finally:
            node.terminate()
        assert node.wait(timeout=30) == 0
    with Segmenter.load(MODEL, colour_order="bgr") as segment:
        for (seconds, _), mask in zip(told["stamps"], np.load(out)["pixels"], strict=True):
            assert np.array_equal(mask, segment(frames[seconds - 1_700_000_000]))
