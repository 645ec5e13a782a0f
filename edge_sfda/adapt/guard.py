"""How much of a burst to deploy, told without labels by how far the target is from the source (ours).

Under a strong shift the target's BatchNorm statistics lower the entropy of the predictions at once, and all that a
burst learns is worth having. Where they raise it, the source was at home already: then a mix of source and adapted
weights, statistics included, is better than either, and the share of the target's statistics under which the entropy is
least says how to mix. Found on the scene's streets 7 and 11 and on the CamVid drive -> drive pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_sfda.adapt.losses import entropy
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.normalisation import batch_norms, estimate

SHARES = (0.0, 0.25, 0.5, 0.75)  # tried under a mild shift
_JUDGED = 4  # batches that entropies are compared on, evenly spread

State = dict[str, Tensor]


def state_of(net: SegmentationNet) -> State:
    """Return a copy of every floating tensor of `net`, by name."""
    return {name: value.clone() for name, value in net.state_dict().items() if value.is_floating_point()}


@torch.no_grad()
def retreat(net: SegmentationNet, source: State, *, share: float) -> None:
    """Keep the share `share` in 0..1 of what moved `net` away from `source`, in place."""
    now = net.state_dict()  # its tensors are the network's own
    for name, value in source.items():
        now[name].lerp_(value, 1 - share)


@torch.no_grad()
def fit_statistics(net: SegmentationNet, batches: Sequence[Tensor], *, blend: float) -> float:
    """Do step 0 and return the share of the coming burst to deploy: 1 under a strong shift, less under a mild one.

    Args:
        net: with the source's statistics; has the share `blend` of the target's afterwards.
        batches: normalised float [B, 3, H, W] of the target.
        blend: 0..1.

    Raises:
        FrameError: see `estimate`.
    """
    source = state_of(net)
    judged = batches[:: -(-len(batches) // _JUDGED)]
    at_home = _mean_entropy(net, judged)
    estimate(net, batches, blend=blend)
    if blend == 0 or not batch_norms(net) or bool(_mean_entropy(net, judged) < at_home):
        return 1.0
    target = state_of(net)
    entropies = [at_home]
    for share in SHARES[1:]:
        retreat(net, source, share=share)
        entropies.append(_mean_entropy(net, judged))
        retreat(net, target, share=0.0)
    return SHARES[int(torch.stack(entropies).argmin())]


def _mean_entropy(net: SegmentationNet, batches: Sequence[Tensor]) -> Tensor:
    return torch.stack([entropy(net(x).logits).mean() for x in batches]).mean()
