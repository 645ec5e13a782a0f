"""A loop over the built-in street: real network, real generations, real gate; the process of a burst may be a fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_sfda.adapt.generations import Generations
from edge_sfda.config import AdaptConfig, LiveConfig, from_dict
from edge_sfda.data.sources import open_source
from edge_sfda.live.capture import Capture, Pace
from edge_sfda.live.events import Events
from edge_sfda.live.exchange import artefact_of
from edge_sfda.live.loop import Loop, Place
from edge_sfda.live.worker import Worker
from edge_sfda.nets import load
from edge_sfda.runtime.predict import Segmenter

MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"

SHORT = {"burst": {"steps": 2, "batch": 2}, "statistics": {"frames": 8}, "reliability": {"warm_up": 1}}


class Run:
    """A loop and what it told."""

    def __init__(self, loop: Loop, told: list[dict[str, Any]], generations: Generations) -> None:
        self.loop, self.told, self.generations = loop, told, generations

    def kinds(self) -> list[str]:
        """Return the events in their order, phases by their names."""
        return [str(event.get("phase", event["event"])) for event in self.told]


@pytest.fixture
def make_loop(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    open_ones: list[Any] = []

    def make(
        source: str = "scene:dusk?frames=60&fps=5&seed=5",
        *,
        worker: Callable[..., Any] = Worker,
        adapt: AdaptConfig | None = None,
        pace: Pace = Pace.FAST,
        **config: Any,
    ) -> Run:
        settings: dict[str, Any] = {"learn": 12, "onnx": False, **config}
        live = LiveConfig(**settings)
        net, manifest = load(MODEL)
        generations = Generations(tmp_path / "generations", keep=live.keep)
        generations.start(net.state_dict(), manifest)
        segmenter = Segmenter.load(artefact_of(generations.newest()))
        capture = Capture(lambda: open_source(source), live.watch, pace=pace, min_side=net.min_side)
        open_ones.extend((capture, segmenter))
        told: list[dict[str, Any]] = []
        loop = Loop(
            segmenter,
            capture,
            generations,
            manifest,
            Place(tmp_path),
            config=live,
            adapt=adapt or from_dict(SHORT),
            events=Events(tmp_path / "events.jsonl", listener=lambda event: told.append(dict(event))),
            worker=worker,
        )
        return Run(loop, told, generations)

    yield make
    for item in open_ones:
        item.close()
