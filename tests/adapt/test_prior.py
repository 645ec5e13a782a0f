from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from edge_sfda.adapt.prior import undo_class_weight
from edge_sfda.manifest import Manifest
from edge_sfda.nets import SegmentationNet
from edge_sfda.nets.bring_your_own import Hooked

WEIGHT = (0.5, 1.0, 2.0, 8.0)
Make = Callable[..., SegmentationNet]


@pytest.fixture(params=["nano", "hooked"])
def net(request: pytest.FixtureRequest, make_nano: Make) -> SegmentationNet:
    if request.param == "nano":
        return make_nano()
    plain = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.Conv2d(5, 4, 1))
    return Hooked(plain, encoder_layer="0", classes=4).eval()


@torch.no_grad()
def _probs(net: SegmentationNet) -> torch.Tensor:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    return net(x).logits.double().softmax(1)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_posterior_is_divided_by_the_class_weights_to_the_share(
    share: float, net: SegmentationNet, make_manifest: Callable[..., Manifest]
) -> None:
    before = _probs(net)
    assert undo_class_weight(net, make_manifest(class_weight=WEIGHT), share=share)
    divided = before / torch.tensor(WEIGHT, dtype=torch.float64).pow(share).view(1, -1, 1, 1)
    torch.testing.assert_close(_probs(net), divided / divided.sum(1, keepdim=True), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("weight", "share"), [(None, 1.0), (WEIGHT, 0.0)])
def test_nothing_to_undo_changes_nothing(
    weight: Any, share: float, net: SegmentationNet, make_manifest: Callable[..., Manifest]
) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert not undo_class_weight(net, make_manifest(class_weight=weight), share=share)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_weights_of_one_leave_the_posterior(net: SegmentationNet, make_manifest: Callable[..., Manifest]) -> None:
    before = _probs(net)
    undo_class_weight(net, make_manifest(class_weight=(1.0,) * 4), share=1.0)
    assert torch.equal(_probs(net), before)


def test_correction_is_part_of_what_is_saved(net: SegmentationNet, make_manifest: Callable[..., Manifest]) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    undo_class_weight(net, make_manifest(class_weight=WEIGHT), share=1.0)
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed in (["classifier.bias"], ["logit_offset"])
