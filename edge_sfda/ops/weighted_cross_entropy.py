"""Weighted cross-entropy: `loss = (1/N) * sum_i w_i * c_{y_i} * CE(logits_i, y_i)`, N = valid pixels.

Weighting each pixel's gradient by reliability is the paper's (abstract); dividing by N and never by sum(w), so that a
frame that is unreliable everywhere takes a small step, is ours.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def weighted_cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor, *, class_weight: Tensor | None = None, ignore_id: int = 255
) -> Tensor:
    """Return the scalar loss.

    Args:
        logits: float [B, C, h, w]; bilinearly upsampled (align_corners=False) to the label's size where that differs.
        label: int64 [B, H, W], 0..C-1 or `ignore_id`.
        weight: float [B, H, W], or any smaller size (bilinearly upsampled); no gradient flows into it.
        class_weight: float [C], or None for ones.
        ignore_id: label of pixels that count neither in the sum nor in N.

    Returns:
        float32 scalar; 0 when every pixel is ignored.
    """
    size = label.shape[-2:]
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    if weight.shape[-2:] != size:
        weight = F.interpolate(weight[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    pixel = F.cross_entropy(logits.float(), label, weight=class_weight, ignore_index=ignore_id, reduction="none")
    valid = (label != ignore_id).sum().clamp(min=1)
    return (pixel * weight.detach()).sum() / valid
