from __future__ import annotations

import math

import pytest

from edge_sfda.live.tempo import Tempo


def test_nothing_is_known_before_the_first_prediction() -> None:
    tempo = Tempo()
    assert tempo.fps == 0
    assert all(math.isnan(value) for value in tempo.latency_ms)


def test_a_single_prediction_has_a_latency_and_no_rate() -> None:
    tempo = Tempo()
    tempo.predicted(1.0, 1.02)
    assert tempo.fps == 0
    assert tempo.latency_ms == pytest.approx((20, 20))


def test_rate_and_percentiles_are_of_the_last_predictions() -> None:
    tempo = Tempo()
    for frame in range(1000):  # 10 a second, of 5 ms; the last 512 know nothing of the slow ones at the start
        start = 0.1 * frame
        tempo.predicted(start, start + (0.5 if frame < 400 else 0.005))
    assert tempo.fps == pytest.approx(10)
    assert tempo.latency_ms == pytest.approx((5, 5))
    for frame in range(1000, 1020):  # of 512, 20 are more than one in a hundred
        tempo.predicted(0.1 * frame, 0.1 * frame + 0.05)
    assert tempo.latency_ms == pytest.approx((5, 50))
