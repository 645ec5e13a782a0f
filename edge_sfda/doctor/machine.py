"""The machine: board, GPU, cameras, disk, clock, heat; read from the kernel's files."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from edge_sfda.doctor.check import Check, State
from edge_sfda.ops.compile_cache import cache_folder
from edge_sfda.runtime.gpu import driver_release, find_gpu

_LITTLE, _NOTHING = 2e9, 2e8  # bytes: an engine and its model take tens of megabytes, a week's log more
_RELEASED = 1_760_000_000  # seconds, October 2025: an earlier clock is a wrong one
_HOT, _TOO_HOT = 80.0, 95.0  # °C: boards throttle from about 85 on, and switch off at about 105


def board_name(root: Path) -> str:
    """Return what a board calls itself, such as an NVIDIA Jetson; nothing on a PC."""
    return _text(root / "proc/device-tree/model").strip("\0 \n")


def board(root: Path) -> Check:
    """The board and its memory."""
    kilobytes = next(
        (int(line.split()[1]) for line in _text(root / "proc/meminfo").splitlines() if line.startswith("MemTotal")), 0
    )
    name = board_name(root) or os.uname().machine
    return Check("machine", State.OK, f"{name}, {os.cpu_count()} cores, {kilobytes / 1e6:.1f} GB")


def gpu(root: Path) -> Check:
    """The GPU and its driver."""
    found = find_gpu()
    if found is not None:
        return Check("GPU", State.OK, f"{found.name}, driver {found.driver}")
    release = driver_release(root / "proc/driver/nvidia/version")
    if release:
        mend = "run nvidia-smi; reboot after a driver's update, and see that the container was given the GPU"
        return Check("GPU", State.WARNING, f"driver {release}, but no device that can be used", mend)
    return Check("GPU", State.OK, "none; everything runs on the CPU")


def cameras(root: Path) -> Check:
    """Cameras under /dev, and whether they may be opened."""
    found = sorted(p for p in (root / "dev").glob("video*") if p.name[5:].isdigit())
    if not found:
        return Check("cameras", State.OK, "no /dev/video*; files and network streams work without")
    refused = [p.name for p in found if not os.access(p, os.R_OK | os.W_OK)]
    if refused:
        mend = "sudo usermod -aG video $USER, then log in anew"
        return Check("cameras", State.WARNING, f"{', '.join(refused)} may not be opened", mend)
    return Check("cameras", State.OK, ", ".join(p.name for p in found))


def disk(folders: tuple[Path, ...] | None = None) -> Iterator[Check]:
    """Space where compiled kernels are kept and where runs are written.

    Args:
        folders: to look at; the cache and the current folder when absent.
    """
    for folder in folders or (cache_folder(), Path.cwd()):
        there = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(there).free
        title, found = f"disk of {folder}", f"{free / 1e9:.1f} GB free"
        if not os.access(there, os.W_OK):
            yield Check(title, State.FAILURE, "cannot be written", f"sudo chown -R $USER {there}")
        elif free < _NOTHING:
            yield Check(title, State.FAILURE, found, f"make room on the disk of {there}")
        elif free < _LITTLE:
            yield Check(title, State.WARNING, found, f"make room on the disk of {there}")
        else:
            yield Check(title, State.OK, found)


def clock(now: float | None = None) -> Check:
    """The clock: boards without a battery wake up in 1970, and then no log makes sense."""
    now = time.time() if now is None else now
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < _RELEASED:
        return Check("clock", State.FAILURE, f"{found} is in the past", "sudo timedatectl set-ntp true")
    return Check("clock", State.OK, found)


def heat(root: Path) -> Check:
    """The hottest of the thermal zones."""
    zones = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        text = _text(zone / "temp").strip()
        if text.lstrip("-").isdigit():
            zones.append((int(text) / 1000, _text(zone / "type").strip() or zone.name))
    if not zones:
        return Check("heat", State.OK, "this machine tells no temperature")
    degrees, name = max(zones)
    found = f"{degrees:.0f} °C at {name}"
    if degrees >= _TOO_HOT:
        return Check("heat", State.FAILURE, f"{found}: about to switch off", "stop the load, and see to the fan")
    if degrees >= _HOT:
        return Check("heat", State.WARNING, f"{found}: close to throttling", "see to the fan, or lower the power mode")
    return Check("heat", State.OK, found)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
