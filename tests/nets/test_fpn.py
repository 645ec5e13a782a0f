from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edge_sfda.errors import ConfigError
from edge_sfda.nets.encoder import NANO_STAGES
from edge_sfda.nets.fpn import FpnNet, lite0, nano


def _count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("stride", "size"), [(4, (17, 25)), (8, (9, 13))])
def test_logits_have_the_stride_rounded_up(stride: int, size: tuple[int, int]) -> None:
    with torch.no_grad():
        out = nano(5, stride=stride).eval()(torch.rand(2, 3, 65, 97))
    assert out.logits.shape == (2, 5, *size)
    assert out.logits.dtype == torch.float32


@pytest.mark.parametrize("stride", [4, 8])
def test_all_encoder_features_are_returned_at_either_stride(stride: int) -> None:
    net = nano(5, stride=stride).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        features, expected = net(x).features, net.encoder(x)
    assert net.feature_channels == (20, 32, 64, 96)
    assert len(features) == 4
    assert all(torch.equal(f, e) for f, e in zip(features, expected, strict=True))


@pytest.mark.parametrize("stride", [0, 2, 16])
def test_another_stride_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=f"{stride}, must be 4 or 8"):
        nano(5, stride=stride)


def test_networks_are_as_small_as_they_say() -> None:
    assert 2_900_000 < _count(lite0(11)) < 3_300_000
    assert _count(nano(11)) < 600_000


def test_every_parameter_has_a_gradient() -> None:
    net = nano(4).train()
    F.cross_entropy(net(torch.rand(2, 3, 64, 64)).logits, torch.randint(4, (2, 16, 16))).backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_coarser_level_reaches_every_pixel_of_the_logits() -> None:
    net = nano(3).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = net(x).logits
        net.laterals[-1][1].bias += 3.0  # the level of stride 32 alone
        after = net(x).logits
    assert bool((before != after).any(1).all())


def test_shifted_logits_differ_by_the_offset_and_features_stay() -> None:
    net = nano(3).eval()
    x = torch.rand(1, 3, 64, 64)
    offset = torch.tensor([1.0, -2.0, 0.5])
    with torch.no_grad():
        before = net(x)
        net.shift_logits(offset)
        after = net(x)
    torch.testing.assert_close(after.logits, before.logits + offset.view(1, 3, 1, 1))
    assert torch.equal(after.features[0], before.features[0])


def test_everything_trains_where_nothing_is_frozen() -> None:
    net = nano(3)
    assert [id(p) for p in net.trainable(0)] == [id(p) for p in net.parameters()]
    assert all(p.requires_grad for p in net.parameters())


def test_layers_up_to_the_frozen_stride_need_no_gradient_and_the_others_do() -> None:
    net = nano(3)
    trained = {id(p) for p in net.trainable(8)}
    frozen = {id(p) for layer in net.encoder.up_to(8) for p in layer.parameters()}
    assert frozen
    assert trained == {id(p) for p in net.parameters()} - frozen
    assert {id(p) for p in net.parameters() if p.requires_grad} == trained


def test_decoder_of_stride_8_has_no_level_that_it_does_not_use() -> None:
    assert len(FpnNet(NANO_STAGES, stem=16, classes=3, width=48, stride=4).laterals) == 4
    assert len(FpnNet(NANO_STAGES, stem=16, classes=3, width=48, stride=8).laterals) == 3
