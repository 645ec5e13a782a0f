from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import peers
import pytest
from peers import Task, best, measure, segment, variants

from edge_sfda.config import EFFORTS, METHODS, from_dict

MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"


def _task(method: str) -> Task:
    return Task("continual", "rounds", method, variants(2, {}, "continual")[method], MODEL, None, 43, 2, 2)


def test_source_stands_to_itself_where_it_stood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SEASONS", ("day", "dusk"))
    row = measure(_task("none"))
    assert row["miou"] == row["source_miou"]
    assert (row["least_margin"], row["worst_segment"], row["gain_by_round"]) == (0.0, 0.0, [0.0, 0.0])
    assert row["frames"] == 8


def test_margins_are_those_of_the_running_miou_at_each_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SEASONS", ("day", "night"))
    row = measure(_task("bn"))
    assert row["least_margin"] <= row["miou"] - row["source_miou"] + 1e-4
    assert row["worst_segment"] <= min(row["gain_by_round"])
    assert row["miou"] != row["source_miou"]


def test_drive_goes_on_from_segment_to_segment() -> None:
    first, second = (list(segment("day", 43, index, 2)) for index in (0, 1))
    assert len(first) == len(second) == 2
    assert (first[1][0] != second[0][0]).any()


def test_every_method_is_there_with_the_same_number_of_steps_and_its_tuned_rate() -> None:
    found = variants(7, {("offline", "tent"): 0.5, ("online", "sar"): 0.25}, "offline")
    assert set(found) == {*METHODS, "bn-mix", "stvm-literal", "stvm-cheap"}
    assert {config.burst.steps for name, config in found.items() if name != "stvm-cheap"} == {7}
    assert found["stvm-cheap"] == from_dict(EFFORTS["cheap"])
    faster = {f"{name}-momentum" for name in ("bn", *peers.TUNED)}
    assert set(variants(7, {}, "online")) == set(variants(7, {}, "continual")) == {*found, *faster}
    assert found["tent"].burst.rate == 0.5
    assert found["sar"].burst.rate == variants(7, {}, "offline")["sar"].burst.rate
    online = variants(7, {("online", "sar"): 0.25}, "online")["sar"].burst
    assert (online.rate, online.online_share) == (0.25, 1.0)


def test_faster_statistics_leave_the_rest_of_a_peer_as_it_is() -> None:
    found = variants(7, {("online", "tent"): 0.25}, "online")
    statistics = found["tent-momentum"].statistics
    assert (statistics.momentum, statistics.source_frames) == (0.1, 10)
    assert replace(found["tent-momentum"], statistics=found["tent"].statistics) == found["tent"]


def test_equal_seconds_are_more_steps_of_what_costs_less() -> None:
    found = variants(100, {}, "offline", {"tent": 0.8, "stvm": 1.0, "cotta": 3.0})
    assert [found[name].burst.steps for name in ("stvm", "tent", "cotta")] == [100, 125, 33]


def test_step_costs_are_in_steps_of_ours() -> None:
    chosen = variants(1, {}, "offline")
    costs = peers.step_costs({name: chosen[name] for name in ("stvm", "none", "tent")}, MODEL, turns=2)
    assert costs["stvm"] == costs["none"] == 1.0  # none takes none
    assert costs["tent"] > 0


def test_rate_with_the_best_mean_is_chosen_and_serves_the_continual_stream() -> None:
    results = [
        {"method": "tent", "pair": pair, "miou": miou, "rate": rate, "protocol": protocol}
        for protocol in ("offline", "online")
        for pair, rate, miou in (("dusk", 0.1, 0.5), ("fog", 0.1, 0.1), ("dusk", 0.2, 0.4), ("fog", 0.2, 0.4))
    ]
    assert best(results) == {("offline", "tent"): 0.2, ("online", "tent"): 0.2, ("continual", "tent"): 0.2}
