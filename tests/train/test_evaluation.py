from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sfda.errors import LabelError
from edge_sfda.manifest import Classes
from edge_sfda.train.evaluation import evaluate

CLASSES = Classes(("a", "b"), ((0, 0, 0), (1, 1, 1)))
LABELS = [np.array([[0, 0], [1, 255]], np.uint8), np.array([[1, 1, 1]], np.uint8)]
MASKS = [np.array([[0, 1], [1, 0]], np.uint8), np.array([[1, 0, 1]], np.uint8)]
CONFIDENCES = [np.array([[1.0, 1.0], [0.5, 0.5]], np.float32), np.array([[1.0, 1.0, 1.0]], np.float32)]


class Two:
    """Two frames of different sizes; the first pixel's value is the frame's number."""

    classes = CLASSES
    names = ("first", "second")

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        return np.full((*LABELS[index].shape, 3), index, np.uint8), LABELS[index]

    def label(self, index: int) -> NDArray[np.uint8]:
        return LABELS[index]


def _predict(image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    return MASKS[image.flat[0]], CONFIDENCES[image.flat[0]]


def test_all_frames_are_counted_in_one_matrix_without_void() -> None:
    assert evaluate(_predict, Two()).confusion.counts.tolist() == [[1, 1], [1, 3]]  # type: ignore[arg-type]


def test_miou_is_of_the_set_and_not_a_mean_over_frames() -> None:
    miou = evaluate(_predict, Two()).confusion.miou()  # type: ignore[arg-type]
    assert miou == pytest.approx((1 / 3 + 3 / 5) / 2)


def test_calibration_counts_labelled_pixels_alone() -> None:
    calibration = evaluate(_predict, Two()).calibration  # type: ignore[arg-type]
    assert int(calibration.counts.sum()) == 6
    # five pixels of confidence 1, three of them right, and one of 0.5, right
    assert calibration.ece() == pytest.approx(5 / 6 * (1 - 3 / 5) + 1 / 6 * 0.5)


def test_progress_is_told_after_each_frame() -> None:
    told: list[tuple[int, int]] = []
    evaluate(_predict, Two(), on_frame=lambda done, total: told.append((done, total)))  # type: ignore[arg-type]
    assert told == [(1, 2), (2, 2)]


def test_empty_set_is_refused(in_memory: Callable[..., Any]) -> None:
    with pytest.raises(LabelError, match="no labelled frames to evaluate on"):
        evaluate(_predict, in_memory(0))
