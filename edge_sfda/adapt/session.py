"""A whole adaptation: frames in; the adapted network, what it is worth, and samples to look at out.

`Session.offline` learns from a set of frames and measures on the same or on others; `Session.online` predicts each
frame of a stream before it learns from it. Labels only ever measure: they reach `_Gauge`, never a method.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge_sfda.adapt import run
from edge_sfda.adapt import state as states
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.adapt.method import Method, StepReport
from edge_sfda.adapt.prior import remaining_class_weight
from edge_sfda.adapt.reliability import levels
from edge_sfda.adapt.state import State
from edge_sfda.config import AdaptConfig
from edge_sfda.data import sources
from edge_sfda.data.frames import Frame, check_frame, to_input
from edge_sfda.data.labels import Labels
from edge_sfda.data.spread import Spread
from edge_sfda.errors import CheckpointError, DataError, LabelError, WriteError
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.inference import Predictor
from edge_sfda.train.evaluation import Evaluation

U8 = npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)

_LEARNED = 512  # frames kept to learn from: 265 MB at 360x480; a burst draws 640 times
_SAMPLES = 8  # frames kept at their own size, to look at


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame with both networks' masks, all of the frame's size; reliability at logits' size where there is one."""

    frame: Frame
    before: U8
    after: U8
    label: U8 | None
    reliability: npt.NDArray[np.float32] | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an adaptation came to.

    Args:
        method: holds the adapted network (`method.deployed`).
        steps: taken.
        frames: learned from.
        before: the source network against the labels; None without labels.
        after: the adapted network against the same labels.
        labelled: frames that were measured.
        samples: a few frames, evenly spread.
        seconds: spent adapting, without measuring.
        stopped: before its end, by `Watch.stop`.
        failure: what ended a stream before its end; what was learned until then is whole.
    """

    method: Method
    steps: int
    frames: int
    before: Evaluation | None
    after: Evaluation | None
    labelled: int
    samples: tuple[Sample, ...]
    seconds: float
    stopped: bool
    failure: DataError | None = None

    def manifest(self) -> Manifest:
        """Return the manifest of the adapted network."""
        return adapted_manifest(self.method, steps=self.steps, frames=self.frames, stopped=self.stopped)


def adapted_manifest(method: Method, *, steps: int, frames: int, stopped: bool) -> Manifest:
    """Return the manifest of `method.deployed`: its origin, and only the class weights that it still has."""
    derived = method.manifest.derive(
        kind="adapted",
        method=method.config.method,
        seed=method.config.seed,
        steps=steps,
        frames=frames,
        stopped=stopped,
    )
    if not isinstance(method, Adapter):
        return derived
    left = remaining_class_weight(method.manifest, share=method.prior_undone)
    return replace(derived, class_weight=left)


@dataclass(frozen=True)
class Watch:
    """How a session speaks to whoever runs it.

    Args:
        row: called with the numbers of each step, the first of them `step`.
        stage: called with what is going on, how much is done and of how much (None: not known).
        stop: asked between steps; True ends the session early, with a network that is whole.
    """

    row: Callable[[dict[str, float]], None] = lambda row: None
    stage: Callable[[str, int, int | None], None] = lambda what, done, total: None
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Slice:
    """The frames `start` to `stop` of a source, opened anew by every loop over them and closed after it.

    Looping raises SourceError, FrameError or UsageError as `open_source` does.
    """

    spec: str
    start: int = 0
    stop: int | None = None

    def __iter__(self) -> Iterator[Frame]:
        with sources.open_source(self.spec) as source:
            yield from islice(source, self.start, self.stop)


@dataclass(frozen=True)
class Keep:
    """Where a stream's state is kept, so that a killed run goes on.

    Args:
        path: the file, replaced as a whole each time.
        every: steps between two writes: at 10 steps a second and 6 MB a state, 500 are half a gigabyte an hour.
    """

    path: Path
    every: int = 500


class Session:
    """One adaptation of one network; `offline` or `online` is called once, `resume` at most once before `online`.

    Args:
        net: the source network; taken over and changed.
        manifest: of `net`.
        config: method and settings.
        labels: of the frames to measure, or None.
        watch: of the run.
    """

    def __init__(
        self,
        net: SegmentationNet,
        manifest: Manifest,
        config: AdaptConfig,
        *,
        labels: Labels | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.manifest = manifest
        self.watch = watch or Watch()
        self.min_side = net.min_side
        source = copy.deepcopy(net)
        self.method = run.make(net, manifest, config)
        self.gauge = _Gauge(source, self.method, manifest, labels)
        self.steps = 0
        self.seconds = 0.0

    def resume(self, path: Path) -> int:
        """Go on from a stream's kept state and return the steps that it had taken; pictures start anew.

        Raises:
            CheckpointError: missing, damaged, or of another network, method, settings, or labels.
        """
        state = states.load(path, self.manifest)
        own = state.part("session")
        self.method.load_state(state.part("method"))
        self.gauge.load_state(state.part("gauge"))
        self.steps, self.seconds = int(own.fact("steps")), float(own.fact("seconds"))
        return self.steps

    def offline(self, *, learn: Iterable[Frame], measure: Iterable[Frame]) -> Outcome:
        """Adapt to a set of frames, then measure.

        Args:
            learn: the frames to learn from.
            measure: the frames to measure and look at; the same ones, or better others.

        Raises:
            DataError: no frames, or a frame or label that cannot be used.
            DivergenceError: the network is not finite afterwards.
            KeyboardInterrupt: `watch.stop` before there was anything to keep.
        """
        watch, gauge = self.watch, self.gauge
        pool: Spread[Tensor] = Spread(_LEARNED)
        for frame in learn:
            check_frame(frame.image, min_side=self.min_side)  # now, not when it is measured after all the work
            pool.offer(lambda frame=frame: _tensor(frame, self.manifest))  # type: ignore[misc]
            watch.stage("reading", pool.seen, None)
            if watch.stop():
                raise KeyboardInterrupt("nothing was learned yet")
        gauge.check_labels(measure)
        start = time.perf_counter()
        steps = self._burst(pool.items)
        seconds = time.perf_counter() - start
        for frame in () if watch.stop() else measure:
            gauge.take(frame)
            watch.stage("measuring", gauge.samples.seen, None)
            if watch.stop():
                break
        return gauge.outcome(steps=steps, frames=pool.seen, seconds=seconds, stopped=watch.stop())

    def online(self, stream: Iterable[Frame], *, total: int | None = None, keep: Keep | None = None) -> Outcome:
        """Predict each frame, then learn from it; what is measured are those predictions.

        Args:
            stream: the frames as they come; may have no end. After `resume`, those that were not learned from yet.
            total: how many there will be, with those before `resume`, where that is known.
            keep: where to keep the state, every so many steps and at the end; None keeps none.

        Raises:
            DataError: no first frame, or it or its label cannot be used; a later one ends the stream (`failure`).
            DivergenceError: the network is not finite any more.
            WriteError: the state cannot be written at the end; before, that is only told by a warning.
        """
        watch = self.watch
        if self.steps == 0:
            self.method.begin(())
        failure: DataError | None = None
        try:
            for frame in stream:
                self.seconds += self._predict_and_learn(frame, self.steps + 1)
                self.steps += 1
                watch.stage("adapting", self.steps, total)
                if keep is not None and self.steps % keep.every == 0:
                    self._keep_if_possible(keep)
                if watch.stop():
                    break
        except DataError as error:
            failure = error
        if self.steps == 0:
            raise failure or DataError("the stream ended before its first frame; check the source")
        if keep is not None:
            self._keep(keep)  # before `finish`, which a stream that goes on has not had
        self.method.finish()
        taken = math.ceil(self.steps / self.method.config.burst.every)
        return self.gauge.outcome(
            steps=taken, frames=self.steps, seconds=self.seconds, stopped=watch.stop(), failure=failure
        )

    def _keep_if_possible(self, keep: Keep) -> None:
        try:
            self._keep(keep)
        except WriteError as error:  # a full disk must not end the run; space may come back
            _log.warning("the state of step %d is not kept: %s", self.steps, error)

    def _keep(self, keep: Keep) -> None:
        own = State(facts={"steps": self.steps, "seconds": self.seconds})
        state = State.of(session=own, method=self.method.state(), gauge=self.gauge.state())
        states.save(keep.path, state, self.manifest)

    def _predict_and_learn(self, frame: Frame, step: int) -> float:
        """Return the seconds spent learning."""
        self.gauge.take(frame)
        start = time.perf_counter()
        report = run.learn_online(self.method, _tensor(frame, self.manifest))
        row = None if report is None else run.check_report(step, report, trains=self.method.trains)
        seconds = time.perf_counter() - start
        if row is not None:
            self.watch.row({"step": step} | row | self.gauge.so_far())
        return seconds

    def _burst(self, frames: list[Tensor]) -> int:
        watch, total = self.watch, self.method.config.burst.steps
        taken = 0

        def on_step(step: int, report: StepReport) -> None:
            nonlocal taken
            taken = step
            watch.row({"step": step} | run.check_report(step, report, trains=True))
            watch.stage("adapting", step, total)
            if watch.stop():
                raise _Stopped

        watch.stage("estimating statistics", 0, None)
        try:
            run.offline(self.method, frames, on_step=on_step)
        except _Stopped:
            self.method.finish()
        return taken


class _Stopped(Exception):
    """Ends the loop of `run.offline` from within a step's report; goes no further than `Session._burst`."""


class _Gauge:
    """Holds the source's and the adapted network's predictions against labels, and keeps samples."""

    def __init__(self, source: SegmentationNet, method: Method, manifest: Manifest, labels: Labels | None) -> None:
        self.method = method
        self.labels = labels
        self.manifest = manifest
        self.labelled = 0
        self.samples: Spread[Sample] = Spread(_SAMPLES)
        self._source = Predictor(source, manifest)
        self._before, self._after = Evaluation.empty(manifest.classes), Evaluation.empty(manifest.classes)

    def take(self, frame: Frame) -> None:
        """Predict with both networks; without a label only where the frame is kept as a sample."""
        label = None if self.labels is None else self.labels.of(frame)
        if label is None:
            self.samples.offer(lambda: self._sample(frame, self._source(frame.image)[0], self._adapted(frame)[0], None))
            return
        before, after = self._source(frame.image), self._adapted(frame)
        self._before.count(*before, label)
        self._after.count(*after, label)
        self.labelled += 1
        self.samples.offer(lambda: self._sample(frame, before[0], after[0], label))

    def so_far(self) -> dict[str, float]:
        """Return the running mIoU of both networks; nothing without labels."""
        if self.labels is None:
            return {}
        return {"miou": self._after.confusion.miou(), "source_miou": self._before.confusion.miou()}

    def state(self) -> State:
        """Return what was counted; the samples are not in it."""
        parts = {"before": self._before, "after": self._after}
        tensors = {
            f"{name}.{key}": torch.from_numpy(value.copy())
            for name, part in parts.items()
            for key, value in part.counts().items()
        }
        return State(tensors, {"labelled": self.labelled, "measures": self.labels is not None})

    def load_state(self, state: State) -> None:
        """Set what `state` returns, or raise CheckpointError."""
        if bool(state.fact("measures")) != (self.labels is not None):
            raise CheckpointError("the saved state was measured with other labels; give --labels as it was given then")
        for name, part in (("before", self._before), ("after", self._after)):
            for key, value in part.counts().items():
                saved = state.tensor(f"{name}.{key}").numpy()
                if saved.shape != value.shape:
                    raise CheckpointError(f"the saved state counts {saved.shape} of {key}, expected {value.shape}")
                value[...] = saved
        self.labelled = int(state.fact("labelled"))

    def check_labels(self, frames: Iterable[Frame]) -> None:
        """Raise LabelError when a label cannot be used or no frame has one: before the work, not after it."""
        if self.labels is None:
            return
        found = [self.labels.of(frame) is not None for frame in frames]
        if not any(found):
            raise LabelError(f"none of {len(found)} frames has a label; label files must be named as the frames are")

    def outcome(self, **facts: Any) -> Outcome:
        measured = self.labelled > 0
        return Outcome(
            method=self.method,
            before=self._before if measured else None,
            after=self._after if measured else None,
            labelled=self.labelled,
            samples=tuple(self.samples.items),
            **facts,
        )

    def _adapted(self, frame: Frame) -> tuple[U8, npt.NDArray[np.float32]]:
        return Predictor(self.method.deployed, self.manifest)(frame.image)

    def _sample(self, frame: Frame, before: U8, after: U8, label: U8 | None) -> Sample:
        return Sample(frame, before, after, label, reliability_of(self.method, _tensor(frame, self.manifest)))


def reliability_of(method: Method, frame: Tensor) -> npt.NDArray[np.float32] | None:
    """Return the reliability of the teacher's label of a frame, leaving everything as it was.

    Args:
        method: under way.
        frame: uint8 RGB [3, H, W], of the network's input size.

    Returns:
        float32 [h, w] of 0..1; None where the method has no such thing, or has not looked at any frame yet.
    """
    if not isinstance(method, Adapter) or method.reliability is None:
        return None
    with torch.no_grad():
        view = method.teacher.predict(method.normaliser(frame[None].to(method.device)))
        r = method.reliability.look(levels(view), view.label)
        return None if r is None else r[0].cpu().numpy()


def _tensor(frame: Frame, manifest: Manifest) -> Tensor:
    return torch.from_numpy(to_input(frame.image, manifest.preprocessing))
