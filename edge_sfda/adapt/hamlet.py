"""HAMLET's part without source data (Colomer et al., ICCV 2023): train less of the network, and faster farther away."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from edge_sfda.adapt.baselines import ThresholdTeacher
from edge_sfda.adapt.method import StepReport
from edge_sfda.adapt.state import State
from edge_sfda.config import AdaptConfig
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.normalisation import batch_norms, divergence, moments, running


class Hamlet(ThresholdTeacher):
    """A mean teacher's labels, weighed by the share of sure pixels; a part of the network a step; a rate by distance.

    Each step trains the layers behind a stride that is drawn: the paper's modules, which it draws by what they brought
    before; here all are drawn alike. The rate grows with the distance between the frames and the source, relative to
    the farthest yet; the paper measures it by an expert network trained on the source, here it is that between the
    first normalisation layer's input and the source's statistics of it. The paper's patches of source pictures are
    left out, and patches of other target frames stand in for them.
    """

    strides: ClassVar[tuple[int, ...]] = (0, 4, 8, 16, 32)  # behind which a step may train
    least: ClassVar[float] = 0.1  # of the rate, at no distance

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, config)
        self.rng = torch.Generator().manual_seed(config.seed)  # on the host: nothing waits for the device
        layers = batch_norms(self.teacher.net)
        self.first = layers[0] if layers else None
        self.usual = () if self.first is None else tuple(value.clone() for value in running(self.first))
        self.farthest = torch.zeros((), device=self.device)
        self.reach = torch.ones((), device=self.device)

    def step(self, frames: Tensor) -> StepReport:
        """Learn from frames, uint8 RGB [B, 3, H, W], by a part of the network."""
        drawn = int(torch.randint(len(self.strides), (), generator=self.rng))
        self.net.requires_grad_(True)
        self.net.trainable(self.strides[drawn])  # what lies before it loses its gradient
        if self.first is None:
            return super().step(frames)
        # while it lasts: a hook that stayed would be copied with every copy of the network, and this object with it
        listening = self.first.register_forward_pre_hook(self._listen)
        try:
            return super().step(frames)
        finally:
            listening.remove()

    def state(self) -> State:
        """Return the draws and the farthest distance as well."""
        own = State({"farthest": self.farthest, "reach": self.reach, "random": self.rng.get_state()})
        return super().state().joined(hamlet=own)

    def load_state(self, state: State) -> None:
        """See `Method.load_state`."""
        super().load_state(state)
        self.farthest = state.tensor("hamlet.farthest").to(self.device, copy=True)
        self.reach = state.tensor("hamlet.reach").to(self.device, copy=True)
        self.rng.set_state(state.tensor("hamlet.random").cpu())

    def _update(self, loss: Tensor, *, trust: Tensor) -> None:
        super()._update(loss, trust=trust * self.reach)

    @torch.no_grad()
    def _listen(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        distance = divergence(*moments(inputs[0]), *self.usual)
        self.farthest = torch.maximum(self.farthest, distance)
        self.reach = self.least + (1 - self.least) * distance / self.farthest.clamp(min=1e-12)
