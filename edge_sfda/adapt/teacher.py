"""The mean teacher: its prediction of a frame, and the only moving average (the paper's part 2)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edge_sfda.adapt import state as states
from edge_sfda.adapt.state import State
from edge_sfda.config import TeacherConfig
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.normalisation import share_statistics


class TeacherView(NamedTuple):
    """What the teacher says of a batch.

    Attributes:
        features: encoder features of the un-flipped frames, fine to coarse, each float [B, F_i, h_i, w_i].
        probs: softmax, float [B, C, h, w]; averaged over the mirror image when `flip` is on.
        label: its arg-max, int64 [B, h, w].
        confidence: its maximum, float [B, h, w].
    """

    features: tuple[Tensor, ...]
    probs: Tensor
    label: Tensor
    confidence: Tensor


class Teacher:
    """A moving average of the student that shares the student's normalisation statistics.

    Args:
        student: copied at once; its BatchNorm statistics stay common to both.
        config: average and view.
    """

    def __init__(self, student: SegmentationNet, config: TeacherConfig) -> None:
        self.config = config
        self.net: SegmentationNet = copy.deepcopy(student).eval().requires_grad_(False)
        share_statistics(self.net, student)
        self.updates = 0
        self._mine, self._theirs = _averaged(self.net), _averaged(student)

    @torch.no_grad()
    def predict(self, x: Tensor) -> TeacherView:
        """Return the teacher's view of normalised frames `x`, float [B, 3, H, W]."""
        count = x.shape[0]
        prediction = self.net(torch.cat((x, x.flip(-1))) if self.config.flip else x)
        probs = prediction.logits.softmax(1)
        if self.config.flip:
            probs = (probs[:count] + probs[count:].flip(-1)).mul_(0.5)
        confidence, label = probs.max(1)
        return TeacherView(tuple(f[:count] for f in prediction.features), probs, label, confidence)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the student: a = min(1 - 1/(k+1), a_max), so that the first update copies it."""
        average = min(1 - 1 / (self.updates + 1), self.config.average_max)
        torch._foreach_lerp_(self._mine, self._theirs, 1 - average)
        self.updates += 1

    def state(self) -> State:
        """Return weights and count."""
        return State.of(net=states.of_module(self.net), count=State(facts={"updates": self.updates}))

    def load_state(self, state: State) -> None:
        """Set weights and count, or raise CheckpointError; shared statistics stay shared."""
        states.into_module(self.net, state.part("net"))
        self.updates = int(state.fact("count.updates"))


def _averaged(net: nn.Module) -> list[Tensor]:
    """Parameters and float buffers, less the shared BatchNorm statistics."""
    buffers = [b for name, b in net.named_buffers() if b.is_floating_point() and "running_" not in name]
    return [p.detach() for p in net.parameters()] + buffers
