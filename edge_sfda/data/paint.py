"""Class ids and reliability made visible: palette colours, alone or over a frame; heat. HWC uint8 BGR."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from edge_sfda.data.frames import check_frame
from edge_sfda.errors import FrameError, LabelError
from edge_sfda.manifest import Classes

U8 = npt.NDArray[np.uint8]

_UNKNOWN = 160  # grey of pixels without a value; no colour of viridis is grey


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
        FrameError: `image` is no picture.
        LabelError: as in `colour_mask`, or the sizes differ.
    """
    check_frame(image, min_side=1)
    if image.shape[:2] != mask.shape[:2]:
        raise LabelError(f"mask of {mask.shape[:2]} over a frame of {image.shape[:2]}; resize the mask to the frame")
    blended = cv2.addWeighted(image, 1 - alpha, colour_mask(mask, classes), alpha, 0)
    void = (mask == classes.ignore_id)[:, :, None]
    return np.where(void, image, blended).astype(np.uint8, copy=False)


def heat(reliability: npt.NDArray[np.floating[Any]]) -> U8:
    """Paint values of 0..1 from dark blue (0) to yellow (1), in steps that look even (viridis); NaN becomes grey.

    Args:
        reliability: HW float; values outside 0..1 are clipped.

    Returns:
        HWC uint8 BGR.

    Raises:
        FrameError: `reliability` is not HW.
    """
    if reliability.ndim != 2 or reliability.size == 0:
        raise FrameError(f"reliability of shape {reliability.shape}, expected (height, width)")
    known = np.isfinite(reliability)
    level = np.round(np.clip(np.where(known, reliability, 0.0), 0, 1) * 255).astype(np.uint8)
    painted = cast(U8, cv2.applyColorMap(level, cv2.COLORMAP_VIRIDIS))
    painted[~known] = _UNKNOWN
    return painted


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
