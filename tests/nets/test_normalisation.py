from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.errors import FrameError
from edge_sfda.nets.normalisation import (
    affine_parameters,
    batch_norms,
    batch_statistics,
    divergence,
    estimate,
    observe,
    share_statistics,
)


def _net() -> nn.Sequential:
    """Two normalised layers, whose running statistics are those of some source."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
    for layer in (net[1], net[4]):
        nn.init.uniform_(layer.running_mean, -1, 1)
        nn.init.uniform_(layer.running_var, 0.5, 2)
        nn.init.uniform_(layer.weight, 0.5, 2)
    return net.eval()


def _batches() -> list[Tensor]:
    return [torch.randn(4, 3, 8, 8) * 3 + 1, torch.randn(4, 3, 8, 8)]


def _statistics(net: nn.Module) -> list[Tensor]:
    return [s.clone() for m in batch_norms(net) for s in (m.running_mean, m.running_var) if s is not None]


@torch.no_grad()
def _direct(net: nn.Sequential, batches: list[Tensor]) -> list[Tensor]:
    """Mean over batches of each layer's mean and unbiased variance, both layers normalising by the batch."""
    rows = []
    for x in batches:
        first = net[0](x)
        y = net[3](F.batch_norm(first, None, None, net[1].weight, net[1].bias, training=True, eps=net[1].eps).relu())
        rows.append([s for z in (first, y) for s in (z.mean((0, 2, 3)), z.transpose(0, 1).flatten(1).var(1))])
    return [torch.stack(column).mean(0) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
def test_estimated_statistics_are_the_share_of_a_direct_computation(blend: float) -> None:
    net, batches = _net(), _batches()
    source, target = _statistics(net), _direct(net, batches)
    estimate(net, batches, blend=blend)
    for found, s, t in zip(_statistics(net), source, target, strict=True):
        torch.testing.assert_close(found, (1 - blend) * s + blend * t)


def test_blend_of_zero_leaves_the_statistics_bit_for_bit() -> None:
    net = _net()
    source = _statistics(net)
    estimate(net, _batches(), blend=0.0)
    assert all(torch.equal(a, b) for a, b in zip(_statistics(net), source, strict=True))


def test_estimate_changes_nothing_but_statistics() -> None:
    net = nn.Sequential(_net(), nn.Dropout(0.5))
    net[1].train()
    weights = [p.clone() for p in net.parameters()]
    estimate(net, _batches(), blend=1.0)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), weights, strict=True))
    assert [m.training for m in batch_norms(net)] == [False, False]
    assert [m.momentum for m in batch_norms(net)] == [0.1, 0.1]
    assert net[1].training


def test_estimate_does_not_depend_on_an_earlier_one() -> None:
    net, batches = _net(), _batches()
    estimate(net, batches, blend=1.0)
    once = _statistics(net)
    estimate(net, batches, blend=1.0)
    assert all(torch.equal(a, b) for a, b in zip(_statistics(net), once, strict=True))


def test_network_without_batch_norm_is_not_even_run() -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("nothing to estimate here")

    estimate(Refuses(), [torch.zeros(1)], blend=1.0)


def test_observed_statistics_move_by_the_momentum() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1)).eval()
    observe(net, torch.tensor([2.0, 6.0]).view(2, 1, 1, 1), momentum=0.25)
    (layer,) = batch_norms(net)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.running_mean.tolist() == [1.0]  # 0 + 0.25 * (4 - 0)
    assert layer.running_var.tolist() == [2.75]  # 1 + 0.25 * (8 - 1), unbiased
    assert (layer.training, layer.momentum) == (False, 0.1)


def test_one_value_a_channel_is_a_frame_error_and_modes_come_back() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2)).eval()
    with pytest.raises(FrameError, match="give larger frames, or several"):
        observe(net, torch.zeros(1, 2, 1, 1), momentum=0.1)
    with pytest.raises(FrameError, match="more than 1 value per channel"):
        estimate(net, [torch.zeros(1, 2, 1, 1)], blend=1.0)
    assert (net[0].training, net[0].momentum) == (False, 0.1)


def test_batch_statistics_normalise_by_the_batch_and_leave_the_running_ones() -> None:
    net, (x, _) = _net(), _batches()
    before = _statistics(net)
    first = net[0](x)
    hidden = F.batch_norm(first, None, None, net[1].weight, net[1].bias, training=True, eps=net[1].eps).relu()
    expected = F.batch_norm(net[3](hidden), None, None, net[4].weight, net[4].bias, training=True, eps=net[4].eps)
    with batch_statistics(net):
        torch.testing.assert_close(net(x), expected)
    assert all(torch.equal(a, b) for a, b in zip(_statistics(net), before, strict=True))
    assert [(m.training, m.momentum) for m in batch_norms(net)] == [(False, 0.1)] * 2


def test_batch_statistics_switched_off_are_the_running_ones() -> None:
    net, (x, _) = _net(), _batches()
    with torch.no_grad():
        expected = net(x)
        with batch_statistics(net, enabled=False):
            assert torch.equal(net(x), expected)
        with batch_statistics(net):
            assert not torch.allclose(net(x), expected)


def test_gradient_flows_through_the_batch_s_statistics() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1, affine=False)).eval()
    x = torch.randn(2, 1, 3, 3, requires_grad=True)
    with batch_statistics(net):
        y = net(x)
    y.sum().backward()  # whatever x is, the normalised values sum to zero
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-6, rtol=0)


def test_shared_statistics_are_one_set_of_tensors() -> None:
    owner = _net()
    net = copy.deepcopy(owner)
    share_statistics(net, owner)
    estimate(owner, _batches(), blend=1.0)
    assert all(torch.equal(a, b) for a, b in zip(_statistics(net), _statistics(owner), strict=True))
    observe(net, torch.randn(4, 3, 8, 8), momentum=0.5)
    assert all(torch.equal(a, b) for a, b in zip(_statistics(net), _statistics(owner), strict=True))


def test_shared_statistics_leave_scale_and_shift_apart() -> None:
    owner = _net()
    net = copy.deepcopy(owner)
    share_statistics(net, owner)
    with torch.no_grad():
        owner[1].weight.fill_(7.0)
    assert not (net[1].weight == 7.0).any()


def test_layers_without_running_statistics_describe_no_domain() -> None:
    kept = nn.BatchNorm2d(2)
    net = nn.Sequential(kept, nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2))
    assert batch_norms(net) == [kept]


def test_affine_parameters_are_those_of_every_kind_of_normalisation_and_of_nothing_else() -> None:
    batch, group, layer = nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2)
    net = nn.Sequential(nn.Conv2d(2, 2, 1), batch, group, layer, nn.BatchNorm2d(2, affine=False))
    expected = [batch.weight, batch.bias, group.weight, group.bias, layer.weight, layer.bias]
    assert [id(p) for p in affine_parameters(net)] == [id(p) for p in expected]


CRASH = """
import torch
from torch import nn
from edge_sfda.nets.normalisation import secure_group_norms

torch.manual_seed(0)
layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.GroupNorm(2, 8))
layers[0].requires_grad_(False)
secure_group_norms(layers)
x, g = torch.randn(4, 3, 17, 23), torch.randn(4, 8, 17, 23)
trained = [p for p in layers.parameters() if p.requires_grad]
expected = torch.autograd.grad((layers(x) * g).sum(), trained)
found = torch.autograd.grad((layers(x.to(memory_format=torch.channels_last)) * g).sum(), trained)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
layers(x.to(memory_format=torch.channels_last)).sum().backward()
"""


def test_group_norm_behind_frozen_layers_does_not_crash_the_process() -> None:
    # in a process of its own: without the remedy it is a segmentation fault
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_divergence_by_hand_and_from_itself() -> None:
    one, two = torch.tensor([0.0]), torch.tensor([2.0])
    # KL(N(0,1) | N(2,4)) + KL(N(2,4) | N(0,1)) = (ln 2 + 5/8 - 1/2) + (-ln 2 + 8/2 - 1/2)
    found = divergence(one, torch.tensor([1.0]), two, torch.tensor([4.0]))
    torch.testing.assert_close(found, torch.tensor(0.125 + 3.5))
    assert float(divergence(two, two, two, two)) == 0
