"""What happened, as JSON lines: to a file, and to whoever listens. A full disk loses no event and stops nobody."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_KEPT = 1000  # events held while the disk is full; the oldest go first

_log = logging.getLogger(__name__)


class Events:
    """Writes each event as one line.

    Args:
        path: of the file, appended to; None writes none.
        listener: called with each event.
        clock: seconds since 1970.

    Attributes:
        unwritten: events that wait for the disk.
        lost: events that did not fit among them.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        listener: Callable[[Mapping[str, Any]], None] = lambda event: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.lost = 0
        self._listener = listener
        self._clock = clock
        self._waiting: deque[str] = deque()

    @property
    def unwritten(self) -> int:
        """Events that wait for the disk."""
        return len(self._waiting)

    def tell(self, kind: str, **facts: Any) -> None:
        """Record an event; `facts` hold JSON values, and what is not finite becomes null."""
        event = {"at": round(self._clock(), 3), "event": kind, **facts}
        self._listener(event)
        if self.path is None:
            return
        self._waiting.append(line_of(event))
        while len(self._waiting) > _KEPT:
            self._waiting.popleft()
            self.lost += 1
        self.flush()

    def flush(self) -> bool:
        """Write what waits; returns whether nothing waits any more."""
        if self.path is None or not self._waiting:
            return True
        text = "".join(line + "\n" for line in self._waiting)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            if len(self._waiting) == 1:  # once, not at every event
                _log.warning("events cannot be written to %s: %s; they are held and tried again", self.path, error)
            return False
        self._waiting.clear()
        return True


def line_of(event: Mapping[str, Any]) -> str:
    """Return an event as one line of JSON; what is not finite becomes null."""
    return json.dumps(_finite(event), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
