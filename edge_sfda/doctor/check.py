"""One line of a visit, and the probe that asks what could crash in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from typing import Any

_SECONDS = 120.0  # that a probe may take: a cold import of torch from an SD card is slow
_MARK = "edge-sfda-probe:"  # libraries print on standard output, too


class State(str, Enum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Check:
    """One line.

    Args:
        name: what was looked at.
        state: how it is.
        found: what there is, in words.
        mend: the command, or what else to do, that mends it; empty where nothing is to be done.
    """

    name: str
    state: State
    found: str
    mend: str = ""

    def __post_init__(self) -> None:
        assert (self.state is State.OK) or self.mend, f"{self.name}: a finding without a way out helps nobody"


@dataclass(frozen=True)
class Answer:
    """What a probe said, or why it said nothing."""

    value: Any = None
    trouble: str = ""


def probe(code: str, *, seconds: float = _SECONDS, python: str = sys.executable) -> Answer:
    """Run Python code that sets `answer`, a value JSON knows, in a process of its own.

    A broken library may crash the interpreter or hang; here it takes nobody along.

    Args:
        code: statements.
        seconds: after which it is stopped.
        python: the interpreter.
    """
    program = f"{code}\nimport json\nprint({_MARK!r} + json.dumps(answer))\n"
    try:
        done = subprocess.run(
            [python, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer(trouble=f"no answer within {seconds:.0f} s")
    except OSError as error:
        return Answer(trouble=f"cannot start {python}: {error.strerror}")
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(_MARK):
            return Answer(value=json.loads(line[len(_MARK) :]))
    if done.returncode < 0:
        return Answer(trouble=f"the process died of signal {-done.returncode}")
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return Answer(trouble=said[-1].strip() if said else f"the process ended with {done.returncode}")
