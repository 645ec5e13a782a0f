"""Which GPU and driver this machine has, asked of the driver itself: no torch, no CUDA package."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

_DRIVER_FILE = Path("/proc/driver/nvidia/version")  # of desktop and data-centre drivers; Jetson has none
_RELEASE = re.compile(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b")
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """The first GPU.

    Args:
        name: as the driver calls it.
        driver: its release, such as 580.65.06; the CUDA version it offers, such as CUDA 13.0, where it tells no more.
    """

    name: str
    driver: str


def find_gpu(library: str = "libcuda.so.1") -> Gpu | None:
    """Return the first GPU, or None where there is no driver or no device.

    Args:
        library: the driver's shared library.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    device, version = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    if (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, _NAME_BYTES, device)
        or cuda.cuDriverGetVersion(ctypes.byref(version))
    ):
        return None
    return Gpu(name.value.decode(errors="replace"), driver_release() or _cuda_version(version.value))


def driver_release(path: Path = _DRIVER_FILE) -> str:
    """Return the kernel module's release, or nothing where it does not tell."""
    try:
        found = _RELEASE.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found.group(1) if found else ""


def _cuda_version(number: int) -> str:
    return f"CUDA {number // 1000}.{number % 1000 // 10}"
