"""What the dashboard's picture shows, as JPEG: encoded when somebody asks, ten times a second at most for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from edge_sfda.data.frames import U8
from edge_sfda.data.paint import colour_mask, heat, overlay
from edge_sfda.live.history import encode
from edge_sfda.live.job import Look
from edge_sfda.live.status import Latest
from edge_sfda.manifest import Classes

VIEWS = ("overlay", "frame", "mask", "confidence", "reliability")

_LEAST_S = 0.1  # between two pictures of one view
_SIDE = 960  # pixels of the longer side: more than a page shows


class View(NamedTuple):
    """A picture: its number, which grows when it changes, and the JPEG."""

    number: int
    jpeg: bytes


class Views:
    """Draws the newest prediction in each way, once for everybody who looks.

    Args:
        latest: the newest prediction.
        look: the newest look at a burst's reliability.
        classes: of the masks.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        latest: Callable[[], Latest | None],
        look: Callable[[], Look | None],
        classes: Classes,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._latest, self._look, self._classes, self._clock = latest, look, classes, clock
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, object, View]] = {}  # when, of what, the picture

    def get(self, name: str) -> View | None:
        """Return the newest picture of a view; None where there is nothing to show yet.

        Raises:
            KeyError: there is no such view.
        """
        if name not in VIEWS:
            raise KeyError(name)
        with self._lock:  # one thread encodes; the others get what it made
            kept = self._kept.get(name)
            if kept is not None and self._clock() - kept[0] < _LEAST_S:
                return kept[2]
            subject = self._look() if name == "reliability" else self._latest()
            if subject is None:
                return None
            if kept is not None and subject is kept[1]:
                return kept[2]
            image = _explain(subject) if isinstance(subject, Look) else _draw(name, subject, self._classes)
            if image is None:
                return None
            view = View(1 if kept is None else kept[2].number + 1, encode(image, side=_SIDE))
            self._kept[name] = (self._clock(), subject, view)
            return view


def _draw(name: str, latest: Latest, classes: Classes) -> U8 | None:
    if name == "frame":
        return latest.frame.image
    if name == "mask":
        return colour_mask(latest.mask, classes)
    if name == "confidence":
        return None if latest.confidence is None else heat(latest.confidence)
    return overlay(latest.frame.image, latest.mask, classes)


def _explain(look: Look) -> U8:
    """Lay reliability, as heat, over the frame that it belongs to; uint8 BGR."""
    image = np.ascontiguousarray(look.image[::-1].transpose(1, 2, 0))
    height, width = image.shape[:2]
    values = cv2.resize(look.reliability, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    return np.asarray(cv2.addWeighted(image, 0.35, heat(values), 0.65, 0), np.uint8)
