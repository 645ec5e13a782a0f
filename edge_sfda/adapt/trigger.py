"""When to learn: tells from a few numbers a frame that the stream has left what the network was fitted to (ours).

Each signal has a reference, the median of the frames that the network was fitted to or, where those are not known, of
those after the last `rebase`, and a spread, how far the median of a short window usually strays from where it was. The
reference stands still: one that followed the stream would follow dusk all the way down. Imports no torch: the numbers
may come from any engine.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import median

import numpy as np
import numpy.typing as npt

from edge_sfda.config import TriggerConfig
from edge_sfda.errors import UsageError

_MOST_COOL_DOWNS = 16  # a robot parked before a wall asks twice an hour, not every half minute
_CLIP = 3.0  # spreads at which a stray counts no further into the spread: an odd frame must not blind the trigger
_STEP = 8  # every so many pixels are looked at

Signals = Mapping[str, Sequence[float]]  # by name, of some frames in their order


class Change(enum.Enum):
    """What `Trigger.observe` has noticed."""

    SHIFT_FOUND = "shift found"
    SHIFT_OVER = "shift over"


def cool_down(config: TriggerConfig, asked: int) -> int:
    """Return the frames before a shift that lasts is asked about again, after it was so many times before."""
    return config.cool_down * min(1 << asked, _MOST_COOL_DOWNS)


def describe(image: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32]) -> dict[str, float]:
    """Return the signals of a frame and its prediction: what light, sensor and the network's own doubt show.

    Args:
        image: HWC uint8 BGR.
        confidence: HW float in 0..1, of the deployed network; not necessarily of the image's size.

    Returns:
        doubt 0..1, and brightness, contrast and warmth (red less blue) in 0..1 of full scale.
    """
    seen = image[::_STEP, ::_STEP].astype(np.float32) / 255
    blue, _, red = (float(channel) for channel in seen.mean((0, 1)))
    return {
        "doubt": 1 - float(confidence[::_STEP, ::_STEP].mean()),
        "brightness": float(seen.mean()),
        "contrast": float(seen.std()),
        "warmth": red - blue,
    }


class Trigger:
    """Watches a stream; one call a frame.

    It tells changes: that a stream begins away from home, no reference shows. Whoever runs it adapts once at the start.

    Args:
        config: see `TriggerConfig`.

    Attributes:
        shifted: a shift is on.
        scores: spreads between each signal's window and its reference, as of the last frame; empty while settling.
    """

    def __init__(self, config: TriggerConfig) -> None:
        self.config = config
        self._history: deque[dict[str, float]] = deque(maxlen=config.settle)
        self.rebase()

    @property
    def settling(self) -> bool:
        """Whether every reference is still being taken; nothing is noticed meanwhile."""
        return not any(signal.is_settled for signal in self._signals.values())

    @property
    def score(self) -> float:
        """The largest of `scores`; 0 while settling."""
        return max(self.scores.values(), default=0.0)

    def recent(self, frames: int) -> Signals:
        """Return the signals of that many frames, at most `settle`, the newest last; of the picture's alone.

        Doubt is left out: it is of the network that saw them, and another one will be in use.
        """
        last = list(islice(reversed(self._history), frames))[::-1]
        names = [name for name in self._signals if name != "doubt"]
        return {name: tuple(signals[name] for signals in last) for name in names}

    def rebase(self, fitted: Signals | None = None) -> None:
        """Take new references: another network is in use.

        Args:
            fitted: signals of the frames that it was fitted to, as `recent` gave them then: what the stream has left
                since is noticed at once. Every other reference, and one of fewer than `window` frames, is taken from
                the next frames.
        """
        self.shifted = self._told = False
        self.scores: dict[str, float] = {}
        self._signals: dict[str, _Signal] = {
            name: _Signal(self.config, values)
            for name, values in (fitted or {}).items()
            if len(values) >= self.config.window
        }
        self._beyond = 0
        self._wait = 0
        self._asked = 0

    def observe(self, signals: Mapping[str, float]) -> Change | None:
        """Take in a frame's signals and say whether something has changed.

        A shift that lasts is found again after the cool-down, each time after twice as long.

        Args:
            signals: finite numbers, the same names at each call; not of a frame that is dark, frozen or corrupt.

        Raises:
            UsageError: a signal is not finite, or the names differ from those before.
        """
        self._check(signals)
        for name, value in signals.items():
            self._signals.setdefault(name, _Signal(self.config)).add(
                value, quiet=not self.shifted and self._beyond == 0
            )
        self._history.append(dict(signals))
        if self.settling:
            return None
        self.scores = {name: signal.score() for name, signal in self._signals.items() if signal.is_settled}
        self._wait = max(0, self._wait - 1)
        return self._shift_lasts() if self.shifted else self._shift_begins()

    def _shift_begins(self) -> Change | None:
        self._beyond = self._beyond + 1 if self.score > self.config.high else 0
        if self._beyond < self.config.patience:
            return None
        self.shifted = True
        return self._find()

    def _shift_lasts(self) -> Change | None:
        self._beyond = self._beyond + 1 if self.score < self.config.low else 0
        if self._beyond >= self.config.patience:
            told, self.shifted, self._told, self._beyond, self._asked = self._told, False, False, 0, 0
            return Change.SHIFT_OVER if told else None
        return self._find() if self._wait == 0 and self.score > self.config.high else None

    def _find(self) -> Change | None:
        self._beyond = 0
        if self._wait > 0:  # back again within the cool-down of the last one: it is on, and told when that has passed
            return None
        self._wait = cool_down(self.config, self._asked) + 1
        self._asked += 1
        self._told = True
        return Change.SHIFT_FOUND

    def _check(self, signals: Mapping[str, float]) -> None:
        bad = [name for name, value in signals.items() if not math.isfinite(value)]
        if bad or not signals:
            raise UsageError(f"trigger got {dict(signals)}; expected one or more finite numbers")
        if self._history and signals.keys() != self._history[-1].keys():
            raise UsageError(
                f"trigger got {sorted(signals)} after {sorted(self._history[-1])}; give the same at each frame"
            )


class _Signal:
    """One number a frame: its window, reference, and usual straying."""

    def __init__(self, config: TriggerConfig, fitted: Sequence[float] = ()) -> None:
        self.config = config
        self.window: deque[float] = deque(maxlen=config.window)
        self.settled: list[float] = []
        self.is_settled = False
        self.reference = 0.0
        self.centre = 0.0  # follows the window: straying is from where the signal was lately
        self.spread = 0.0
        self.size = 0.0
        if fitted:
            self.settled = list(fitted)
            self._settle()

    def add(self, value: float, *, quiet: bool) -> None:
        self.window.append(value)
        if not self.is_settled:
            self.settled.append(value)
            if len(self.settled) == self.config.settle:
                self._settle()
        elif quiet:
            self._stray()

    def score(self) -> float:
        """How far the window is from the reference, in spreads; 0 until it is full, for a few frames are no window."""
        if len(self.window) < self.config.window:
            return 0.0
        return abs(median(self.window) - self.reference) / self._least(self.spread)

    def _settle(self) -> None:
        self.is_settled = True
        self.reference = self.centre = median(self.settled)
        self.size = median(abs(value) for value in self.settled)
        # of single frames, by their median: an odd one among them does not count
        self.spread = 1.4826 * median(abs(value - self.reference) for value in self.settled)

    def _stray(self) -> None:
        now = median(self.window)
        stray = min(abs(now - self.centre), _CLIP * self._least(self.spread))
        # mean absolute deviation of a normal law is 0.8 of its deviation
        self.spread += (1.25 * stray - self.spread) / self.config.memory
        self.centre += (now - self.centre) / self.config.settle

    def _least(self, spread: float) -> float:
        return max(spread, self.config.floor * self.size, 1e-6)
