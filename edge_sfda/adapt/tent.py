"""TENT, and the peers that grew out of it: scale and shift of the normalisation alone, by entropy.

Each by its paper's rules as far as they carry over from pictures to pixels; the docstrings say where they do not.
`config.preset` holds the settings that go with each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.adapt import state as states
from edge_sfda.adapt.losses import entropy
from edge_sfda.adapt.method import Method, StepReport
from edge_sfda.adapt.state import State
from edge_sfda.config import AdaptConfig
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.normalisation import affine_parameters, batch_norms

_MARGIN = 0.4  # of ln C: pixels of more entropy are not learned from (EATA, SAR)


class Tent(Method):
    """Entropy minimisation over scale and shift alone (Wang et al., ICLR 2021).

    Offline: statistics of each batch in the step, re-estimated over the target at the end. On a stream, where a step
    sees one frame, whose statistics must not be used raw: the running ones.

    What follows here changes `_loss`, `_update` or what comes after it.
    """

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, config)
        net.requires_grad_(False)
        self.affine: list[nn.Parameter] = affine_parameters(net)
        for parameter in self.affine:
            parameter.requires_grad_(True)
        self.source = [parameter.detach().clone() for parameter in self.affine]
        # a network without affine normalisation has nothing to train; optimizers refuse an empty list
        self.optimizer = self._make_optimizer(config.burst.rate) if self.affine else None
        self.frames: Sequence[Tensor] = ()

    def begin(self, frames: Sequence[Tensor]) -> None:
        """Start from the source's weights; batches bring their own statistics, a stream a lower rate."""
        self.frames = frames
        if self.optimizer is not None and len(frames) == 0:
            self.optimizer.param_groups[0]["lr"] = self.config.burst.rate * self.config.burst.online_share
        for layer in batch_norms(self.net) if len(frames) > 0 else ():
            layer.train()

    def step(self, frames: Tensor) -> StepReport:
        """Take one step."""
        x = self._input(frames)
        loss = self._loss(frames, x)
        if self.optimizer is not None:
            self.optimizer.zero_grad()
            loss = self._update(self.optimizer, x, loss)
        return StepReport(loss.detach())

    def rejoin(self, frames: Sequence[Tensor]) -> None:
        """Let batches bring their own statistics again, and know the frames of the end."""
        Tent.begin(self, frames)

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

    def _make_optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.affine, lr=rate)

    def _loss(self, frames: Tensor, x: Tensor) -> Tensor:
        """Return what is minimised, from frames uint8 [B, 3, H, W] and the network's input of them."""
        return entropy(self.net(x).logits).mean()

    def _update(self, optimizer: torch.optim.Optimizer, x: Tensor, loss: Tensor) -> Tensor:
        """Take the step that the loss asks for; gradients are cleared. Returns the loss to report."""
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    @torch.no_grad()
    def _return_to_source(self, where: Tensor | None = None) -> None:
        """Set scales and shifts back to the source's, and forget the moments; `where` (bool, a scalar) may forbid it.

        The count of steps stays: it may lie on the host, where a condition on the device cannot reach it.
        """
        assert self.optimizer is not None, "nothing is trained"
        for parameter, source in zip(self.affine, self.source, strict=True):
            parameter.copy_(source if where is None else torch.where(where, source, parameter))
            for name, moment in self.optimizer.state[parameter].items():
                if name != "step" and moment is not None:
                    moment.copy_(
                        torch.zeros_like(moment)
                        if where is None
                        else torch.where(where, torch.zeros_like(moment), moment)
                    )


class _SurePixels(Tent):
    """ETA's loss (Niu et al., ICML 2022): sure pixels alone, the surer the heavier.

    The paper's second filter, against samples that are like those before, would drop nearly every frame of a camera; it
    is left out.
    """

    def _loss(self, frames: Tensor, x: Tensor) -> Tensor:
        logits = self.net(x).logits
        h = entropy(logits)
        margin = _MARGIN * math.log(logits.shape[1])
        sure = (h.detach() < margin).float()
        weight = sure * torch.exp(margin - h.detach())
        return (weight * h).sum() / sure.sum().clamp(min=1)


class Eata(_SurePixels):
    """EATA (Niu et al., ICML 2022): ETA, and a penalty on change where Fisher's information is large.

    The paper takes that information from source data. There is none here, so it is of the first target frames under the
    source's own labels.
    """

    penalty: ClassVar[float] = 2000.0  # the paper's
    looks: ClassVar[int] = 16  # frames of a stream, or batches of a burst, that the information is taken from

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, config)
        self.fisher = [torch.zeros_like(source) for source in self.source]
        self.looked = 0

    def begin(self, frames: Sequence[Tensor]) -> None:
        """Take the information from the frames, where there are any yet."""
        super().begin(frames)
        for x in self._batches(frames)[: self.looks] if len(frames) > 0 else ():
            self._look(x)

    def state(self) -> State:
        """Return the information as well."""
        own = State({str(i): fisher for i, fisher in enumerate(self.fisher)}, {"looked": self.looked})
        return super().state().joined(eata=own)

    def load_state(self, state: State) -> None:
        """See `Method.load_state`."""
        super().load_state(state)
        self.looked = int(state.fact("eata.looked"))
        for i, fisher in enumerate(self.fisher):
            fisher.copy_(state.tensor(f"eata.{i}"))

    def _loss(self, frames: Tensor, x: Tensor) -> Tensor:
        if len(self.frames) == 0 and self.looked < self.looks:
            self._look(x)
        loss = super()._loss(frames, x)
        for parameter, source, fisher in zip(self.affine, self.source, self.fisher, strict=True):
            loss = loss + self.penalty / max(1, self.looked) * (fisher * (parameter - source).square()).sum()
        return loss

    def _look(self, x: Tensor) -> None:
        """Add the squared gradients of the cross-entropy against the network's own labels."""
        if not self.affine:
            return
        logits = self.net(x).logits
        loss = F.cross_entropy(logits, logits.argmax(1))
        for fisher, gradient in zip(self.fisher, torch.autograd.grad(loss, self.affine), strict=True):
            fisher.add_(gradient.square())
        self.looked += 1


class RDumb(_SurePixels):
    """RDumb (Press et al., NeurIPS 2023): ETA, and back to the source every thousand steps.

    Running statistics stay: they belong to the stream, not to what was learnt.
    """

    period: ClassVar[int] = 1000  # the paper's

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, config)
        self.steps = 0

    def state(self) -> State:
        """Return the count of steps as well."""
        return super().state().joined(rdumb=State(facts={"steps": self.steps}))

    def load_state(self, state: State) -> None:
        """See `Method.load_state`."""
        super().load_state(state)
        self.steps = int(state.fact("rdumb.steps"))

    def _update(self, optimizer: torch.optim.Optimizer, x: Tensor, loss: Tensor) -> Tensor:
        loss = super()._update(optimizer, x, loss)
        self.steps += 1
        if self.steps % self.period == 0:
            self._return_to_source()
            optimizer.state.clear()
        return loss


class Sar(Tent):
    """SAR (Niu et al., ICLR 2023): sure pixels, a step that looks for flat minima, a reset when the network collapses.

    The gradient is that at the worst point within a small distance. The paper also freezes the last stage of a ResNet
    or a transformer; which of a segmentation network's stages that would be is not said, so none is.
    """

    distance: ClassVar[float] = 0.05  # the paper's rho
    average: ClassVar[float] = 0.9  # of the moving average of the loss
    collapsed: ClassVar[float] = 0.2 / math.log(1000)  # of ln C: the paper's 0.2 is for a thousand classes

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        super().__init__(net, manifest, config)
        self.usual_loss = torch.full((), torch.nan, device=self.device)

    def state(self) -> State:
        """Return the moving average as well; NaN before the first step, which no state can hold, as -1."""
        return super().state().joined(sar=State({"usual_loss": self.usual_loss.nan_to_num(nan=-1.0)}))

    def load_state(self, state: State) -> None:
        """See `Method.load_state`."""
        super().load_state(state)
        saved = state.tensor("sar.usual_loss").to(self.device)
        self.usual_loss = torch.where(saved < 0, torch.nan, saved)

    def _make_optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.affine, lr=rate, momentum=0.9)

    def _loss(self, frames: Tensor, x: Tensor) -> Tensor:
        h = entropy(self.net(x).logits)
        self._sure = h.detach() < self._margin
        return self._mean(h, self._sure)

    def _update(self, optimizer: torch.optim.Optimizer, x: Tensor, loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, self.affine)
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        before = [parameter.detach().clone() for parameter in self.affine]
        with torch.no_grad():
            for parameter, gradient in zip(self.affine, gradients, strict=True):
                parameter.add_(gradient * (self.distance / (length + 1e-12)))
        h = entropy(self.net(x).logits)
        sure = self._sure & (h.detach() < self._margin)
        worst = self._mean(h, sure)
        worst.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter, old in zip(self.affine, before, strict=True):
                parameter.copy_(old)
        optimizer.step()
        self._recover(worst.detach(), sure.any())
        return loss

    def _recover(self, loss: Tensor, counts: Tensor) -> None:
        """Move the average of the loss, and go back to the source where it shows that everything is one class."""
        moved = self.average * self.usual_loss + (1 - self.average) * loss
        moved = torch.where(self.usual_loss.isnan(), loss, moved)
        self.usual_loss = torch.where(counts, moved, self.usual_loss)
        collapsed = self.usual_loss < self.collapsed * math.log(len(self.manifest.classes))
        self._return_to_source(collapsed)
        self.usual_loss = torch.where(collapsed, torch.nan, self.usual_loss)

    @property
    def _margin(self) -> float:
        return _MARGIN * math.log(len(self.manifest.classes))

    @staticmethod
    def _mean(h: Tensor, sure: Tensor) -> Tensor:
        return (h * sure).sum() / sure.sum().clamp(min=1)
