from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pairs import scene
from reliability_study import LEAST, PIXELS, aupr, auroc, judge, looked_at, table

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.nets import load

MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"


@pytest.mark.parametrize(
    ("score", "wrong", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 1.0),  # every error below every right one
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 1, 0], 0.5),  # ties say nothing
        ([0.1, 0.5, 0.5, 0.9], [1, 1, 0, 0], 0.875),  # of four pairs three are right and one ties
        ([0.3, 0.1, 0.2], [1, 0, 0], 0.0),
    ],
)
def test_auroc_by_hand(score: list[float], wrong: list[int], expected: float) -> None:
    assert auroc(np.array(score), np.array(wrong, bool)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("score", "wrong", "expected"),
    [
        ([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0], 1.0),
        ([0.1, 0.2, 0.8, 0.9], [0, 1, 0, 1], (1 / 2 + 2 / 4) / 2),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 0.25),  # a tie is one step: the share of errors
    ],
)
def test_aupr_by_hand(score: list[float], wrong: list[int], expected: float) -> None:
    assert aupr(np.array(score), np.array(wrong, bool)) == pytest.approx(expected)


def test_areas_without_errors_are_not_a_number() -> None:
    assert math.isnan(auroc(np.ones(3), np.zeros(3, bool)))
    assert math.isnan(auroc(np.ones(3), np.ones(3, bool)))
    assert math.isnan(aupr(np.ones(3), np.zeros(3, bool)))


def test_area_within_classes_does_not_see_what_lies_between_them() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([0.0, 1.0], 400)
    wrong = np.concatenate([rng.random(400) < 0.7, rng.random(400) < 0.2]).astype(float)
    (row,) = judge({"class": label, "label": label, "wrong": wrong})
    assert row["auroc"] > 0.7
    assert row["auroc_within"] == 0.5
    assert set(row["by_class"]) == {"0", "1"}
    few = np.zeros(800)
    few[: LEAST - 1] = 1
    (row,) = judge({"class": label, "label": label, "wrong": few})
    assert row["auroc_within"] is None


def test_looking_changes_nothing_and_finds_errors_at_the_drawn_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    net, manifest = load(MODEL)
    pair = scene("dusk", 43)
    method = run.make(net, manifest, configs.from_dict({"reliability": {"warm_up": 2}, "statistics": {"frames": 4}}))
    assert isinstance(method, Adapter)
    method.begin(pair.learn(manifest)[:4])
    assert method.reliability is not None
    before = {name: value.clone() for name, value in method.reliability.net.state_dict().items()}
    seen = looked_at(method, manifest, pair, [50, 60])
    again = looked_at(method, manifest, pair, [50, 60])
    assert all(np.array_equal(seen[name], again[name]) for name in seen)
    assert all(torch.equal(v, before[n]) for n, v in method.reliability.net.state_dict().items())
    assert len(seen["r"]) == 2 * min(PIXELS, 48 * 64)
    assert 0.02 < seen["wrong"].mean() < 0.7
    assert seen["weight"].min() >= 0
    assert seen["weight"].max() <= 1
    order = np.corrcoef(seen["weight"], seen["confidence"])[0, 1]  # it is confidence, and more
    assert 0.5 < order < 0.999
    # it is made of this view and this r, and read at the same pixels
    monkeypatch.setattr("reliability_study.combined", lambda view, r: r * view.confidence)
    product = looked_at(method, manifest, pair, [50, 60])
    np.testing.assert_allclose(product["weight"], seen["r"] * seen["confidence"], rtol=1e-6)
    rows = [{"at": "step 1", **row} for row in judge(seen)]
    assert {row["detector"] for row in rows} >= {"r", "weight", "confidence", "flip"}
    assert all(row["auroc"] > 0.5 for row in rows)
    assert "| weight | " in table(rows)
