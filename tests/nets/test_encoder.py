from __future__ import annotations

import pytest
import torch
from torch import nn

from edge_sfda.nets.encoder import LITE0_STAGES, NANO_STAGES, Encoder, InvertedResidual, Stage, batch_norm

ENCODERS = {"lite0": (LITE0_STAGES, 32), "nano": (NANO_STAGES, 16)}
CHANNELS = {"lite0": (24, 40, 112, 320), "nano": (20, 32, 64, 96)}


def _encoder(name: str) -> Encoder:
    stages, stem = ENCODERS[name]
    return Encoder(stages, stem).eval()


@pytest.mark.parametrize("name", ["lite0", "nano"])
def test_features_come_at_strides_4_to_32_with_the_channels_promised(name: str) -> None:
    encoder = _encoder(name)
    with torch.no_grad():
        features = encoder(torch.rand(2, 3, 64, 96))
    sizes = ((16, 24), (8, 12), (4, 6), (2, 3))
    assert encoder.channels == CHANNELS[name]
    assert [tuple(f.shape) for f in features] == [(2, c, *s) for c, s in zip(CHANNELS[name], sizes, strict=True)]


def test_sizes_that_no_stride_divides_are_rounded_up() -> None:
    with torch.no_grad():
        features = _encoder("nano")(torch.rand(1, 3, 65, 97))
    assert [tuple(f.shape[-2:]) for f in features] == [(17, 25), (9, 13), (5, 7), (3, 4)]


@pytest.mark.parametrize("name", ["lite0", "nano"])
def test_layers_are_those_that_edge_compilers_take(name: str) -> None:
    leaves = {type(m) for m in _encoder(name).modules() if not list(m.children())}
    assert leaves == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU6}


def test_stride_of_the_first_repeat_alone_is_that_of_the_stage() -> None:
    strides = [block._depthwise_conv.stride[0] for block in _encoder("nano")._blocks]
    assert [i for i, stride in enumerate(strides) if stride == 2] == [1, 3, 5, 8]


def test_block_returns_its_input_where_the_shape_stays_and_the_residual_is_zero() -> None:
    block = InvertedResidual(8, Stage(1, 3, 1, 4, 8), 1).eval()
    nn.init.zeros_(block._bn2.weight)
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("channels", "stride"), [(8, 2), (12, 1)])
def test_block_has_no_skip_where_the_shape_changes(channels: int, stride: int) -> None:
    block = InvertedResidual(8, Stage(1, 3, stride, 4, channels), stride).eval()
    nn.init.zeros_(block._bn2.weight)
    out = block(torch.randn(2, 8, 6, 6))
    assert out.shape == (2, channels, 6 // stride, 6 // stride)
    assert not out.any()


def test_block_without_expansion_has_no_first_convolution() -> None:
    block = InvertedResidual(8, Stage(1, 3, 1, 1, 8), 1)
    assert [name for name, _ in block.named_children()] == ["_depthwise_conv", "_bn1", "_project_conv", "_bn2", "act"]


def test_batch_norm_has_the_epsilon_of_the_public_weights() -> None:
    layer = batch_norm(7)
    assert (layer.num_features, layer.eps, layer.affine) == (7, 1e-3, True)


@pytest.mark.parametrize(("stride", "blocks"), [(2, 1), (4, 3), (8, 5), (16, 8), (31, 8)])
def test_layers_up_to_a_stride_are_the_stem_and_the_blocks_before_it(stride: int, blocks: int) -> None:
    encoder = _encoder("nano")
    layers = encoder.up_to(stride)
    assert layers == [encoder._conv_stem, encoder._bn0, *list(encoder._blocks)[:blocks]]


@pytest.mark.parametrize("stride", [0, 1])
def test_no_layer_lies_before_stride_2(stride: int) -> None:
    assert _encoder("nano").up_to(stride) == []


def test_last_stride_covers_the_whole_encoder() -> None:
    encoder = _encoder("nano")
    inside = {id(p) for layer in encoder.up_to(32) for p in layer.parameters()}
    assert inside == {id(p) for p in encoder.parameters()}
