"""Pictures of masks, reliability and confusion; all are HWC uint8 BGR, ready for `data.frames.write_png`."""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from edge_sfda.errors import FrameError, LabelError
from edge_sfda.manifest import Classes

U8 = npt.NDArray[np.uint8]

_UNKNOWN = 160  # grey of pixels without a reliability; no colour of viridis is grey
_NUMBERS_UP_TO = 20  # classes; beyond that the numbers in a confusion matrix cannot be read


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


def confusion_picture(counts: npt.NDArray[np.int64], classes: Classes) -> U8:
    """Draw a confusion matrix, each row as shares of its label, with the IoU of each class at its end.

    Args:
        counts: int [C, C], rows are labels, columns predictions (`ConfusionMatrix.counts`).
        classes: names, in the order of the rows.

    Returns:
        HWC uint8 BGR.

    Raises:
        LabelError: `counts` is not [C, C].
    """
    count = len(classes)
    if counts.shape != (count, count):
        raise LabelError(f"confusion matrix of shape {counts.shape} for {count} classes; expected ({count}, {count})")
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.full(counts.shape, np.nan)
    np.divide(counts, rows, out=shares, where=rows > 0)
    side = 2.4 + 0.5 * count
    figure = Figure(figsize=(side + 0.7, side), dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.15, w_pad=0.15))
    axes = figure.add_subplot()
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1)
    _label_axes(axes, counts, classes)
    if count <= _NUMBERS_UP_TO:
        _write_shares(axes, shares)
    return render(figure)


def render(figure: Figure) -> U8:
    """Draw a figure with Agg, HWC uint8 BGR; pyplot and its global state are never touched."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call,unused-ignore]
    rgba = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)  # type: ignore[no-untyped-call,unused-ignore]
    return np.ascontiguousarray(rgba[:, :, 2::-1])


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


def _label_axes(axes: Axes, counts: npt.NDArray[np.int64], classes: Classes) -> None:
    count = len(classes)
    axes.set_xticks(range(count), classes.names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), classes.names)
    axes.set_xlabel("predicted", fontweight="bold")
    axes.set_ylabel("labelled", fontweight="bold")
    axes.set_title("Where each class's pixels went, %", loc="left", fontweight="bold", pad=14)
    axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    hit = np.diagonal(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hit
    axes.text(count - 0.3, -0.8, "IoU %", ha="left", va="center", fontweight="bold")
    for index in range(count):
        text = f"{100 * hit[index] / union[index]:.1f}" if union[index] else "absent"
        axes.text(count - 0.3, index, text, ha="left", va="center", color="0.2")


def _write_shares(axes: Axes, shares: npt.NDArray[np.float64]) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:  # a matrix of zeros hides what matters
            colour = "white" if share > 0.5 else "0.25"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=9)
