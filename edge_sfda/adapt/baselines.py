"""The peers behind the method's interface: none, BatchNorm statistics, TENT, CoTTA-style, and plain mean teachers.

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
from edge_sfda.adapt.losses import entropy, soft_cross_entropy
from edge_sfda.adapt.method import Method, StepReport
from edge_sfda.adapt.state import State
from edge_sfda.adapt.teacher import Teacher, TeacherView
from edge_sfda.config import AdaptConfig
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.normalisation import affine_parameters, batch_norms

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


class Tent(Method):
    """Entropy minimisation over scale and shift alone (Wang et al., ICLR 2021).

    Offline: statistics of each batch in the step, re-estimated over the target at the end. On a stream, where a step
    sees one frame, whose statistics must not be used raw: the running ones.
    """

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, config)
        net.requires_grad_(False)
        affine = affine_parameters(net)
        for parameter in affine:
            parameter.requires_grad_(True)
        # a network without affine normalisation has nothing to train; Adam refuses an empty list
        self.optimizer = torch.optim.Adam(affine, lr=config.burst.rate) if affine else None
        self.frames: Sequence[Tensor] = ()

    def begin(self, frames: Sequence[Tensor]) -> None:
        """Start from the source's weights; batches bring their own statistics, a stream a lower rate."""
        self.frames = frames
        if self.optimizer is not None and len(frames) == 0:
            self.optimizer.param_groups[0]["lr"] = self.config.burst.rate * self.config.burst.online_share
        for layer in batch_norms(self.net) if len(frames) > 0 else ():
            layer.train()

    def step(self, frames: Tensor) -> StepReport:
        """Take one Adam step of the mean entropy."""
        x = self._input(frames)
        loss = entropy(self.net(x).logits).mean()
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return StepReport(loss.detach())

    def rejoin(self, frames: Sequence[Tensor]) -> None:
        """Let batches bring their own statistics again, and know the frames of the end."""
        self.begin(frames)

    def state(self) -> State:
        """Return the network and the moments."""
        if self.optimizer is None:
            return super().state()
        rate = State(facts={"rate": self.optimizer.param_groups[0]["lr"]})  # a stream has another than a burst
        return super().state().joined(tent=rate, optimizer=states.of_optimizer(self.optimizer))

    def load_state(self, state: State) -> None:
        """See `Method.load_state`."""
        super().load_state(state)
        if self.optimizer is not None:
            self.optimizer.param_groups[0]["lr"] = float(state.fact("tent.rate"))
            states.into_optimizer(self.optimizer, state.part("optimizer"))

    def finish(self) -> None:
        """Re-estimate the statistics under the new scales and shifts."""
        self.net.eval()
        self._begin_statistics(self.frames, blend=1.0)
        super().finish()


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
    """The method's own loop with every pixel weighing 1: what reliability is held against."""

    def _weigh(self, view: TeacherView) -> tuple[Tensor, dict[str, Tensor]]:
        weight = torch.ones_like(view.confidence)
        self.usual_weight = weight.mean()
        return weight, {}


class ThresholdTeacher(_Unreliable):
    """The method's own loop with DACS's weight: the share of a frame's pixels above 0.968 confidence."""

    def _weigh(self, view: TeacherView) -> tuple[Tensor, dict[str, Tensor]]:
        share = (view.confidence > _THRESHOLD).float().mean((1, 2), keepdim=True)
        weight = share.expand_as(view.confidence).contiguous()
        self.usual_weight = weight.mean()
        return weight, {}
