from __future__ import annotations

import pytest

from edge_sfda.adapt.grid import cell_size


@pytest.mark.parametrize(
    ("pixels", "cells", "size"),
    [
        (64, 16, 4),
        (64, 64, 1),
        (65, 17, 4),  # rounded up: the last cell holds one pixel
        (67, 17, 4),
        (65, 16, 4),  # rounded down: one pixel is left over
        (67, 16, 4),
        (360, 45, 8),
        (361, 46, 8),
        (361, 45, 8),
        (7, 1, 7),
    ],
)
def test_cell_covers_the_stride_however_the_grid_was_rounded(pixels: int, cells: int, size: int) -> None:
    assert cell_size(pixels, cells) == size


@pytest.mark.parametrize("pixels", [32, 33, 97, 101, 480])
def test_every_cell_begins_inside_the_frame(pixels: int) -> None:
    for cells in range(1, pixels + 1):
        assert (cells - 1) * cell_size(pixels, cells) < pixels
