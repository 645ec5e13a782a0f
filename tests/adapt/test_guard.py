"""The guard: a strong shift deploys the burst whole, a mild one a mix with the source."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edge_sfda.adapt import guard, run
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.config import AdaptConfig, from_dict
from edge_sfda.nets.contract import Prediction, SegmentationNet
from edge_sfda.nets.normalisation import batch_norms, estimate

Make = Callable[..., Any]


class Sure(SegmentationNet):
    """One BatchNorm layer and a fixed classifier; entropy falls with the distance of what it sees from zero."""

    def __init__(self, mean: float, scale: float = 8.0) -> None:
        super().__init__()
        self.classes, self.feature_channels = 2, (3,)
        self.norm = nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.running_mean, mean)
        self.scale = scale

    def forward(self, x: Tensor) -> Prediction:
        features = self.norm(x)
        logit = self.scale * features.mean(1, keepdim=True)
        return Prediction(torch.cat([logit, -logit], 1), (features,))


def _batches(shift: float = 0.0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 8, 8, generator=rng) + shift for _ in range(6)]


def _entropy(net: SegmentationNet, batches: list[Tensor]) -> float:
    with torch.no_grad():
        probs = torch.cat([net(x).logits.softmax(1) for x in batches])
    return float(-(probs * probs.clamp(min=1e-12).log()).sum(1).mean())


def test_whole_burst_counts_where_the_target_s_statistics_lower_the_entropy() -> None:
    net = Sure(mean=0.0).eval()
    net.norm.running_var.fill_(100.0)  # the source saw far larger values: everything looks like nothing to it
    assert guard.fit_statistics(net, _batches(), blend=1.0) == 1.0


def test_part_of_the_burst_counts_where_the_target_s_statistics_raise_the_entropy() -> None:
    net = Sure(mean=-5.0).eval()  # what it sees lies far on one side, until the target's mean is taken off
    batches = _batches()
    assert guard.fit_statistics(net, batches, blend=1.0) == 0.0


@pytest.mark.parametrize("blend", [0.25, 1.0])
def test_statistics_are_those_of_step_0_whatever_is_decided(blend: float) -> None:
    for mean in (-5.0, 0.0):
        net, batches = Sure(mean=mean).eval(), _batches(shift=0.5)
        expected = copy.deepcopy(net)
        estimate(expected, batches, blend=blend)
        guard.fit_statistics(net, batches, blend=blend)
        torch.testing.assert_close(net.norm.running_mean, expected.norm.running_mean)
        torch.testing.assert_close(net.norm.running_var, expected.norm.running_var)


def test_share_is_the_one_of_least_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    net, batches = Sure(mean=-1.0, scale=1.0).eval(), _batches()
    net.norm.running_var.fill_(1.5)
    expected = []
    for share in guard.SHARES:
        twin = copy.deepcopy(net)
        estimate(twin, batches, blend=share)
        expected.append(_entropy(twin, batches[::2]))
    found = guard.fit_statistics(net, batches, blend=1.0)
    assert found == guard.SHARES[expected.index(min(expected))]


def test_network_without_batch_norm_deploys_the_whole_burst() -> None:
    net = Sure(mean=0.0)
    net.norm = nn.Identity()  # type: ignore[assignment]
    assert guard.fit_statistics(net.eval(), _batches(), blend=1.0) == 1.0


def test_retreat_mixes_weights_and_statistics() -> None:
    net = Sure(mean=1.0)
    source = guard.state_of(net)
    with torch.no_grad():
        net.norm.weight.fill_(3.0)
        net.norm.running_mean.fill_(2.0)
    guard.retreat(net, source, share=0.25)
    torch.testing.assert_close(net.norm.weight.detach(), torch.full((3,), 1.5))
    torch.testing.assert_close(net.norm.running_mean, torch.full((3,), 1.25))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_adapter_deploys_the_share_that_the_guard_says(
    share: float, make_nano: Make, make_manifest: Make, make_frames: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = make_frames(4, 64, 64)
    burst = {
        "burst": {"steps": 2},
        "statistics": {"prior": 0.0, "frames": 4},
        "reliability": {"warm_up": 1},
        "consolidation": {"share": 0.0},  # what learns from the mix, once there is one
    }
    source = make_nano().state_dict()

    def deployed(*, guarded: bool) -> dict[str, Tensor]:
        config = from_dict({"burst": {"guard": guarded}}, base=from_dict(burst, base=AdaptConfig()))
        method = run.make(make_nano(), make_manifest(), config)
        run.offline(method, frames)
        assert isinstance(method, Adapter)
        return method.deployed.state_dict()

    def whole(net: SegmentationNet, batches: list[Tensor], *, blend: float) -> float:
        estimate(net, batches, blend=blend)
        return share

    monkeypatch.setattr(guard, "fit_statistics", whole)
    mixed, plain = deployed(guarded=True), deployed(guarded=False)
    moved = [name for name in plain if not torch.equal(plain[name], source[name])]
    assert len(moved) > len(batch_norms(make_nano()))
    for name, value in mixed.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.lerp(source[name], plain[name], share))
