"""Per-pixel losses of the peers, and their reduction; the method's own loss is `ops.weighted_cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each pixel's softmax in nats, float [B, h, w], for logits float [B, C, h, w]."""
    log_probs = logits.log_softmax(1)
    return -(log_probs.exp() * log_probs).sum(1)


def soft_cross_entropy(logits: Tensor, probs: Tensor) -> Tensor:
    """Return the cross-entropy of each pixel against soft labels `probs` [B, C, h, w], float [B, h, w]."""
    return -(probs * logits.log_softmax(1)).sum(1)


def entropy_of(probs: Tensor) -> Tensor:
    """Return the entropy of `probs` float [B, C, h, w] over C, in nats, float [B, h, w]."""
    information: Tensor = torch.special.xlogy(probs, probs)
    return -information.sum(1)
