"""What the node's parameters may be; judged without ROS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_sfda.live.ros.parameters import BY_NAME, PARAMETERS, judge


def test_defaults_are_accepted_and_described() -> None:
    assert len(BY_NAME) == len(PARAMETERS)
    for parameter in PARAMETERS:
        assert parameter.refusal(parameter.default) == ""
        assert parameter.description


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("mode", "sometimes", "mode = 'sometimes' is unknown; choose one of infer, shadow, recommend, auto"),
        ("mode", 3, "mode = 3 must be of type str"),
        ("threads", -1, "threads = -1 is out of range; expected 0..1024"),
        ("threads", True, "threads = True must be of type int"),
        ("overlay_alpha", 1.5, "overlay_alpha = 1.5 is out of range; expected 0..1"),
        ("overlay_alpha", float("nan"), "overlay_alpha = nan is out of range; expected 0..1"),
        ("model", "/nowhere.onnx", "model = '/nowhere.onnx' is no file; give its whole path"),
        (
            "qos.input.reliability",
            "yes",
            "qos.input.reliability = 'yes' is unknown; choose one of best_effort, reliable",
        ),
        ("qos.output.depth", 0, "qos.output.depth = 0 is out of range; expected 1..1000"),
    ],
)
def test_value_that_does_not_do_is_refused_with_a_reason(name: str, value: Any, reason: str) -> None:
    assert judge(name, value, loaded=False) == reason


def test_values_that_do_are_taken(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.touch()
    assert judge("model", str(model), loaded=False) == ""
    assert judge("overlay_alpha", 0.0, loaded=False) == ""
    assert judge("use_sim_time", True, loaded=True) == ""  # ROS's own


def test_while_a_model_is_loaded_only_some_may_change() -> None:
    assert judge("overlay_alpha", 0.3, loaded=True) == ""
    assert "deactivate and clean up" in judge("device", "cpu", loaded=True)
