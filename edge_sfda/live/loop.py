"""The loop: newest frame in, mask out, adaptation beside it, and never a worse network in use than a whole one before.

One thread predicts and decides; capture has a thread, a burst a process. Faces call `status`, `latest` and the buttons
(`pause`, `adapt_now`, ...) from threads of their own; the loop acts on them between two frames.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_sfda.adapt.generations import Generation, Generations
from edge_sfda.adapt.trigger import Change, Signals, Trigger, cool_down, describe
from edge_sfda.config import AdaptConfig, LiveConfig
from edge_sfda.data.frames import U8, Frame, to_input
from edge_sfda.errors import EdgeSfdaError
from edge_sfda.live.budget import Budget
from edge_sfda.live.capture import Capture, Pace, Seen
from edge_sfda.live.deployment import Deployment
from edge_sfda.live.events import Events
from edge_sfda.live.exchange import artefact_of
from edge_sfda.live.job import FIRST, Failed, Job, Judged, Look, Step
from edge_sfda.live.status import STALE_S, Latest, LoopStatus, Phase
from edge_sfda.live.tempo import Tempo
from edge_sfda.live.worker import Worker
from edge_sfda.manifest import Manifest
from edge_sfda.runtime.predict import Segmentation, Segmenter

if TYPE_CHECKING:
    from edge_sfda.adapt.probes import Probes

_TAKE_S = 0.1  # that the loop waits for a frame before it looks after the rest
_SENSE_S = 1.0  # between two looks at heat, memory and time spent while a burst runs
_RECALLS = 3  # times that the source is asked for after a change of the stream, while probes show too little
_RECALL_PROBES = 4  # more of them, each time
_NAN = float("nan")


@dataclass(frozen=True)
class Place:
    """What belongs to one run.

    Args:
        folder: of the run; `generations/`, `events.jsonl` and the candidate lie in it.
        net: `module:factory` of a network of your own that its checkpoints may run.
        labelled: probes with labels, uint8 RGB [M, 3, H, W] and [M, H, W]; they outrank every vote.
        device: to learn on, as torch names it; inference has its own.
    """

    folder: Path
    net: str | None = None
    labelled: tuple[U8, U8] | None = None
    device: str = "cpu"

    @property
    def candidate(self) -> Path:
        """Where a burst leaves what it has come to."""
        return self.folder / "candidate"


class Loop:
    """Runs until its source ends or `stop`.

    Args:
        segmenter: of the newest generation; closed by the caller.
        capture: of the frames; closed by the caller.
        generations: with the source as 0, and the newest in use.
        manifest: of the source.
        place: of the run.
        config: of the loop.
        adapt: of a burst.
        events: where everything that happens is told.
        clock: seconds that only grow.
        worker: makes the process of a burst; another one in tests.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        capture: Capture,
        generations: Generations,
        manifest: Manifest,
        place: Place,
        *,
        config: LiveConfig,
        adapt: AdaptConfig,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
        worker: Callable[[Job], Worker] = Worker,
    ) -> None:
        from edge_sfda.adapt.probes import Probes

        self.segmenter, self.capture = segmenter, capture
        self.deployment = Deployment(segmenter, generations, net=place.net, homing=config.mode == "auto")
        self.manifest, self.place, self.config, self.adapt = manifest, place, config, adapt
        self.events = events
        self.budget = Budget(config.budget, clock=clock)
        self._clock = clock
        self._make_worker = worker
        self._worker: Worker | None = None
        self._job: Job | None = None  # of the worker, to begin it again
        self._trigger = Trigger(config.trigger)
        self._probes: Probes = Probes(config.probes)
        self._learn: deque[U8] = deque(maxlen=config.learn)
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._phase = Phase.OFF if config.mode == "off" else Phase.COLLECTING  # a stream may begin away from home
        self._before_pause = self._phase
        self._detail = "learning is off" if config.mode == "off" else "looking at the first frames"
        self._step = Step(0, 0, _NAN, _NAN, 0.0)
        self._look: Look | None = None
        self._shift_since = False  # the burst under way began
        self._gave_up = False  # the burst before this one, for the stream changed under it
        self._shifted = False  # the stream, which is why it is learned from
        self._fitted: Signals = {}  # of the frames that the newest worker was given
        self._recall = 0  # times that the source may still be asked for, since the stream changed
        self._recall_at = 0  # with so many probes
        self._ask_in = 0  # frames until the same stream is learned from once more, since nothing was accepted; 0: not
        self._asked = 0  # times that it was
        self._retries = self._restarts = 0
        self._held = ""  # why the budget lets a burst under way wait
        self._sense_at = 0.0
        self._candidate: Judged | None = None
        self._latest: Latest | None = None
        self._frames = 0
        self._stale = True
        self._taken_at = clock()
        self._tempo = Tempo()
        self._confidence = _NAN
        self._dominant: deque[float] = deque(maxlen=config.watch_after)  # largest share of a class
        self._guarded = 0  # frames for which a swap may still be taken back

    # --- what faces call ---

    def status(self) -> LoopStatus:
        """Return a snapshot; from any thread."""
        with self._lock:
            return LoopStatus(
                phase=self._phase,
                detail=self._detail,
                step=self._step.number,
                steps=self._step.of,
                generation=self.deployment.generation.number,
                frames=self._frames,
                fps=self._tempo.fps,
                latency_ms=self._tempo.latency_ms,
                confidence=self._confidence,
                doubt=self._trigger.score,
                reliability=self._step.reliability,
                loss=self._step.loss,
                agreement=self._step.agreement,
                stale=self._stale,
                restarts=self._restarts,
                learned_s=self.budget.spent_s(),
                capture=self.capture.status(),
            )

    def latest(self) -> Latest | None:
        """Return the newest prediction, or None before the first; from any thread."""
        with self._lock:
            return self._latest

    def look(self) -> Look | None:
        """Return the newest look at what is learned from, or None before the first burst; from any thread."""
        with self._lock:
            return self._look

    def stop(self) -> None:
        """Let `run` return after the frame it is at."""
        self._stopping.set()

    def pause(self) -> None:
        """Learn nothing until `resume`; a burst under way waits after its step."""
        self._orders.put(self._pause)

    def resume(self) -> None:
        """Learn again."""
        self._orders.put(self._resume)

    def adapt_now(self) -> None:
        """Collect frames and adapt, whatever the trigger says."""
        self._orders.put(lambda: self._collect("asked for"))

    def accept(self) -> None:
        """Deploy the candidate that was recommended."""
        self._orders.put(self._accept)

    def rollback(self, steps: int = 1) -> None:
        """Go back so many generations."""
        self._orders.put(lambda: self._roll_back(steps, "asked for"))

    # --- the loop ---

    def run(
        self,
        on_frame: Callable[[Latest, Segmentation], None] = lambda latest, seen: None,
        *,
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """Predict until the source ends or `stop`; whatever learning does, this goes on.

        Args:
            on_frame: called with each prediction, in this thread: what it does delays the next one.
            on_turn: called in this thread whether or not a frame came, ten times a second at least.

        Raises:
            DataError: a recording cannot be read further. A camera is tried again for ever.
        """
        self.events.tell("started", mode=self.config.mode, generation=self.deployment.generation.number)
        try:
            self.deployment.begin()
            while not self._stopping.is_set():
                on_turn()
                seen = self.capture.take(_TAKE_S)
                if seen is None and self.capture.ended:
                    break
                if not self.deployment.changing:
                    self._obey()  # an order waits for a change under way: it may be about the network that comes
                if seen is not None:
                    self._take(seen, on_frame)
                elif self._clock() - self._taken_at > STALE_S:
                    self._set_stale(self.capture.status().trouble or "no frame")
                self._look_after_worker()
                self.deployment.settle()
        finally:
            self._end_worker()
            self.deployment.settle(wait=True)
            self.events.tell("stopped", frames=self._frames, generation=self.deployment.generation.number)
            self.events.flush()

    def _take(self, seen: Seen, on_frame: Callable[[Latest, Segmentation], None]) -> None:
        self._taken_at = self._clock()
        if seen.fault is not None:
            self._set_stale(f"frames are {seen.fault.value}")
            return
        if self._stale:
            self._stale = False
            self.events.tell("sound frames", seq=seen.frame.seq)
        start = self._clock()
        found = self.segmenter.predict(seen.frame.image)
        now = self._clock()
        latest = Latest(seen.frame, found.mask, found.confidence, "")
        with self._lock:
            self._latest = latest
            self._frames += 1
            self._tempo.predicted(start, now)
        on_frame(latest, found)
        if self._phase is not Phase.OFF:
            self._learn_about(latest)

    def _set_stale(self, why: str) -> None:
        if not self._stale:
            self._stale = True
            self.events.tell("stale", why=why)
        with self._lock:
            if self._latest is not None and not self._latest.fault:
                self._latest = replace(self._latest, fault=why)

    def _learn_about(self, latest: Latest) -> None:
        """Let a sound frame into trigger, probes and what is learned from."""
        confidence = latest.confidence
        if confidence is not None:
            self._confidence = float(confidence[::8, ::8].mean())
            change = self._trigger.observe(describe(latest.frame.image, confidence))
            if change is not None:
                self._on_change(change)
        if self._ask_in > 0 and self._phase is Phase.WATCHING:
            self._ask_in -= 1
            if self._ask_in == 0:
                self._collect("nothing was accepted last time", shifted=True)
        counts = np.bincount(latest.mask[::4, ::4].reshape(-1), minlength=1)
        self._dominant.append(float(counts.max() / counts.sum()))
        self._watch_swap()
        self._put_by(latest.frame)
        if self._phase in (Phase.COLLECTING, Phase.WAITING) and self._worker is None:
            if self._recall:
                if len(self._probes) >= self._recall_at:
                    self._begin_recall()
            elif self._is_enough():
                self._begin_when_allowed()

    def _on_change(self, change: Change) -> None:
        self.events.tell(change.value, spreads=self._trigger.score)
        if change is Change.SHIFT_FOUND:
            self._on_shift("a shift was found")

    def _on_shift(self, why: str) -> None:
        if self._phase is Phase.WATCHING:
            self._collect(why, shifted=True)
        elif self._phase is Phase.ADAPTING and not self._gave_up:
            self._gave_up = True  # the burst learns what is no more
            self._end_worker()
            self._set(Phase.WATCHING, "the burst was given up: the stream has changed")
            self._collect(f"{why} during the burst", shifted=True)
        elif self._phase is Phase.ADAPTING:
            self._shift_since = True  # a stream that never rests must not keep every burst from its end

    def _go_home(self) -> None:
        """Use the source at once: frames lie where it was trained. What a burst makes of it here is judged as ever."""
        reason = "frames lie much nearer to the source than to what is in use"
        self.events.tell("came home", generation=self.deployment.generation.number)
        self._on_shift("the stream came home")
        self._recall = 0  # nobody needs to be asked
        if self._job is not None and self._job.recall:
            self._end_worker()
        self._swap_beside(lambda: self.deployment.keep_source({"accepted": "source", "reason": reason}), reason)

    def _collect(self, why: str, *, shifted: bool = False) -> None:
        if self._phase in (Phase.OFF, Phase.ADAPTING):
            return
        self._shifted = shifted
        self._learn.clear()
        self._probes.restart()
        self._candidate = None
        self._ask_in = 0
        self._recall = _RECALLS if self.config.mode == "auto" and not self.deployment.is_source else 0
        self._recall_at = min(self.config.gate.recall, self.config.gate.least) + 1  # two are often alike
        self._set(Phase.COLLECTING, why)

    def _collect_if_shifted(self) -> None:
        """Begin again where the burst that came to its end learned what is no more."""
        if self._shift_since and self._phase is Phase.WATCHING:
            self._shift_since = False
            self._collect("a shift was found during the burst", shifted=True)

    def _put_by(self, frame: Frame) -> None:
        import torch

        x = to_input(frame.image, self.manifest.preprocessing)
        may_change = not self.deployment.changing and self._phase is not Phase.PAUSED
        if may_change and self.deployment.came_home(x, frame.captured_at):
            self._go_home()
        if not self._probes.offer(torch.from_numpy(x)):
            self._learn.append(x)

    def _is_enough(self) -> bool:
        return len(self._learn) == self.config.learn and len(self._probes) >= self.config.gate.least

    def _begin_when_allowed(self) -> None:
        refusal = self.budget.excess() or self.budget.refusal()
        if refusal:
            if self._phase is not Phase.WAITING:
                self._set(Phase.WAITING, refusal)
            return
        self._retries = 0
        try:
            self._begin(self._make_job())
        except (EdgeSfdaError, OSError) as error:  # a full disk
            self._set(Phase.WATCHING, f"no burst: {error}")
            self._ask_later()

    def _begin_recall(self) -> None:
        """Ask at once whether the source does better: what was fitted to night is bad by day, bursts take long."""
        if self.budget.excess():
            return
        self._recall -= 1
        # where these show too little that differs: seconds later they show more
        self._recall_at = min(len(self._probes) + _RECALL_PROBES, self.config.probes.count)
        try:
            self._job = self._make_job(recall=True)
        except (EdgeSfdaError, OSError) as error:
            self._recall = 0
            self.events.tell("refused", why=f"the source was not asked: {error}")
            return
        self._worker = self._make_worker(self._job)
        self.events.tell("recalling", probes=len(self._job.probes))

    def _begin(self, job: Job) -> None:
        self._job, self._held, self._shift_since = job, "", False
        self._worker = self._make_worker(job)
        self._trigger.rebase(self._fitted)  # what leaves that is a shift, whatever comes of the burst
        if self._phase is Phase.PAUSED:  # one that was lost during a pause is begun again
            self._worker.pause(True)
        self._set(Phase.ADAPTING, f"on {len(job.frames)} frames, judged on {len(job.probes)}")
        with self._lock:
            self._step = Step(0, self.adapt.burst.steps, _NAN, _NAN, 0.0)

    def _make_job(self, *, recall: bool = False) -> Job:
        self._fitted = self._trigger.recent(self._probes.offered)
        self.place.candidate.mkdir(parents=True, exist_ok=True)
        gate = self.config.gate
        probes = self._probes.frames().numpy()
        return Job(
            source=self.deployment.source.checkpoint,
            deployed=self.deployment.generation.checkpoint,
            running=artefact_of(self.deployment.generation),
            net=self.place.net,
            frames=probes[:0] if recall else np.stack(self._learn),
            probes=probes,
            labelled=self.place.labelled,
            adapt=self.adapt,
            gate=replace(gate, least=min(gate.least, gate.recall)) if recall else gate,
            budget=self.config.budget,
            folder=self.place.candidate,
            onnx=self.config.onnx,
            device=self.place.device,
            recall=recall,
            look_first=self.config.mode == "auto" and gate.first > 0,
        )

    # --- the worker ---

    def _look_after_worker(self) -> None:
        worker = self._worker
        if worker is None:
            return
        alive = worker.alive  # before its messages: one that ended well has said so
        for message in worker.messages():
            if isinstance(message, Step):
                self.budget.spend(message.seconds)
                with self._lock:
                    self._step = message
                    self._look = message.look or self._look
            elif isinstance(message, Judged) and message.files == FIRST:
                self._take_up(message)
            else:
                self._end_worker()
                if self._job is not None and self._job.recall:
                    self._on_recalled(message)
                elif isinstance(message, Judged):
                    self._on_judged(message)
                else:
                    self._on_failed(message)
                self._collect_if_shifted()
                return
        self._hold_within_budget(worker)
        if self._worker is None:
            return
        if not alive:
            self._again(f"the worker died with code {worker.exit_code}")
        elif worker.silent_s() > self.config.hang_s and self._phase is not Phase.PAUSED and not self._held:
            self._again(f"the worker said nothing for {worker.silent_s():.0f} s")

    def _hold_within_budget(self, worker: Worker) -> None:
        """Let a burst under way wait after its step while heat, power or time spent are above their bounds.

        One that takes too much memory is given up, for it would hold it while it waits.
        """
        now = self._clock()
        if self._phase is not Phase.ADAPTING or now < self._sense_at:
            return
        self._sense_at = now + _SENSE_S
        excess = self.budget.excess(worker.pid)
        if excess:
            self._end_worker()
            self._set(Phase.WATCHING, f"the burst was given up: {excess}")
            self._ask_later()
            return
        refusal = self.budget.refusal()
        if bool(refusal) != bool(self._held):
            worker.pause(bool(refusal))
            self.events.tell("held", why=refusal) if refusal else self.events.tell("released")
        self._held = refusal

    def _again(self, why: str) -> None:
        self._end_worker()
        self._restarts += 1
        assert self._job is not None, "a worker that is lost had one"
        if self._job.recall:  # the burst that follows will be judged against the source as well
            self._recall = 0
            self.events.tell("worker lost", why=why, retry=0, of=0)
            return
        self._retries += 1
        self.events.tell("worker lost", why=why, retry=self._retries, of=self.config.retries)
        if self._retries > self.config.retries:
            self._set(Phase.WATCHING, f"given up after {self.config.retries} retries: {why}")
            self._ask_later()
            return
        in_use = self.deployment.generation  # a first look may have changed it
        job = replace(self._job, deployed=in_use.checkpoint, running=artefact_of(in_use))
        self._begin(job)  # from the source, on the same frames

    def _on_failed(self, message: Failed) -> None:
        self._gave_up = False
        if self._shifted:
            self._ask_later()
        self._set(Phase.WATCHING, f"the burst came to nothing: {message.reason}")

    def _on_judged(self, judged: Judged) -> None:
        self.events.tell("judged", **judged.decision)
        self._gave_up = False
        changes = judged.accepted != "deployed"
        if not changes or self.config.mode == "shadow":
            self._set(Phase.WATCHING, judged.reason)
            if self._shifted or judged.decision.get("evidence"):
                self._ask_later()
            return
        self._candidate = judged
        if self.config.mode == "recommend":
            self._set(Phase.RECOMMENDING, judged.reason)
            return
        self._accept()

    def _ask_later(self) -> None:
        """Learn from the stream once more after the cool-down, each time after twice as long: nothing came of this."""
        self._ask_in = cool_down(self.config.trigger, self._asked)
        self._asked += 1

    def _on_recalled(self, judged: Judged | Failed) -> None:
        """Go home to the source where it does better; what is being collected for the burst goes on."""
        if isinstance(judged, Failed):
            self._recall = 0
            self.events.tell("refused", why=f"the source was not asked: {judged.reason}")
            return
        if not judged.decision.get("evidence"):
            self._recall = 0
        self._take_up(judged)

    def _take_up(self, judged: Judged) -> None:
        """Deploy what was accepted while a burst is under way or its frames are collected; that goes on."""
        self.events.tell("judged", **judged.decision)
        if judged.accepted != "deployed":
            self._swap_beside(lambda: self._keep(judged), judged.reason, fitted=self._fitted)

    def _swap_beside(self, choose: Callable[[], Generation], reason: str, *, fitted: Signals | None = None) -> None:
        def taken(generation: Generation) -> None:
            self._guarded = self.config.watch_after
            self.events.tell("swapped", generation=generation.number, reason=reason)

        self._begin_change(
            choose, taken, lambda error: self.events.tell("refused", why=f"not deployed: {error}"), fitted=fitted
        )

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    # --- swapping ---

    def _accept(self) -> None:
        judged = self._candidate
        if judged is None:
            self.events.tell("refused", why="there is no candidate to accept")
            return
        self._candidate = None

        def taken(generation: Generation) -> None:
            self._guarded = self.config.watch_after
            self._set(Phase.WATCHING, judged.reason)
            self.events.tell("swapped", generation=generation.number, reason=judged.reason)
            self._collect_if_shifted()

        def failed(error: Exception) -> None:  # a full disk; the network in use stays
            self._set(Phase.WATCHING, f"not deployed: {error}")
            self._collect_if_shifted()

        self._begin_change(lambda: self._keep(judged), taken, failed, fitted=self._fitted)

    def _keep(self, judged: Judged) -> Generation:
        return self.deployment.keep(judged, self.place.candidate)

    def _roll_back(self, steps: int, why: str) -> None:
        def taken(generation: Generation) -> None:
            self.events.tell("rolled back", generation=generation.number, why=why)
            if self._phase is not Phase.OFF and self._worker is None:
                self._set(Phase.WATCHING, f"back at generation {generation.number}: {why}")

        self._begin_change(
            lambda: self.deployment.back(steps), taken, lambda error: self.events.tell("refused", why=str(error))
        )

    def _begin_change(
        self,
        choose: Callable[[], Generation],
        taken: Callable[[Generation], None],
        failed: Callable[[Exception], None],
        *,
        fitted: Signals | None = None,
    ) -> None:
        """Change the network in use beside the frames; `taken` or `failed` follows between two of them.

        From then on the stream is held against the signals `fitted`, of the frames that it is for, where known.
        A recording that is taken as fast as it goes waits for it: each of its frames is due to the newest network.
        """

        def in_use(generation: Generation) -> None:
            self._dominant.clear()
            self._ask_in = self._asked = 0
            self._trigger.rebase(fitted)
            taken(generation)

        self.deployment.change(choose, in_use, failed)
        if self.capture.pace is Pace.FAST:
            self.deployment.settle(wait=True)

    def _watch_swap(self) -> None:
        """Take a swap back where one class has swallowed the picture since."""
        if self._guarded == 0 or len(self._dominant) < min(self.config.watch_after, 8):
            return
        self._guarded -= 1
        if float(np.median(self._dominant)) > self.config.collapse:
            self._guarded = 0
            self._roll_back(1, f"one class has more than {self.config.collapse:.0%} of the pixels since the swap")

    # --- orders ---

    def _obey(self) -> None:
        while True:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return
            order()

    def _pause(self) -> None:
        if self._phase in (Phase.OFF, Phase.PAUSED):
            return
        self._before_pause = self._phase
        if self._worker is not None:
            self._worker.pause(True)
        self._set(Phase.PAUSED, "asked for")

    def _resume(self) -> None:
        if self._phase is not Phase.PAUSED:
            return
        if self._worker is not None and not self._held:
            self._worker.pause(False)
        self._phase = self._before_pause
        self._set(self._before_pause, "going on")
        self._collect_if_shifted()

    def _set(self, phase: Phase, detail: str) -> None:
        """Enter a phase; while somebody's pause lasts, it is the one that `resume` enters."""
        paused = self._phase is Phase.PAUSED and phase is not Phase.PAUSED
        with self._lock:
            if paused:
                self._before_pause = phase
            else:
                self._phase, self._detail = phase, detail
            if phase is not Phase.ADAPTING and phase is not Phase.PAUSED:
                self._step = Step(0, 0, _NAN, _NAN, 0.0)
        self.events.tell("phase", phase=phase.value, detail=detail)
