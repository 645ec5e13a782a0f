"""The loop without learning, over a fake engine and a source that a test controls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge_sfda.config import WatchConfig
from edge_sfda.data.frames import U8, Frame, FrameSource
from edge_sfda.errors import EngineError
from edge_sfda.live.capture import Capture, Pace
from edge_sfda.live.events import Events
from edge_sfda.live.inference import Inference
from edge_sfda.live.status import Phase
from edge_sfda.runtime.engine_fake import FakeEngine, bright
from edge_sfda.runtime.predict import Segmenter


class Pictures(FrameSource):
    """Gives pictures to their end."""

    fps: float | None = None
    len_hint: int | None = None

    def __init__(self, *pictures: U8) -> None:
        self._left: Iterator[tuple[int, U8]] = iter(enumerate(pictures))

    def __next__(self) -> Frame:
        seq, image = next(self._left)
        return Frame(image, seq, float(seq))

    def close(self) -> None:
        self._left = iter(())


def _noise(seed: int, side: int = 32) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def _run(*pictures: U8, engine: FakeEngine | None = None) -> tuple[Inference, list[Any], list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    seen: list[Any] = []
    events = Events(None, listener=lambda event: told.append(dict(event)))
    with Segmenter(engine or FakeEngine()) as segmenter:
        capture = Capture(lambda: Pictures(*pictures), WatchConfig(), pace=Pace.FAST, min_side=8)
        inference = Inference(segmenter, capture, events=events)
        try:
            inference.run(lambda latest, found: seen.append(latest))
        finally:
            capture.close()
    return inference, seen, told


def test_each_frame_is_predicted_and_told_of() -> None:
    pictures = [_noise(seed) for seed in range(3)]
    inference, seen, told = _run(*pictures)
    for picture, latest in zip(pictures, seen, strict=True):
        assert np.array_equal(latest.mask, bright(picture[None])[0])
    assert [event["event"] for event in told] == ["started", "sound frames", "stopped"]
    status = inference.status()
    assert (status.phase, status.frames, status.stale) == (Phase.OFF, 3, False)
    assert status.latency_ms[1] >= status.latency_ms[0] > 0


def test_faulty_frame_is_predicted_and_named() -> None:
    inference, seen, _ = _run(_noise(0), np.zeros((32, 32, 3), np.uint8))
    assert [latest.fault for latest in seen] == ["", "dark"]
    assert inference.status().detail == "frames are dark"


def test_frame_too_small_for_the_network_is_left_out() -> None:
    _, seen, _ = _run(_noise(0), _noise(1, side=4), _noise(2))
    assert [latest.frame.seq for latest in seen] == [0, 2]


def test_engine_that_fails_ends_the_loop_with_its_error() -> None:
    def fail(frames: U8) -> U8:
        raise EngineError("the GPU has fallen off the bus")

    with pytest.raises(EngineError, match="fallen off"):
        _run(_noise(0), engine=FakeEngine(segment=fail))


def test_status_before_the_first_frame_is_stale() -> None:
    with Segmenter(FakeEngine()) as segmenter:
        capture = Capture(lambda: Pictures(), WatchConfig(), pace=Pace.FAST, min_side=8)
        status = Inference(segmenter, capture, events=Events(None)).status()
        capture.close()
    assert status.stale
    assert status.frames == 0
    assert np.isnan(status.confidence)
