"""The picture of a confusion matrix; HWC uint8 BGR, ready for `data.frames.write_png`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from edge_sfda.errors import LabelError
from edge_sfda.manifest import Classes

U8 = npt.NDArray[np.uint8]

_NUMBERS_UP_TO = 20  # classes; beyond that the numbers in a confusion matrix cannot be read


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
