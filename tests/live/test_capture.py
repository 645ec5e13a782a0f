"""The capture thread over sources that fail in the ways that cameras do; events, not sleeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edge_sfda.config import WatchConfig
from edge_sfda.data.frames import Frame, FrameSource
from edge_sfda.errors import SourceError
from edge_sfda.live.capture import Capture, Pace
from edge_sfda.live.watch import Fault

CONFIG = WatchConfig(back_off_s=(0.001, 0.002))


def _frame(seq: int) -> Frame:
    image = np.random.default_rng(seq).integers(0, 255, (16, 16, 3), np.uint8)
    return Frame(image, seq, seq / 1000)


class Script(FrameSource):
    """Gives what a script says: frames, or raises; a `threading.Event` in it is waited for."""

    fps: float | None = None
    len_hint: int | None = None

    def __init__(self, *script: Frame | Exception | threading.Event) -> None:
        self.script: Iterator[Frame | Exception | threading.Event] = iter(script)
        self.closed = threading.Event()

    def __next__(self) -> Frame:
        for item in self.script:
            if isinstance(item, threading.Event):
                assert item.wait(10)
            elif isinstance(item, Exception):
                raise item
            else:
                return item
        raise StopIteration

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def capture() -> Iterator[Callable[..., Capture]]:
    made: list[Capture] = []

    def make(*sources: FrameSource | Exception, pace: Pace) -> Capture:
        left = list(sources)

        def opener() -> FrameSource:
            source = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(source, Exception):
                raise source
            return source

        made.append(Capture(opener, CONFIG, pace=pace))
        return made[-1]

    yield make
    for item in made:
        item.close()


def _take(capture: Capture) -> int:
    seen = capture.take(10)
    assert seen is not None
    return seen.frame.seq


def test_fast_recording_loses_nothing_and_ends(capture: Callable[..., Capture]) -> None:
    source = Script(*map(_frame, range(20)))
    made = capture(source, pace=Pace.FAST)
    assert [_take(made) for _ in range(20)] == list(range(20))
    assert made.take(10) is None
    assert made.ended
    assert source.closed.is_set()
    assert made.status().dropped == 0


def test_camera_gives_the_newest_frame_and_counts_what_was_missed(capture: Callable[..., Capture]) -> None:
    last, quiet = threading.Event(), threading.Event()
    made = capture(Script(*map(_frame, range(5)), quiet), pace=Pace.LIVE)
    for _ in range(1000):
        if made.status().frames == 5:
            break
        last.wait(0.005)
    assert _take(made) == 4
    assert made.status().dropped == 4
    assert made.take(0) is None
    assert not made.ended
    quiet.set()


def test_camera_that_fails_is_opened_anew_for_ever(capture: Callable[..., Capture]) -> None:
    gone = SourceError("the camera is gone")
    hold = threading.Event()
    made = capture(Script(gone), gone, Script(gone), gone, Script(_frame(7), hold), pace=Pace.LIVE)
    assert _take(made) == 7
    status = made.status()
    assert (status.opened, status.trouble) == (5, "")
    hold.set()


def test_end_of_a_camera_s_stream_is_a_failure_too(capture: Callable[..., Capture]) -> None:
    hold = threading.Event()
    made = capture(Script(), Script(_frame(3), hold), pace=Pace.LIVE)
    assert _take(made) == 3
    hold.set()


def test_trouble_is_told_while_there_is_no_frame(capture: Callable[..., Capture]) -> None:
    made = capture(Script(), SourceError("no such device"), pace=Pace.LIVE)
    assert made.take(0.05) is None
    for _ in range(1000):
        if made.status().opened > 2:
            break
        threading.Event().wait(0.005)
    assert made.status().trouble == "no such device"


@pytest.mark.parametrize("pace", list(Pace))
def test_source_that_does_not_open_is_an_error_at_once(pace: Pace, capture: Callable[..., Capture]) -> None:
    with pytest.raises(SourceError, match="no such file"):
        capture(SourceError("no such file"), pace=pace)


def test_recording_that_breaks_raises_after_its_frames(capture: Callable[..., Capture]) -> None:
    made = capture(Script(_frame(0), SourceError("cut short")), pace=Pace.FAST)
    assert _take(made) == 0
    with pytest.raises(SourceError, match="cut short"):
        made.take(10)


def test_native_recording_ends_like_a_fast_one(capture: Callable[..., Capture]) -> None:
    made = capture(Script(*map(_frame, range(3))), pace=Pace.NATIVE)
    seen = []
    while not made.ended:
        found = made.take(1)
        if found is not None:
            seen.append(found.frame.seq)
    assert seen[-1] == 2
    assert made.status().frames == 3


def test_faults_come_with_their_frames(capture: Callable[..., Capture]) -> None:
    black = Frame(np.zeros((16, 16, 3), np.uint8), 1, 0.0)
    made = capture(Script(_frame(0), black), pace=Pace.FAST)
    found = [made.take(10), made.take(10)]
    assert [seen.fault for seen in found if seen is not None] == [None, Fault.DARK]
    assert made.status().faults == {"dark": 1}


def test_closing_releases_the_source(capture: Callable[..., Capture]) -> None:
    source = Script(*map(_frame, range(100)))
    made = capture(source, pace=Pace.FAST)
    _take(made)
    made.close()
    assert source.closed.wait(10)


class Ticks:
    """A clock that goes on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("value", [0, 90])  # black, and the same grey picture for ever
def test_camera_that_gives_nothing_sound_is_opened_anew(value: int) -> None:
    dead = Script(*(Frame(np.full((16, 16, 3), value, np.uint8), seq, 0.0) for seq in range(50)))
    over = threading.Event()
    alive = Script(_frame(7), over)
    sources: list[FrameSource] = [dead, alive]
    config = WatchConfig(silence_s=10.0, back_off_s=(0.001, 0.002))
    made = Capture(lambda: sources.pop(0), config, pace=Pace.LIVE, clock=Ticks())
    try:
        assert dead.closed.wait(10)
        assert len(list(dead.script)) > 30, "it waited for longer than it was told to"
        while (seen := made.take(10)) is not None and seen.fault is not None:
            pass
        assert seen is not None
        assert seen.frame.seq == 7
        assert made.status().opened == 2
    finally:
        over.set()
        made.close()
