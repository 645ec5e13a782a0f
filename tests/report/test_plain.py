from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edge_sfda.report.plain import plain, to_json


@dataclass(frozen=True)
class _Result:
    name: str
    iou: np.ndarray


def test_plain_turns_arrays_dataclasses_and_paths_into_json_values() -> None:
    value = {"r": _Result("road", np.array([0.5, np.nan])), "path": Path("a/b"), "n": np.int64(3), 4: (True, None)}
    assert plain(value) == {"r": {"name": "road", "iou": [0.5, None]}, "path": "a/b", "n": 3, "4": [True, None]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_to_json_writes_null_for_what_json_lacks(value: float) -> None:
    assert to_json([value], indent=None) == "[null]"


def test_to_json_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError):
        to_json({1, 2})
