"""What the machine tells of itself: memory, heat, power. Linux's /proc and /sys, Jetson's power rails, NVIDIA's NVML.

What a machine does not tell is None, and bounds nothing. NVML needs `nvidia-ml-py` (extra `live`); Jetson boards tell
without it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN")  # the rail that feeds all others, where a board has one: never add to it


def resident_mb(root: Path = Path("/"), pid: int | str = "self") -> float:
    """Return the resident memory of a process in MB; 0 where the system does not tell."""
    for line in _text(root / "proc" / str(pid) / "status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def hottest_celsius(root: Path = Path("/")) -> float | None:
    """Return the temperature of the hottest thermal zone or GPU."""
    found = [_number(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    degrees = [value / 1000 for value in found if value is not None]
    degrees += [celsius for celsius, _ in _gpus()]
    return max(degrees, default=None)


def watts(root: Path = Path("/")) -> float | None:
    """Return the power that is drawn: of a Jetson board by its rails, else of the GPUs.

    A board with a rail for everything is read there; without one its rails are added up.
    """
    rails: dict[str, float] = {}
    for label in (root / "sys/class/hwmon").glob("hwmon*/in*_label"):
        number = label.name.removeprefix("in").removesuffix("_label")
        if _text(label.parent / "name").strip() != "ina3221":
            continue
        millivolts, milliamperes = (
            _number(label.parent / f"in{number}_input"),
            _number(label.parent / f"curr{number}_input"),
        )
        if millivolts is not None and milliamperes is not None:
            rails[_text(label).strip()] = millivolts * milliamperes / 1e6
    for name in _WHOLE_BOARD:
        if name in rails:
            return rails[name]
    if rails:
        return sum(rails.values())
    gpus = _gpus()
    return sum(watts for _, watts in gpus) if gpus else None


def _gpus() -> list[tuple[float, float]]:
    """Return degrees and watts of each GPU that tells both; an integrated one does not."""
    nvml = _nvml()
    found: list[tuple[float, float]] = []
    if nvml is None:
        return found
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            gpu = nvml.nvmlDeviceGetHandleByIndex(index)
            celsius = nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)
            found.append((float(celsius), nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3))
        except nvml.NVMLError:
            continue
    return found


@functools.cache
def _nvml() -> Any:
    """Return NVML, ready; None without its package or its driver."""
    try:
        import pynvml as nvml
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return None
    return nvml


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
