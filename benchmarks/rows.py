"""Result rows: one JSON line a measurement, with what it was measured on."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@functools.cache
def conditions() -> dict[str, Any]:
    """Return machine, versions and commit: what a number means nothing without.

    Taken once a process, before its first rows are written: those would make the commit look changed.
    """
    import numpy
    import torch

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent, check=False
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or "unknown",
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def write(name: str, rows: list[dict[str, Any]], *, append: bool = False) -> Path:
    """Replace `results/NAME.jsonl` by the rows, or append them, each with the conditions added; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    where = conditions()
    old = path.read_text() if append and path.exists() else ""
    path.write_text(old + "".join(json.dumps(row | where) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
