"""Another network into use: written and loaded in a thread of its own, exchanged between two frames."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge_sfda.adapt.generations import Generation
from edge_sfda.runtime.predict import Prepared, Segmenter

MODEL = "model.onnx"  # of a generation


class Exchange:
    """One change of the network in use; the thread begins at once.

    Args:
        segmenter: that gets it.
        choose: writes or finds the generation; runs in the thread, for a disk may be slow.
        taken: what the owner does once it is in use.
        failed: what the owner does where it is not; the old one stays.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        choose: Callable[[], Generation],
        taken: Callable[[Generation], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.taken, self.failed = taken, failed
        self._segmenter = segmenter
        self._choose = choose
        pool = ThreadPoolExecutor(1, thread_name_prefix="exchange")
        self._prepared = pool.submit(self._prepare)
        pool.shutdown(wait=False)

    @property
    def ready(self) -> bool:
        """Whether `take` will not wait."""
        return self._prepared.done()

    def take(self) -> Generation:
        """Exchange the network, which takes no time once it is ready.

        Raises:
            EdgeSfdaError, OSError: it could not be written, found or loaded.
        """
        generation, prepared = self._prepared.result()
        self._segmenter.swap(prepared)
        return generation

    def _prepare(self) -> tuple[Generation, Prepared]:
        generation = self._choose()
        return generation, self._segmenter.prepare(artefact_of(generation))


def artefact_of(generation: Generation) -> Path:
    """Return what to run of a generation: its ONNX model where it has one, else its checkpoint."""
    model = generation.path / MODEL
    return model if model.exists() else generation.checkpoint
