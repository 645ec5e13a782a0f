"""Pictures of the newest prediction, made when asked for."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edge_sfda.data.frames import Frame
from edge_sfda.live.job import Look
from edge_sfda.live.status import Latest
from edge_sfda.live.views import VIEWS, View, Views
from edge_sfda.manifest import Classes

CLASSES = Classes(("road", "sky"), ((255, 0, 0), (0, 0, 255)))
LOOK = Look(np.zeros((3, 40, 60), np.uint8), np.full((5, 8), 255, np.uint8))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _latest(grey: int = 40, *, confident: bool = True) -> Latest:
    confidence = np.full((40, 60), 1.0, np.float32) if confident else None
    return Latest(Frame(np.full((40, 60, 3), grey, np.uint8), 0, 0.0), np.zeros((40, 60), np.uint8), confidence, "")


def _colour(view: View | None) -> list[int]:
    assert view is not None
    image = cv2.imdecode(np.frombuffer(view.jpeg, np.uint8), cv2.IMREAD_COLOR)
    return [round(float(channel)) for channel in image.mean((0, 1))]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("frame", [40, 40, 40]),
        ("mask", [0, 0, 255]),
        ("overlay", [16, 16, 169]),
        ("confidence", [37, 231, 253]),  # viridis at 1
        ("reliability", [24, 150, 164]),  # over a black frame
    ],
)
def test_each_view_shows_what_it_says(name: str, expected: list[int]) -> None:
    views = Views(_latest, lambda: LOOK, CLASSES)
    assert _colour(views.get(name)) == pytest.approx(expected, abs=3)


def test_nothing_is_shown_before_there_is_something() -> None:
    views = Views(lambda: None, lambda: None, CLASSES)
    assert [views.get(name) for name in VIEWS] == [None] * len(VIEWS)
    assert Views(lambda: _latest(confident=False), lambda: None, CLASSES).get("confidence") is None


def test_a_picture_is_encoded_ten_times_a_second_at_most_and_only_when_it_is_new() -> None:
    clock, frames = Clock(), [_latest(0), _latest(100)]
    asked: list[int] = []

    def latest() -> Latest:
        asked.append(1)
        return frames[0]

    views = Views(latest, lambda: None, CLASSES, clock=clock)
    first = views.get("frame")
    assert views.get("frame") is first
    assert len(asked) == 1
    clock.now += 0.2
    assert views.get("frame") is first  # the same frame
    frames.pop(0)
    clock.now += 0.05
    second = views.get("frame")
    assert second is not None
    assert first is not None
    assert (first.number, second.number) == (1, 2)
    assert _colour(second) == pytest.approx([100] * 3, abs=2)


def test_unknown_view_is_refused() -> None:
    with pytest.raises(KeyError):
        Views(_latest, lambda: None, CLASSES).get("../secret")
