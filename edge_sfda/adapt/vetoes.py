"""What rules a network out, whatever the votes say; and what makes probes no evidence at all (ours)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.adapt.votes import Ballot
from edge_sfda.config import GateConfig
from edge_sfda.nets.normalisation import affine_parameters

_PRESENT = 0.02  # share from which a class of the source's histogram is more than scattered errors
_THUMB = 16  # side of the pictures that probes are told apart by: sensor noise averages out


def of_weights(net: nn.Module, source: nn.Module, config: GateConfig) -> list[str]:
    """Return what is wrong with weights, in words: not finite, or too far from the source's.

    Args:
        net: the candidate.
        source: of the same architecture.
        config: `distance`.
    """
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return [f"{name} is not finite"]
    far = distance(net, source)
    return [f"weights moved by {far:.3f}, more than {config.distance:g}"] if far > config.distance else []


def of_predictions(ballot: Ballot, source: Ballot, config: GateConfig) -> list[str]:
    """Return what is wrong with predictions, in words: not finite, or another mix of classes than the source's.

    Args:
        ballot: of the candidate.
        source: of the source, on the same probes.
        config: `moved` and `lost`.
    """
    if not bool(torch.isfinite(ballot.probs).all()):
        return ["predictions are not finite"]
    mine, theirs = ballot.histogram, source.histogram
    words = []
    moved = float((mine - theirs).abs().sum() / 2)
    if moved > config.moved:
        words.append(f"class histogram moved by {moved:.2f}, more than {config.moved:g}")
    lost = (theirs >= _PRESENT) & (mine < config.lost * theirs)
    if bool(lost.any()):
        names = ", ".join(str(index) for index in lost.nonzero().flatten().tolist())
        words.append(f"class {names} is all but lost against the source")
    return words


def of_latency(times: float, config: GateConfig) -> list[str]:
    """Return whether a candidate is too slow, in words.

    Args:
        times: what a frame takes, as a multiple of what it takes the network in use.
        config: `latency`.
    """
    if times <= config.latency:
        return []
    return [f"a frame takes {times:.2f} times what it takes the network in use, more than {config.latency:g}"]


def of_evidence(probes: Tensor, source: Ballot | None, config: GateConfig) -> list[str]:
    """Return why probes cannot tell one network from another, in words: too few, too alike, too little in them.

    Args:
        probes: uint8 [N, 3, H, W].
        source: the source's predictions of them; None leaves out what needs them.
        config: `least`, `alike`, `diversity`.
    """
    count = distinct(probes, alike=config.alike)
    if count < config.least:
        return [f"{count} of {len(probes)} probes differ, {config.least} are needed"]
    if source is None:
        return []
    share = source.histogram
    diversity = float(-torch.special.xlogy(share, share).sum() / torch.tensor(len(share)).log())
    if diversity < config.diversity:
        return [f"probes show too few classes (diversity {diversity:.2f}, {config.diversity:g} is needed)"]
    return []


def distance(net: nn.Module, source: nn.Module) -> float:
    """Return the relative change of the weights, the larger of two kinds: scales and shifts, and all others.

    Running statistics do not count: they belong to the domain.
    """
    scales = {id(parameter) for parameter in affine_parameters(net)}
    changes = {True: [0.0, 0.0], False: [0.0, 0.0]}
    with torch.no_grad():
        for mine, theirs in zip(net.parameters(), source.parameters(), strict=True):
            sums = changes[id(mine) in scales]
            sums[0] += float((mine.double() - theirs.double()).square().sum())
            sums[1] += float(theirs.double().square().sum())
    return max(math.sqrt(moved / max(size, 1e-12)) for moved, size in changes.values())


def distinct(probes: Tensor, *, alike: float) -> int:
    """Return how many probes differ from each one counted before by `alike` or more of full scale.

    Args:
        probes: uint8 [N, 3, H, W].
        alike: 0..1, of the mean absolute difference between the probes at 16x16.
    """
    kept: list[Tensor] = []
    for probe in probes:
        thumb = F.interpolate(probe[None].float() / 255, size=(_THUMB, _THUMB), mode="area")[0]
        if all(float((thumb - other).abs().mean()) >= alike for other in kept):
            kept.append(thumb)
    return len(kept)
