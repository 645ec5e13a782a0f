"""A live loop over frames drawn beforehand: what the benchmarks of the loop have in common."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_sfda.adapt.generations import Generations
from edge_sfda.config import AdaptConfig, LiveConfig
from edge_sfda.data.frames import Frame, FrameSource
from edge_sfda.data.sources import open_source
from edge_sfda.live.capture import Capture, Pace
from edge_sfda.live.events import Events
from edge_sfda.live.exchange import artefact_of
from edge_sfda.live.job import Job
from edge_sfda.live.loop import Loop, Place
from edge_sfda.live.worker import Worker
from edge_sfda.nets import load
from edge_sfda.runtime.predict import Segmenter

MODEL = Path(__file__).parent.parent / "edge_sfda" / "assets" / "scene_day_nano.safetensors"


class Reel(FrameSource):
    """Gives drawn frames over and over: drawing the street costs more than predicting it, and would be measured too."""

    def __init__(self, frames: list[Frame], fps: float) -> None:
        self.frames = frames
        self.fps: float | None = fps
        self.len_hint: int | None = None
        self._seq = 0

    def __next__(self) -> Frame:
        seq, self._seq = self._seq, self._seq + 1
        return replace(self.frames[seq % len(self.frames)], seq=seq, captured_at=seq / (self.fps or 1.0))

    def close(self) -> None:
        """Nothing to release."""


def draw(spec: str) -> list[Frame]:
    """Return the frames of a source."""
    with open_source(spec) as source:
        return list(source)


@dataclass(frozen=True)
class Run:
    """A loop, its folder, what it told, and its workers in their order."""

    loop: Loop
    folder: Path
    generations: Generations
    told: list[Mapping[str, Any]]
    workers: list[Worker]

    def count(self, kind: str) -> int:
        """Return how often an event was told."""
        return sum(event["event"] == kind for event in self.told)


@contextmanager
def open_loop(
    opener: Callable[[], FrameSource],
    *,
    pace: Pace,
    config: LiveConfig,
    adapt: AdaptConfig,
    prepare: Callable[[Generations], None] = lambda generations: None,
) -> Iterator[Run]:
    """Open the built-in network and a loop over it, as the command line does; `prepare` may add generations."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        net, manifest = load(MODEL)
        generations = Generations(folder / "generations", keep=config.keep)
        generations.start(net.state_dict(), manifest)
        prepare(generations)
        segmenter = stack.enter_context(
            Segmenter.load(artefact_of(generations.newest()), threads=1, colour_order="bgr")
        )
        capture = Capture(opener, config.watch, pace=pace, min_side=net.min_side)
        stack.callback(capture.close)
        told: list[Mapping[str, Any]] = []
        workers: list[Worker] = []

        def begin(job: Job) -> Worker:
            workers.append(Worker(job))
            return workers[-1]

        events = Events(folder / "events.jsonl", listener=told.append)
        loop = Loop(
            segmenter,
            capture,
            generations,
            manifest,
            Place(folder),
            config=config,
            adapt=adapt,
            events=events,
            worker=begin,
        )
        yield Run(loop, folder, generations, told, workers)
