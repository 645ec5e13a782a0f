"""The light decoder: a feature pyramid of separable convolutions, and the network made of it and an encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.errors import ConfigError
from edge_sfda.nets.contract import Prediction, SegmentationNet
from edge_sfda.nets.encoder import LITE0_STAGES, NANO_STAGES, Encoder, Stage, batch_norm


class SeparableConv(nn.Sequential):
    """Depthwise 3x3, 1x1, BatchNorm, ReLU6."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, channels, 1, bias=False),
            batch_norm(channels),
            nn.ReLU6(inplace=True),
        )


class FpnNet(SegmentationNet):
    """Encoder features at strides 4 to 32, merged top-down to `stride` (4 or 8), then classified.

    Args:
        stages: of the encoder.
        stem: channels of the encoder's stem.
        classes: C.
        width: channels of the decoder.
        stride: of the logits.

    Raises:
        ConfigError: `stride` is neither 4 nor 8.
    """

    def __init__(self, stages: tuple[Stage, ...], *, stem: int, classes: int, width: int, stride: int) -> None:
        super().__init__()
        if stride not in (4, 8):
            raise ConfigError(f"stride of the logits is {stride}, must be 4 or 8")
        self.classes = classes
        self.encoder = Encoder(stages, stem)
        self.feature_channels = self.encoder.channels
        self.first_level = 0 if stride == 4 else 1
        used = self.feature_channels[self.first_level :]
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), batch_norm(width)) for c in used
        )
        self.merges = nn.ModuleList(SeparableConv(width) for _ in used)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Prediction:
        """Return logits [B, C, H/stride, W/stride] and the four encoder features of `x` [B, 3, H, W]."""
        features = self.encoder(x)
        used = features[self.first_level :]
        y = self.merges[-1](self.laterals[-1](used[-1]))
        for level in range(len(used) - 2, -1, -1):
            size = used[level].shape[-2:]
            y = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
            y = self.merges[level](y + self.laterals[level](used[level]))
        return Prediction(self.classifier(y), features)

    def trainable(self, frozen_stride: int) -> list[nn.Parameter]:
        """Return the parameters behind `frozen_stride`; those before it stop requiring a gradient."""
        for module in self.encoder.up_to(frozen_stride):
            module.requires_grad_(False)
        return [p for p in self.parameters() if p.requires_grad]

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's parameters."""
        return list(self.encoder.parameters())

    @torch.no_grad()
    def shift_logits(self, offset: Tensor) -> None:
        """Add `offset` [C] to the classifier's bias."""
        bias = self.classifier.bias
        assert bias is not None, "the classifier is made with one"
        bias += offset


def lite0(classes: int, *, stride: int = 4) -> FpnNet:
    """EfficientNet-Lite0 with a pyramid of width 96: 3.0 M parameters."""
    return FpnNet(LITE0_STAGES, stem=32, classes=classes, width=96, stride=stride)


def nano(classes: int, *, stride: int = 4) -> FpnNet:
    """The small one for the demo and small boards: under 0.6 M parameters, about a tenth of `lite0`'s work."""
    return FpnNet(NANO_STAGES, stem=16, classes=classes, width=48, stride=stride)
