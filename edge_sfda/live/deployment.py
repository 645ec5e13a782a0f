"""The network in use: which generation it is, how another takes its place, whether the source is at home in a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sfda import checkpoint
from edge_sfda.adapt.generations import Generation, Generations
from edge_sfda.data.frames import U8
from edge_sfda.errors import EdgeSfdaError
from edge_sfda.live.exchange import MODEL, Exchange
from edge_sfda.live.job import CHECKPOINT, ONNX, Judged
from edge_sfda.manifest import Manifest
from edge_sfda.runtime.predict import Segmenter

if TYPE_CHECKING:
    from edge_sfda.live.home import Home


class Deployment:
    """Changes the network in use one after the other; each is written and loaded beside the frames.

    Args:
        segmenter: of the newest generation; closed by the caller.
        generations: with the source as 0, and the newest in use.
        net: `module:factory` of a network of your own that their checkpoints may run.
        homing: whether frames are to be held against the source while another network is in use.
    """

    def __init__(self, segmenter: Segmenter, generations: Generations, *, net: str | None, homing: bool) -> None:
        self.generation = generations.newest()
        self.source = next(g for g in generations.all() if g.number == 0)  # stays; all are read and verified for it
        self._segmenter, self._generations = segmenter, generations
        self._net, self._homing = net, homing
        self._exchange: Exchange | None = None  # under way
        self._home: Home | None = None  # once another network than the source has been in use
        self._leave: Callable[[], None] = lambda: None  # what `_home` is to do once the exchange is made

    @property
    def changing(self) -> bool:
        """Whether a change is under way."""
        return self._exchange is not None

    @property
    def is_source(self) -> bool:
        """Whether it is the source that is in use."""
        return self.generation.number == 0 or self.generation.report.get("accepted") == "source"

    def begin(self) -> None:
        """Take up a run: read what frames are held against while its newest generation is in use."""
        self._leave_home(self.generation)()

    def change(
        self,
        choose: Callable[[], Generation],
        taken: Callable[[Generation], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Write or find a generation and load it beside the frames; `taken` or `failed` follows in `settle`."""

        def chosen() -> Generation:
            generation = choose()
            self._leave = self._leave_home(generation)
            return generation

        self.settle(wait=True)  # one after the other
        self._exchange = Exchange(self._segmenter, chosen, taken, failed)

    def settle(self, *, wait: bool = False) -> None:
        """Between two frames: exchange the network where what a change brings is ready, or once it is."""
        exchange = self._exchange
        if exchange is None or not (wait or exchange.ready):
            return
        self._exchange = None
        try:
            generation = exchange.take()
        except (EdgeSfdaError, OSError) as error:
            exchange.failed(error)
            return
        self._leave()
        self.generation = generation
        exchange.taken(generation)

    def came_home(self, x: U8, at: float) -> bool:
        """Take in the next frame, uint8 RGB [3, H, W] of second `at`; returns whether the source is at home in it.

        It says so once for each network that was deployed, whatever comes of it.
        """
        if self._home is None or not self._home.look(x, at):
            return False
        self._home.leave(None)
        return True

    def keep(self, judged: Judged, folder: Path) -> Generation:
        """Let what was accepted be the newest generation; its files lie in `folder`.

        Raises:
            EdgeSfdaError, OSError: it cannot be read or written.
        """
        if judged.accepted == "source":
            return self.keep_source(judged.decision)
        path, model = (folder / f"{judged.files}{suffix}" for suffix in (CHECKPOINT, ONNX))
        extra = {MODEL: model.read_bytes()} if model.exists() and judged.onnx else {}
        manifest = Manifest.from_json(judged.manifest)
        return self._generations.accept(checkpoint.load(path).state, manifest, report=judged.decision, files=extra)

    def keep_source(self, report: Mapping[str, object]) -> Generation:
        """Let the source be the newest generation; raises as `keep`."""
        model = self.source.path / MODEL
        extra = {MODEL: model.read_bytes()} if model.exists() else {}
        state = checkpoint.load(self.source.checkpoint).state
        return self._generations.accept(state, self.source.manifest, report=report, files=extra)

    def back(self, steps: int) -> Generation:
        """Let the generation before the newest be the newest again, or the one so many before; raises as `keep`."""
        return self._generations.rollback(steps)

    def _leave_home(self, generation: Generation) -> Callable[[], None]:
        """Read what frames are held against while a generation is in use; returns what makes it so, once it is."""
        if not self._homing or (self._home is None and generation.number == 0):
            return lambda: None
        if self._home is None:
            from edge_sfda.live.home import Home
            from edge_sfda.nets import load

            self._home = Home(*load(self.source.checkpoint, allow=self._net))
        home, statistics = self._home, self._home.statistics_of(generation.checkpoint)
        return lambda: home.leave(statistics)
