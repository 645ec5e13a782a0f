from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edge_sfda.adapt import adapter, baselines, hamlet, roid, run, tent
from edge_sfda.adapt.method import Method, StepReport, burst_factor, check_finite, stack
from edge_sfda.config import METHODS, AdaptConfig, StatisticsConfig
from edge_sfda.errors import DivergenceError, FrameError
from edge_sfda.manifest import Manifest
from edge_sfda.nets import SegmentationNet
from edge_sfda.nets.normalisation import batch_norms

Make = Callable[..., Any]


class Still(Method):
    """The smallest method: offers what all of them share."""

    def begin(self, frames: Any) -> None:
        self._begin_statistics(frames, blend=1.0)

    def step(self, frames: Tensor) -> StepReport:
        self._input(frames)
        return StepReport(torch.zeros(()))


def _still(net: SegmentationNet, manifest: Manifest, **statistics: Any) -> Still:
    return Still(net, manifest, AdaptConfig(statistics=StatisticsConfig(**statistics)))


def _grey(value: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def _running_mean(net: SegmentationNet) -> Tensor:
    (layer,) = batch_norms(net)
    assert layer.running_mean is not None
    return layer.running_mean


@torch.no_grad()
def _encoded(net: Any, method: Method, value: float) -> Tensor:
    """What the toy's BatchNorm sees of a grey frame: the same vector everywhere."""
    encoded: Tensor = net.encoder(method.normaliser(torch.full((1, 3, 4, 4), value)))
    return encoded.flatten()


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_frames_and_nothing_else(name: str) -> None:
    kind = run._METHODS[name]
    for function in (kind.begin, kind.step, kind.observe):
        assert list(inspect.signature(function).parameters) == ["self", "frames"]
    assert list(inspect.signature(kind.finish).parameters) == ["self"]
    assert list(inspect.signature(kind).parameters) == ["net", "manifest", "config"]


def test_step_of_the_adapter_takes_frames_alone() -> None:
    assert str(inspect.signature(adapter.Adapter.step)) == "(self, frames: 'Tensor') -> 'StepReport'"


def test_nothing_that_drives_or_is_a_method_takes_a_label_or_a_source_image() -> None:
    functions = [run.make, run.offline, run.learn_online]
    kinds = [
        kind
        for module in (adapter, baselines, hamlet, tent, roid)
        for kind in vars(module).values()
        if isinstance(kind, type)
    ]
    methods = [kind for kind in kinds if issubclass(kind, Method)]
    assert len(methods) >= 7
    functions += [f for kind in methods for name, f in vars(kind).items() if inspect.isfunction(f) and name[0] != "_"]
    taken = {name for function in functions for name in inspect.signature(function).parameters}
    assert taken <= {
        "self",
        "net",
        "manifest",
        "config",
        "method",
        "frames",
        "frame",
        "on_begin",
        "on_step",
        "done",
        "state",
    }


@pytest.mark.parametrize(
    ("step", "steps", "warm_up", "expected"),
    [
        (0, 80, 8, 1 / 9),
        (7, 80, 8, 8 / 9 * 0.5 * (1 + math.cos(math.pi * 7 / 80))),
        (8, 80, 8, 0.5 * (1 + math.cos(math.pi * 8 / 80))),
        (40, 80, 8, 0.5),
        (80, 80, 8, 0.0),
        (200, 80, 8, 0.0),
        (0, 10, 0, 1.0),
        (5, 10, 0, 0.5),
        (0, 0, 0, 1.0),
    ],
)
def test_burst_factor_equals_the_table(step: int, steps: int, warm_up: int, expected: float) -> None:
    assert burst_factor(step, steps, warm_up) == pytest.approx(expected, abs=1e-6)


def test_network_is_taken_over_in_eval_mode(make_toy: Make, make_manifest: Make) -> None:
    net = make_toy().train()
    method = _still(net, make_manifest())
    assert method.deployed is net
    assert not any(m.training for m in net.modules())


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (torch.zeros(2, 3, 64, 64), "torch.float32"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.int32), "torch.int32"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), r"\(3, 64, 64\), expected uint8 RGB \[B, 3, H, W\]"),
        (torch.zeros(2, 64, 64, 3, dtype=torch.uint8), r"\(2, 64, 64, 3\)"),
        (torch.zeros(0, 3, 64, 64, dtype=torch.uint8), r"\(0, 3, 64, 64\)"),
        (torch.zeros(1, 3, 16, 64, dtype=torch.uint8), "smaller than the network's 32 pixels"),
        (torch.zeros(1, 3, 64, 96, dtype=torch.uint8), r"\(64, 96\), the network's input is \(64, 64\)"),
    ],
)
def test_frames_of_another_type_or_size_are_refused_and_enter_no_statistic(
    frames: Tensor, words: str, make_toy: Make, make_manifest: Make
) -> None:
    net = make_toy()
    method = _still(net, make_manifest())
    before = _running_mean(net).clone()
    with pytest.raises(FrameError, match=words):
        method.step(frames)
    with pytest.raises(FrameError, match=words):
        method.observe(frames)
    assert torch.equal(_running_mean(net), before)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (torch.zeros(3, 64, 64), "torch.float32"),
        (torch.zeros(3, 96, 64, dtype=torch.uint8), r"\(96, 64\), the network's input is \(64, 64\)"),
        (torch.zeros(64, 64, dtype=torch.uint8), "expected uint8 RGB"),
    ],
)
def test_target_of_another_type_or_size_is_refused_at_the_beginning(
    frame: Tensor, words: str, make_toy: Make, make_manifest: Make
) -> None:
    with pytest.raises(FrameError, match=words):
        _still(make_toy(), make_manifest()).begin([frame] * 4)


def test_frames_of_one_size_are_stacked_in_order() -> None:
    assert stack([_grey(1), _grey(2)])[:, 0, 0, 0].tolist() == [1, 2]


def test_frames_of_several_sizes_are_refused_by_name() -> None:
    with pytest.raises(FrameError, match=r"\(3, 64, 64\), \(3, 64, 96\).* bring all to one size"):
        stack([_grey(1), _grey(1, 64, 96)])


@pytest.mark.parametrize(
    ("frames", "wanted", "used"),
    [
        (8, 4, [0, 2, 4, 6]),
        (8, 100, [0, 1, 2, 3, 4, 5, 6, 7]),
        (100, 4, [0, 25, 50, 75]),
        (3, 48, [0, 1, 2]),
        (1, 48, [0]),
        (6, 48, [0, 1, 2, 3]),  # two frames are too few for a batch of their own
    ],
)
def test_statistics_come_from_frames_spread_evenly(
    frames: int, wanted: int, used: list[int], make_toy: Make, make_manifest: Make
) -> None:
    net = make_toy()
    method = _still(net, make_manifest(), frames=wanted)
    method.begin([_grey(2 * i) for i in range(frames)])
    expected = torch.stack([_encoded(net, method, 2.0 * i) for i in used]).mean(0)
    torch.testing.assert_close(_running_mean(net), expected, rtol=1e-4, atol=1e-5)


def test_stream_begins_with_nothing(make_toy: Make, make_manifest: Make) -> None:
    net = make_toy()
    _still(net, make_manifest()).begin(())
    assert not _running_mean(net).any()


def test_observed_statistics_move_less_and_less_down_to_a_hundredth(make_toy: Make, make_manifest: Make) -> None:
    net = make_toy()
    method = _still(net, make_manifest())
    target = _encoded(net, method, 200.0)
    left = 1.0
    for step in range(400):  # without the least share 3/403 of the source would be left, and not 0.0014
        method.observe(_grey(200)[None])
        left *= 1 - max(1 / (step + 4), 0.01)
        torch.testing.assert_close(_running_mean(net), (1 - left) * target, rtol=1e-3, atol=1e-5)
    assert left == pytest.approx(0.0014, rel=0.05)


def test_observed_statistics_can_move_by_the_same_share_each_frame(make_toy: Make, make_manifest: Make) -> None:
    net = make_toy()
    method = _still(net, make_manifest(), source_frames=10, momentum=0.1)
    target = _encoded(net, method, 200.0)
    for step in range(1, 30):
        method.observe(_grey(200)[None])
        torch.testing.assert_close(_running_mean(net), (1 - 0.9**step) * target, rtol=1e-3, atol=1e-5)


def test_observing_without_a_share_of_the_target_changes_nothing(make_toy: Make, make_manifest: Make) -> None:
    net = make_toy()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    method = baselines.Statistics(net, make_manifest(), AdaptConfig(statistics=StatisticsConfig(blend=0.0)))
    method.begin([_grey(3)] * 4)
    method.observe(_grey(9)[None])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["encoder.weight", "norm.running_var", "offset"])
def test_value_that_is_not_finite_is_named(name: str, value: float, make_toy: Make, make_manifest: Make) -> None:
    net = make_toy()
    check_finite(net)
    net.state_dict()[name].view(-1)[0] = value
    with pytest.raises(DivergenceError, match=f"{name} is not finite after adaptation; lower burst.rate"):
        check_finite(net)
    with pytest.raises(DivergenceError, match=name):
        _still(net, make_manifest()).finish()
