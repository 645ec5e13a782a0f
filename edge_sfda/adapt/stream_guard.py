"""Which network a stream uses, and when it begins anew or forgets, told without labels by where its frames lie (ours).

A stream comes home, or goes where nothing was learned, faster than anything can be unlearned. So each frame is held
against the statistics of the first normalised layer, the source's and the stream's own: while it lies nearer to the
source, the source is used, and where that lasts, the stream begins anew at the source. Where frames lie farther from
the stream than its frames did, the stream has changed: what its statistics are of is over, and they count as a few
frames from there on, so that new ones settle as fast as at its beginning. Where frames lie near the source on average,
the shift is mild, and a mix of the source and what the stream has learnt is better than either, as after a burst
(`guard.py`). Found on the scene's streets 7, 11, 13 and 17; what counts as a change and how to mix, on CamVid's drive
pairs as well.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from edge_sfda.adapt.guard import retreat
from edge_sfda.adapt.state import State
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.normalisation import batch_norms, distances, running

_NEAR = 10.0  # frames that the source counts as near it: as few as far from it did harm by day
_PATIENCE = 2  # frames in a row nearer to the source that begin the stream anew: a single one may be a glare
_CHANGED = 3.0  # times the usual distance from the stream's statistics
_FAR = 0.1  # nats a channel, the least distance that is a change: on a steady stream the usual one is next to nothing
_LASTING = 5  # frames in a row so far that are a change: a lamp by night, or a flash that is kept, takes two to four
_FORGOTTEN = 3.0  # frames that these count as after a change; more near the source
_USUAL = 0.2  # share of a frame in the moving averages of distances
_MILD = 0.3  # nats a channel from the source on average: by day .1, in a city .2 to .3, in rain .75
_LEARNT = 1 / 3  # share of what a stream has learnt that is used under a mild shift


class StreamGuard:
    """Watches a network that learns from a stream; a network without BatchNorm has nothing to tell by.

    Args:
        net: as the stream begins; it is what will learn, and a copy is kept.

    Attributes:
        source: the network to use at home.
        mix: the network to use under a mild shift, as it was when last chosen.
        distance: in nats a channel, of the last frame from the source; None before there was one.
        at_home: the last frame lay nearer to the source, or there was none yet.
        mild: the stream's frames lie near the source on average.
        changed: with the last frame the stream became another.
    """

    def __init__(self, net: SegmentationNet) -> None:
        self.source: SegmentationNet = copy.deepcopy(net).eval().requires_grad_(False)
        self.mix: SegmentationNet = copy.deepcopy(self.source)
        self.distance: float | None = None
        self._net = net
        # the source's own tensors: it stands still
        self._origin = {name: value for name, value in self.source.state_dict().items() if value.is_floating_point()}
        self._layers = tuple(layers[0] for layers in map(batch_norms, (self.source, net)) if layers)
        self.at_home = len(self._layers) > 0
        self._average: float | None = None  # of the distance
        self.changed = False
        self._in_a_row = 0  # nearer to the source
        self._usual: float | None = None  # distance from the stream's statistics
        self._far_in_a_row = 0
        self._forgets = False

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
        self._average = _moved(self._average, self.distance)
        self._in_a_row = self._in_a_row + 1 if self.at_home else 0
        anew = first or self._in_a_row >= _PATIENCE
        if anew:
            self._usual, self._far_in_a_row, self.changed, self._forgets = None, 0, False, False
        else:
            self._compare(from_stream)
        return anew

    @property
    def mild(self) -> bool:
        """See the class."""
        return self._average is not None and self._average < _MILD

    def chosen(self, learnt: SegmentationNet) -> SegmentationNet:
        """Return the network to use now: the source, what the stream has learnt, or a mix of them, statistics included.

        The mix is made when it is asked for: once a frame, though frames and steps both change what is learnt.
        """
        if self.at_home:
            return self.source
        if not self.mild:
            return learnt
        self.mix.load_state_dict(learnt.state_dict())
        retreat(self.mix, self._origin, share=_LEARNT)
        return self.mix

    def restore(self, net: SegmentationNet) -> None:
        """Set a network back, in place, to what it was when the stream began."""
        retreat(net, self._origin, share=0.0)

    def source_frames(self, least: float) -> float:
        """Return how many frames the stream's first statistics count as, the source's or after a change its own.

        The fewer, the farther the stream is from the source.
        """
        return max(min(least, _FORGOTTEN) if self._forgets else least, min(_NEAR, 1 / max(self.distance or 0.0, 1e-6)))

    def _compare(self, from_stream: float) -> None:
        """Tell by the last frame's distance from the stream's statistics whether the stream has changed."""
        far = self._usual is not None and from_stream > max(_CHANGED * self._usual, _FAR)
        self._far_in_a_row = self._far_in_a_row + 1 if far else 0
        self.changed = self._far_in_a_row >= _LASTING
        if self.changed:
            self._usual, self._far_in_a_row, self._forgets = None, 0, True
        elif not far:
            self._usual = _moved(self._usual, from_stream)

    def state(self) -> State:
        """Return what the next frame is held against besides the networks."""
        facts = {
            "at_home": self.at_home,
            "in_a_row": self._in_a_row,
            "distance": self.distance,
            "average": self._average,
            "usual": self._usual,
            "far_in_a_row": self._far_in_a_row,
            "forgets": self._forgets,
        }
        return State(facts=facts)

    def load_state(self, state: State) -> None:
        """Set all that `state` returns, or raise CheckpointError."""
        self.at_home = bool(state.fact("at_home"))
        self._in_a_row = int(state.fact("in_a_row"))
        self.distance, self._average = _number(state.fact("distance")), _number(state.fact("average"))
        self._usual = _number(state.fact("usual"))
        self._far_in_a_row, self._forgets = int(state.fact("far_in_a_row")), bool(state.fact("forgets"))


def _moved(average: float | None, value: float) -> float:
    """Return a moving average after one more value; its first is the value itself."""
    return value if average is None else average + _USUAL * (value - average)


def _number(fact: Any) -> float | None:
    return None if fact is None else float(fact)
