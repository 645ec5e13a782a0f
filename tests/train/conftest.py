"""Seeds, one thread, and a labelled set that lives in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edge_sfda.manifest import Classes

Image = npt.NDArray[np.uint8]

CLASSES = Classes(("dark", "bright", "never"), ((0, 0, 0), (255, 255, 255), (255, 0, 0)))


class InMemory:
    """Frames whose left part is dark and whose right part is bright; `void` of them have no labelled pixel."""

    def __init__(self, frames: int, *, void: int = 0, height: int = 64, width: int = 64) -> None:
        rng = np.random.default_rng(frames)
        self.classes = CLASSES
        self.names = [str(i) for i in range(frames)]
        self._items = []
        for i in range(frames):
            label = np.zeros((height, width), np.uint8)
            label[:, int(rng.integers(width // 4, 3 * width // 4)) :] = 1
            image = (40 + 160 * label[:, :, None] + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)
            if i < void:
                label[:] = CLASSES.ignore_id
            self._items.append((image, label))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Image, Image]:
        return self._items[index]

    def label(self, index: int) -> Image:
        return self._items[index][1]


@pytest.fixture
def in_memory() -> Callable[..., InMemory]:
    return InMemory


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
