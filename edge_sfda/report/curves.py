"""Curves of a run over its steps or epochs, as one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from edge_sfda.errors import UsageError
from edge_sfda.report.pictures import render

U8 = npt.NDArray[np.uint8]

_COLOURS = ("#1f5fa8", "#c2571a", "#3a8f5c", "#7a4fa3")  # tell apart in grey and with red-green blindness
_SMOOTH_FROM = 40  # points; below that a moving average hides more than it shows


@dataclass(frozen=True)
class Panel:
    """One set of axes: `series` are columns of the rows, and those that a run did not write are left out.

    Args:
        title: above the axes.
        series: column and its name in the legend.
        share: the values lie in 0..1, and so does the axis.
    """

    title: str
    series: tuple[tuple[str, str], ...]
    share: bool = False


PANELS = (
    Panel("Loss", (("loss", "student"), ("metric_loss", "metric network"))),
    Panel("Mean reliability of the teacher's labels", (("reliability", "reliability"),), share=True),
    Panel("Agreement of student and teacher", (("agreement", "agreement"),), share=True),
    Panel(
        "mIoU", (("val_miou", "validation"), ("miou", "adapted, so far"), ("source_miou", "source, so far")), share=True
    ),
)


def curves(rows: Sequence[Mapping[str, float]], *, title: str = "", panels: Sequence[Panel] = PANELS) -> U8:
    """Draw what a run wrote step by step.

    Args:
        rows: one mapping a step or epoch, in order. `epoch`, else `step`, else the place is the horizontal axis.
            A value that is missing or NaN leaves a gap.
        title: of the whole picture.
        panels: what to draw; a panel none of whose columns occurs is left out.

    Returns:
        HWC uint8 BGR.

    Raises:
        UsageError: no rows, or none of the panels' columns.
    """
    drawn = [panel for panel in panels if any(key in row for row in rows for key, _ in panel.series)]
    if not drawn:
        wanted = ", ".join(key for panel in panels for key, _ in panel.series)
        raise UsageError(f"no curve to draw from {len(rows)} rows; expected any of the columns {wanted}")
    axis = next((key for key in ("epoch", "step") if key in rows[0]), "")
    x = np.array([float(row.get(axis, index)) for index, row in enumerate(rows)])
    size = (4.6 * len(drawn) + 0.4, 3.7 if title else 3.4)
    figure = Figure(figsize=size, dpi=110, layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.15))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    for axes, panel in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        _draw(axes, panel, x, rows)
        axes.set_xlabel(axis or "row", color="0.4")
    return render(figure)


def _draw(axes: Axes, panel: Panel, x: npt.NDArray[np.float64], rows: Sequence[Mapping[str, float]]) -> None:
    series = [(key, name) for key, name in panel.series if any(key in row for row in rows)]
    for (key, name), colour in zip(series, _COLOURS, strict=False):
        y = np.array([float(row.get(key, math.nan)) for row in rows])
        if len(y) >= _SMOOTH_FROM:
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=1)
            axes.plot(x, _smooth(y, len(y) // 20), color=colour, linewidth=2, label=name)
        else:
            axes.plot(x, y, color=colour, linewidth=2, marker="o", markersize=3.5, label=name)
    axes.set_title(panel.title, loc="left", fontsize=11)
    if panel.share:
        axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.75")
    axes.tick_params(color="0.75", labelcolor="0.35")
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)


def _smooth(y: npt.NDArray[np.float64], reach: int) -> npt.NDArray[np.float64]:
    """Average over `reach` neighbours on either side, fewer at the ends; NaN where there is no value at all."""
    kernel = np.ones(2 * reach + 1)
    known = np.isfinite(y)
    total = np.convolve(np.where(known, y, 0.0), kernel, mode="same")
    count = np.convolve(known.astype(np.float64), kernel, mode="same")
    out = np.full(y.shape, np.nan)
    np.divide(total, count, out=out, where=known & (count > 0))
    return out
