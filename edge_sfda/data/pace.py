"""A recording at its own rate: what a camera would have given, when it would have given it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from edge_sfda.data.frames import Frame, FrameSource


class PacedSource(FrameSource):
    """Gives each frame of a recording when its time has come; whoever is slow gets it late, and none is dropped.

    The first frame sets the clock. Where times go backwards or jump ahead by more than `longest_s` (a bag with a gap,
    two drives in one file) the clock is set anew, so that nobody waits for an hour that nobody recorded.

    Args:
        source: closed with this one.
        longest_s: wait between two frames.
        clock: seconds that only grow.
        wait: sleeps for so many seconds.
    """

    def __init__(
        self,
        source: FrameSource,
        *,
        longest_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self.source = source
        self.longest_s = longest_s
        self.len_hint: int | None = source.len_hint
        self.fps: float | None = source.fps
        self._clock = clock
        self._wait = wait
        self._offset: float | None = None  # from the recording's time to the clock's
        self._last = 0.0

    def __next__(self) -> Frame:
        """Return the next frame; its `captured_at` is the clock's, as that of a camera."""
        frame = next(self.source)
        now = self._clock()
        step = frame.captured_at - self._last
        if self._offset is None or not 0 <= step <= self.longest_s:
            self._offset = now - frame.captured_at
        self._last = frame.captured_at
        due = frame.captured_at + self._offset
        if due > now:
            self._wait(due - now)
        return replace(frame, captured_at=due)

    def close(self) -> None:
        """Close the source; no more frames come."""
        self.source.close()
