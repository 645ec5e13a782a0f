"""The one interface of everything that adapts a network: begin, step, finish; and what they share.

No parameter takes a source image or a label: source-free shows in the signatures.
"""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from edge_sfda.adapt import state as states
from edge_sfda.adapt.state import State
from edge_sfda.config import AdaptConfig, to_dict
from edge_sfda.errors import CheckpointError, DivergenceError, FrameError
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.inference import Normaliser, check_input
from edge_sfda.nets.normalisation import estimate, observe

_STATISTICS_BATCH = 4  # a single frame's statistics are too narrow a sample to normalise with


@dataclass(frozen=True)
class StepReport:
    """What one step did; scalars on the device, so that nothing waits for it. NaN where a method has no such thing."""

    loss: Tensor
    scalars: dict[str, Tensor] = field(default_factory=dict)


class Method(abc.ABC):
    """Adapts `net` in place from unlabelled frames.

    Args:
        net: the source network, on its device; taken over and changed.
        manifest: of that network.
        config: everything else.

    Attributes:
        net: the network that is trained.
        trains: whether its steps change anything; False takes none offline.
        seen: frames of the stream so far.
    """

    trains: ClassVar[bool] = True

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> None:
        self.net = net.eval()
        self.manifest = manifest
        self.config = config
        self.device = next(net.parameters()).device
        self.normaliser = Normaliser(manifest.preprocessing, self.device)
        self.seen = 0
        self._observed = 0

    @property
    def deployed(self) -> SegmentationNet:
        """The network to infer with now."""
        return self.net

    def snapshot(self) -> SegmentationNet:
        """Return a copy of what would be deployed were the burst over now; the burst goes on as if nobody had asked."""
        return copy.deepcopy(self.deployed).eval()

    def begin(self, frames: Sequence[Tensor]) -> None:
        """Do what comes before the first step, from a first look at the target: step 0, unless a method has more.

        Args:
            frames: uint8 RGB [3, H, W] each, on any device; empty for a stream, of which nothing is known yet.
        """
        self._begin_statistics(frames, blend=self.config.statistics.blend)

    @abc.abstractmethod
    def step(self, frames: Tensor) -> StepReport:
        """Learn from frames, uint8 RGB [B, 3, H, W] on the network's device; nothing else is needed."""

    def observe(self, frames: Tensor) -> None:
        """Take in the statistics of a stream's next frames, uint8 RGB [B, 3, H, W], before they are learned from."""
        self._take_in(self._input(frames))

    def finish(self) -> None:
        """Do what comes after the last step.

        Raises:
            DivergenceError: a deployed weight is not finite.
        """
        check_finite(self.deployed)

    def state(self) -> State:
        """Return everything that the next step depends on besides its frames; the tensors are the live ones."""
        facts = {"config": to_dict(self.config), "seen": self.seen, "observed": self._observed}
        own = State({"random": torch.get_rng_state()}, facts)
        return State.of(method=own, net=states.of_module(self.net))

    def load_state(self, state: State) -> None:
        """Go on from `state` bit for bit (on a CPU); this method must be fresh and over the same source network.

        The process's own random numbers are set as well: a network of your own may draw some.

        Raises:
            CheckpointError: the state is of another method, other settings or another network.
        """
        own = state.part("method")
        if own.fact("config") != to_dict(self.config):
            raise CheckpointError(
                "the saved state is of an adaptation with other settings; give the same, or start anew"
            )
        states.into_module(self.net, state.part("net"))
        self.seen, self._observed = int(own.fact("seen")), int(own.fact("observed"))
        torch.set_rng_state(own.tensor("random").cpu())

    def rejoin(self, frames: Sequence[Tensor]) -> None:
        """Take up a burst after `load_state` in place of `begin`, over the same frames."""
        return

    def _begin_statistics(self, frames: Sequence[Tensor], *, blend: float) -> None:
        """Blend the target's BatchNorm statistics into the network, and into whatever shares them."""
        if len(frames) > 0:
            estimate(self.net, self._batches(frames), blend=blend)

    def _batches(self, frames: Sequence[Tensor]) -> list[Tensor]:
        """Normalised batches of a few dozen frames spread evenly over all of them."""
        count = min(self.config.statistics.frames, len(frames))
        picked = [frames[int(i * len(frames) / count)] for i in range(count)]
        size = min(_STATISTICS_BATCH, count)
        batches = [picked[i : i + size] for i in range(0, count - size + 1, size)]
        return [self._input(stack(batch).to(self.device)) for batch in batches]

    def _take_in(self, x: Tensor) -> None:
        """Move the statistics towards normalised frames of a stream; the source's count as the first few frames."""
        statistics = self.config.statistics
        momentum = max(1 / (self._observed + self._source_frames()), statistics.momentum) * statistics.blend
        if momentum > 0:
            observe(self.net, x, momentum=momentum)
        self._observed += 1

    def _source_frames(self) -> float:
        return self.config.statistics.source_frames

    def _input(self, frames: Tensor) -> Tensor:
        self._check(frames)
        return self.normaliser(frames)

    def _check(self, frames: Tensor) -> None:
        check_input(frames, self.net)
        pre = self.manifest.preprocessing
        if tuple(frames.shape[-2:]) != (pre.height, pre.width):
            raise FrameError(
                f"got frames of {tuple(frames.shape[-2:])}, the network's input is ({pre.height}, {pre.width}); "
                "bring them there with data.frames.to_input"
            )


def stack(frames: Sequence[Tensor]) -> Tensor:
    """Return frames, uint8 RGB [3, H, W] each, as one batch.

    Raises:
        FrameError: their shapes differ.
    """
    shapes = sorted({tuple(frame.shape) for frame in frames})
    if len(shapes) > 1:
        raise FrameError(f"got frames of {shapes} in one batch; bring all to one size with data.frames.to_input")
    return torch.stack(list(frames))


def check_finite(net: SegmentationNet) -> None:
    """Raise DivergenceError naming the first tensor of `net` that holds NaN or infinity."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DivergenceError(f"{name} is not finite after adaptation; lower burst.rate. The source is untouched")


def burst_factor(step: int, steps: int, warm_up: int) -> float:
    """Return the rate's factor: linear rise over `warm_up` steps, then half a cosine to zero at `steps`."""
    rise = min(1.0, (step + 1) / (warm_up + 1))
    return rise * 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
