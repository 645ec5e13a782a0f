"""What all tests share: one thread, reproducible examples."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

# before torch or OpenCV start their pools: the tensors here are small, and sums must not depend on the core count
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

# the same examples in every run, and no time limit each: a test must not fail because the machine is busy
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def ram_path() -> Iterator[Path]:
    """A folder in memory where the machine has one: a busy disk takes seconds for what is synced."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)
