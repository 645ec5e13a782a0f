"""The method after STvM: one step from unlabelled frames to a repaired student and its average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.adapt import guard
from edge_sfda.adapt import state as states
from edge_sfda.adapt.class_floor import ClassFloor
from edge_sfda.adapt.consolidation import Consolidation
from edge_sfda.adapt.losses import entropy
from edge_sfda.adapt.method import Method, StepReport, burst_factor
from edge_sfda.adapt.mixing import DonorMemory
from edge_sfda.adapt.prior import undo_class_weight
from edge_sfda.adapt.reliability import Reliability, combined, levels
from edge_sfda.adapt.state import State
from edge_sfda.adapt.stream_guard import StreamGuard
from edge_sfda.adapt.teacher import Teacher, TeacherView
from edge_sfda.adapt.view import StrongView
from edge_sfda.config import AdaptConfig, BurstConfig
from edge_sfda.errors import NetError
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.normalisation import affine_parameters, batch_statistics, estimate
from edge_sfda.ops.weighted_cross_entropy import weighted_cross_entropy

_CELL = 32  # pixels: the deepest stride of the built-in networks


class Adapter(Method):
    """teacher -> reliability -> mixing -> view -> student -> weighted loss -> the teacher's average.

    Parts 1 to 6 of METHOD; each can be switched off in the configuration. The teacher is what is deployed. In the last
    steps of a burst it learns itself, from a frozen copy (`consolidation`); on a stream the student does, from it.
    """

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, config)
        classes = len(manifest.classes)
        self.teacher = Teacher(net, config.teacher)
        self.reliability = (
            Reliability(
                (*net.feature_channels, classes),
                classes,
                config=config.reliability,
                seed=config.seed,
                device=self.device,
            )
            if config.reliability.enabled
            else None
        )
        self.memory = DonorMemory(config.mixing, classes, seed=config.seed, device=self.device)
        self.view = StrongView(config.view, seed=config.seed)
        # fused: takes the rate as a tensor, so that it can follow the weights' mean without a host sync
        self.rate = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.AdamW(
            _trained(net, config.burst), lr=self.rate, weight_decay=config.burst.weight_decay, fused=True
        )
        self.frames: Sequence[Tensor] = ()
        self.usual_weight = torch.full((), torch.nan, device=self.device)
        self.source: guard.State = {}
        self.share = 1.0  # of the burst, to be deployed
        self.floor: ClassFloor | None = None  # of a burst under a strong shift
        self.consolidation: Consolidation | None = None  # of a burst's last steps, or all along a stream
        self.steps = 0
        self.online = False
        self.stream_guard: StreamGuard | None = None  # of a stream alone

    @property
    def deployed(self) -> SegmentationNet:
        """The teacher, the average of the burst so far; on a stream what its guard chooses (`stream_guard`)."""
        learnt = self.teacher.net
        return learnt if self.stream_guard is None else self.stream_guard.chosen(learnt)

    @property
    def prior_undone(self) -> float:
        """Share of the source's class weights that is not in what is deployed (ours).

        On a stream, and where the shift is mild. Under a strong one entropy has taken the rare classes down already.
        """
        return self.config.statistics.prior if self.online or self.share < 1 else 0.0

    def begin(self, frames: Sequence[Tensor]) -> None:
        """Step 0, then the metric network's warm-up on the first target frames (none for a stream)."""
        if len(frames) == 0:
            self._begin_stream()
            return
        self.frames = frames
        self.source = guard.state_of(self.teacher.net)
        batches, blend = self._batches(frames), self.config.statistics.blend
        if self.config.burst.guard:
            self.share = guard.fit_statistics(self.net, batches, blend=blend)
        else:
            estimate(self.net, batches, blend=blend)
        self.floor = self._make_floor()
        if self.floor is None and self.reliability is None:
            return
        for index, batch in enumerate(batches):
            view = self.teacher.predict(batch)  # once a batch: the teacher stands still here
            if self.floor is not None:
                self.floor.look(view.probs)
            if self.reliability is not None:
                for _ in range(index, self.config.reliability.warm_up, len(batches)):
                    self._weigh(view)

    def observe(self, frames: Tensor) -> None:
        """See `Method.observe`; begins anew where the stream stays at home, and forgets where it changes.

        Raises:
            FrameError: see `step`.
        """
        x = self._input(frames)
        if self.stream_guard is not None:
            if self.stream_guard.look(x):
                self._restart(self.stream_guard)
            elif self.stream_guard.changed:
                self._observed = 0
        self._take_in(x)

    def step(self, frames: Tensor) -> StepReport:
        """Learn from frames, uint8 RGB [B, 3, H, W].

        Raises:
            FrameError: of another dtype, shape or size than the network's input.
        """
        self._check(frames)
        frames = self._shrunk(frames)
        if not self.online and self._consolidates():
            return self._consolidate(frames)
        x = self.normaliser(frames)
        view = self.teacher.predict(x)
        weight, scalars = self._weigh(view)
        taught = frames, view.label, weight
        if self.config.mixing.enabled:
            taught = self.memory.mix(*taught)
            self.memory.push(frames, view.label, weight)
        student_frames, label, student_weight = self.view(*taught)
        # those of a single frame must never be used raw (METHOD, step 0)
        by_batch = self.config.burst.batch_statistics and not self.online and len(frames) > 1
        with batch_statistics(self.net, enabled=by_batch):
            logits = self.net(self.normaliser(student_frames)).logits
        loss = self._loss(logits, label, student_weight)
        # the floor: a batch that weighs nothing, as usual, must stand still; 0 / 0 would make every weight NaN
        mean = weight.mean()
        self._update(loss, trust=(mean / self.usual_weight.clamp(min=1e-12)).clamp(max=1))
        if self.consolidation is not None:
            self.consolidation.step(x, self.config.consolidation.online_share, said=view.probs)
        scalars |= {"weight": mean, "confidence": view.confidence.mean(), "rate": self.rate.clone()}
        scalars["agreement"] = _agreement(logits.detach(), label)
        return StepReport(loss.detach(), scalars)

    def snapshot(self) -> SegmentationNet:
        """See `Method.snapshot`."""
        net = super().snapshot()
        self._settle(net)
        return net

    def finish(self) -> None:
        """Make the teacher what is deployed.

        Raises:
            DivergenceError: one of its weights is not finite.
        """
        self._settle(self.teacher.net)
        super().finish()

    def rejoin(self, frames: Sequence[Tensor]) -> None:
        """Know the frames again that the statistics are re-estimated over at the end."""
        self.frames = frames

    def state(self) -> State:
        """Return student, teacher, metric network, donors, moments, draws and counters."""
        own = State(
            # NaN until the first step: no file takes it
            {} if bool(self.usual_weight.isnan()) else {"usual_weight": self.usual_weight},
            {
                "steps": self.steps,
                "online": self.online,
                "share": self.share,
                "begun": len(self.source) > 0,
                "consolidates": self.consolidation is not None,
            },
        )
        parts = {
            "adapter": own,
            "teacher": self.teacher.state(),
            "memory": self.memory.state(),
            "view": self.view.state(),
            "optimizer": states.of_optimizer(self.optimizer),
        }
        if self.reliability is not None:
            parts["reliability"] = self.reliability.state()
        if self.floor is not None:
            parts["floor"] = self.floor.state()
        if self.consolidation is not None:
            parts["consolidation"] = self.consolidation.state()
        if self.stream_guard is not None:
            parts["stream_guard"] = self.stream_guard.state()
        return super().state().joined(**parts)

    def load_state(self, state: State) -> None:
        """See `Method.load_state`."""
        own = state.part("adapter")
        self.share = float(own.fact("share"))
        if own.fact("begun"):  # the teacher is still the source
            self.source = guard.state_of(self.teacher.net)
            self.floor = self._make_floor()
        if own.fact("online") and not self.online:
            self._begin_stream()
        if self.stream_guard is not None:
            self.stream_guard.load_state(state.part("stream_guard"))
        super().load_state(state)
        self.teacher.load_state(state.part("teacher"))
        self.memory.load_state(state.part("memory"))
        self.view.load_state(state.part("view"))
        states.into_optimizer(self.optimizer, state.part("optimizer"))
        if self.reliability is not None:
            self.reliability.load_state(state.part("reliability"))
        if self.floor is not None:
            self.floor.load_state(state.part("floor"))
        self.steps, self.online = int(own.fact("steps")), bool(own.fact("online"))
        if own.fact("consolidates"):
            self.consolidation = self.consolidation or self._make_consolidation()
            self.consolidation.load_state(state.part("consolidation"))
        if "usual_weight" in own.tensors:
            self.usual_weight = own.tensors["usual_weight"].to(self.device, copy=True)

    def _source_frames(self) -> float:
        least = super()._source_frames()
        return least if self.stream_guard is None else self.stream_guard.source_frames(least)

    def _begin_stream(self) -> None:
        self.online = True
        for net in (self.net, self.teacher.net):
            undo_class_weight(net, self.manifest, share=self.config.statistics.prior)
        if self.config.burst.guard:
            self.stream_guard = StreamGuard(self.net)
        if self.config.consolidation.online_share > 0:
            self.consolidation = self._make_consolidation()

    def _restart(self, stream_guard: StreamGuard) -> None:
        """Let the stream be as it began; what reliability has learnt of the target stays."""
        for net in (self.net, self.teacher.net):
            stream_guard.restore(net)
        self.teacher.updates = 0
        self.optimizer.state.clear()
        if self.consolidation is not None:
            self.consolidation.forget()
        self._observed = 0

    def _settle(self, net: SegmentationNet) -> None:
        """Re-estimate the statistics under the new weights, where the burst used its batches'; then keep a share.

        Before the first step there are no new weights, and step 0 has just estimated them. On a stream there is nothing
        to settle, and a burst that consolidates has settled already.
        """
        if self.online or self.consolidation is not None:
            return
        if self.config.burst.batch_statistics and self.steps > 0 and len(self.frames) > 0:
            net.load_state_dict({k: v for k, v in self.source.items() if "running_" in k}, strict=False)
            estimate(net, self._batches(self.frames), blend=self.config.statistics.blend)
        guard.retreat(net, self.source, share=self.share)
        undo_class_weight(net, self.manifest, share=self.prior_undone)

    def _consolidates(self) -> bool:
        """Whether a burst's next step is one of its last, or one after them."""
        return self.consolidation is not None or self.config.own_steps <= self.steps < self.config.burst.steps

    def _consolidate(self, frames: Tensor) -> StepReport:
        """Take one of a burst's last steps, the first of which settles what is to be deployed."""
        if self.consolidation is None:
            self._settle(self.teacher.net)
            self.consolidation = self._make_consolidation()
        burst, own = self.config.burst, self.config.own_steps
        factor = burst_factor(self.steps - own, burst.steps - own, burst.warm_up)
        self.steps += 1
        return self.consolidation.step(self.normaliser(frames), factor)

    def _make_consolidation(self) -> Consolidation:
        config = self.config.consolidation
        if self.online:
            return Consolidation(self.net, self.manifest, config, seed=self.config.seed, teacher=self.teacher.net)
        return Consolidation(self.teacher.net, self.manifest, config, seed=self.config.seed)

    def _shrunk(self, frames: Tensor) -> Tensor:
        """Return frames of the size that steps are taken at, uint8 still; sides are of whole cells of every stride."""
        scale = self.config.burst.scale
        if scale == 1:
            return frames
        size = [max(self.net.min_side, round(side * scale / _CELL) * _CELL) for side in frames.shape[-2:]]
        return F.interpolate(frames.float(), size=size, mode="area").round().to(torch.uint8)

    def _loss(self, logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        share = self.config.burst.entropy
        loss = weighted_cross_entropy(logits, label, weight) if share < 1 else logits.new_zeros(())
        if share > 0:
            loss = (1 - share) * loss + share * entropy(logits).mean()
        return loss if self.floor is None else loss + self.floor.penalty(logits)

    def _make_floor(self) -> ClassFloor | None:
        least = self.config.burst.class_floor
        return ClassFloor(self.manifest, least, device=self.device) if least > 0 and self.share == 1 else None

    def _weigh(self, view: TeacherView) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weight of each pixel, float [B, h, w], then let the metric network learn from these frames."""
        weight = view.confidence if self.config.reliability.confidence else torch.ones_like(view.confidence)
        scalars: dict[str, Tensor] = {}
        if self.reliability is not None:
            r, metric_loss = self.reliability.score_then_learn(levels(view), view.label)
            scalars = {"reliability": r.mean(), "metric_loss": metric_loss}
            weight = combined(view, r) if self.config.reliability.confidence else r
        mean = weight.mean()
        self.usual_weight = torch.where(self.usual_weight.isnan(), mean, self.usual_weight.lerp(mean, 0.05))
        return weight, scalars

    def _update(self, loss: Tensor, *, trust: Tensor) -> None:
        """Step student and teacher.

        Adam cancels the loss's scale, so a batch that weighs less than usual must scale the rate itself (METHOD f).
        """
        burst = self.config.burst
        factor = burst.online_share if self.online else burst_factor(self.steps, self.config.own_steps, burst.warm_up)
        self.rate.copy_(trust * (burst.rate * factor))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.teacher.update()
        self.steps += 1


def _trained(net: SegmentationNet, burst: BurstConfig) -> list[nn.Parameter]:
    """Return what the burst trains; everything else stops requiring a gradient, which spares its part of backward."""
    behind = net.trainable(burst.frozen_stride)
    affine = {id(parameter) for parameter in affine_parameters(net)}
    trained = [p for p in behind if id(p) in affine] if burst.affine_only else behind
    if not trained:
        raise NetError(
            f"{type(net).__name__} has no normalisation layer with scale and shift; set burst.affine_only = false"
        )
    net.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def _agreement(logits: Tensor, label: Tensor) -> Tensor:
    """Return the share of pixels in which the student says what it is taught; the label is read on the logits' grid."""
    rows = torch.arange(logits.shape[-2], device=label.device) * label.shape[-2] // logits.shape[-2]
    columns = torch.arange(logits.shape[-1], device=label.device) * label.shape[-1] // logits.shape[-1]
    return (logits.argmax(1) == label[:, rows[:, None], columns]).float().mean()
