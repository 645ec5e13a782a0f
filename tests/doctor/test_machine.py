"""The machine, read from trees of files as the kernel shows them."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from edge_sfda.doctor import State, machine


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_board_tells_its_name_and_memory(tmp_path: Path) -> None:
    _write(tmp_path / "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    _write(tmp_path / "proc/meminfo", "MemTotal:        7800000 kB\nMemFree: 1 kB\n")
    found = machine.board(tmp_path).found
    assert found.startswith("NVIDIA Jetson Orin Nano Developer Kit, ")
    assert found.endswith(" cores, 7.8 GB")


def test_driver_without_a_device_is_a_warning(tmp_path: Path) -> None:
    if machine.find_gpu() is not None:
        pytest.skip("this machine has a GPU")
    assert machine.gpu(tmp_path).found == "none; everything runs on the CPU"
    _write(tmp_path / "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06\n")
    check = machine.gpu(tmp_path)
    assert (check.state, check.found) == (State.WARNING, "driver 580.65.06, but no device that can be used")


def test_cameras_are_counted(tmp_path: Path) -> None:
    assert machine.cameras(tmp_path).found.startswith("no /dev/video*")
    for name in ("video0", "video2", "video-dec"):
        _write(tmp_path / "dev" / name, "")
    assert machine.cameras(tmp_path).found == "video0, video2"


def test_camera_that_may_not_be_opened_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "dev/video0", "")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may open everything
    check = machine.cameras(tmp_path)
    assert (check.state, check.found) == (State.WARNING, "video0 may not be opened")
    assert "usermod -aG video" in check.mend


@pytest.mark.parametrize(
    ("free", "state"), [(3e9, State.OK), (1e9, State.WARNING), (1e8, State.FAILURE), (0, State.FAILURE)]
)
def test_disk_is_judged_by_its_free_space(
    free: float, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free))
    (check,) = machine.disk((tmp_path / "not" / "there" / "yet",))
    assert check.state is state
    assert str(tmp_path) in check.name


def test_folder_that_cannot_be_written_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (check,) = machine.disk((tmp_path,))
    assert (check.state, check.found) == (State.FAILURE, "cannot be written")


def test_clock_of_a_board_without_a_battery_is_a_failure() -> None:
    check = machine.clock(12.0)
    assert (check.state, check.found) == (State.FAILURE, "1970-01-01 00:00:12 UTC is in the past")
    assert machine.clock().state is State.OK


@pytest.mark.parametrize(
    ("millidegrees", "state"), [(45_000, State.OK), (80_000, State.WARNING), (95_000, State.FAILURE)]
)
def test_hottest_zone_counts(millidegrees: int, state: State, tmp_path: Path) -> None:
    zones = tmp_path / "sys/class/thermal"
    _write(zones / "thermal_zone0/temp", "30000\n")
    _write(zones / "thermal_zone1/temp", f"{millidegrees}\n")
    _write(zones / "thermal_zone1/type", "cpu-thermal\n")
    _write(zones / "thermal_zone2/temp", "not a number\n")
    check = machine.heat(tmp_path)
    assert (check.state, check.found.split(":")[0]) == (state, f"{millidegrees // 1000} °C at cpu-thermal")


def test_machine_without_zones_has_no_fever(tmp_path: Path) -> None:
    assert machine.heat(tmp_path).state is State.OK
