"""What adaptation may take of the machine: time, memory, heat, power."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edge_sfda.config import BudgetConfig
from edge_sfda.live import sensors

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
        degrees = sensors.hottest_celsius(self._root)
        if degrees is not None and degrees > self.config.celsius:
            return f"{degrees:.0f} °C, {self.config.celsius:g} °C are allowed"
        watts = sensors.watts(self._root)
        if watts is not None and watts > self.config.watts:
            return f"{watts:.1f} W are drawn, {self.config.watts:g} W are allowed"
        return ""

    def excess(self, worker: int | None = None) -> str:
        """Return by what memory is above its bound, in words; empty when it is not. Waiting would free none of it.

        Args:
            worker: id of the process that learns, which is counted with this one.
        """
        memory = sensors.resident_mb(self._root)
        memory += 0.0 if worker is None else sensors.resident_mb(self._root, worker)
        if memory > self.config.memory_mb:
            return f"{memory:.0f} MB are in use, {self.config.memory_mb:g} MB are allowed"
        return ""

    def rest_s(self, worked_s: float) -> float:
        """Return how long to sleep after so many seconds of work, so that the share is kept."""
        return worked_s * (1 / self.config.share - 1)
