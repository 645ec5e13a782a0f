"""How fast frames are predicted: rate and latency over the last of them."""

from __future__ import annotations

from collections import deque

import numpy as np

_LATENCIES = 512  # predictions: the 99th percentile wants hundreds
_ARRIVALS = 64


class Tempo:
    """Counts predictions; not safe to share between threads without a lock."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_LATENCIES)  # ms
        self._ends: deque[float] = deque(maxlen=_ARRIVALS)

    def predicted(self, start: float, end: float) -> None:
        """Take in a prediction from `start` to `end`, in seconds of one clock."""
        self._times.append(1e3 * (end - start))
        self._ends.append(end)

    @property
    def fps(self) -> float:
        """Predictions a second, over the last few seconds; 0 before the second one."""
        span = self._ends[-1] - self._ends[0] if len(self._ends) > 1 else 0.0
        return (len(self._ends) - 1) / span if span > 0 else 0.0

    @property
    def latency_ms(self) -> tuple[float, float]:
        """The median and the 99th percentile of a prediction; NaN before the first."""
        p50, p99 = np.percentile(self._times or (np.nan,), (50, 99))
        return float(p50), float(p99)
