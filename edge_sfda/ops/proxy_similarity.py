"""Proxy similarity: from embeddings and proxies to reliability, and the metric loss that trains both.

    z = e / |e|      s_c = z . P_c      r = softmax(kappa * s)[y]      loss = mean over classes of CE(scale * s, y)

Proxy-based metric learning for reliability is the paper's idea (abstract); these formulas are ours, the loss after
Proxy-NCA++ on unit vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reliability(embedding: Tensor, proxies: Tensor, label: Tensor, *, kappa: float) -> Tensor:
    """Return how much each pixel's embedding speaks for its label.

    Args:
        embedding: float [B, D, h, w], of any length.
        proxies: float [C, D], of any length.
        label: int64 [B, h, w], 0..C-1.
        kappa: temperature of the softmax over cosines.

    Returns:
        float32 [B, h, w], 0..1.
    """
    z = F.normalize(embedding.float(), dim=1)
    cosine = torch.einsum("bdhw,cd->bchw", z, F.normalize(proxies.float(), dim=1))
    return (kappa * cosine).softmax(1).gather(1, label[:, None])[:, 0]


def metric_loss(embedding: Tensor, proxies: Tensor, label: Tensor, valid: Tensor, *, scale: float) -> Tensor:
    """Return the class-averaged cross-entropy of scaled cosines on sampled pixels.

    Args:
        embedding: float [C, K, D], K sampled pixels of each class.
        proxies: float [C, D].
        label: int64 [C, K].
        valid: bool [C, K]; False where a class had fewer than K pixels.
        scale: of the cosines.

    Returns:
        float32 scalar; 0 when nothing is valid.
    """
    cosine = F.normalize(embedding.float(), dim=-1) @ F.normalize(proxies.float(), dim=1).T
    pixel = F.cross_entropy((scale * cosine).flatten(0, 1), label.flatten(), reduction="none").view_as(label)
    counts = valid.sum(1)
    per_class = (pixel * valid).sum(1) / counts.clamp(min=1)
    return per_class.sum() / (counts > 0).sum().clamp(min=1)
