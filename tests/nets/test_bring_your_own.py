from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.errors import NetError
from edge_sfda.manifest import NetSpec
from edge_sfda.nets.bring_your_own import Hooked, make

CALLS: list[str] = []


class Plain(nn.Module):
    """As third parties write them: knows nothing of this package; `wrap` makes its output from full-size logits."""

    def __init__(self, classes: int = 3, width: int = 6, wrap: Callable[[Tensor], Any] = lambda y: {"out": y}) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.unused = nn.Conv2d(1, 1, 1)
        self.head = nn.Conv2d(width, classes, 1)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        y = self.head(self.backbone(x))
        return self.wrap(F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False))


class Levels(nn.Module):
    """A backbone with several outputs, in a tuple or a mapping."""

    def __init__(self, as_mapping: bool) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)
        self.as_mapping = as_mapping

    def forward(self, x: Tensor) -> Any:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        return OrderedDict(a=fine, b=coarse) if self.as_mapping else (fine, coarse)


class OnLevels(nn.Module):
    def __init__(self, as_mapping: bool) -> None:
        super().__init__()
        self.backbone, self.head = Levels(as_mapping), nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.backbone(x)
        y: Tensor = self.head(out["b"] if isinstance(out, Mapping) else out[1])
        return y


def plain(width: int = 6) -> Plain:
    CALLS.append("plain")
    return Plain(width=width)


def no_module() -> str:
    return "a string"


NOT_CALLABLE = 3


def _hook(net: nn.Module, layer: str = "backbone", classes: int = 3) -> Hooked:
    return Hooked(net, encoder_layer=layer, classes=classes)


def _spec(name: str = "plain", layer: str = "backbone", **options: Any) -> NetSpec:
    return NetSpec(f"{__name__}:{name}", 0, layer, options)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y,
        lambda y: (y, y.mean()),
        lambda y: [y],
        lambda y: {"out": y, "aux": y[:, :1]},
        lambda y: OrderedDict(loss=None, logits=y),
        lambda y: {"sem_seg": y},
        lambda y: {"pred": y},
    ],
    ids=["tensor", "tuple", "list", "torchvision", "transformers", "detectron2", "other"],
)
def test_logits_are_found_in_every_usual_output(wrap: Callable[[Tensor], Any]) -> None:
    net = Plain(wrap=wrap).eval()
    x = torch.rand(2, 3, 40, 56)
    with torch.no_grad():
        out, encoded = _hook(net)(x), net.backbone(x)
        expected = F.interpolate(net.head(encoded), size=(40, 56), mode="bilinear", align_corners=False)
    assert torch.equal(out.logits, expected)
    assert len(out.features) == 1
    assert torch.equal(out.features[0], encoded)


def test_channels_of_the_feature_are_found_by_running() -> None:
    assert _hook(Plain(width=9)).feature_channels == (9,)


@pytest.mark.parametrize("as_mapping", [False, True])
def test_feature_of_a_backbone_with_several_outputs_is_the_last(as_mapping: bool) -> None:
    assert _hook(OnLevels(as_mapping)).feature_channels == (5,)


@pytest.mark.parametrize("wrap", [lambda y: {"other": y}, lambda y: None, lambda y: (), lambda y: {"out": [y]}])
def test_output_without_logits_is_refused(wrap: Callable[[Tensor], Any]) -> None:
    with pytest.raises(NetError, match="found no logits in the output; expected a tensor"):
        _hook(Plain(wrap=wrap))


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(NetError, match=r"logits \(1, 3, 64, 64\), expected \[B, 4, h, w\] for 4 classes"):
        _hook(Plain(classes=3), classes=4)


@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (lambda y: y.mean((2, 3)), r"logits \(1, 3\)"),
        (lambda y: y[0], r"logits \(3, 64, 64\)"),
        (lambda y: y[:, :1], r"logits \(1, 1, 64, 64\)"),
    ],
)
def test_logits_of_another_shape_are_refused_though_they_would_broadcast(
    wrap: Callable[[Tensor], Any], words: str
) -> None:
    with pytest.raises(NetError, match=words):
        _hook(Plain(wrap=wrap))


@pytest.mark.parametrize("layer", ["", "encoder", "backbone.9"])
def test_layer_that_is_not_there_is_refused_with_those_that_are(layer: str) -> None:
    with pytest.raises(NetError, match="has no layer .* it has backbone, backbone.0"):
        _hook(Plain(), layer)


def test_layer_that_does_not_run_is_refused() -> None:
    with pytest.raises(NetError, match="'unused' did not run"):
        _hook(Plain(), "unused")


def test_layer_that_returns_no_map_is_refused() -> None:
    class Pooled(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.Flatten()

        def forward(self, x: Tensor) -> Any:
            self.pool(x)
            return super().forward(x)

    with pytest.raises(NetError, match="'pool' did not run or returned no tensor"):
        _hook(Pooled(), "pool")


def test_failure_of_the_network_is_named() -> None:
    net = Plain()
    net.head = nn.Conv2d(5, 3, 1)
    with pytest.raises(NetError, match=r"Plain failed on a float \[1, 3, 64, 64\] input: .*channels"):
        _hook(net)


@pytest.mark.parametrize("training", [False, True])
def test_looking_at_the_network_changes_nothing(training: bool) -> None:
    net = Plain().train(training)
    before = copy.deepcopy(net.state_dict())
    _hook(net)
    assert net.training is training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_copy_takes_its_features_from_itself() -> None:
    first = _hook(Plain()).eval()
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.add_(1.0)
        x = torch.rand(1, 3, 32, 32)
        before = first(x).features[0]
        other = second(x).features[0]
        assert not torch.equal(before, other)
        assert torch.equal(other, second.net.backbone(x))  # type: ignore[operator, unused-ignore]
        assert torch.equal(first(x).features[0], before)


def test_feature_is_not_held_after_the_forward() -> None:
    net = _hook(Plain())
    net(torch.rand(1, 3, 32, 32))
    assert net._feature is None


def test_shifted_logits_differ_by_the_offset_and_it_is_saved() -> None:
    net = _hook(Plain()).eval()
    x = torch.rand(1, 3, 32, 32)
    offset = torch.tensor([1.0, -2.0, 0.5])
    with torch.no_grad():
        before = net(x).logits
        net.shift_logits(offset)
        net.shift_logits(offset)
        after = net(x).logits
    torch.testing.assert_close(after, before + 2 * offset.view(1, 3, 1, 1))
    assert net.state_dict()["logit_offset"].tolist() == [2.0, -4.0, 1.0]


def test_group_norm_behind_frozen_layers_has_a_gradient_and_does_not_end_the_process() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(2, 8), nn.ReLU(inplace=True), nn.Conv2d(8, 3, 1))
    hooked = _hook(net, "0").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    hooked.requires_grad_(False)
    net[1].requires_grad_(True)
    x = torch.rand(2, 3, 36, 44).contiguous(memory_format=torch.channels_last)
    hooked(x).logits.square().mean().backward()
    assert net[1].weight.grad is not None
    assert bool(net[1].weight.grad.any())
    assert net[0].weight.grad is None
    assert not x.requires_grad


def test_whole_network_trains_since_its_strides_are_unknown() -> None:
    net = _hook(Plain())
    assert len(net.trainable(8)) == len(list(net.net.parameters()))


@pytest.mark.parametrize("allow", [None, "", "os:getcwd", "plain"])
def test_factory_that_nobody_allowed_is_refused_and_not_run(allow: str | None) -> None:
    CALLS.clear()
    with pytest.raises(NetError, match=r"code outside this package; pass --net .*:plain if you trust it"):
        make(_spec(), 3, allow=allow)
    assert CALLS == []


def test_refused_factory_s_module_is_not_imported() -> None:
    # importing it would fail with other words
    with pytest.raises(NetError, match="if you trust it"):
        make(NetSpec("no_such_module_here:plain", 0, "backbone"), 3, allow=None)


def test_allowed_factory_is_called_with_the_options() -> None:
    CALLS.clear()
    spec = _spec(width=7)
    net = make(spec, 3, allow=spec.architecture)
    assert CALLS == ["plain"]
    assert net.feature_channels == (7,)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_module_here:plain", "cannot import"),
        (":plain", "cannot import"),
        (".relative:plain", "cannot import"),
        (f"{__name__}:missing", "cannot import"),
        (f"{__name__}:NOT_CALLABLE", "is a int, expected a function"),
        (f"{__name__}:no_module", "returned a str, expected an nn.Module"),
    ],
)
def test_factory_that_makes_no_network_is_refused(name: str, words: str) -> None:
    with pytest.raises(NetError, match=words):
        make(NetSpec(name, 0, "backbone"), 3, allow=name)


def test_options_that_the_factory_does_not_take_are_named() -> None:
    spec = _spec(depth=3)
    with pytest.raises(NetError, match=r"plain\(depth\) failed: .*unexpected keyword argument 'depth'"):
        make(spec, 3, allow=spec.architecture)
