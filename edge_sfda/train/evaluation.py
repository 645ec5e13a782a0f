"""Hold predictions against labels: used to choose the best epoch, by `evaluate`, and to measure an adaptation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sfda.data.datasets import LabelledSet
from edge_sfda.errors import LabelError
from edge_sfda.manifest import Classes
from edge_sfda.metrics import Calibration, ConfusionMatrix

PredictFn = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]


@dataclass(frozen=True)
class Evaluation:
    """Confusion matrix and calibration of one network on one labelled set, void left out."""

    confusion: ConfusionMatrix
    calibration: Calibration

    @staticmethod
    def empty(classes: Classes) -> Evaluation:
        """Return one that has counted nothing yet."""
        return Evaluation(ConfusionMatrix(len(classes), classes.ignore_id), Calibration())

    def count(
        self, mask: npt.NDArray[np.uint8], confidence: npt.NDArray[np.float32], label: npt.NDArray[np.uint8]
    ) -> None:
        """Count one frame: mask and label HW uint8 class ids, confidence HW float32 in 0..1; void is left out."""
        self.confusion.update(mask, label)
        counted = label != self.confusion.ignore_id
        self.calibration.update(confidence[counted], (mask == label)[counted])

    def counts(self) -> dict[str, npt.NDArray[Any]]:
        """Return every array that is counted in, by name: the live ones, to be saved or set in place."""
        return {"confusion": self.confusion.counts, **self.calibration.sums()}


def evaluate(
    predict: PredictFn, labelled: LabelledSet, *, on_frame: Callable[[int, int], None] | None = None
) -> Evaluation:
    """Predict every frame at its own size and count.

    Args:
        predict: frame HWC uint8 BGR -> mask HW uint8 and confidence HW float32 (`nets.inference.Predictor`).
        labelled: the frames and labels.
        on_frame: called with (done, total).

    Raises:
        LabelError: the set is empty.
    """
    if len(labelled) == 0:
        raise LabelError("got no labelled frames to evaluate on; check the path and --classes")
    result = Evaluation.empty(labelled.classes)
    for index in range(len(labelled)):
        image, label = labelled[index]
        result.count(*predict(image), label)
        if on_frame is not None:
            on_frame(index + 1, len(labelled))
    return result
