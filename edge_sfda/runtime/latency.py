"""Times of calls, gathered and summed up by their percentiles. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_sfda.runtime.predict import Times

PARTS = ("capture", "pre", "net", "post", "total")

_MOST = 100_000  # calls that are kept: two hours at 15 frames a second, 4 MB; later ones replace the oldest


@dataclass(frozen=True)
class Percentiles:
    """Milliseconds that half, nine tenths and 99 hundredths of the calls kept below."""

    p50_ms: float
    p90_ms: float
    p99_ms: float

    @staticmethod
    def of(values_ms: Sequence[float]) -> Percentiles:
        """Return those of one value or more."""
        p50, p90, p99 = np.percentile(np.asarray(values_ms, np.float64), (50, 90, 99))
        return Percentiles(float(p50), float(p90), float(p99))


@dataclass
class Latency:
    """Gathers the times of calls in bounded memory."""

    _kept: list[tuple[float, ...]] = field(default_factory=list)
    _seen: int = 0

    def add(self, times: Times) -> None:
        """Count one call."""
        parts = (times.capture_ms, times.pre_ms, times.net_ms, times.post_ms)
        row = (*parts, sum(parts))
        if len(self._kept) < _MOST:
            self._kept.append(row)
        else:
            self._kept[self._seen % _MOST] = row
        self._seen += 1

    def __len__(self) -> int:
        return self._seen

    def percentiles(self) -> dict[str, Percentiles]:
        """Return the percentiles of each of `PARTS`; empty before the first call."""
        if not self._kept:
            return {}
        return {part: Percentiles.of(column) for part, column in zip(PARTS, zip(*self._kept, strict=True), strict=True)}
