"""Probe frames: what the gate judges on. A frame of the stream is a probe or is learned from, never both (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

from edge_sfda.config import ProbeConfig
from edge_sfda.errors import FrameError


class Probes:
    """A uniform sample, in bounded memory, of the frames set aside since the last `restart` (reservoir sampling).

    Which frames are set aside is drawn frame by frame, so that probes and frames to learn from show the same places. A
    frame that was set aside and then drops out of the sample is gone: it is not learned from either.

    Args:
        config: see `ProbeConfig`.

    Attributes:
        offered: frames since the last `restart`.
        set_aside: of them, not to be learned from.
    """

    def __init__(self, config: ProbeConfig) -> None:
        self.config = config
        self._rng = torch.Generator().manual_seed(config.seed)
        self._kept: Tensor | None = None
        self.restart()

    def __len__(self) -> int:
        return min(self.set_aside, self.config.count)

    def restart(self) -> None:
        """Forget all probes: those of another domain say nothing about this one."""
        self.offered = self.set_aside = 0

    def offer(self, frame: Tensor) -> bool:
        """Take a frame of the stream, or leave it; returns whether it was set aside, so must not be learned from.

        Args:
            frame: uint8 RGB [3, H, W] on the CPU, of the network's input size; copied when it is kept.

        Raises:
            FrameError: another dtype or shape than the first frame had.
        """
        if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[0] != 3:
            raise FrameError(f"got a probe of {frame.dtype} {tuple(frame.shape)}, expected uint8 RGB [3, H, W]")
        if self._kept is not None and frame.shape != self._kept.shape[1:]:
            raise FrameError(
                f"got a probe of {tuple(frame.shape)} after {tuple(self._kept.shape[1:])}; keep to one size"
            )
        self.offered += 1
        if self._draw() >= self.config.share:
            return False
        if self._kept is None:
            self._kept = torch.empty((self.config.count, *frame.shape), dtype=torch.uint8)
        self.set_aside += 1
        slot = self.set_aside - 1
        if slot >= self.config.count:  # the n-th one stays with probability count / n
            slot = int(self._draw() * self.set_aside)
        if slot < self.config.count:
            self._kept[slot].copy_(frame)
        return True

    def frames(self) -> Tensor:
        """Return the probes, uint8 RGB [N, 3, H, W], a copy; N is 0 before the first one.

        The order is no order of time.
        """
        if self._kept is None:
            return torch.empty((0, 3, 0, 0), dtype=torch.uint8)
        return self._kept[: len(self)].clone()

    def _draw(self) -> float:
        return float(torch.rand((), generator=self._rng, dtype=torch.float64))
