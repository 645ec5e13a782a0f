"""Undo the class prior that training put in (ours; METHOD c).

A network trained with class weights c outputs probabilities proportional to c_y p(y | x): it over-predicts what was
weighted up, and self-training on such labels amplifies it. Adding -log c to the logits undoes exactly that. It needs no
frame, only the weights that the checkpoint's manifest carries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet


def correction(manifest: Manifest, *, share: float, device: torch.device) -> Tensor | None:
    """Return what to add to the logits, `-share * log(class weight)`, float [C]; None where nothing is to undo."""
    if manifest.class_weight is None or share == 0:
        return None
    return -share * torch.tensor(manifest.class_weight, device=device).log()


def undo_class_weight(net: SegmentationNet, manifest: Manifest, *, share: float) -> bool:
    """Shift the logits of `net`, in place, by `-share * log(class weight)`; returns whether there was anything to undo.

    Args:
        net: trained with `manifest.class_weight`.
        manifest: of `net`.
        share: 0..1 of the correction.
    """
    shift = correction(manifest, share=share, device=next(net.parameters()).device)
    if shift is None:
        return False
    net.shift_logits(shift)
    return True


def remaining_class_weight(manifest: Manifest, *, share: float) -> tuple[float, ...] | None:
    """Return the class weights that are still in the logits after `undo_class_weight`; None when none are.

    It goes into the adapted checkpoint's manifest, so that adapting it once more does not undo the prior twice.
    """
    if manifest.class_weight is None or share == 1:
        return None
    return tuple(weight ** (1 - share) for weight in manifest.class_weight)
