from __future__ import annotations

import pytest

from edge_sfda.runtime import latency as module
from edge_sfda.runtime.latency import Latency
from edge_sfda.runtime.predict import Times


def test_times_are_summed_up_by_percentiles() -> None:
    latency = Latency()
    assert latency.percentiles() == {}
    for i in range(101):
        latency.add(Times(1.0, 2.0, float(i), 3.0))
    found = latency.percentiles()
    assert list(found) == ["capture", "pre", "net", "post", "total"]
    assert (found["net"].p50_ms, found["net"].p90_ms, found["net"].p99_ms) == pytest.approx((50, 90, 99))
    assert found["total"].p50_ms == pytest.approx(56)
    assert len(latency) == 101


def test_oldest_times_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 4)
    latency = Latency()
    for i in range(10):
        latency.add(Times(0.0, 0.0, float(i), 0.0))
    assert (latency.percentiles()["net"].p50_ms, len(latency)) == (7.5, 10)
