"""What nvcc makes of the kernels: they compile, spill nothing, and use the registers that were recorded."""

from __future__ import annotations

import importlib.util
import json
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

from edge_sfda.ops.compilers import device_compiler
from edge_sfda.ops.launch import SCALARS

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path.name for path in (ROOT / "cuda_kernels").glob("*.cu"))
# A release of the compiler moves registers by a few; another release than the recorded one by some more. Beyond that a
# kernel has changed: look at it, then run benchmarks/record_registers.py.
SAME_RELEASE, OTHER_RELEASE = 4, 24

needs_nvcc = pytest.mark.skipif(device_compiler() is None, reason="no nvcc on PATH")


@lru_cache(maxsize=1)
def recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_registers", ROOT / "benchmarks" / "record_registers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=1)
def recorded() -> dict:  # type: ignore[type-arg]
    return json.loads((ROOT / "cuda_kernels" / "registers.json").read_text())


def test_every_kernel_is_recorded() -> None:
    assert sorted(recorded()["kernels"]) == SOURCES
    for scalars in recorded()["kernels"].values():
        assert set(scalars) == set(SCALARS.values())
        for architectures in scalars.values():
            assert set(architectures) == {"sm_75", "sm_87", "sm_90", "sm_110"}


@needs_nvcc
@pytest.mark.parametrize("architecture", ["sm_75", "sm_87", "sm_90", "sm_110"])
@pytest.mark.parametrize("source", SOURCES)
def test_kernels_use_what_was_recorded(source: str, architecture: str) -> None:
    if architecture not in recorder().known_architectures():
        pytest.skip(f"this nvcc does not know {architecture}")
    slack = SAME_RELEASE if recorder().compiler_version() == recorded()["nvcc"] else OTHER_RELEASE
    # each type on the board that this is made for, one on the others: a compilation takes seconds
    for scalar in SCALARS.values() if architecture == "sm_87" else ("Half",):
        expected = recorded()["kernels"][source][scalar][architecture]
        found = recorder().usage(source, scalar, architecture)
        assert found.keys() == expected.keys()
        for name, row in found.items():
            assert row["spilled_bytes"] == 0, f"{name} spills for {scalar}"
            assert row["shared_bytes"] == expected[name]["shared_bytes"], f"shared memory of {name} for {scalar}"
            difference = abs(row["registers"] - expected[name]["registers"])
            assert difference <= slack, f"{name} for {scalar}: {row}, recorded {expected[name]}"
