"""What a network must offer to be adapted: logits, encoder features, and their channel counts."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Prediction(NamedTuple):
    """What a segmentation network returns for `x` [B, 3, H, W].

    Attributes:
        logits: float [B, C, h, w], before softmax; h, w = H, W over the stride of 4 or 8 (rounded up).
        features: encoder features, fine to coarse, each float [B, F_i, h_i, w_i].
    """

    logits: Tensor
    features: tuple[Tensor, ...]


class SegmentationNet(nn.Module):
    """Base of every network here: `forward(x)` takes normalised float RGB [B, 3, H, W] and returns a `Prediction`.

    Attributes:
        classes: C, the number of logits a pixel.
        feature_channels: F_i of each entry of `Prediction.features`.
        min_side: the smallest H or W it accepts, in pixels.
    """

    classes: int
    feature_channels: tuple[int, ...]
    min_side: int = 32

    def forward(self, x: Tensor) -> Prediction:
        """Return logits and encoder features of `x`, normalised float RGB [B, 3, H, W]."""
        raise NotImplementedError

    def trainable(self, frozen_stride: int) -> list[nn.Parameter]:
        """Return the parameters to adapt; encoder layers up to `frozen_stride` lose their gradient where it is known.

        A network of your own trains whole: its layers' strides are not known.
        """
        return list(self.parameters())

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's parameters, which may be pretrained and learn slower; none where it is not known."""
        return []

    def shift_logits(self, offset: Tensor) -> None:
        """Add `offset` [C] to the logits from now on, in the weights or buffers, so that it is saved and exported."""
        raise NotImplementedError
