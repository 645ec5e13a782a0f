"""What unlabelled frames say about a network's predictions: one score a probe frame, more is better.

    agreement     class-averaged IoU with the ensemble of all candidates (after EnsV, Hu et al., NeurIPS 2024)
    consistency   class-averaged IoU with its own predictions of changed frames
    information   mean KL of a pixel's softmax from the mean of all: confident and diverse (InfoMax, Shi and Sha 2012)
    nuclear       nuclear norm of the softmax matrix: confident and diverse (BNM, Cui et al., CVPR 2020)
    density       entropy of the similarity between pixels' softmaxes (SND, Saito et al., ICCV 2021); told, but it does
                  not vote: on the scene it preferred collapsed networks to the source, and the source to good ones

A score is a number for each probe, so that two candidates are compared probe by probe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor], Tensor]  # frames, float 0..255 RGB [B, 3, H, W] -> logits [B, C, h, w]

_BATCH = 4  # frames a forward: what a board's memory takes
_NEIGHBOURS = 256  # pixels a probe whose similarities are taken: the matrix grows with the square
_SHARPNESS = 0.05  # temperature of SND's softmax over similarities, the paper's
_GAMMAS = (0.7, 1.4)  # darker and lighter middle tones: the student's view changes none
_NOISE = 8.0  # deviation, of 255: a camera's at dusk


@dataclass(frozen=True, eq=False)
class Ballot:
    """A candidate's predictions of the probes.

    Args:
        probs: softmax at the looked-at pixels, float [N, P, C].
        views: labels at the same pixels of the changed frames, by name, int64 [N, P].
    """

    probs: Tensor
    views: Mapping[str, Tensor]

    @property
    def label(self) -> Tensor:
        """Arg-max of `probs`, int64 [N, P]."""
        return self.probs.argmax(2)

    @property
    def histogram(self) -> Tensor:
        """Share of each class in the labels, float [C]."""
        return torch.bincount(self.label.flatten(), minlength=self.probs.shape[2]) / self.label.numel()


@torch.no_grad()
def collect(predict: Predict, probes: Tensor, *, pixels: int, seed: int) -> Ballot:
    """Run a candidate over the probes and their changed views.

    Args:
        predict: the candidate.
        probes: uint8 RGB [N, 3, H, W].
        pixels: looked at in each frame, about.
        seed: of the noise.
    """
    probs = torch.cat([_rows(predict(x.float()), pixels).softmax(2) for x in torch.split(probes, _BATCH)]).cpu()
    views: dict[str, list[Tensor]] = {}
    rng = torch.Generator().manual_seed(seed)  # the same noise for each candidate
    for x in torch.split(probes, _BATCH):
        for name, view in _views(x.float(), rng).items():
            logits = predict(view)
            logits = logits.flip(-1) if name == "mirror" else logits
            views.setdefault(name, []).append(_rows(logits, pixels).argmax(2).cpu())
    return Ballot(probs, {name: torch.cat(labels) for name, labels in views.items()})


def ensemble(ballots: Mapping[str, Ballot], *, held: tuple[str, ...]) -> Tensor:
    """Return the label of the candidates' mean softmax, int64 [N, P].

    Args:
        ballots: of all candidates that no veto fell on.
        held: names that count in full each; all others count as one together, or many snapshots of one burst would be
            the ensemble.
    """
    others = [ballot.probs for name, ballot in ballots.items() if name not in held]
    families = [ballots[name].probs for name in held if name in ballots]
    if others:
        families.append(torch.stack(others).mean(0))
    return torch.stack(families).mean(0).argmax(2)


def scores(ballot: Ballot, consensus: Tensor) -> dict[str, Tensor]:
    """Return every score of a candidate, float [N] each.

    Args:
        ballot: of the candidate.
        consensus: the ensemble's label, int64 [N, P].
    """
    classes = ballot.probs.shape[2]
    label = ballot.label
    return {
        "agreement": shared_iou(label, consensus, classes),
        "consistency": torch.stack([shared_iou(label, view, classes) for view in ballot.views.values()]).mean(0),
        "information": information(ballot.probs),
        "nuclear": nuclear(ballot.probs),
        "density": density(ballot.probs),
    }


def shared_iou(label: Tensor, other: Tensor, classes: int) -> Tensor:
    """Return the IoU of two labellings, averaged over the classes that either has, float [N].

    Args:
        label: int64 [N, P], 0..C-1.
        other: of the same shape.
        classes: C.
    """
    a, b = F.one_hot(label, classes), F.one_hot(other, classes)
    both = (a & b).sum(1).float()
    either = (a | b).sum(1).float()
    shared: Tensor = (both / either.clamp(min=1)).sum(1) / (either > 0).sum(1).clamp(min=1)
    return shared


def information(probs: Tensor) -> Tensor:
    """Return the mean KL divergence of each pixel's softmax from the mean of all pixels, float [N], in nats.

    Its mean over probes is the mutual information between pixel and class.

    Args:
        probs: float [N, P, C].
    """
    mean = probs.mean((0, 1)).clamp(min=1e-12)
    divergence: Tensor = (torch.special.xlogy(probs, probs) - probs * mean.log()).sum(2).mean(1)
    return divergence


def nuclear(probs: Tensor) -> Tensor:
    """Return the nuclear norm of each probe's softmax matrix over its largest possible value, float [N], 0..1.

    Args:
        probs: float [N, P, C].
    """
    count, classes = probs.shape[1:]
    gram = probs.double().transpose(1, 2) @ probs.double()  # its eigenvalues are the squares of P x C singular values
    norm: Tensor = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().sum(1) / (count * min(count, classes)) ** 0.5
    return norm.float()


def density(probs: Tensor) -> Tensor:
    """Return the mean entropy of each pixel's similarity to the others of its frame, float [N], in nats.

    Args:
        probs: float [N, P, C]; every so many of the P pixels are taken.
    """
    picked = F.normalize(probs[:, :: -(-probs.shape[1] // _NEIGHBOURS)], dim=2)
    similarity = picked @ picked.transpose(1, 2) / _SHARPNESS
    itself = torch.eye(similarity.shape[1], dtype=torch.bool, device=probs.device)
    log_share = similarity.masked_fill(itself, -1e4).log_softmax(2)
    return -(log_share.exp() * log_share).sum(2).mean(1)


def _views(x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    """Return changed frames, float 0..255 [B, 3, H, W]; the mirrored one's logits must be mirrored back."""
    noise = torch.randn(x.shape, generator=rng).to(x.device) * _NOISE
    darker, lighter = (255 * (x / 255) ** gamma for gamma in reversed(_GAMMAS))
    return {"mirror": x.flip(-1), "darker": darker, "lighter": lighter, "noise": (x + noise).clamp(0, 255)}


def _rows(logits: Tensor, pixels: int) -> Tensor:
    """Return about `pixels` evenly spread columns of logits [B, C, h, w] as [B, P, C]."""
    h, w = logits.shape[-2:]
    step = max(1, round((h * w / pixels) ** 0.5))
    # from the middle of each step, so that a mirrored grid meets itself as nearly as it can
    start = step // 2
    return logits[:, :, start::step, start::step].flatten(2).transpose(1, 2).float()
