"""Measures of a segmentation: confusion matrix and IoU, calibration error, AUROC and average precision.

Counts are int64 and measures float64, gathered over a whole set: the IoU of a set is not the mean of its frames' IoU.
Where a measure has nothing to measure it is NaN, never 0, so that an absent class cannot pass for a failed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sfda.errors import LabelError, UsageError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_ROUNDING = 1e-5  # by which an interpolated float32 probability may leave 0..1


class ConfusionMatrix:
    """Count how often each class was predicted as each class.

    Args:
        classes: C, the number of classes.
        ignore_id: label id of void pixels, which are not counted; outside 0..C-1.

    Attributes:
        counts: int64 [C, C]; `counts[label, pred]` is a number of pixels.

    Raises:
        UsageError: `classes` is below 1, or `ignore_id` is a class.
    """

    def __init__(self, classes: int, ignore_id: int = 255) -> None:
        if classes < 1:
            raise UsageError(f"confusion matrix of {classes} classes; expected at least 1")
        if 0 <= ignore_id < classes:
            raise UsageError(f"ignore_id {ignore_id} is one of the classes 0..{classes - 1}; choose an id outside")
        self.classes = classes
        self.ignore_id = ignore_id
        self.counts: IntArray = np.zeros((classes, classes), dtype=np.int64)

    def update(self, pred: npt.NDArray[Any], label: npt.NDArray[Any]) -> None:
        """Count the pixels of one frame, or of a batch of them.

        Args:
            pred: integers 0..C-1, any shape.
            label: integers 0..C-1 or `ignore_id`, of the shape of `pred`.

        Raises:
            UsageError: shapes differ, an array holds no integers, or a prediction lies outside 0..C-1.
            LabelError: a label is neither a class nor `ignore_id`.
        """
        pred, label = np.asarray(pred), np.asarray(label)
        if pred.shape != label.shape:
            raise UsageError(f"prediction of shape {pred.shape} against a label of shape {label.shape}; resize one")
        for name, array in (("prediction", pred), ("label", label)):
            if array.dtype.kind not in "iu":
                raise UsageError(f"{name} of type {array.dtype}; expected integer class ids")
        if pred.size and not 0 <= pred.min() <= pred.max() < self.classes:
            raise UsageError(f"predictions {pred.min()}..{pred.max()} leave the classes 0..{self.classes - 1}")
        counted = label != self.ignore_id
        rows = label[counted].astype(np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < self.classes:
            raise LabelError(
                f"labels {rows.min()}..{rows.max()} leave the classes 0..{self.classes - 1} and void {self.ignore_id}; "
                "check the class map"
            )
        cells = rows * self.classes + pred[counted].astype(np.int64)
        self.counts += np.bincount(cells, minlength=self.classes**2).reshape(self.classes, self.classes)

    def iou(self) -> FloatArray:
        """Return intersection over union, float64 [C] in 0..1; NaN for a class in neither labels nor predictions."""
        hit = np.diagonal(self.counts)
        return _ratio(hit, self.counts.sum(axis=0) + self.counts.sum(axis=1) - hit)

    def miou(self, over: Sequence[int] | None = None) -> float:
        """Return the mean IoU over the classes that have one; NaN when none has.

        Args:
            over: the classes to average over; None: all. The others still count as what a pixel was taken for.

        Raises:
            UsageError: a class is none of 0..C-1, or given twice.
        """
        iou = self.iou()
        if over is not None:
            if len(set(over)) < len(over) or not all(0 <= i < self.classes for i in over):
                raise UsageError(f"mean over classes {list(over)}; give each of 0..{self.classes - 1} at most once")
            iou = iou[list(over)]
        iou = iou[~np.isnan(iou)]
        return float(iou.mean()) if iou.size else float("nan")

    def recall(self) -> FloatArray:
        """Return the share of each class's labelled pixels that were found, float64 [C]; NaN for an unlabelled one."""
        return _ratio(np.diagonal(self.counts), self.counts.sum(axis=1))

    def accuracy(self) -> float:
        """Return the share of counted pixels that were right; NaN when none was counted."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))


class Calibration:
    """Compare stated confidence with observed accuracy, in equal-width bins [k/bins, (k+1)/bins), the last one closed.

    Expected calibration error as in Guo et al. 2017, eq. 3.

    Args:
        bins: number of bins over 0..1.

    Attributes:
        counts: int64 [bins], pixels a bin.

    Raises:
        UsageError: `bins` is below 1.
    """

    def __init__(self, bins: int = 15) -> None:
        if bins < 1:
            raise UsageError(f"calibration over {bins} bins; expected at least 1")
        self.bins = bins
        self.counts: IntArray = np.zeros(bins, dtype=np.int64)
        self._hits: IntArray = np.zeros(bins, dtype=np.int64)
        self._confidence: FloatArray = np.zeros(bins, dtype=np.float64)

    def update(self, confidence: npt.NDArray[Any], correct: npt.NDArray[Any]) -> None:
        """Count pixels; the caller leaves void ones out.

        Args:
            confidence: floats 0..1, any shape.
            correct: bool (or 0 and 1), of the shape of `confidence`.

        Raises:
            UsageError: shapes differ, or a confidence is not a number in 0..1.
        """
        score, right = _pair(confidence, correct, "confidence", "correct")
        score = score.astype(np.float64)
        if score.size and not (score.min() >= -_ROUNDING and score.max() <= 1 + _ROUNDING):  # NaN fails both
            raise UsageError(f"confidences {score.min()}..{score.max()} must be numbers in 0..1; pass probabilities")
        score = score.clip(0, 1)
        where = np.minimum((score * self.bins).astype(np.int64), self.bins - 1)
        self.counts += np.bincount(where, minlength=self.bins)
        self._hits += np.bincount(where[right], minlength=self.bins)
        self._confidence += np.bincount(where, weights=score, minlength=self.bins)

    def sums(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that are counted in, by name, each [bins]: the live ones, to be saved or set in place."""
        return {"pixels": self.counts, "hits": self._hits, "confidence": self._confidence}

    def ece(self) -> float:
        """Return the expected calibration error in 0..1, bins weighted by their pixels; NaN when none was counted."""
        gap = np.abs(self._hits - self._confidence)
        return float(_ratio(gap.sum(), self.counts.sum()))

    def curve(self) -> tuple[FloatArray, FloatArray]:
        """Return mean confidence and accuracy a bin, each float64 [bins]; NaN in an empty bin."""
        return _ratio(self._confidence, self.counts), _ratio(self._hits, self.counts)


def auroc(score: npt.NDArray[Any], positive: npt.NDArray[Any]) -> float:
    """Return the chance that a positive scores above a negative, ties counting one half.

    Args:
        score: numbers, any shape; higher is more positive. Infinite ones rank as such.
        positive: bool (or 0 and 1), of the shape of `score`.

    Returns:
        Area under the ROC curve in 0..1; NaN when positives or negatives are missing.

    Raises:
        UsageError: shapes differ, or a score is NaN.
    """
    positives, negatives = _tied_groups(score, positive)
    below = np.cumsum(negatives) - negatives
    pairs = positives.sum() * negatives.sum()
    # integers throughout: exact, and no overflow below 2e9 pixels
    return float(_ratio((positives * (2 * below + negatives)).sum(), 2 * pairs))


def aupr(score: npt.NDArray[Any], positive: npt.NDArray[Any]) -> float:
    """Return average precision: precision at each distinct score, weighted by the recall that it adds.

    Arguments and errors as in `auroc`; NaN when there is no positive. The value of a random score is the share of
    positives.
    """
    positives, negatives = _tied_groups(score, positive)
    positives, negatives = positives[::-1], negatives[::-1]  # from the highest score down
    hits = np.cumsum(positives)
    precision = hits / np.maximum(hits + np.cumsum(negatives), 1)
    return float(_ratio((precision * positives).sum(), positives.sum()))


def _tied_groups(score: npt.NDArray[Any], positive: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Return positives and negatives at each distinct score, ascending, each int64 [groups]."""
    values, flags = _pair(score, positive, "score", "positive")
    if np.isnan(values).any():
        raise UsageError(f"{np.isnan(values).sum()} of {values.size} scores are NaN; leave those pixels out")
    distinct, group = np.unique(values, return_inverse=True)
    group = group.reshape(-1)  # numpy 2.0 alone returns the input's shape
    positives = np.bincount(group[flags], minlength=distinct.size).astype(np.int64)
    negatives = np.bincount(group[~flags], minlength=distinct.size).astype(np.int64)
    return positives, negatives


def _pair(
    values: npt.NDArray[Any], flags: npt.NDArray[Any], value_name: str, flag_name: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    values, flags = np.asarray(values), np.asarray(flags)
    if values.shape != flags.shape:
        raise UsageError(f"{value_name} of shape {values.shape} against {flag_name} of shape {flags.shape}")
    if flags.dtype != np.bool_ and not np.isin(flags, (0, 1)).all():
        raise UsageError(f"{flag_name} must hold only true and false (or 1 and 0)")
    return values.reshape(-1), flags.reshape(-1).astype(np.bool_)


def _ratio(over: npt.ArrayLike, under: npt.ArrayLike) -> FloatArray:
    """Divide; NaN, without a warning, where `under` is 0."""
    top, bottom = np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64)
    out: FloatArray = np.full(bottom.shape, np.nan)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return out
