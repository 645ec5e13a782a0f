"""Compile every kernel for the GPUs that matter, and record registers, shared memory and spills of each.

    python benchmarks/record_registers.py

Writes cuda_kernels/registers.json, which a test compares with what the installed nvcc makes of the sources. Run it
after a change of a kernel, and look at the difference: registers decide how many threads a multiprocessor holds.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

from edge_sfda.ops.compilers import DEVICE_OPTIONS, device_compiler
from edge_sfda.ops.launch import SCALARS

KERNELS = Path(__file__).parents[1] / "cuda_kernels"
TABLE = KERNELS / "registers.json"
# Turing (the oldest that the newest toolkit knows), Orin, Hopper, Thor.
ARCHITECTURES = ("sm_75", "sm_87", "sm_90", "sm_110")
Usage = dict[str, dict[str, int]]

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def sources() -> list[str]:
    return sorted(path.name for path in KERNELS.glob("*.cu"))


def compiler_version() -> str:
    """Return nvcc's release, such as "13.0"."""
    program = device_compiler()
    assert program is not None, "nvcc is not on PATH"
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\S+),", text)
    assert found is not None, text
    return found[1]


def known_architectures() -> list[str]:
    """Return those of `ARCHITECTURES` that the installed nvcc compiles for."""
    program = device_compiler()
    assert program is not None, "nvcc is not on PATH"
    listed = subprocess.run([program, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    return [a for a in ARCHITECTURES if a.replace("sm", "compute") in listed]


def usage(source: str, scalar: str, architecture: str) -> Usage:
    """Return registers, static shared memory and spilled bytes of each kernel in a source."""
    program = device_compiler()
    assert program is not None, "nvcc is not on PATH"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(program, "-cubin", *DEVICE_OPTIONS, f"-arch={architecture}", f"-DSCALAR={scalar}", "-Xptxas", "-v"),
                *("-I", str(KERNELS), str(KERNELS / source), "-o", str(Path(folder) / "out.cubin")),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = {
        entry["name"]: {
            "registers": int(entry["registers"]),
            "shared_bytes": int(entry["shared"] or 0),
            "spilled_bytes": int(entry["stores"]) + int(entry["loads"]),
        }
        for entry in _ENTRY.finditer(done.stderr)
    }
    assert found, f"nvcc said nothing of {source}: {done.stderr}"
    return found


def main() -> None:
    table = {
        source: {
            scalar: {architecture: usage(source, scalar, architecture) for architecture in ARCHITECTURES}
            for scalar in SCALARS.values()
        }
        for source in sources()
    }
    TABLE.write_text(json.dumps({"nvcc": compiler_version(), "kernels": table}, indent=1, sort_keys=True) + "\n")
    for source, scalars in table.items():
        for architecture in ARCHITECTURES:
            for name, row in scalars["float"][architecture].items():
                print(
                    f"{source:28} {architecture:7} {name:44} {row['registers']:4} registers {row['shared_bytes']:6} B"
                )


if __name__ == "__main__":
    main()
