"""Class ids made visible: palette colours, alone or over a frame. HWC uint8 BGR, ready for `data.frames.write_png`."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edge_sfda.errors import LabelError
from edge_sfda.manifest import Classes

U8 = npt.NDArray[np.uint8]


def colour_mask(mask: U8, classes: Classes) -> U8:
    """Paint class ids with the palette.

    Args:
        mask: HW uint8 class ids or `classes.ignore_id`, which becomes black.
        classes: names and palette.

    Returns:
        HWC uint8 BGR.

    Raises:
        LabelError: `mask` is not HW uint8, or holds an id that is neither a class nor `ignore_id`.
    """
    _check_mask(mask, classes)
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = np.asarray(classes.palette, np.uint8)[:, ::-1]
    return table[mask]


def overlay(image: U8, mask: U8, classes: Classes, *, alpha: float = 0.6) -> U8:
    """Lay a mask's colours over its frame; void pixels show the frame alone.

    Args:
        image: HWC uint8 BGR.
        mask: HW uint8 class ids or `classes.ignore_id`, of the image's size.
        classes: names and palette.
        alpha: share of the colour, 0..1.

    Returns:
        HWC uint8 BGR.

    Raises:
        LabelError: as in `colour_mask`, or the sizes differ.
    """
    if image.shape[:2] != mask.shape[:2]:
        raise LabelError(f"mask of {mask.shape[:2]} over a frame of {image.shape[:2]}; resize the mask to the frame")
    blended = cv2.addWeighted(image, 1 - alpha, colour_mask(mask, classes), alpha, 0)
    void = (mask == classes.ignore_id)[:, :, None]
    return np.where(void, image, blended).astype(np.uint8, copy=False)


def _check_mask(mask: U8, classes: Classes) -> None:
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise LabelError(f"mask is {mask.dtype} of shape {mask.shape}, expected uint8 (height, width) of class ids")
    known = np.zeros(256, np.bool_)
    known[: len(classes)] = True
    known[classes.ignore_id] = True
    found = np.bincount(mask.reshape(-1), minlength=256) > 0
    unknown = np.flatnonzero(found & ~known)
    if unknown.size:
        raise LabelError(
            f"mask holds id {unknown[0]}, expected 0..{len(classes) - 1} or void {classes.ignore_id}; "
            "was it made for these classes?"
        )
