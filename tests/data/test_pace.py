from __future__ import annotations

import numpy as np
import pytest

from edge_sfda.data.frames import Frame, FrameSource
from edge_sfda.data.pace import PacedSource
from edge_sfda.data.sources import SceneSource, open_source


class Recording(FrameSource):
    def __init__(self, *times: float) -> None:
        self.times = list(times)
        self.len_hint = len(times)
        self.fps = 10.0
        self.closed = False

    def __next__(self) -> Frame:
        if not self.times:
            raise StopIteration
        return Frame(np.zeros((8, 8, 3), np.uint8), 0, self.times.pop(0))

    def close(self) -> None:
        self.closed = True


class Clock:
    """Time passes only by waiting, and by `now +=`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(pytest.approx(seconds))
        self.now += seconds


def paced(*times: float) -> tuple[PacedSource, Clock]:
    clock = Clock()
    return PacedSource(Recording(*times), clock=clock, wait=clock.wait), clock


def test_paced_frames_come_at_the_times_of_the_recording() -> None:
    source, clock = paced(5.0, 5.1, 5.4)
    assert [frame.captured_at for frame in source] == pytest.approx([100.0, 100.1, 100.4])
    assert clock.waits == [0.1, 0.3]


def test_paced_frames_catch_up_with_whoever_was_slow() -> None:
    source, clock = paced(0.0, 0.1, 0.2, 0.3)
    next(source)
    clock.now += 0.25
    assert next(source).captured_at == pytest.approx(100.1)
    next(source)
    assert clock.waits == []
    next(source)
    assert clock.waits == [0.05]


@pytest.mark.parametrize("jump", [3600.0, -4.0])
def test_paced_recording_with_a_gap_waits_for_nobody(jump: float) -> None:
    source, clock = paced(5.0, 5.0 + jump, 5.1 + jump)
    assert [frame.captured_at for frame in source] == pytest.approx([100.0, 100.0, 100.1])
    assert clock.waits == [0.1]


def test_paced_source_closes_what_it_paces_and_tells_of_it() -> None:
    source, _ = paced(0.0)
    assert (source.len_hint, source.fps) == (1, 10.0)
    source.close()
    assert isinstance(source.source, Recording)
    assert source.source.closed


def test_open_source_paces_recordings_only_when_asked() -> None:
    assert isinstance(open_source("scene:dusk?frames=2"), SceneSource)
    source = open_source("scene:dusk?frames=2", realtime=True)
    assert isinstance(source, PacedSource)
    assert isinstance(source.source, SceneSource)
