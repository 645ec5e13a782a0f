"""The student's strong view: crop, mirror, colour, blur (ours). Labels and weights follow the geometry."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.adapt import state as states
from edge_sfda.adapt.grid import cell_size
from edge_sfda.adapt.state import State
from edge_sfda.config import ViewConfig

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma of RGB


class StrongView:
    """Draws a view a frame; every draw is made on the host, so nothing waits for the device.

    Args:
        config: ranges.
        seed: of every draw.
    """

    def __init__(self, config: ViewConfig, *, seed: int) -> None:
        self.config = config
        self.rng = np.random.default_rng(seed)

    def __call__(self, frames: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views of a batch.

        Args:
            frames: uint8 RGB [B, 3, H, W].
            label: int64 [B, h, w].
            weight: float [B, h, w].

        Returns:
            frames float32 0..255 [B, 3, H', W'], label [B, h', w'], weight [B, h', w'].
        """
        if not self.config.enabled:
            return frames.float(), label, weight
        views = [self._geometry(*item) for item in zip(frames, label, weight, strict=True)]
        cut_frames, cut_label, cut_weight = (torch.stack(part) for part in zip(*views, strict=True))
        return self.photometry(cut_frames.float()), cut_label, cut_weight

    def state(self) -> State:
        """Return the state of the draws."""
        return states.of_draws(self.rng)

    def load_state(self, state: State) -> None:
        """Set the state of the draws, or raise CheckpointError."""
        states.into_draws(self.rng, state, whose="views'")

    def _geometry(self, frame: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sides = tuple(zip(frame.shape[-2:], label.shape, strict=True))
        stride = max(cell_size(pixels, cells) for pixels, cells in sides)
        # whole cells only: a last one that the frame cuts would give views of unequal size, and shift a mirrored label
        (top, h), (left, w) = (self._span(min(cells, pixels // stride), stride) for pixels, cells in sides)
        frame = frame[:, top * stride : (top + h) * stride, left * stride : (left + w) * stride]
        label, weight = label[top : top + h, left : left + w], weight[top : top + h, left : left + w]
        if self.rng.random() < 0.5:
            frame, label, weight = frame.flip(-1), label.flip(-1), weight.flip(-1)
        return frame, label, weight

    def _span(self, side: int, stride: int) -> tuple[int, int]:
        """Offset and length of a crop in label cells; the length is a multiple of 32 pixels where that fits."""
        unit = max(1, 32 // stride)
        length = max(unit, round(side * self.config.crop / unit) * unit)
        length = side if length >= side or self.config.crop == 1 else length
        return int(self.rng.integers(0, side - length + 1)), length

    def photometry(self, x: Tensor) -> Tensor:
        """Return frames float 0..255 [B, 3, H, W] in other colours and blurred; no pixel is moved."""
        config, count = self.config, x.shape[0]
        ranges = np.array([config.brightness, config.contrast, config.saturation]) * config.strength
        factors = 1 + self.rng.uniform(-1, 1, (count, 3)) * np.minimum(ranges, 0.9)
        blurred = self.rng.random(count) < config.blur * min(config.strength, 1)
        if config.strength == 0:  # after the draws: crops and mirrors must not depend on it
            return x
        draws = torch.from_numpy(np.column_stack((factors, blurred)).astype(np.float32)).to(x.device, non_blocking=True)
        brightness, contrast, saturation, blur = draws.T.reshape(4, count, 1, 1, 1)
        # the constant moves by a copy that does not wait, like the draws
        luma = torch.tensor(_GREY).to(x.device, non_blocking=True).view(1, 3, 1, 1)
        grey = (x * luma).sum(1, keepdim=True)
        x = grey + saturation * (x - grey)
        x = contrast * (x - 128) + 128 * brightness
        return torch.lerp(x, _binomial_blur(x), blur).clamp_(0, 255)


def _binomial_blur(x: Tensor) -> Tensor:
    """Blur float [B, 3, H, W] by [1 2 1] / 4 along rows and columns, edges repeated."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = (x[..., :-2] + x[..., 2:]) * 0.25 + x[..., 1:-1] * 0.5
    return (x[..., :-2, :] + x[..., 2:, :]) * 0.25 + x[..., 1:-1, :] * 0.5
