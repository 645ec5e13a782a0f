from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sfda.errors import LabelError, UsageError
from edge_sfda.metrics import Calibration, ConfusionMatrix, aupr, auroc

#       label        prediction
LABEL = [[0, 0, 0], [1, 1, 255], [2, 2, 2]]
PRED = [[0, 0, 1], [1, 0, 3], [2, 2, 0]]


def _table() -> ConfusionMatrix:
    matrix = ConfusionMatrix(4)
    matrix.update(np.array(PRED, np.uint8), np.array(LABEL, np.uint8))
    return matrix


def test_counts_have_labels_as_rows_and_leave_void_out() -> None:
    assert _table().counts.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    assert _table().counts.dtype == np.int64


def test_iou_equals_the_table() -> None:
    # class 0: 2 hits of 3 labelled and 4 predicted; 1: 1 of 2 and 2; 2: 2 of 3 and 2; 3: never seen but under void
    np.testing.assert_allclose(_table().iou(), [2 / 5, 1 / 3, 2 / 3, math.nan], rtol=1e-15)


def test_miou_over_a_part_averages_the_same_ious_over_it() -> None:
    table = _table()
    iou = table.iou()
    assert table.miou([2, 0]) == pytest.approx((iou[0] + iou[2]) / 2)
    assert table.miou([0, 3]) == pytest.approx(iou[0])  # class 3 is in neither labels nor predictions
    assert math.isnan(table.miou([]))


@pytest.mark.parametrize("over", [[4], [-1], [0, 0]])
def test_miou_over_what_is_no_class_raises(over: list[int]) -> None:
    with pytest.raises(UsageError, match=r"give each of 0\.\.3 at most once"):
        _table().miou(over)


def test_miou_is_the_mean_over_classes_that_occur() -> None:
    assert _table().miou() == pytest.approx((2 / 5 + 1 / 3 + 2 / 3) / 3, rel=1e-15)


def test_accuracy_and_recall_equal_the_table() -> None:
    assert _table().accuracy() == 5 / 8
    np.testing.assert_allclose(_table().recall(), [2 / 3, 1 / 2, 2 / 3, math.nan], rtol=1e-15)


def test_class_that_is_only_predicted_has_iou_zero() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([0, 1]), np.array([0, 0]))
    assert matrix.iou().tolist() == [0.5, 0.0]
    assert math.isnan(matrix.recall()[1])


def test_frames_add_up_over_the_set() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([0]), np.array([0]))
    matrix.update(np.array([1, 1, 0]), np.array([0, 1, 0]))
    assert matrix.counts.tolist() == [[2, 1], [0, 1]]


def test_nothing_counted_is_nan_without_a_warning() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.array([1], np.uint8), np.array([255], np.uint8))
    assert math.isnan(matrix.miou())
    assert math.isnan(matrix.accuracy())
    assert np.isnan(matrix.iou()).all()


def test_empty_frame_counts_nothing() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.empty((0, 4), np.uint8), np.empty((0, 4), np.uint8))
    assert matrix.counts.sum() == 0


def test_ignore_id_just_beyond_the_classes_is_void() -> None:
    matrix = ConfusionMatrix(11, ignore_id=11)
    matrix.update(np.array([10, 10], np.uint8), np.array([11, 10], np.uint8))
    assert matrix.counts[10, 10] == matrix.counts.sum() == 1


def test_counts_beyond_32_bits_stay_exact() -> None:
    matrix = ConfusionMatrix(2)
    matrix.counts[0, 0] = 2**40
    matrix.update(np.array([0, 1]), np.array([0, 0]))
    assert matrix.counts[0, 0] == 2**40 + 1


def test_255_classes_of_uint8_do_not_wrap() -> None:
    matrix = ConfusionMatrix(255)
    matrix.update(np.array([254, 3], np.uint8), np.array([254, 200], np.uint8))
    assert matrix.counts[254, 254] == 1
    assert matrix.counts[200, 3] == 1


@pytest.mark.parametrize("value", [4, 255, -1])
def test_prediction_outside_the_classes_raises(value: int) -> None:
    with pytest.raises(UsageError, match=f"predictions .*{value}.* leave the classes 0..3"):
        ConfusionMatrix(4).update(np.array([0, value]), np.array([255, 255]))


@pytest.mark.parametrize("value", [4, 254, -1])
def test_label_outside_the_classes_raises(value: int) -> None:
    matrix = ConfusionMatrix(4)
    with pytest.raises(LabelError, match=f"labels .*{value}.* leave the classes 0..3 and void 255"):
        matrix.update(np.array([0, 0]), np.array([0, value]))
    assert matrix.counts.sum() == 0


def test_shapes_that_would_broadcast_raise() -> None:
    with pytest.raises(UsageError, match=r"shape \(2, 2\) against a label of shape \(2,\)"):
        ConfusionMatrix(2).update(np.zeros((2, 2), np.uint8), np.zeros(2, np.uint8))


def test_float_prediction_raises() -> None:
    with pytest.raises(UsageError, match="prediction of type float32; expected integer class ids"):
        ConfusionMatrix(2).update(np.zeros(2, np.float32), np.zeros(2, np.uint8))


@pytest.mark.parametrize(("classes", "ignore_id"), [(0, 255), (-1, 255), (3, 2), (3, 0)])
def test_impossible_matrix_raises(classes: int, ignore_id: int) -> None:
    with pytest.raises(UsageError, match=r"expected at least 1|is one of the classes"):
        ConfusionMatrix(classes, ignore_id)


def test_ece_equals_the_table() -> None:
    calibration = Calibration(bins=5)
    # bin 2 (0.4 to 0.6): mean confidence 0.5, accuracy 1/2; bin 4 (0.8 to 1): mean 0.9, accuracy 2/4
    calibration.update(np.array([0.45, 0.55]), np.array([True, False]))
    calibration.update(np.array([[0.8, 1.0], [0.85, 0.95]]), np.array([[True, False], [True, False]]))
    assert calibration.counts.tolist() == [0, 0, 2, 0, 4]
    assert calibration.ece() == pytest.approx(4 / 6 * 0.4, rel=1e-12)
    confidence, accuracy = calibration.curve()
    np.testing.assert_allclose(confidence, [math.nan, math.nan, 0.5, math.nan, 0.9], rtol=1e-12)
    np.testing.assert_allclose(accuracy, [math.nan, math.nan, 0.5, math.nan, 0.5], rtol=1e-12)


def test_ece_of_over_and_under_confidence_does_not_cancel_between_bins() -> None:
    calibration = Calibration(bins=2)
    calibration.update(np.array([0.3, 0.7]), np.array([1, 0]))
    assert calibration.ece() == pytest.approx(0.7, rel=1e-12)


def test_confidence_on_a_bin_edge_counts_upwards_and_one_counts_in_the_last() -> None:
    calibration = Calibration(bins=4)
    calibration.update(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), np.ones(5, bool))
    assert calibration.counts.tolist() == [1, 1, 1, 2]


def test_ece_of_nothing_is_nan() -> None:
    assert math.isnan(Calibration().ece())


def test_confidence_rounded_past_one_counts_as_one() -> None:
    calibration = Calibration()
    calibration.update(np.array([np.nextafter(np.float32(1), np.float32(2))]), np.array([True]))
    assert calibration.ece() == 0.0


@pytest.mark.parametrize("value", [1.01, -0.01, math.nan, math.inf])
def test_confidence_that_is_no_probability_raises(value: float) -> None:
    with pytest.raises(UsageError, match="must be numbers in 0..1"):
        Calibration().update(np.array([0.5, value]), np.array([True, True]))


def test_calibration_without_bins_raises() -> None:
    with pytest.raises(UsageError, match="0 bins"):
        Calibration(bins=0)


@pytest.mark.parametrize(
    ("score", "positive", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
        ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
        ([5, 5, 5, 5], [0, 1, 0, 1], 0.5),
        ([1, 2, 2, 3], [0, 0, 1, 1], 0.875),
        ([-math.inf, 0, math.inf], [0, 0, 1], 1.0),
    ],
)
def test_auroc_equals_the_table(score: list[float], positive: list[int], expected: float) -> None:
    assert auroc(np.array(score), np.array(positive)) == expected


@pytest.mark.parametrize(
    ("score", "positive", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 1 / 2 * 1 + 1 / 2 * 2 / 3),
        ([5, 5, 5, 5], [0, 1, 0, 0], 0.25),
        ([4, 3, 2, 1], [1, 1, 0, 0], 1.0),
        ([4, 3, 3, 1], [0, 1, 1, 0], 2 / 3),
    ],
)
def test_aupr_equals_the_table(score: list[float], positive: list[int], expected: float) -> None:
    assert aupr(np.array(score), np.array(positive)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_auroc_of_one_kind_is_nan(positive: list[bool]) -> None:
    assert math.isnan(auroc(np.array([0.1, 0.2]), np.array(positive)))


def test_aupr_without_positives_is_nan_and_with_only_those_is_one() -> None:
    assert math.isnan(aupr(np.array([0.1, 0.2]), np.array([False, False])))
    assert aupr(np.array([0.1, 0.2]), np.array([True, True])) == 1.0


def test_empty_scores_are_nan() -> None:
    assert math.isnan(auroc(np.empty(0), np.empty(0, bool)))
    assert math.isnan(aupr(np.empty(0), np.empty(0, bool)))


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_auroc_equals_the_definition_over_all_pairs(rows: list[tuple[int, bool]]) -> None:
    above = [s for s, positive in rows if positive]
    below = [s for s, positive in rows if not positive]
    wins = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in above for n in below)
    expected = wins / (len(above) * len(below)) if above and below else math.nan
    found = auroc(np.array([s for s, _ in rows], np.float32), np.array([p for _, p in rows]))
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_aupr_equals_the_definition_over_all_thresholds(rows: list[tuple[int, bool]]) -> None:
    total = sum(positive for _, positive in rows)
    area, recall = 0.0, 0.0
    for threshold in range(6, -1, -1):
        kept = [positive for s, positive in rows if s >= threshold]
        if kept and total:
            area += (sum(kept) / total - recall) * sum(kept) / len(kept)
            recall = sum(kept) / total
    found = aupr(np.array([s for s, _ in rows]), np.array([p for _, p in rows]))
    assert found == pytest.approx(area if total else math.nan, rel=1e-12, nan_ok=True)


def test_auroc_of_a_million_pixels_does_not_overflow() -> None:
    score = np.arange(1_000_000)
    assert auroc(score, score >= 500_000) == 1.0


def test_nan_score_raises() -> None:
    with pytest.raises(UsageError, match="1 of 2 scores are NaN"):
        auroc(np.array([0.5, math.nan]), np.array([True, False]))


def test_score_of_another_shape_raises() -> None:
    with pytest.raises(UsageError, match=r"score of shape \(2,\) against positive of shape \(3,\)"):
        auroc(np.zeros(2), np.zeros(3, bool))


def test_positive_that_is_no_flag_raises() -> None:
    with pytest.raises(UsageError, match="positive must hold only true and false"):
        aupr(np.zeros(2), np.array([0, 2]))
