"""Which network a stream uses and when it begins anew, told without labels by where its frames lie (ours).

A stream comes home, or goes where nothing was learned, faster than anything can be unlearned. So each frame is held
against the statistics of the first normalised layer, the source's and the stream's own: while it lies nearer to the
source, the source is used, and where that lasts, the stream begins anew at the source. A change after which frames
still lie nearer to the stream is what running statistics are for. Found on the scene's streets 7 and 11.
"""

from __future__ import annotations

import copy

from torch import Tensor

from edge_sfda.adapt.state import State
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.normalisation import batch_norms, distances, running

_NEAR = 10.0  # frames that the source counts as near it: as few as far from it did harm by day
_PATIENCE = 2  # frames in a row nearer to the source that begin the stream anew: a single one may be a glare


class StreamGuard:
    """Watches a network that learns from a stream; a network without BatchNorm has nothing to tell by.

    Args:
        net: the source still; it is what will learn, and a copy is kept.

    Attributes:
        source: the network to use at home.
        distance: in nats a channel, of the last frame from the source; None before there was one.
        at_home: the last frame lay nearer to the source, or there was none yet.
    """

    def __init__(self, net: SegmentationNet) -> None:
        self.source: SegmentationNet = copy.deepcopy(net).eval().requires_grad_(False)
        self.distance: float | None = None
        self._net = net
        self._layers = tuple(layers[0] for layers in map(batch_norms, (self.source, net)) if layers)
        self.at_home = len(self._layers) > 0
        self._in_a_row = 0

    def look(self, x: Tensor) -> bool:
        """Look at frames before they are taken in; returns whether the stream is to begin anew, as with its first.

        Runs the network up to its first normalised layer, and waits for the device: the frame is predicted on the
        host's word.

        Args:
            x: normalised frames, float [B, 3, H, W].
        """
        if not self._layers:
            return False
        first = self.distance is None
        self.distance, from_stream = distances(self._layers[-1], self._net, x, *map(running, self._layers))
        self.at_home = self.distance < from_stream
        self._in_a_row = self._in_a_row + 1 if self.at_home else 0
        return first or self._in_a_row >= _PATIENCE

    def source_frames(self, least: float) -> float:
        """Return how many frames the source's statistics count as: the fewer, the farther the stream is from it."""
        return max(least, min(_NEAR, 1 / max(self.distance or 0.0, 1e-6)))

    def state(self) -> State:
        """Return what the next frame is held against besides the networks."""
        return State(facts={"at_home": self.at_home, "in_a_row": self._in_a_row, "distance": self.distance})

    def load_state(self, state: State) -> None:
        """Set all that `state` returns, or raise CheckpointError."""
        self.at_home = bool(state.fact("at_home"))
        self._in_a_row = int(state.fact("in_a_row"))
        distance = state.fact("distance")
        self.distance = None if distance is None else float(distance)
