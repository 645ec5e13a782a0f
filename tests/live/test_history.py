"""Curves, events and swaps as faces read them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from edge_sfda.data.frames import Frame
from edge_sfda.live.capture import CaptureStatus
from edge_sfda.live.history import CURVES, History, encode
from edge_sfda.live.status import Latest, LoopStatus, Phase
from edge_sfda.manifest import Classes

CLASSES = Classes(("road", "sky"), ((255, 0, 0), (0, 0, 255)))
STATUS = LoopStatus(
    phase=Phase.WATCHING,
    detail="",
    step=0,
    steps=0,
    generation=0,
    frames=1,
    fps=10.0,
    latency_ms=(5.0, 9.0),
    confidence=0.75,
    doubt=1.5,
    reliability=math.nan,
    loss=math.nan,
    agreement=math.nan,
    stale=False,
    restarts=0,
    learned_s=0.0,
    capture=CaptureStatus(1, 0, 1, "", {}),
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _latest(class_id: int) -> Latest:
    mask = np.full((40, 60), class_id, np.uint8)
    mask[:20] = 0
    return Latest(Frame(np.zeros((40, 60, 3), np.uint8), 0, 0.0), mask, None, "")


def _swapped(**more: Any) -> dict[str, Any]:
    return {"at": 5.0, "event": "swapped", "generation": 3, "reason": "better", **more}


def _mean(jpeg: bytes | None) -> list[float]:
    assert jpeg is not None
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return [float(channel) for channel in image[-10:].mean((0, 1))]


def test_a_point_a_second_holds_what_is_finite() -> None:
    clock = Clock()
    history = History(CLASSES, clock=clock)
    for _ in range(20):  # eight turns a second
        history.sample(lambda: STATUS)
        clock.now += 0.125
    found = history.since(0)
    assert found["count"] == 3
    point = dict(zip(CURVES, found["points"][-1][1:], strict=True))
    assert point == {
        "doubt": 1.5,
        "uncertainty": 0.25,
        "reliability": None,
        "agreement": None,
        "loss": None,
        "fps": 10.0,
        "latency_ms": 5.0,
    }
    assert [p[0] for p in found["points"]] == [0.0, 1.0, 2.0]


def test_only_new_points_and_events_are_given() -> None:
    clock = Clock()
    history = History(CLASSES, clock=clock)
    for _ in range(5):
        history.sample(lambda: STATUS)
        history.event({"at": clock.now, "event": "phase"})
        clock.now += 1.0
    assert [p[0] for p in history.since(3)["points"]] == [3.0, 4.0]
    assert history.since(5)["points"] == []
    assert len(history.since(99)["points"]) == 5  # a page of an earlier run gets all
    assert [event["number"] for event in history.events(3)] == [4, 5]


def test_everything_is_bounded() -> None:
    clock = Clock()
    history = History(CLASSES, clock=clock)
    for _ in range(2000):
        history.sample(lambda: STATUS)
        history.event(_swapped())
        clock.now += 1.0
    assert history.since(0)["count"] == 2000
    assert len(history.since(0)["points"]) == 900
    assert len(history.events(0)) == 200
    assert [swap.number for swap in history.swaps()] == list(range(1989, 2001))


def test_a_swap_keeps_the_mask_before_and_the_first_one_after() -> None:
    history = History(CLASSES)
    history.frame(_latest(0))
    history.event(_swapped())
    assert history.swaps()[0].after is None
    history.frame(_latest(1))
    history.frame(_latest(0))
    (swap,) = history.swaps()
    assert (swap.generation, swap.at, swap.reason) == (3, 5.0, "better")
    blue, _, red = _mean(swap.before)
    assert red > 100 > 20 > blue
    blue, _, red = _mean(swap.after)
    assert blue > 100 > 20 > red


def test_a_rollback_is_a_swap_that_says_so() -> None:
    history = History(CLASSES)
    history.event({"at": 1.0, "event": "rolled back", "generation": 0, "why": "asked for"})
    (swap,) = history.swaps()
    assert (swap.generation, swap.reason, swap.before) == (0, "rolled back: asked for", None)


def test_shares_are_those_of_the_newest_mask() -> None:
    history = History(CLASSES)
    assert history.shares() == []
    history.frame(_latest(1))
    history.sample(lambda: replace(STATUS, frames=2))
    assert history.shares() == [0.5, 0.5]


def test_pictures_are_scaled_down_and_never_up() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    for side, expected in ((50, (25, 50)), (400, (100, 200)), (None, (100, 200))):
        decoded = cv2.imdecode(np.frombuffer(encode(image, side=side), np.uint8), cv2.IMREAD_COLOR)
        assert decoded.shape[:2] == expected
