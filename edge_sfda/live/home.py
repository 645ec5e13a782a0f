"""Whether the camera is back where the source is at home while another network is in use (ours).

The gate takes seconds to tell, for it judges masks on probes; where frames lie shows in each of them, as to
`adapt/stream_guard.py`: what the first normalised layer is given, against the source's statistics and those in use.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from edge_sfda import checkpoint
from edge_sfda.data.frames import U8
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.inference import Normaliser
from edge_sfda.nets.normalisation import batch_norms, distances, running

_EVERY_S = 0.2  # seconds of the stream: on a CPU the first layer costs a tenth of the network
_PATIENCE = 2  # looks in a row: a single one may be a glare
_MUCH = 0.5  # of the distance to the network in use, that the one to the source is to stay below
_NEAR = 0.05  # of a weight's norm, that the first layers may have moved by: a burst's last steps train them a little
_FAR = 0.2  # nats a channel, that the network in use is to be away: a mild shift can wait for the gate

Statistics = tuple[Tensor, Tensor]


class Home:
    """Looks at frames while a network other than the source is in use.

    A network without BatchNorm, or whose first layers are not the source's but for what a burst moves them by, has
    nothing to tell by.

    Args:
        net: the source, on the CPU.
        manifest: of it.
    """

    def __init__(self, net: SegmentationNet, manifest: Manifest) -> None:
        self._net = net.eval()
        self._normaliser = Normaliser(manifest.preprocessing, torch.device("cpu"))
        self._layer = next(iter(batch_norms(net)), None)
        self._name = next((name for name, module in net.named_modules() if module is self._layer), "")
        self._in_use: Statistics | None = None
        self._last = -math.inf  # second of the stream, of the last look
        self._in_a_row = 0

    def statistics_of(self, path: Path) -> Statistics | None:
        """Return what frames are held against while a checkpoint is in use; None: nothing, as for the source itself.

        Raises:
            CheckpointError: it cannot be read.
        """
        if self._layer is None:
            return None
        theirs, mine = checkpoint.load(path).state, self._net.state_dict()
        names = list(mine)
        first = next(index for index, name in enumerate(names) if name.startswith(f"{self._name}."))
        mean, variance = (f"{self._name}.{what}" for what in ("running_mean", "running_var"))
        if not theirs.keys() >= {mean, variance, *names[:first]}:
            return None  # of another layout: a network of one's own
        if not all(_near(theirs[name], mine[name]) for name in names[:first]):
            return None
        if torch.equal(mine[mean], theirs[mean]) and torch.equal(mine[variance], theirs[variance]):
            return None
        return theirs[mean], theirs[variance]

    def leave(self, statistics: Statistics | None) -> None:
        """Hold frames against these from now on; another network is in use."""
        self._in_use = statistics
        self._last, self._in_a_row = -math.inf, 0

    def look(self, x: U8, at: float) -> bool:
        """Take in the next frame; returns whether the stream has been home for some frames.

        Args:
            x: uint8 RGB [3, H, W] of the network's input size.
            at: when it was taken, in seconds of any clock; a recording may begin anew.
        """
        if self._in_use is None or self._layer is None:
            return False
        if 0 <= at - self._last < _EVERY_S - 1e-3:  # less a millisecond: 5 frames a second are looked at, each
            return False
        self._last = at
        frame = self._normaliser(torch.from_numpy(x)[None])
        here, there = distances(self._layer, self._net, frame, running(self._layer), self._in_use)
        self._in_a_row = self._in_a_row + 1 if here < _MUCH * there and there > _FAR else 0
        return self._in_a_row >= _PATIENCE


def _near(theirs: Tensor, mine: Tensor) -> bool:
    return theirs.shape == mine.shape and bool((theirs - mine).float().norm() <= _NEAR * mine.float().norm())
