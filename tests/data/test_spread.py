from __future__ import annotations

import pytest

from edge_sfda.data.spread import Spread


def _kept(most: int, count: int) -> list[int]:
    spread: Spread[int] = Spread(most)
    for index in range(count):
        spread.offer(lambda index=index: index)
    assert spread.seen == count
    return spread.items


@pytest.mark.parametrize(
    ("most", "count", "kept"),
    [
        (4, 0, []),
        (4, 3, [0, 1, 2]),
        (4, 4, [0, 1, 2, 3]),
        (4, 5, [0, 2, 4]),
        (4, 9, [0, 4, 8]),
        (3, 4, [0, 2]),
        (3, 5, [0, 2, 4]),
        (3, 7, [0, 4]),
        (2, 1000, [0, 512]),
    ],
)
def test_spread_keeps_evenly_spaced_items(most: int, count: int, kept: list[int]) -> None:
    assert _kept(most, count) == kept


def test_spread_makes_only_what_it_keeps() -> None:
    made: list[int] = []
    spread: Spread[int] = Spread(8)
    for index in range(1000):
        spread.offer(lambda index=index: made.append(index) or index)
    assert len(made) < 50
