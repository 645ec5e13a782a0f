"""Keep some items of a stream of unknown length, evenly spread, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Spread(Generic[T]):
    """Keeps the first item, then every n-th; n doubles, and every second item goes, whenever more than `most` are kept.

    So at any time between half of `most` and `most` items are kept (or all there were), the same ones in every run.

    Args:
        most: items kept at most, 2 or more.

    Attributes:
        items: what is kept, in the order of arrival.
        seen: items offered so far.
    """

    def __init__(self, most: int) -> None:
        assert most >= 2, "one item cannot be thinned out"
        self.most = most
        self.items: list[T] = []
        self.seen = 0
        self._every = 1

    def offer(self, make: Callable[[], T]) -> None:
        """Count one item; `make` is called only when it is kept."""
        wanted = self.seen % self._every == 0
        self.seen += 1
        if not wanted:
            return
        if len(self.items) == self.most:
            self.items = self.items[::2]
            self._every *= 2
            if (self.seen - 1) % self._every:
                return
        self.items.append(make())
