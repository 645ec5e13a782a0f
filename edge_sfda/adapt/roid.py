"""ROID (Marsden et al., WACV 2024): universal test-time adaptation, brought to pixels."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.adapt.losses import entropy
from edge_sfda.adapt.state import State
from edge_sfda.adapt.tent import Tent
from edge_sfda.adapt.view import StrongView
from edge_sfda.config import AdaptConfig, ViewConfig
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet


class Roid(Tent):
    """Soft likelihood ratio, weighed by certainty and diversity; consistency with a view; weights drawn to the source.

    A pixel counts where its softmax is less like the running mean than the batch's usual pixel. The view changes colour
    and blur alone, as a geometric one would move the pixels. The paper's correction of the prior at each prediction is
    left out: what is deployed here is a network, not a procedure.
    """

    clip: ClassVar[float] = 0.99  # of a softmax: the gradient of a ratio of a sure pixel vanishes without it
    temperature: ClassVar[float] = 1 / 3
    keep: ClassVar[float] = 0.99  # of the weights after each step; the rest is the source's
    mean: ClassVar[float] = 0.9  # of the running mean of the softmax

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, config)
        count = len(manifest.classes)
        self.usual_probs = torch.full((count,), 1 / count, device=self.device)
        self.view = StrongView(ViewConfig(strength=1.0), seed=config.seed)

    def state(self) -> State:
        """Return the running mean and the views' draws as well."""
        return super().state().joined(roid=State({"usual_probs": self.usual_probs}), view=self.view.state())

    def load_state(self, state: State) -> None:
        """See `Method.load_state`."""
        super().load_state(state)
        self.usual_probs = state.tensor("roid.usual_probs").to(self.device, copy=True)
        self.view.load_state(state.part("view"))

    def _loss(self, frames: Tensor, x: Tensor) -> Tensor:
        logits = self.net(x).logits
        weight = self._weigh(logits.detach())
        other = self.net(self.normaliser(self.view.photometry(frames.float()))).logits
        loss = likelihood_ratio(logits, clip=self.clip) + symmetric_cross_entropy(other, logits)
        return (weight * loss).mean()

    def _update(self, optimizer: torch.optim.Optimizer, x: Tensor, loss: Tensor) -> Tensor:
        loss = super()._update(optimizer, x, loss)
        with torch.no_grad():
            for parameter, source in zip(self.affine, self.source, strict=True):
                parameter.lerp_(source, 1 - self.keep)
        return loss

    @torch.no_grad()
    def _weigh(self, logits: Tensor) -> Tensor:
        """Return the weight of each pixel, float [B, h, w], and move the running mean."""
        probs = logits.softmax(1)
        diversity = _spread(1 - F.cosine_similarity(self.usual_probs.view(1, -1, 1, 1), probs, dim=1))
        certainty = _spread(-entropy(logits))
        weight = torch.exp(diversity * certainty / self.temperature) * (diversity >= diversity.mean())
        self.usual_probs = torch.lerp(probs.mean((0, 2, 3)), self.usual_probs, self.mean)
        return weight


def likelihood_ratio(logits: Tensor, *, clip: float) -> Tensor:
    """Return the negative soft likelihood ratio of each pixel, float [B, h, w], for logits float [B, C, h, w]."""
    probs = logits.softmax(1).clamp(0, clip)
    return -(probs * torch.log(probs / (1 - probs) + 1e-5)).sum(1)


def symmetric_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean of both cross-entropies between two logits float [B, C, h, w], float [B, h, w]."""
    forward = -(target.softmax(1) * logits.log_softmax(1)).sum(1)
    backward = -(logits.softmax(1) * target.log_softmax(1)).sum(1)
    return (forward + backward) / 2


def _spread(value: Tensor) -> Tensor:
    """Stretch to 0..1."""
    low, high = value.amin(), value.amax()
    return (value - low) / (high - low).clamp(min=1e-8)
