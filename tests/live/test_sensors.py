from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_sfda.live import sensors


@pytest.fixture
def rails(tmp_path: Path) -> dict[str, Path]:
    """The folders of a board: its power chip, and one of something else."""
    folders = {}
    for number, name in enumerate(("ina3221", "fan")):
        folders[name] = tmp_path / f"sys/class/hwmon/hwmon{number}"
        folders[name].mkdir(parents=True)
        (folders[name] / "name").write_text(name + "\n")
    return folders


def _rail(folder: Path, number: int, label: str, millivolts: int, milliamperes: int) -> None:
    (folder / f"in{number}_label").write_text(label + "\n")
    (folder / f"in{number}_input").write_text(f"{millivolts}\n")
    (folder / f"curr{number}_input").write_text(f"{milliamperes}\n")


def test_rail_of_the_whole_board_is_not_added_to(rails: dict[str, Path], tmp_path: Path) -> None:
    _rail(rails["ina3221"], 1, "VDD_IN", 5000, 2500)
    _rail(rails["ina3221"], 2, "VDD_CPU_GPU_CV", 5000, 1000)
    assert sensors.watts(tmp_path) == pytest.approx(12.5)


def test_rails_are_added_where_none_feeds_the_others(rails: dict[str, Path], tmp_path: Path) -> None:
    _rail(rails["ina3221"], 1, "VDD_GPU_SOC", 12000, 1000)
    _rail(rails["ina3221"], 2, "VDD_CPU_CV", 12000, 500)
    _rail(rails["fan"], 1, "12V", 12000, 9000)
    (rails["ina3221"] / "in3_label").write_text("NC\n")  # a channel that nothing hangs on has no readings
    assert sensors.watts(tmp_path) == pytest.approx(18.0)


def test_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert (sensors.resident_mb(tmp_path), sensors.hottest_celsius(tmp_path), sensors.watts(tmp_path)) == (
        0,
        None,
        None,
    )


def test_hottest_zone_counts_and_one_that_cannot_be_read_does_not(tmp_path: Path) -> None:
    for number, text in enumerate(("41000", "91000", "")):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(text)
    assert sensors.hottest_celsius(tmp_path) == 91.0


def test_memory_of_a_process_is_read() -> None:
    assert 10 < sensors.resident_mb() < 100_000
    assert sensors.resident_mb(pid=os.getpid()) == pytest.approx(sensors.resident_mb(), rel=0.2)


class _Nvml(SimpleNamespace):
    """NVML with two GPUs, of which one tells no power."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception): ...

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> int:
        return (66, 99)[gpu]

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        if gpu == 1:
            raise self.NVMLError
        return 31_500


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "pynvml", _Nvml())  # type: ignore[arg-type]
    sensors._nvml.cache_clear()
    yield
    sensors._nvml.cache_clear()


def test_gpu_that_tells_counts(nvml: None, tmp_path: Path) -> None:
    assert sensors.watts(tmp_path) == 31.5
    assert sensors.hottest_celsius(tmp_path) == 66.0
