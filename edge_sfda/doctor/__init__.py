"""What this machine has, lacks and gets wrong, line by line; `examine` is the whole visit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_sfda.doctor import machine, software
from edge_sfda.doctor.check import Check as Check
from edge_sfda.doctor.check import State as State


def examine(*, root: Path = Path("/")) -> Iterator[Check]:
    """Yield the checks as they are done: software first, then the machine; none of them raises.

    Args:
        root: where /proc, /sys and /dev are read; another one for tests.
    """
    yield software.python()
    yield software.torch()
    yield software.opencv()
    yield from software.onnxruntime()
    yield software.tensorrt(root)
    yield from software.launchers()
    yield software.ros()
    yield machine.board(root)
    yield machine.gpu(root)
    yield machine.cameras(root)
    yield from machine.disk()
    yield machine.clock()
    yield machine.heat(root)
