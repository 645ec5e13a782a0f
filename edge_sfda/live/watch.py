"""Which frames are sound: a camera that freezes, goes black or changes its size must not teach anybody anything."""

from __future__ import annotations

from collections import Counter
from enum import Enum

import numpy as np

from edge_sfda.config import WatchConfig
from edge_sfda.data.frames import U8, check_frame
from edge_sfda.errors import FrameError

_STEP = 8  # every so many pixels are looked at for light


class Fault(Enum):
    """What is wrong with a frame."""

    CORRUPT = "corrupt"
    RESIZED = "of another size"
    DARK = "dark"
    FROZEN = "frozen"


class Watch:
    """Judges frames in their order.

    Args:
        config: bounds.
        min_side: the smallest H or W that the network takes.

    Attributes:
        faults: frames of each kind so far.
    """

    def __init__(self, config: WatchConfig, *, min_side: int = 8) -> None:
        self.config = config
        self.min_side = min_side
        self.faults: Counter[Fault] = Counter()
        self._size: tuple[int, ...] | None = None
        self._other: tuple[tuple[int, ...], int] | None = None
        self._last: U8 | None = None
        self._equal = 1

    def judge(self, image: U8) -> Fault | None:
        """Return what is wrong with a frame, HWC uint8 BGR, or None; it is compared with the one before."""
        fault = self._judge(image)
        if fault is not None:
            self.faults[fault] += 1
        return fault

    def _judge(self, image: U8) -> Fault | None:
        try:
            check_frame(image, min_side=self.min_side)
        except FrameError:
            return Fault.CORRUPT
        if not self._is_of_usual_size(image.shape):
            return Fault.RESIZED
        same = self._last is not None and self._last.shape == image.shape and bool(np.array_equal(self._last, image))
        self._last = image
        self._equal = self._equal + 1 if same else 1
        seen = image[::_STEP, ::_STEP]
        if float(seen.mean()) < self.config.dark or float(seen.std()) < self.config.flat:
            return Fault.DARK
        return Fault.FROZEN if self._equal >= self.config.frozen else None

    def _is_of_usual_size(self, shape: tuple[int, ...]) -> bool:
        if self._size is None or shape == self._size:
            self._size, self._other = shape, None
            return True
        seen = self._other[1] + 1 if self._other is not None and self._other[0] == shape else 1
        self._other = (shape, seen)
        if seen < self.config.adopt:
            return False
        self._size, self._other = shape, None
        return True
