"""Metrics over real HTTP."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Iterator

import pytest

from edge_sfda.errors import UsageError
from edge_sfda.live.capture import CaptureStatus
from edge_sfda.live.status import LoopStatus, Phase
from edge_sfda.live.telemetry import Telemetry

pytest.importorskip("prometheus_client", reason="needs the extra live")

STATUS = LoopStatus(
    phase=Phase.ADAPTING,
    detail="",
    step=3,
    steps=100,
    generation=7,
    frames=1200,
    fps=9.5,
    latency_ms=(12.0, 34.0),
    confidence=0.875,
    doubt=1.5,
    reliability=math.nan,
    loss=0.5,
    agreement=0.9,
    stale=True,
    restarts=2,
    learned_s=60.0,
    capture=CaptureStatus(1300, 100, 4, "", {"dark": 5, "of another size": 1}),
)


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry(lambda: STATUS, port=0)
    yield made
    made.close()


def _get(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_status_is_served_as_it_is(telemetry: Telemetry) -> None:
    found = _get(telemetry.port)
    assert {name: found[name] for name in sorted(found) if "phase" not in name and "reliability" not in name} == {
        "edge_sfda_burst_step": 3.0,
        "edge_sfda_camera_opened_total": 4.0,
        "edge_sfda_confidence": 0.875,
        "edge_sfda_doubt_spreads": 1.5,
        "edge_sfda_dropped_frames_total": 100.0,
        'edge_sfda_faulty_frames_total{fault="dark"}': 5.0,
        'edge_sfda_faulty_frames_total{fault="of another size"}': 1.0,
        "edge_sfda_frames_per_second": 9.5,
        "edge_sfda_frames_total": 1200.0,
        "edge_sfda_generation": 7.0,
        'edge_sfda_latency_seconds{quantile="0.5"}': 0.012,
        'edge_sfda_latency_seconds{quantile="0.99"}': 0.034,
        "edge_sfda_learning_seconds_in_hour": 60.0,
        "edge_sfda_stale": 1.0,
        "edge_sfda_worker_restarts_total": 2.0,
    }
    assert math.isnan(found["edge_sfda_reliability"])


def test_one_phase_is_on(telemetry: Telemetry) -> None:
    on = [name for name, value in _get(telemetry.port).items() if "phase" in name and value == 1]
    assert on == ['edge_sfda_phase{phase="adapting"}']


def test_port_that_is_taken_is_named(telemetry: Telemetry) -> None:
    with pytest.raises(UsageError, match=f"cannot be served on 127.0.0.1:{telemetry.port} .*; choose another port"):
        Telemetry(lambda: STATUS, port=telemetry.port)


def test_port_is_free_again_after_closing() -> None:
    first = Telemetry(lambda: STATUS, port=0)
    first.close()
    Telemetry(lambda: STATUS, port=first.port).close()
