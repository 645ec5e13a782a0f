from __future__ import annotations

import numpy as np
import pytest

from edge_sfda.errors import LabelError, UsageError
from edge_sfda.manifest import Classes
from edge_sfda.report.strip import StripRow, strip

CLASSES = Classes(("road", "sky", "car"), ((128, 64, 128), (0, 200, 0), (0, 0, 255)))


def _row(
    *, before: int = 0, after: int = 1, label: int | None = None, reliability: float | None = None, name: str = ""
) -> StripRow:
    return StripRow(
        np.full((48, 64, 3), 90, np.uint8),
        np.full((12, 16), before, np.uint8),
        np.full((48, 64), after, np.uint8),
        None if label is None else np.full((48, 64), label, np.uint8),
        None if reliability is None else np.full((6, 8), reliability),
        name,
    )


def _near(picture: np.ndarray, bgr: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - bgr).max(axis=2) <= 3).sum())


def test_strip_shows_frame_before_and_after_side_by_side() -> None:
    picture = strip([_row()], CLASSES, title="t")
    green = np.argwhere(picture[:, :, 1].astype(int) - picture[:, :, 2] > 100)
    violet = np.argwhere((picture[:, :, 0].astype(int) - picture[:, :, 1] > 25) & (picture[:, :, 1] > 50))
    tiles = picture.shape[0] - 60  # the legend lies below
    assert green[green[:, 0] < tiles][:, 1].min() > violet[violet[:, 0] < tiles][:, 1].max()


def test_strip_has_a_column_for_label_and_reliability_only_where_given() -> None:
    plain = strip([_row()], CLASSES, title="t")
    full = strip([_row(label=1, reliability=0.0), _row()], CLASSES, title="t")
    dark_blue = (84, 1, 68)  # viridis at 0
    assert _near(plain, dark_blue) == 0
    assert _near(full, dark_blue) > 10_000
    assert full.shape[1] <= 1800


def test_strip_lists_only_classes_that_occur() -> None:
    assert _near(strip([_row()], CLASSES, title="t"), (255, 0, 0)) == 0
    assert _near(strip([_row(after=2)], CLASSES, title="t"), (255, 0, 0)) > 200


def test_strip_grows_by_equal_steps_with_its_rows() -> None:
    heights = [strip([_row(name="n")] * count, CLASSES, title="t").shape[0] for count in (1, 2, 3)]
    assert heights[2] - heights[1] == heights[1] - heights[0] > 300


def test_strip_shows_a_gain_green_and_a_loss_red() -> None:
    gain = strip([_row()], CLASSES, title="t", miou=(0.4, 0.5))[:100]
    loss = strip([_row()], CLASSES, title="t", miou=(0.5, 0.4))[:100]
    assert _near(gain, (74, 122, 20)) > 50
    assert _near(loss, (40, 40, 178)) > 50
    assert _near(gain, (40, 40, 178)) == _near(loss, (74, 122, 20)) == 0


def test_strip_cuts_a_title_that_is_too_long() -> None:
    short = strip([_row()], CLASSES, title="t")
    assert strip([_row()], CLASSES, title="long " * 200, note="n " * 900, miou=(0.1, 0.2)).shape == short.shape


def test_strip_wraps_a_legend_of_many_classes() -> None:
    many = Classes(tuple(f"class number {i}" for i in range(60)), tuple((i, i, i) for i in range(60)))
    ids = np.arange(60, dtype=np.uint8).repeat(64).reshape(60, 64)
    row = StripRow(np.zeros((60, 64, 3), np.uint8), ids, ids)
    few = StripRow(np.zeros((60, 64, 3), np.uint8), ids * 0, ids * 0)
    assert strip([row], many, title="t").shape[0] > strip([few], many, title="t").shape[0] + 100


def test_strip_refuses_no_rows() -> None:
    with pytest.raises(UsageError, match="at least one frame"):
        strip([], CLASSES, title="t")


def test_strip_refuses_a_mask_of_other_classes() -> None:
    with pytest.raises(LabelError, match="holds id 7"):
        strip([_row(after=7)], CLASSES, title="t")
