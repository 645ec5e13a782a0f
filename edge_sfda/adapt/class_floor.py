"""A floor under the share of the picture that each class keeps in a burst (ours).

Entropy falls by every pixel that a sure class takes from an unsure one, so a burst shrinks what is hard to see: trees
in fog, the sky by night, poles everywhere. How much of a class there is, the predictions of step 0 tell before any of
that happened, once most of training's class weights is taken out, which make rare classes look common. No class may
fall far below that, on average over the last steps: not in every batch, for one may hold no car at all.

Found on the scene's street 13 and on CamVid's dark-drive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_sfda.adapt.prior import correction
from edge_sfda.adapt.state import State
from edge_sfda.manifest import Manifest

_UNDONE = 0.75  # of the class weights: with all of them undone, the commonest classes are asked for too much
_STRENGTH = 2.0  # of the penalty beside the entropy; 5 does the same
_MEMORY = 0.9  # of the running shares: some ten steps


class ClassFloor:
    """Knows the least share of each class, and what a burst's predictions lack of it.

    Args:
        manifest: of the source, for its class weights.
        floor: 0..1, of the shares at step 0.
        device: where it lives.
    """

    def __init__(self, manifest: Manifest, floor: float, *, device: torch.device) -> None:
        self._floor = floor
        self._correction = correction(manifest, share=_UNDONE, device=device)
        self._looks = 0
        self._usual = torch.zeros(len(manifest.classes), device=device)
        self._running = torch.zeros_like(self._usual)

    @torch.no_grad()
    def look(self, probs: Tensor) -> None:
        """Take in the predictions of step 0: softmax of the source under the target's statistics, [B, C, h, w]."""
        if self._correction is not None:
            probs = probs * self._correction.exp()[:, None, None]
            probs = probs / probs.sum(1, keepdim=True)
        self._looks += 1
        self._usual.lerp_(probs.mean((0, 2, 3)), 1 / self._looks)
        self._running.copy_(self._usual)

    def penalty(self, logits: Tensor) -> Tensor:
        """Return what the shares lack of the floor, in nats weighted by the share; 0 where none lacks anything.

        Its value is of the running shares, its gradient that of this batch.

        Args:
            logits: of the student, float [B, C, h, w].
        """
        shares = logits.softmax(1).mean((0, 2, 3))
        running = self._running.lerp_(shares.detach(), 1 - _MEMORY)
        shares = shares + (running - shares.detach())
        least = self._floor * self._usual
        tiny = 1e-6
        return _STRENGTH * (least * (least.clamp(min=tiny) / shares.clamp(min=tiny)).log().clamp(min=0)).sum()

    def state(self) -> State:
        """Return the shares at step 0 and the running ones."""
        return State({"usual": self._usual, "running": self._running}, {"looks": self._looks})

    def load_state(self, state: State) -> None:
        """Set both, or raise CheckpointError."""
        self._looks = int(state.fact("looks"))
        for name, mine in (("usual", self._usual), ("running", self._running)):
            mine.copy_(state.tensor(name))
