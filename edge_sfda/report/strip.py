"""The before / after strip: one row a frame, one column a view of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt

from edge_sfda.data.frames import mask_to_size
from edge_sfda.data.paint import heat, overlay
from edge_sfda.errors import UsageError
from edge_sfda.manifest import Classes
from edge_sfda.report.text import BAD, FAINT, GOOD, SOFT, Sheet, shorten, text_width

U8 = npt.NDArray[np.uint8]

_WIDTH = 1800  # the page's at most; wider pictures are scaled down wherever they are shown
_TILE = 440  # width of a picture at most
_MARGIN, _GAP = 36, 10
_ALPHA = 0.75  # of the class colours: a dark frame must not darken them beyond the legend's
_TITLE, _NOTE, _COLUMN, _LEGEND = 28, 16, 17, 15  # font sizes


@dataclass(frozen=True, eq=False)
class StripRow:
    """One frame with what was predicted on it.

    Args:
        frame: HWC uint8 BGR.
        before: HW uint8 class ids of the source network, of any size.
        after: the same of the adapted network.
        label: HW uint8 class ids, where there is one.
        reliability: HW float 0..1 of any size, where there is one.
        name: of the frame, shown under it.
    """

    frame: U8
    before: U8
    after: U8
    label: U8 | None = None
    reliability: npt.NDArray[np.floating[Any]] | None = None
    name: str = ""


@dataclass(frozen=True)
class _Layout:
    columns: tuple[str, ...]
    tile_width: int
    tile_height: int
    header: int  # height of title and column titles
    caption: int  # height under each row
    legend: tuple[tuple[int, ...], ...]  # class ids, one tuple a line

    @property
    def width(self) -> int:
        return 2 * _MARGIN + len(self.columns) * (self.tile_width + _GAP) - _GAP


def strip(
    rows: Sequence[StripRow],
    classes: Classes,
    *,
    title: str,
    note: str = "",
    miou: tuple[float, float] | None = None,
) -> U8:
    """Draw frames with their masks before and after adaptation, their labels and their reliability.

    Args:
        rows: at least one; the label and reliability columns appear where any row has one.
        classes: for colours and legend; only classes that occur in a mask or label are listed.
        title: the header's large line.
        note: a small line under it: method, frames, seed.
        miou: before and after, shares of 0..1, shown at the right of the header.

    Returns:
        HWC uint8 BGR, at most 1800 pixels wide.

    Raises:
        UsageError: no rows.
        LabelError: a mask holds an id that is no class.
    """
    if not rows:
        raise UsageError("a picture strip of no rows; give at least one frame")
    layout = _plan(rows, classes)
    row_height = layout.tile_height + layout.caption
    legend_height = 20 + 28 * len(layout.legend)
    sheet = Sheet(layout.header + len(rows) * row_height + legend_height + _MARGIN // 2, layout.width)
    _write_header(sheet, layout, title, note, miou)
    for index, row in enumerate(rows):
        _put_row(sheet, layout, row, classes, top=layout.header + index * row_height)
    _write_legend(sheet, layout, classes, top=layout.header + len(rows) * row_height + 12)
    return sheet.picture()


def _plan(rows: Sequence[StripRow], classes: Classes) -> _Layout:
    columns = ["Frame", "Before", "After"]
    if any(row.label is not None for row in rows):
        columns.append("Label")
    if any(row.reliability is not None for row in rows):
        columns.append("Reliability")
    tile_width = min(_TILE, (_WIDTH - 2 * _MARGIN + _GAP) // len(columns) - _GAP)
    height, width = rows[0].frame.shape[:2]
    tile_height = max(48, min(round(tile_width * height / width), 2 * tile_width))
    caption = 26 if any(row.name for row in rows) else _GAP
    page = 2 * _MARGIN + len(columns) * (tile_width + _GAP) - _GAP
    legend = _wrap(_present(rows, classes), classes, page - 2 * _MARGIN)
    return _Layout(tuple(columns), tile_width, tile_height, 148, caption, legend)


def _present(rows: Sequence[StripRow], classes: Classes) -> list[int]:
    masks = [m for row in rows for m in (row.before, row.after, row.label) if m is not None]
    seen = np.sum([np.bincount(mask.reshape(-1), minlength=256) for mask in masks], axis=0)
    return [index for index in range(len(classes)) if seen[index] > 0]


def _wrap(ids: Sequence[int], classes: Classes, width: int) -> tuple[tuple[int, ...], ...]:
    lines: list[list[int]] = [[]]
    used = 0
    for index in ids:
        step = _entry_width(classes.names[index])
        if lines[-1] and used + step > width:
            lines.append([])
            used = 0
        lines[-1].append(index)
        used += step
    return tuple(tuple(line) for line in lines)


def _entry_width(name: str) -> int:
    return 26 + text_width(name, size=_LEGEND) + 26


def _write_header(sheet: Sheet, layout: _Layout, title: str, note: str, miou: tuple[float, float] | None) -> None:
    right = layout.width - _MARGIN
    if miou is not None:
        before, after = (100 * value for value in miou)
        change = f"{after - before:+.1f}".replace("-", "\N{MINUS SIGN}")
        right -= sheet.write(right, 30, change, size=_TITLE, bold=True, colour=_tone(after - before), anchor="ra") + 18
        right -= sheet.write(right, 30, f"{before:.1f} → {after:.1f}", size=_TITLE, anchor="ra") + 14
        right -= sheet.write(right, 30, "mIoU", size=_TITLE, colour=SOFT, anchor="ra") + 30
    sheet.write(_MARGIN, 30, shorten(title, right - _MARGIN, size=_TITLE, bold=True), size=_TITLE, bold=True)
    sheet.write(_MARGIN, 70, shorten(note, layout.width - 2 * _MARGIN, size=_NOTE), size=_NOTE, colour=SOFT)
    sheet.box(_MARGIN, 102, layout.width - 2 * _MARGIN, 1, FAINT)
    for index, column in enumerate(layout.columns):
        left = _MARGIN + index * (layout.tile_width + _GAP)
        sheet.write(left, 115, column, size=_COLUMN, bold=True)
        if column == "Reliability":
            _write_scale(sheet, left + layout.tile_width, 117)


def _tone(change: float) -> tuple[int, int, int]:
    if abs(change) < 0.05:
        return SOFT
    return GOOD if change > 0 else BAD


def _write_scale(sheet: Sheet, right: int, top: int) -> None:
    bar = heat(np.tile(np.linspace(0, 1, 90), (12, 1)))
    right -= sheet.write(right, top + 6, "1", size=_LEGEND, colour=SOFT, anchor="rm") + 6
    sheet.paste(right - 90, top, bar)
    sheet.write(right - 96, top + 6, "0", size=_LEGEND, colour=SOFT, anchor="rm")


def _put_row(sheet: Sheet, layout: _Layout, row: StripRow, classes: Classes, *, top: int) -> None:
    width, height = layout.tile_width, layout.tile_height
    frame = _fit(row.frame, width, height)
    views: dict[str, U8 | None] = {
        "Frame": frame,
        "Before": overlay(frame, mask_to_size(row.before, height, width), classes, alpha=_ALPHA),
        "After": overlay(frame, mask_to_size(row.after, height, width), classes, alpha=_ALPHA),
        "Label": None
        if row.label is None
        else overlay(frame, mask_to_size(row.label, height, width), classes, alpha=_ALPHA),
        "Reliability": None if row.reliability is None else heat(_fit_map(row.reliability, width, height)),
    }
    for index, column in enumerate(layout.columns):
        left = _MARGIN + index * (width + _GAP)
        view = views[column]
        if view is None:
            sheet.box(left, top, width, height, FAINT)
            sheet.write(left + width // 2, top + height // 2, "none", size=_NOTE, colour=SOFT, anchor="mm")
        else:
            sheet.paste(left, top, view)
    if row.name:
        sheet.write(_MARGIN, top + height + 4, shorten(row.name, width, size=13), size=13, colour=SOFT)


def _fit(image: U8, width: int, height: int) -> U8:
    how = cv2.INTER_AREA if image.shape[1] > width else cv2.INTER_CUBIC
    return cast(U8, cv2.resize(image, (width, height), interpolation=how))


def _fit_map(values: npt.NDArray[np.floating[Any]], width: int, height: int) -> npt.NDArray[np.float32]:
    resized = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.float32)


def _write_legend(sheet: Sheet, layout: _Layout, classes: Classes, *, top: int) -> None:
    for line, ids in enumerate(layout.legend):
        left, middle = _MARGIN, top + 28 * line + 10
        for index in ids:
            sheet.box(left, middle - 9, 18, 18, classes.palette[index], radius=4)
            sheet.write(left + 26, middle, classes.names[index], size=_LEGEND, anchor="lm")
            left += _entry_width(classes.names[index])
