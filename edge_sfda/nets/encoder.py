"""Inverted-residual encoders: EfficientNet-Lite0 (Google, 2020) and a nano one of our own.

Edge-compiler friendly: ReLU6, no squeeze-and-excite, symmetric padding, stock operators only. Module names follow the
public EfficientNet weights, so that those load by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

BN_EPS = 1e-3  # EfficientNet-Lite's own; torch's default 1e-5 would shift its activations
BN_MOMENTUM = 0.1  # TF's 0.01 is too slow for a few hundred steps from scratch


@dataclass(frozen=True)
class Stage:
    """`repeats` inverted residuals, the first with `stride`; `expand` times wider inside, `channels` out."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


LITE0_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)

NANO_STAGES = (
    Stage(1, 3, 1, 1, 12),
    Stage(2, 3, 2, 4, 20),
    Stage(2, 3, 2, 4, 32),
    Stage(3, 3, 2, 4, 64),
    Stage(3, 3, 2, 4, 96),
)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return the one BatchNorm used throughout the built-in networks."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


class InvertedResidual(nn.Module):
    """1x1 expand, depthwise, 1x1 project; a skip where the shape stays."""

    def __init__(self, channels_in: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = channels_in * stage.expand
        self.has_expand = stage.expand != 1
        if self.has_expand:
            self._expand_conv = nn.Conv2d(channels_in, inner, 1, bias=False)
            self._bn0 = batch_norm(inner)
        self._depthwise_conv = nn.Conv2d(
            inner, inner, stage.kernel, stride, stage.kernel // 2, groups=inner, bias=False
        )
        self._bn1 = batch_norm(inner)
        self._project_conv = nn.Conv2d(inner, stage.channels, 1, bias=False)
        self._bn2 = batch_norm(stage.channels)
        self.act = nn.ReLU6(inplace=True)
        self.skip = stride == 1 and channels_in == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, F_in, h, w] to [B, F_out, h / stride, w / stride]."""
        y = self.act(self._bn0(self._expand_conv(x))) if self.has_expand else x
        y = self.act(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        out: Tensor = x + y if self.skip else y
        return out


class Encoder(nn.Module):
    """A stem of stride 2, then stages; returns the last feature at each stride from 4 to 32.

    Attributes:
        channels: F_i of the returned features, fine to coarse.
    """

    def __init__(self, stages: tuple[Stage, ...], stem: int) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        self._bn0 = batch_norm(stem)
        self.act = nn.ReLU6(inplace=True)
        blocks: list[nn.Module] = []
        last_at_stride: dict[int, tuple[int, int]] = {}  # stride -> (block index, channels)
        self._strides: list[int] = []  # of each block's output
        channels, total_stride = stem, 2
        for stage in stages:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, stage, stride))
                channels, total_stride = stage.channels, total_stride * stride
                self._strides.append(total_stride)
            last_at_stride[total_stride] = (len(blocks) - 1, channels)
        self._blocks = nn.ModuleList(blocks)
        taps = [tap for stride, tap in sorted(last_at_stride.items()) if stride >= 4]
        self._tap_indices = frozenset(index for index, _ in taps)
        self.channels = tuple(c for _, c in taps)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return features at strides 4, 8, 16 and 32 of `x` [B, 3, H, W]."""
        y = self.act(self._bn0(self._conv_stem(x)))
        features = []
        for index, block in enumerate(self._blocks):
            y = block(y)
            if index in self._tap_indices:
                features.append(y)
        return tuple(features)

    def up_to(self, stride: int) -> list[nn.Module]:
        """Return the layers whose output has at most `stride`: the costly ones of a backward pass."""
        if stride < 2:
            return []
        blocks = [b for b, s in zip(self._blocks, self._strides, strict=True) if s <= stride]
        return [self._conv_stem, self._bn0, *blocks]
