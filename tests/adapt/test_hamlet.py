from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.adapt.hamlet import Hamlet

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def frames(make_frames: Make) -> Tensor:
    return torch.stack(make_frames(4, 64, 64))


@pytest.fixture(scope="module")
def hamlet(make_nano: Make, make_manifest: Make) -> Make:
    def make(seed: int = 0) -> Hamlet:
        base = configs.preset("hamlet")
        burst = {"steps": 3, "batch": 2, "rate": 1e-3, "frozen_stride": 0, "affine_only": False, "guard": False}
        config = configs.from_dict({"burst": burst, "statistics": {"frames": 4}, "seed": seed}, base=base)
        made = run.make(make_nano(), make_manifest(), config)
        assert isinstance(made, Hamlet)
        return made

    return make


@pytest.mark.parametrize("stride", Hamlet.strides)
def test_step_moves_the_layers_behind_the_drawn_stride_alone(
    stride: int, hamlet: Make, frames: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = hamlet()
    monkeypatch.setattr(method, "strides", (stride,))
    method.begin(list(frames))
    before = {name: p.detach().clone() for name, p in method.net.named_parameters()}
    for _ in range(2):  # the first step of the warm-up has a small rate, not none
        method.step(frames)
    moved = {name for name, p in method.net.named_parameters() if not torch.equal(p, before[name])}
    behind = {id(p) for p in copy.copy(method.net).trainable(stride)}
    expected = {name for name, p in method.net.named_parameters() if id(p) in behind}
    assert moved <= expected
    assert any(name.startswith("classifier") for name in moved)
    assert any(name.startswith("encoder") for name in moved) == (stride < 32)


def test_rate_is_full_at_the_farthest_and_least_at_no_distance(hamlet: Make) -> None:
    method = hamlet()
    mean, var = method.usual
    like_source = mean.view(1, -1, 1, 1) + var.sqrt().view(1, -1, 1, 1) * torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
    method._listen(method.first, (like_source + 3,))
    assert float(method.reach) == pytest.approx(1.0)
    farthest = float(method.farthest)
    method._listen(method.first, (like_source,))
    assert float(method.farthest) == farthest > 0
    assert 0.1 <= float(method.reach) < 0.3


def test_no_hook_stays_behind(hamlet: Make, frames: Tensor) -> None:
    method = hamlet()
    method.begin(list(frames))
    method.step(frames)
    assert all(not module._forward_pre_hooks for module in method.deployed.modules())


def test_network_without_normalisation_takes_the_whole_rate(make_normless: Make, make_manifest: Make) -> None:
    method = run.make(make_normless(), make_manifest(), configs.preset("hamlet"))
    method.begin(())
    method.step(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert isinstance(method, Hamlet)
    assert float(method.reach) == 1
