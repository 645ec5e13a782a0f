"""The peers behind the method's interface: none, BatchNorm statistics, CoTTA-style, and plain mean teachers.

Each by its paper's rules as far as METHOD states them; `config.preset` holds the settings that go with each.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.adapt import state as states
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.adapt.losses import soft_cross_entropy
from edge_sfda.adapt.method import Method, StepReport
from edge_sfda.adapt.state import State
from edge_sfda.adapt.teacher import Teacher, TeacherView
from edge_sfda.config import AdaptConfig
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet

_THRESHOLD = 0.968  # DACS: a pixel is sure above this confidence


class Statistics(Method):
    """BatchNorm statistics of the target, no gradient (AdaBN, Li et al. 2017)."""

    trains = False

    def step(self, frames: Tensor) -> StepReport:
        """Check the frames and change nothing."""
        self._input(frames)
        return StepReport(torch.full((), torch.nan, device=self.device))


class Source(Statistics):
    """No adaptation: the source network as it came."""

    def begin(self, frames: Sequence[Tensor]) -> None:
        """Leave the statistics alone."""

    def observe(self, frames: Tensor) -> None:
        """Leave the statistics alone."""


class Cotta(Method):
    """CoTTA-style (Wang et al., CVPR 2022): augmentation-averaged teacher, soft labels, stochastic restore.

    The teacher averages over mirror and three scales instead of the paper's fourteen views; always, not only below a
    confidence. Statistics are the target's, as in step 0.
    """

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, config)
        self.teacher = Teacher(net, config.teacher)
        self.source = copy.deepcopy(net.state_dict())
        self.optimizer = torch.optim.Adam(net.parameters(), lr=config.burst.rate)
        self.rng = torch.Generator(self.device).manual_seed(config.seed)
        self.steps = 0

    @property
    def deployed(self) -> SegmentationNet:
        """The teacher."""
        return self.teacher.net

    def step(self, frames: Tensor) -> StepReport:
        """Take one step towards the teacher's averaged soft labels, then restore one weight in a hundred."""
        x = self._input(frames)
        logits = self.net(x).logits
        loss = soft_cross_entropy(logits, self._averaged_probs(x, logits.shape[-2:])).mean()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.teacher.update()
        self._restore()
        return StepReport(loss.detach())

    def state(self) -> State:
        """Return student, teacher, moments and draws; the source is what the method starts from again."""
        own = State({"random": self.rng.get_state()}, {"steps": self.steps})
        teacher, optimizer = self.teacher.state(), states.of_optimizer(self.optimizer)
        return super().state().joined(cotta=own, teacher=teacher, optimizer=optimizer)

    def load_state(self, state: State) -> None:
        """See `Method.load_state`."""
        super().load_state(state)
        self.teacher.load_state(state.part("teacher"))
        states.into_optimizer(self.optimizer, state.part("optimizer"))
        self.rng.set_state(state.tensor("cotta.random").cpu())
        self.steps = int(state.fact("cotta.steps"))

    @torch.no_grad()
    def _averaged_probs(self, x: Tensor, size: torch.Size) -> Tensor:
        views = []
        for scale in (0.75, 1.0, 1.25):
            view = x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
            probs = self.teacher.predict(view).probs
            views.append(F.interpolate(probs, size=size, mode="bilinear", align_corners=False))
        return torch.stack(views).mean(0)

    @torch.no_grad()
    def _restore(self, probability: float = 0.01) -> None:
        for name, parameter in self.net.named_parameters():
            draw = torch.rand(parameter.shape, generator=self.rng, device=self.device)
            parameter.copy_(torch.where(draw < probability, self.source[name], parameter))


class _Unreliable(Adapter):
    """The method's own loop without a metric network."""

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, replace(config, reliability=replace(config.reliability, enabled=False)))


class MeanTeacher(_Unreliable):
    """Self-training from a mean teacher, every pixel weighing 1: by its preset the loop without what is ours."""

    def _weigh(self, view: TeacherView) -> tuple[Tensor, dict[str, Tensor]]:
        weight = torch.ones_like(view.confidence)
        self.usual_weight = weight.mean()
        return weight, {}


class ThresholdTeacher(_Unreliable):
    """Self-training by a threshold, as in DACS: a frame weighs its share of pixels above 0.968; else as the above."""

    def _weigh(self, view: TeacherView) -> tuple[Tensor, dict[str, Tensor]]:
        share = (view.confidence > _THRESHOLD).float().mean((1, 2), keepdim=True)
        weight = share.expand_as(view.confidence).contiguous()
        self.usual_weight = weight.mean()
        return weight, {}
