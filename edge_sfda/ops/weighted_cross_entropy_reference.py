"""Weighted cross-entropy, plain and obviously right: what every implementation is compared with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def weighted_cross_entropy_reference(
    logits: Tensor, label: Tensor, weight: Tensor, *, class_weight: Tensor | None = None, ignore_id: int = 255
) -> Tensor:
    """Return the scalar loss in the logits' own precision; arguments as `weighted_cross_entropy`, labels unchecked."""
    size = label.shape[-2:]
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    if weight.shape[-2:] != size:
        weight = F.interpolate(weight[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    pixel = F.cross_entropy(logits, label.long(), weight=class_weight, ignore_index=ignore_id, reduction="none")
    valid = (label != ignore_id).sum().clamp(min=1)
    return (pixel * weight).sum() / valid
