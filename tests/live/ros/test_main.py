"""The entry point where ROS 2 is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_without_ros_it_says_where_to_get_it_and_ends_with_2() -> None:
    code = "import sys; sys.modules['rclpy'] = None; from edge_sfda.live.ros import main; main([])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ROS 2 is not here (")
    assert "source /opt/ros/DISTRO/setup.bash, or pip install 'edge-sfda[ros]'" in ran.stderr


def test_importing_it_imports_neither_ros_nor_torch() -> None:
    code = (
        "import sys, edge_sfda.live.ros, edge_sfda.live.ros.work, edge_sfda.live.ros.parameters\n"
        "assert not {'rclpy', 'torch'} & set(sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
