"""Probe frames: what the gate judges on. A frame of the stream is a probe or is learned from, never both (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from edge_sfda.config import ProbeConfig
from edge_sfda.data.datasets import LabelledSet, open_dataset
from edge_sfda.data.frames import U8, to_input
from edge_sfda.errors import FrameError, LabelError
from edge_sfda.manifest import Manifest

_MOST_LABELLED = 64  # a person labels a few; a whole data set would make each judgement take minutes


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


@dataclass(frozen=True, eq=False)
class LabelledProbes:
    """Frames with labels, for the few who have some: they outrank every vote.

    Args:
        frames: uint8 RGB [N, 3, H, W], of the network's input size.
        labels: uint8 [N, H, W] of class ids or the ignored one, of the same size.

    Raises:
        LabelError: none, or the sizes differ.
    """

    frames: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if len(self.frames) == 0 or (len(self.frames), *self.frames.shape[2:]) != tuple(self.labels.shape):
            raise LabelError(
                f"got labelled probes of {tuple(self.frames.shape)} with labels of {tuple(self.labels.shape)}; "
                "expected [N, 3, H, W] with [N, H, W], one or more"
            )

    @staticmethod
    def of(labelled: LabelledSet, manifest: Manifest) -> LabelledProbes:
        """Return a labelled set, evenly thinned out to 64 frames, at the size of the network's input.

        Raises:
            LabelError: the set is empty, or has other classes than the network.
        """
        if labelled.classes.names != manifest.classes.names:
            raise LabelError(
                f"labelled probes have the classes {', '.join(labelled.classes.names)}, the network has "
                f"{', '.join(manifest.classes.names)}; give --classes"
            )
        if len(labelled) == 0:
            raise LabelError("got no labelled probes; check the folder and --classes")
        pre, count = manifest.preprocessing, min(len(labelled), _MOST_LABELLED)
        frames, labels = [], []
        for index in range(count):
            image, label = labelled[index * len(labelled) // count]
            frames.append(torch.from_numpy(to_input(image, pre)))
            small = cv2.resize(label, (pre.width, pre.height), interpolation=cv2.INTER_NEAREST)
            small = np.where(small == labelled.classes.ignore_id, manifest.classes.ignore_id, small)
            labels.append(torch.from_numpy(small.astype(np.uint8)))
        return LabelledProbes(torch.stack(frames), torch.stack(labels))


def read_labelled(folder: str | None, manifest: Manifest) -> tuple[U8, U8] | None:
    """Return the labelled probes of a folder as a worker takes them: frames [N, 3, H, W] and labels [N, H, W], uint8.

    Raises:
        UsageError, LabelError: see `open_dataset` and `LabelledProbes.of`.
    """
    if folder is None:
        return None
    made = LabelledProbes.of(open_dataset([folder]), manifest)
    return made.frames.numpy(), made.labels.numpy()
