from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edge_sfda.runtime import gpu
from edge_sfda.runtime.gpu import Gpu, find_gpu

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return COUNT > ordinal ? 0 : 101; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "NVIDIA Orin", length); return 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
"""


def _library(folder: Path, *, init: int = 0, count: int = 1) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make a driver's library with")
    source, library = folder / "driver.c", folder / f"libdriver-{init}-{count}.so"
    source.write_text(DRIVER)
    command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return str(library)


def test_gpu_is_named_as_the_driver_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "driver_release", lambda: "")
    assert find_gpu(_library(tmp_path)) == Gpu("NVIDIA Orin", "CUDA 13.2")
    monkeypatch.setattr(gpu, "driver_release", lambda: "580.65.06")
    assert find_gpu(_library(tmp_path)) == Gpu("NVIDIA Orin", "580.65.06")


def test_driver_without_a_device_is_no_gpu(tmp_path: Path) -> None:
    assert find_gpu(_library(tmp_path, count=0)) is None
    assert find_gpu(_library(tmp_path, init=100)) is None


def test_no_driver_is_no_gpu(tmp_path: Path) -> None:
    assert find_gpu(str(tmp_path / "libcuda.so.1")) is None


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.65  Release Build\nGCC version: 12.2",
            "580.65",
        ),
        ("nothing of it\n", ""),
    ],
)
def test_release_is_read_from_the_kernel_module(tmp_path: Path, text: str, release: str) -> None:
    (tmp_path / "version").write_text(text)
    assert gpu.driver_release(tmp_path / "version") == release


def test_release_of_a_machine_without_the_module_is_empty(tmp_path: Path) -> None:
    assert gpu.driver_release(tmp_path / "version") == ""
