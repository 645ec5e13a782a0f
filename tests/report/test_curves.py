from __future__ import annotations

import math

import numpy as np
import pytest

from edge_sfda.errors import UsageError
from edge_sfda.report.curves import Panel, _smooth, curves


def test_curves_has_one_panel_for_each_kind_of_value() -> None:
    one = curves([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])
    three = curves([{"step": 1, "loss": 1.0, "reliability": 0.5, "agreement": 0.9}])
    assert one.dtype == np.uint8
    assert three.shape[1] > 2.5 * one.shape[1]


def test_curves_leave_unknown_columns_out() -> None:
    rows = [{"epoch": 1, "loss": 1.0, "val_miou": 0.2, "rate": 1e-3}]
    without = [{"epoch": 1, "loss": 1.0, "val_miou": 0.2}]
    assert np.array_equal(curves(rows), curves(without))


def test_curves_draw_what_is_there_of_a_column_that_starts_late() -> None:
    rows = [{"step": i, "loss": 1.0, "metric_loss": math.nan if i < 5 else 0.5} for i in range(60)]
    never = [{"step": i, "loss": 1.0, "metric_loss": math.nan} for i in range(60)]
    assert not np.array_equal(curves(rows), curves(never))


def test_curves_take_panels_of_ones_own() -> None:
    rows = [{"step": 1, "fps": 30.0}]
    assert curves(rows, panels=[Panel("Speed", (("fps", "frames a second"),))]).size > 0


def test_curves_of_no_known_column_say_what_is_expected() -> None:
    with pytest.raises(UsageError, match="expected any of the columns loss, metric_loss"):
        curves([{"step": 1, "fps": 30.0}])


def test_curves_of_no_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="0 rows"):
        curves([])


def test_smooth_averages_neighbours_and_keeps_gaps() -> None:
    y = np.array([0.0, 3.0, 6.0, math.nan, 2.0])
    assert _smooth(y, 1).tolist()[:3] == [1.5, 3.0, 4.5]
    assert math.isnan(_smooth(y, 1)[3])
    assert _smooth(y, 1)[4] == 2.0
