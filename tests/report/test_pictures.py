from __future__ import annotations

import numpy as np
import pytest

from edge_sfda.errors import LabelError
from edge_sfda.manifest import Classes
from edge_sfda.report.pictures import confusion_picture

CLASSES = Classes(("road", "sky", "car"), ((10, 20, 30), (200, 100, 0), (0, 0, 255)))


def test_confusion_picture_is_darker_where_pixels_are() -> None:
    right = confusion_picture(np.diag([5, 5, 5]), CLASSES)
    spread = confusion_picture(np.full((3, 3), 5), CLASSES)
    darkest = (107, 48, 8)  # BGR of "Blues" at 1
    assert [(picture == darkest).all(axis=2).sum() > 1000 for picture in (right, spread)] == [True, False]


def test_confusion_picture_of_absent_classes_warns_of_nothing() -> None:
    assert confusion_picture(np.zeros((3, 3), np.int64), CLASSES).size > 0


def test_confusion_picture_of_many_classes_leaves_the_numbers_out() -> None:
    many = Classes(tuple(f"c{i}" for i in range(30)), tuple((i, i, i) for i in range(30)))
    assert confusion_picture(np.eye(30, dtype=np.int64), many).size > 0


def test_confusion_picture_refuses_counts_of_other_classes() -> None:
    with pytest.raises(LabelError, match=r"\(4, 4\) for 3 classes"):
        confusion_picture(np.zeros((4, 4), np.int64), CLASSES)
