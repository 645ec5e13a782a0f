"""What adaptation may take of the machine: time, memory, heat."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edge_sfda.config import BudgetConfig

_HOUR_S = 3600.0


class Budget:
    """Counts what learning spends and says when it must wait.

    Args:
        config: the bounds.
        root: where /proc and /sys are read; another one in tests.
        clock: seconds that only grow.
    """

    def __init__(
        self, config: BudgetConfig, *, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self._root = root
        self._clock = clock
        self._spent: deque[tuple[float, float]] = deque()

    def spend(self, seconds: float) -> None:
        """Count seconds of learning that end now."""
        self._spent.append((self._clock(), seconds))

    def spent_s(self) -> float:
        """Return the seconds of learning in the last hour."""
        now = self._clock()
        while self._spent and now - self._spent[0][0] >= _HOUR_S:
            self._spent.popleft()
        return sum(seconds for _, seconds in self._spent)

    def refusal(self) -> str:
        """Return why learning must wait, in words; empty when it may go on."""
        spent = self.spent_s()
        if spent >= self.config.seconds_per_hour:
            return f"{spent:.0f} s of learning in the last hour, {self.config.seconds_per_hour:g} s are allowed"
        memory = resident_mb(self._root)
        if memory > self.config.memory_mb:
            return f"{memory:.0f} MB are in use, {self.config.memory_mb:g} MB are allowed"
        degrees = hottest_celsius(self._root)
        if degrees is not None and degrees > self.config.celsius:
            return f"{degrees:.0f} °C, {self.config.celsius:g} °C are allowed"
        return ""

    def rest_s(self, worked_s: float) -> float:
        """Return how long to sleep after so many seconds of work, so that the share is kept."""
        return worked_s * (1 / self.config.share - 1)


def resident_mb(root: Path = Path("/"), pid: str = "self") -> float:
    """Return the resident memory of a process in MB; 0 where the system does not tell."""
    for line in _text(root / "proc" / pid / "status").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def hottest_celsius(root: Path = Path("/")) -> float | None:
    """Return the temperature of the hottest thermal zone; None where there is none."""
    found = [_text(zone / "temp").strip() for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    degrees = [int(text) / 1000 for text in found if text.lstrip("-").isdigit()]
    return max(degrees, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
