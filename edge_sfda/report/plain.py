"""Results as JSON: no numpy, no paths, and null where a number is missing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """Return `value` as JSON text.

    Args:
        value: of mappings, sequences, dataclasses, numpy arrays and scalars, paths, and what JSON has itself.
        indent: spaces a level; None writes one line.

    Raises:
        TypeError: something else is in it.
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return `value` made of dict, list, str, int, float, bool and None only; NaN and infinities become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN, and readers disagree about Python's spelling of it
    return value
