"""Metric-based online ClassMix, MOCM (the paper's part 6; the sampling rule is ours).

Recent target frames with the teacher's labels and weights wait in a ring. For each frame a donor is drawn, and of the
donor's classes a share, with probability growing with the class's mean weight; their pixels are pasted, and label and
weight travel with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_sfda.adapt.grid import cell_size
from edge_sfda.adapt.state import State
from edge_sfda.config import MixingConfig
from edge_sfda.errors import CheckpointError


class DonorMemory:
    """A ring of donors, all memory taken at the first push.

    Args:
        config: size of the ring and share of classes.
        classes: C.
        seed: of every draw.
        device: where the ring lives.
    """

    def __init__(self, config: MixingConfig, classes: int, *, seed: int, device: torch.device) -> None:
        self.config = config
        self.classes = classes
        self.device = device
        self.rng = torch.Generator(device).manual_seed(seed)
        self.pushed = 0
        self._frames: Tensor | None = None

    def __len__(self) -> int:
        return min(self.pushed, self.config.memory)

    def push(self, frames: Tensor, label: Tensor, weight: Tensor) -> None:
        """Keep a batch, oldest out first.

        Args:
            frames: uint8 [B, 3, H, W].
            label: int64 [B, h, w], 0..C-1; h, w divide H, W up to rounding.
            weight: float [B, h, w], 0..1.
        """
        if self._frames is None:
            self._frames, self._label, self._weight = self._allocate(frames, label, weight)
        for frame, lab, w in zip(frames, label, weight, strict=True):
            slot = self.pushed % self.config.memory
            self._frames[slot].copy_(frame)
            self._label[slot].copy_(lab)
            self._weight[slot].copy_(w)
            self.pushed += 1

    def mix(self, frames: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Paste donors' classes into a batch; shapes as in `push`, and the results are new tensors.

        Before the first push the batch comes back as it is.
        """
        if self._frames is None or len(self) == 0:
            return frames, label, weight
        count = frames.shape[0]
        donor = torch.randint(len(self), (count,), generator=self.rng, device=frames.device)
        donor_label, donor_weight = self._label[donor].long(), self._weight[donor]
        chosen = self._choose(donor_label, donor_weight)
        paste = chosen.gather(1, donor_label.flatten(1)).view_as(donor_label)
        mask = _enlarge(paste, frames.shape[-2], frames.shape[-1])[:, None]
        return (
            torch.where(mask, self._frames[donor], frames),
            torch.where(paste, donor_label, label),
            torch.where(paste, donor_weight, weight),
        )

    def state(self) -> State:
        """Return the donors, their number and the state of the draws."""
        tensors = {"random": self.rng.get_state()}
        if self._frames is not None:  # less the slots that nothing was pushed to yet: they hold anything
            count = len(self)
            tensors |= {"frames": self._frames[:count], "label": self._label[:count], "weight": self._weight[:count]}
        return State(tensors, {"pushed": self.pushed})

    def load_state(self, state: State) -> None:
        """Set all that `state` returns, or raise CheckpointError."""
        self.pushed = int(state.fact("pushed"))
        self.rng.set_state(state.tensor("random").cpu())
        self._frames = None
        if len(self) == 0:
            return
        saved = tuple(state.tensor(name) for name in ("frames", "label", "weight"))
        if any(len(tensor) != len(self) for tensor in saved):
            raise CheckpointError(f"the saved state has {len(saved[0])} donors, expected {len(self)}; start anew")
        kept = self._allocate(*(tensor.to(self.device) for tensor in saved))
        for place, tensor in zip(kept, saved, strict=True):
            place[: len(self)].copy_(tensor)
        self._frames, self._label, self._weight = kept

    def _allocate(self, frames: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        size, device = self.config.memory, frames.device
        return (
            torch.empty((size, *frames.shape[1:]), dtype=frames.dtype, device=device),
            torch.empty((size, *label.shape[1:]), dtype=torch.uint8, device=device),
            torch.empty((size, *weight.shape[1:]), device=device),
        )

    def _choose(self, label: Tensor, weight: Tensor) -> Tensor:
        """Return bool [B, C]: a share of each donor's classes, without replacement, odds by mean weight.

        Gumbel noise on log odds and a rank make it one draw without a loop or a host sync.
        """
        flat = label.flatten(1)
        zeros = torch.zeros(label.shape[0], self.classes, device=label.device)
        counts = zeros.scatter_add(1, flat, torch.ones_like(weight.flatten(1)))
        mean = zeros.scatter_add(1, flat, weight.flatten(1)) / counts.clamp(min=1)
        uniform = torch.rand(mean.shape, generator=self.rng, device=label.device).clamp_(1e-6, 1 - 1e-6)
        key = (mean + 1e-6).log() - (-uniform.log()).log()
        key = key.masked_fill(counts == 0, -torch.inf)
        rank = key.argsort(1, descending=True).argsort(1)
        wanted = ((counts > 0).sum(1, keepdim=True) * self.config.fraction).ceil()
        return (rank < wanted) & (counts > 0)


def _enlarge(mask: Tensor, height: int, width: int) -> Tensor:
    """Repeat each cell of [B, h, w] over its block of pixels; the last blocks are cut, or drawn out, to [B, H, W]."""
    rows, columns = (
        torch.arange(pixels, device=mask.device).floor_divide(cell_size(pixels, cells)).clamp(max=cells - 1)
        for pixels, cells in zip((height, width), mask.shape[-2:], strict=True)
    )
    return mask[:, rows[:, None], columns]
