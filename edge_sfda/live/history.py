"""What a face over the loop draws of the past: curves, events, and each swap before and after. All of it bounded.

The loop's thread calls `frame`, `event` and `sample`, which cost it microseconds; but at a swap two small pictures are
kept. Any thread may read.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from edge_sfda.data.frames import U8
from edge_sfda.data.paint import overlay
from edge_sfda.live.status import Latest, LoopStatus
from edge_sfda.manifest import Classes

CURVES = ("doubt", "uncertainty", "reliability", "agreement", "loss", "fps", "latency_ms")

_POINTS = 900  # a quarter of an hour at one a second
_PERIOD_S = 1.0
_EVENTS = 200
_SWAPS = 12
_SIDE = 360  # pixels of a kept picture's longer side


@dataclass(eq=False)
class Swap:
    """A change of the network in use.

    Args:
        number: of swaps in this run, from 1.
        generation: in use since.
        at: seconds since 1970.
        reason: in words.
        before: JPEG of the last mask of the network before, over its frame; None where there was no frame yet.
        after: likewise of the first one since; None until there is one.
    """

    number: int
    generation: int
    at: float
    reason: str
    before: bytes | None
    after: bytes | None = None


class History:
    """Keeps what happened lately.

    Args:
        classes: of the masks.
        clock: seconds that only grow.
    """

    def __init__(self, classes: Classes, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.classes = classes
        self._clock = clock
        self._began = clock()
        self._next = -math.inf
        self._lock = threading.Lock()
        self._count = 0
        self._points: deque[tuple[float | None, ...]] = deque(maxlen=_POINTS)
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS)
        self._told = 0
        self._swaps: deque[Swap] = deque(maxlen=_SWAPS)
        self._swapped = 0
        self._last: Latest | None = None
        self._shares: list[float] = []

    # --- the loop's thread ---

    def frame(self, latest: Latest) -> None:
        """Take note of a prediction."""
        self._last = latest
        if self._swaps and self._swaps[-1].after is None:
            self._swaps[-1].after = _picture(latest, self.classes)

    def event(self, event: Mapping[str, Any]) -> None:
        """Take note of an event as `Events` tells it."""
        kind = event["event"]
        with self._lock:
            self._told += 1
            self._events.append({"number": self._told, **event})
        if kind not in ("swapped", "rolled back"):
            return
        before = None if self._last is None else _picture(self._last, self.classes)
        reason = str(event.get("reason") or event.get("why") or "")
        words = reason if kind == "swapped" else f"rolled back: {reason}"
        with self._lock:
            self._swapped += 1
            self._swaps.append(Swap(self._swapped, int(event["generation"]), float(event["at"]), words, before))

    def sample(self, status: Callable[[], LoopStatus]) -> None:
        """Take a point of each curve where one is due."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _PERIOD_S
        moment = status()
        values = {
            "doubt": moment.doubt,
            "uncertainty": 1 - moment.confidence,
            "reliability": moment.reliability,
            "agreement": moment.agreement,
            "loss": moment.loss,
            "fps": moment.fps,
            "latency_ms": moment.latency_ms[0],
        }
        point = (round(now - self._began, 1), *(_rounded(values[name]) for name in CURVES))
        shares = [] if self._last is None else _shares(self._last.mask, len(self.classes))
        with self._lock:
            self._count += 1
            self._points.append(point)
            self._shares = shares

    # --- any thread ---

    def since(self, number: int) -> dict[str, Any]:
        """Return the curves' points after the first `number`, as JSON values: seconds of the run, then `CURVES`."""
        with self._lock:
            points, count = list(self._points), self._count
        new = min(max(count - number, 0), len(points)) if number <= count else len(points)
        return {"count": count, "curves": CURVES, "points": points[len(points) - new :]}

    def events(self, after: int) -> list[dict[str, Any]]:
        """Return the newest events with a number above `after`, oldest first."""
        with self._lock:
            return [event for event in self._events if event["number"] > after]

    def swaps(self) -> list[Swap]:
        """Return the newest swaps, oldest first."""
        with self._lock:
            return list(self._swaps)

    def shares(self) -> list[float]:
        """Return the share of each class in the newest sampled mask, 0..1; empty before the first."""
        with self._lock:
            return self._shares


def encode(image: U8, *, side: int | None = None) -> bytes:
    """Return a picture as JPEG, its longer side at most `side` pixels; `image` is uint8 BGR [H, W, 3]."""
    height, width = image.shape[:2]
    scale = 1.0 if side is None else min(1.0, side / max(height, width))
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 85))
    return data.tobytes()


def _picture(latest: Latest, classes: Classes) -> bytes:
    return encode(overlay(latest.frame.image, latest.mask, classes), side=_SIDE)


def _shares(mask: U8, classes: int) -> list[float]:
    counts = np.bincount(mask[::4, ::4].reshape(-1), minlength=classes)[:classes]
    return [round(float(share), 4) for share in counts / max(1, counts.sum())]


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
