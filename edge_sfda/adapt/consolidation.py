"""The last steps of a burst: what a network and its mirror image say together is learnt into the weights (ours).

A network is right more often with its answer to the mirrored frame averaged in, above all on rare classes, but that is
a second forward for every frame from then on. So it is paid in the burst instead: what the burst would deploy is frozen
and asked both ways, and all weights learn the sharpened mean. Nothing here feeds on itself: the teacher stands still,
so unlike entropy it has nowhere to run away to.

Found on the scene's streets 13 and 17 and on CamVid's dark-drive. There, more views (scales, shifts) were no better a
teacher, colour and crops of the student's view did harm, and so did the whole rate in a pretrained encoder.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from edge_sfda.adapt import state as states
from edge_sfda.adapt.losses import soft_cross_entropy
from edge_sfda.adapt.method import StepReport, burst_factor
from edge_sfda.adapt.state import State
from edge_sfda.config import ConsolidationConfig
from edge_sfda.errors import CheckpointError
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet


class Consolidation:
    """Teaches `net` what it and its mirror image said when this was made.

    Args:
        net: to be deployed, as it is, in eval mode; trained in place, statistics apart.
        manifest: of the source, for its class weights.
        config: rates and temperature.
        steps: how many there will be; the rate falls to zero over them.
        warm_up: steps over which it rises.
        seed: of the mirrors.
    """

    def __init__(
        self,
        net: SegmentationNet,
        manifest: Manifest,
        config: ConsolidationConfig,
        *,
        steps: int,
        warm_up: int,
        seed: int,
    ) -> None:
        self.net = net
        self.steps = 0
        self._config, self._of, self._warm_up = config, steps, warm_up
        self._teacher: SegmentationNet = copy.deepcopy(net).eval().requires_grad_(False)
        self._rng = np.random.default_rng(seed)
        device = next(net.parameters()).device
        weight = manifest.class_weight or (1.0,) * len(manifest.classes)
        self._class_weight = torch.tensor(weight, device=device)
        # a pretrained encoder forgets at the decoder's rate; where nobody knows which layers are which, all may be one
        named = dict(net.named_parameters())
        head = [p for name, p in named.items() if not name.startswith("encoder.")]
        head = [] if len(head) == len(named) else head
        mine = {id(p) for p in head}
        groups = ((head, 1.0), ([p for p in named.values() if id(p) not in mine], config.encoder_rate_scale))
        # fused: takes the rate as a tensor
        self._rates = [(torch.zeros((), device=device), scale) for group, scale in groups if group and scale > 0]
        trained = [group for group, scale in groups if group and scale > 0]
        net.requires_grad_(False)
        for group in trained:
            for parameter in group:
                parameter.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate} for group, (rate, _) in zip(trained, self._rates, strict=True)],
            weight_decay=0.0,
            fused=True,
        )

    def step(self, x: Tensor) -> StepReport:
        """Learn from normalised frames, float [B, 3, H, W]."""
        target = self._target(x)
        mirrored = torch.from_numpy(self._rng.random(len(x)) < 0.5).to(x.device, non_blocking=True)[:, None, None, None]
        logits = self.net(torch.where(mirrored, x.flip(-1), x)).logits
        taught = torch.where(mirrored, target.flip(-1), target)
        label = taught.argmax(1)
        weight = self._class_weight[label]
        loss = (weight * soft_cross_entropy(logits, taught)).sum() / weight.sum()
        rate = self._config.rate * burst_factor(self.steps, self._of, self._warm_up)
        for tensor, scale in self._rates:
            tensor.fill_(rate * scale)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self.steps += 1
        agreement = (logits.detach().argmax(1) == label).float().mean()
        scalars = {"confidence": target.amax(1).mean(), "agreement": agreement, "rate": self._rates[0][0].clone()}
        return StepReport(loss.detach(), scalars)

    def state(self) -> State:
        """Return the frozen teacher, the moments and the draws; the network is its owner's."""
        own = State(facts={"steps": self.steps, "random": self._rng.bit_generator.state})
        return State.of(
            own=own, teacher=states.of_module(self._teacher), optimizer=states.of_optimizer(self._optimizer)
        )

    def load_state(self, state: State) -> None:
        """Set all that `state` returns, or raise CheckpointError."""
        self.steps = int(state.fact("own.steps"))
        try:
            self._rng.bit_generator.state = state.fact("own.random")
        except (TypeError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"the saved state of the mirrors' draws cannot be read ({error}); start anew"
            ) from error
        states.into_module(self._teacher, state.part("teacher"))
        states.into_optimizer(self._optimizer, state.part("optimizer"))

    @torch.no_grad()
    def _target(self, x: Tensor) -> Tensor:
        """Return the sharpened mean of what the teacher says of frames and mirror images, float [B, C, h, w]."""
        probs = self._teacher(torch.cat((x, x.flip(-1)))).logits.softmax(1)
        mean = probs[: len(x)] + probs[len(x) :].flip(-1)
        sharp: Tensor = mean.pow(1 / self._config.temperature)
        return sharp / sharp.sum(1, keepdim=True)
