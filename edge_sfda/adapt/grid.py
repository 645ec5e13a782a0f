"""The grid of the logits over the frame: which pixels belong to a cell."""

from __future__ import annotations


def cell_size(pixels: int, cells: int) -> int:
    """Return the pixels a cell covers along one side of a frame.

    Networks with padded layers round their grid up, so that the frame may cut the last cell; those without round it
    down, and the pixels left over have no cell.

    Args:
        pixels: side of the frame.
        cells: side of the grid, at least 1.
    """
    size = -(-pixels // cells)
    return size if (cells - 1) * size < pixels else pixels // cells
