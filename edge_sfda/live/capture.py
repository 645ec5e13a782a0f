"""The capture thread: the newest frame only, and a source that is opened anew for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from edge_sfda.config import WatchConfig
from edge_sfda.data.frames import Frame, FrameSource
from edge_sfda.data.pace import PacedSource
from edge_sfda.errors import DataError, SourceError
from edge_sfda.live.watch import Fault, Watch

_JOIN_S = 2.0  # that closing waits for a read that hangs in a driver; the thread is a daemon


class Pace(Enum):
    """How a source is read."""

    LIVE = "live"  # a camera: whoever is slow misses frames, and an end is a failure
    NATIVE = "native"  # a recording at its own rate, as if it were a camera; it ends
    FAST = "fast"  # a recording frame by frame: it waits for whoever is slow, and ends


@dataclass(frozen=True, eq=False)
class Seen:
    """A frame and what is wrong with it, if anything."""

    frame: Frame
    fault: Fault | None


@dataclass(frozen=True)
class CaptureStatus:
    """How capture goes.

    Args:
        frames: read.
        dropped: of them, replaced by a newer one before anybody took them.
        opened: times that the source was opened.
        trouble: why there is no frame now; empty while frames come.
        faults: frames of each kind of fault.
    """

    frames: int
    dropped: int
    opened: int
    trouble: str
    faults: dict[str, int]


class Capture:
    """Reads a source in a thread of its own.

    Args:
        opener: opens the source; asked again whenever a live one fails.
        config: when to do so.
        pace: how the source is read.
        min_side: the smallest H or W that the network takes.
        clock: seconds that only grow.

    Raises:
        DataError: the source does not open. A camera that fails after that is opened anew, for ever.
    """

    def __init__(
        self,
        opener: Callable[[], FrameSource],
        config: WatchConfig,
        *,
        pace: Pace,
        min_side: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pace = pace
        self.config = config
        self._opener = opener
        self._clock = clock
        self._watch = Watch(config, min_side=min_side)
        self._changed = threading.Condition()
        self._newest: Seen | None = None
        self._closing = threading.Event()
        self._ended = False
        self._failure: DataError | None = None
        self._frames = self._sound = self._dropped = self._opened = 0
        self._trouble = ""
        self._source: FrameSource | None = self._open()
        self._sound_at = clock()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def take(self, timeout_s: float) -> Seen | None:
        """Return the newest frame that nobody took yet, or None when none comes in time, or none will come any more.

        Raises:
            DataError: a recording cannot be read further.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._ended, timeout_s)
            seen, self._newest = self._newest, None
            self._changed.notify_all()
            if seen is None and self._failure is not None:
                raise self._failure
            return seen

    @property
    def ended(self) -> bool:
        """Whether a recording is at its end and everything was taken."""
        with self._changed:
            return self._ended and self._newest is None

    def status(self) -> CaptureStatus:
        """Return how it goes."""
        with self._changed:
            faults = {fault.value: count for fault, count in self._watch.faults.items()}
            return CaptureStatus(self._frames, self._dropped, self._opened, self._trouble, faults)

    def close(self) -> None:
        """Stop reading and release the source."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(timeout=_JOIN_S)

    def _run(self) -> None:
        wait_s = self.config.back_off_s[0]
        while not self._closing.is_set():
            before = self._sound
            try:
                source = self._source or self._open()
                self._source = None
                with source:
                    self._pump(source)
                if self.pace is not Pace.LIVE:
                    break
                self._tell("the source ended")
            except DataError as error:
                if self.pace is not Pace.LIVE:
                    self._failure = error
                    break
                self._tell(str(error))
            wait_s = self.config.back_off_s[0] if self._sound > before else min(2 * wait_s, self.config.back_off_s[1])
            self._closing.wait(wait_s)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _open(self) -> FrameSource:
        self._opened += 1
        source = self._opener()
        return PacedSource(source, clock=self._clock, wait=self._closing.wait) if self.pace is Pace.NATIVE else source

    def _pump(self, source: FrameSource) -> None:
        self._sound_at = self._clock()
        for frame in source:
            fault = self._watch.judge(frame.image)
            self._check_soundness(fault)
            with self._changed:
                if self.pace is Pace.FAST:
                    self._changed.wait_for(lambda: self._newest is None or self._closing.is_set())
                if self._closing.is_set():
                    return
                self._frames += 1
                self._dropped += self._newest is not None
                self._newest = Seen(frame, fault)
                self._trouble = ""
                self._changed.notify_all()

    def _check_soundness(self, fault: Fault | None) -> None:
        """Raise SourceError where a camera has given nothing sound for too long: unplugged ones repeat or go black."""
        now = self._clock()
        if fault is None:
            self._sound += 1
            self._sound_at = now
        elif self.pace is Pace.LIVE and now - self._sound_at > self.config.silence_s:
            raise SourceError(f"its frames are {fault.value} for more than {self.config.silence_s:g} s")

    def _tell(self, trouble: str) -> None:
        with self._changed:
            self._trouble = trouble
