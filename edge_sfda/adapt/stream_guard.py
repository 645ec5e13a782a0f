"""Which network a stream uses and when it begins anew, told without labels by where its frames lie (ours).

A stream comes home, or goes where nothing was learned, faster than anything can be unlearned. So each frame is held
against the statistics of the first normalised layer, the source's and the stream's own: while it lies nearer to the
source, the source is used, and where that lasts, the stream begins anew at the source. A change after which frames
still lie nearer to the stream is what running statistics are for. Found on the scene's streets 7 and 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edge_sfda.adapt.state import State
from edge_sfda.nets.normalisation import batch_norms, divergence, moments, running

_NEAR = 10.0  # frames that the source counts as near it: with 4 a stream by day lost .7 points
_PATIENCE = 2  # frames in a row nearer to the source that begin the stream anew: a single one may be a glare


class StreamGuard:
    """Watches a network that learns from a stream; a network without BatchNorm has nothing to tell by.

    Args:
        net: with the source's statistics still.

    Attributes:
        distance: in nats a channel, of the last frame from the source; None before there was one.
        at_home: the last frame lay nearer to the source, or there was none yet.
    """

    def __init__(self, net: nn.Module) -> None:
        self._layer = next(iter(batch_norms(net)), None)
        self._source = () if self._layer is None else tuple(value.clone() for value in running(self._layer))
        self._seen: Tensor | None = None  # the last frame's distance from the source and from the stream, [2]
        self.distance: float | None = None
        self.at_home = self._layer is not None
        self._in_a_row = 0

    @contextmanager
    def looking(self) -> Iterator[None]:
        """In the body the network sees one batch of the stream, and its statistics have not moved towards it before."""
        if self._layer is None:
            yield
            return
        # while it lasts: a hook that stayed would be copied with every copy of the network, and this object with it
        listening = self._layer.register_forward_pre_hook(self._listen)
        try:
            yield
        finally:
            listening.remove()

    def look(self) -> bool:
        """Take in what was seen; returns whether the stream is to begin anew, as with its first frame.

        Waits for the device: the frame after this one is predicted on the host's word.
        """
        if self._seen is None:
            return False
        first = self.distance is None
        self.distance, from_stream = self._seen.tolist()
        self.at_home = self.distance < from_stream
        self._in_a_row = self._in_a_row + 1 if self.at_home else 0
        return first or self._in_a_row >= _PATIENCE

    def source_frames(self, least: float) -> float:
        """Return how many frames the source's statistics count as: the fewer, the farther the stream is from it."""
        return max(least, min(_NEAR, 1 / max(self.distance or 0.0, 1e-6)))

    def state(self) -> State:
        """Return what the next frame is held against besides the network."""
        return State(facts={"at_home": self.at_home, "in_a_row": self._in_a_row, "distance": self.distance})

    def load_state(self, state: State) -> None:
        """Set all that `state` returns, or raise CheckpointError."""
        self.at_home = bool(state.fact("at_home"))
        self._in_a_row = int(state.fact("in_a_row"))
        distance = state.fact("distance")
        self.distance = None if distance is None else float(distance)

    @torch.no_grad()
    def _listen(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert self._layer is not None, "it is what listens"
        seen = moments(inputs[0])
        self._seen = torch.stack([divergence(*seen, *known) for known in (self._source, running(self._layer))])
