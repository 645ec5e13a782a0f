"""What a network and its mirror image say together is learnt into the weights (ours).

A network is right more often with its answer to the mirrored frame averaged in, above all on rare classes, but that is
a second forward for every frame from then on. So it is paid while learning instead: a teacher is asked both ways, and
all weights learn the sharpened mean. In the last steps of a burst the teacher is what the burst would deploy, frozen:
it feeds on nothing, so unlike entropy it has nowhere to run away to. On a stream it is the moving average.

Found on the scene's streets 7, 13 and 17 and on CamVid's dark-drive. There, more views (scales, shifts) were no better
a teacher, colour and crops of the student's view did harm, and so did the whole rate in a pretrained encoder.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from edge_sfda.adapt import state as states
from edge_sfda.adapt.losses import soft_cross_entropy
from edge_sfda.adapt.method import StepReport
from edge_sfda.adapt.state import State
from edge_sfda.config import ConsolidationConfig
from edge_sfda.errors import NetError
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet


class Consolidation:
    """Teaches `net` what a teacher says of frames and of their mirror images.

    Args:
        net: in eval mode; trained in place, statistics apart. Outside of `step` its gradients are as they were.
        manifest: of the source, for its class weights.
        config: rates and temperature.
        seed: of the mirrors.
        teacher: whose word it is; None freezes a copy of `net`.

    Raises:
        NetError: nothing is left to train: the encoder's rate is 0, and `net` does not say what its encoder is.
    """

    def __init__(
        self,
        net: SegmentationNet,
        manifest: Manifest,
        config: ConsolidationConfig,
        *,
        seed: int,
        teacher: SegmentationNet | None = None,
    ) -> None:
        self.net = net
        self.frozen = teacher is None
        self.teacher = copy.deepcopy(net).eval().requires_grad_(False) if teacher is None else teacher
        self._config = config
        self._rng = np.random.default_rng(seed)
        device = next(net.parameters()).device
        weight = manifest.class_weight or (1.0,) * len(manifest.classes)
        self._class_weight = torch.tensor(weight, device=device)
        groups = [(group, scale) for group, scale in _groups(net, config.encoder_rate_scale) if group and scale > 0]
        if not groups:
            raise NetError(
                f"{type(net).__name__} does not say which of its layers are the encoder, so that "
                "consolidation.encoder_rate_scale = 0 leaves nothing to train; raise it, or set consolidation.share "
                "and consolidation.online_share = 0"
            )
        self._trained = {id(parameter) for group, _ in groups for parameter in group}
        self._rates = [(torch.zeros((), device=device), scale) for _, scale in groups]
        # fused: takes the rate as a tensor
        self._optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate} for (group, _), (rate, _) in zip(groups, self._rates, strict=True)],
            weight_decay=0.0,
            fused=True,
        )

    def step(self, x: Tensor, factor: float, *, said: Tensor | None = None) -> StepReport:
        """Learn from frames at `factor` of the rate.

        Args:
            x: normalised, float [B, 3, H, W].
            factor: 0..1.
            said: the teacher's softmax of `x`, float [B, C, h, w], where it was asked already.
        """
        target = self._target(x, said)
        mirrored = torch.from_numpy(self._rng.random(len(x)) < 0.5).to(x.device, non_blocking=True)[:, None, None, None]
        taught = torch.where(mirrored, target.flip(-1), target)
        label = taught.argmax(1)
        weight = self._class_weight[label]
        for rate, scale in self._rates:
            rate.fill_(self._config.rate * factor * scale)
        with self._training():
            logits = self.net(torch.where(mirrored, x.flip(-1), x)).logits
            loss = (weight * soft_cross_entropy(logits, taught)).sum() / weight.sum()
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        agreement = (logits.detach().argmax(1) == label).float().mean()
        scalars = {"confidence": target.amax(1).mean(), "agreement": agreement, "rate": self._rates[0][0].clone()}
        return StepReport(loss.detach(), scalars)

    def forget(self) -> None:
        """Drop the moments: the network was set back."""
        self._optimizer.state.clear()

    def state(self) -> State:
        """Return the moments, the draws, and a teacher that was frozen here; any other belongs to its owner."""
        parts = {"own": states.of_draws(self._rng), "optimizer": states.of_optimizer(self._optimizer)}
        return State.of(**parts, **({"teacher": states.of_module(self.teacher)} if self.frozen else {}))

    def load_state(self, state: State) -> None:
        """Set all that `state` returns, or raise CheckpointError."""
        states.into_draws(self._rng, state.part("own"), whose="mirrors'")
        if self.frozen:
            states.into_module(self.teacher, state.part("teacher"))
        states.into_optimizer(self._optimizer, state.part("optimizer"))

    @contextmanager
    def _training(self) -> Iterator[None]:
        """In the body what is trained here requires a gradient, and nothing else."""
        before = [(parameter, parameter.requires_grad) for parameter in self.net.parameters()]
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in self._trained)
        try:
            yield
        finally:
            for parameter, required in before:
                parameter.requires_grad_(required)

    @torch.no_grad()
    def _target(self, x: Tensor, said: Tensor | None = None) -> Tensor:
        """Return the sharpened mean of what the teacher says of frames and mirror images, float [B, C, h, w]."""
        unasked = x.flip(-1) if said is not None else torch.cat((x, x.flip(-1)))
        probs = self.teacher(unasked).logits.softmax(1)
        if said is None:
            said, probs = probs[: len(x)], probs[len(x) :]
        mean = said + probs.flip(-1)
        sharp: Tensor = mean.pow(1 / self._config.temperature)
        return sharp / sharp.sum(1, keepdim=True)


def _groups(net: SegmentationNet, encoder_scale: float) -> list[tuple[list[torch.nn.Parameter], float]]:
    """Return what there is to train with its share of the rate.

    A pretrained encoder forgets at the decoder's rate; where nobody knows which layers are which, all may be one.
    """
    encoder = net.encoder_parameters()
    known = {id(parameter) for parameter in encoder}
    others = [parameter for parameter in net.parameters() if id(parameter) not in known]
    return [(others, 1.0 if encoder else encoder_scale), (encoder, encoder_scale)]
