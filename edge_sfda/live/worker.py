"""A burst and its judgement in a process of its own, which gives way; whatever happens there, inference goes on.

The process begins from the source's checkpoint each time, so no burst inherits what an earlier one got wrong. It writes
one candidate to the folder it is given and tells of it; the loop decides what becomes of it.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sfda.live.job import FIRST, U8, Failed, Job, Judged, Look, Message, Step

if TYPE_CHECKING:
    from edge_sfda.adapt.method import Method
    from edge_sfda.live.rivals import Rivals
    from edge_sfda.manifest import Manifest
    from edge_sfda.nets import SegmentationNet

_LOOK_EVERY = 10  # steps; a look costs one forward of one frame, a step forty
_NICENESS = 10  # least urgent but for idle work: a mask always goes first


class Worker:
    """The process of one burst.

    Args:
        job: what it does.
        clock: seconds that only grow.
        target: what runs in the process; another one in tests.
    """

    def __init__(
        self,
        job: Job,
        *,
        clock: Callable[[], float] = time.monotonic,
        target: Callable[[Any, Job], None] | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of other threads
        self._mine, theirs = context.Pipe()
        self._clock = clock
        self._heard_at = clock()
        self._process = context.Process(target=_enter, args=(theirs, target or work), name="adaptation", daemon=True)
        self._process.start()
        theirs.close()
        # The job is megabytes, which a pipe takes only when the process reads them, seconds later: a thread waits for
        # that, where the loop would give no masks meanwhile.
        self._to_send: queue.SimpleQueue[Job | bool | None] = queue.SimpleQueue()
        self._to_send.put(job)
        self._sender = threading.Thread(target=self._send, name="adaptation orders", daemon=True)
        self._sender.start()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def messages(self) -> Iterator[Message]:
        """Yield what it has said since; does not wait."""
        while True:
            try:
                if not self._mine.poll():
                    return
                message = self._mine.recv()
            except (EOFError, OSError):
                return
            self._heard_at = self._clock()
            yield message

    def pause(self, wanted: bool) -> None:
        """Let it wait after its step, or go on."""
        self._heard_at = self._clock()  # its silence while it waited is no hanging
        self._to_send.put(wanted)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    def silent_s(self) -> float:
        """Seconds since it was last heard of."""
        return self._clock() - self._heard_at

    @property
    def exit_code(self) -> int | None:
        """Of the process, negative after a signal; None while it runs."""
        return self._process.exitcode

    def stop(self) -> None:
        """End the process now; what it was writing is written to the end or not there."""
        self._process.kill()
        self._process.join(timeout=5)
        self._to_send.put(None)
        self._sender.join(timeout=5)
        self._mine.close()

    def _send(self) -> None:
        while (order := self._to_send.get()) is not None:
            try:
                self._mine.send(order)
            except OSError:  # it is dead; the loop will see
                return


def _enter(connection: Any, target: Callable[[Any, Job], None]) -> None:
    """Wait for the job, then do it; the entry of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the loop ends this one
    os.nice(_NICENESS)
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")  # below normal, where processes share a GPU through MPS
    try:
        job = connection.recv()
    except EOFError:  # whoever began it is gone
        return
    target(connection, job)


def work(connection: Any, job: Job) -> None:
    """Run a job and tell of it; the body of the process."""
    from edge_sfda.errors import EdgeSfdaError

    try:
        with _least_urgent(job.device):
            connection.send(_Burst(connection, job).run())
    except EdgeSfdaError as error:
        connection.send(Failed(str(error)))
    except (OSError, EOFError):  # the pipe is gone, and with it whoever would listen
        return


def _least_urgent(device: str) -> AbstractContextManager[Any]:
    """Return a context whose GPU work is of the lowest priority that streams have; on a CPU niceness does that."""
    import torch

    if torch.device(device).type != "cuda":
        return nullcontext()
    torch.cuda.set_device(device)
    return torch.cuda.stream(torch.cuda.Stream(device, priority=0))  # type: ignore[no-untyped-call]  # of 0 and -1 the lower


def _marks(steps: int, snapshots: int) -> set[int]:
    """Return the steps after which a burst of so many is looked at, evenly spread, its end not among them."""
    return {steps * (index + 1) // (snapshots + 1) for index in range(snapshots)} - {0, steps}


class _Burst:
    """One job under way."""

    def __init__(self, connection: Any, job: Job) -> None:
        self.connection = connection
        self.job = job
        self.paused = False
        self.begun = 0.0
        self.first = ""  # what the look before the burst accepted
        self.rivals: Rivals
        self.source: SegmentationNet
        self.deployed: SegmentationNet
        self.manifest: Manifest
        self.method: Method

    def run(self) -> Judged:
        import torch

        from edge_sfda.adapt import run
        from edge_sfda.live.rivals import AVERAGE, Rivals
        from edge_sfda.nets import load

        torch.set_num_threads(1)
        job = self.job
        self.rivals = Rivals(job)
        self.source, self.manifest = load(job.source, allow=job.net, device=job.device)
        same = job.deployed == job.source  # one network, judged once
        self.deployed = self.source if same else load(job.deployed, allow=job.net, device=job.device)[0]
        if job.recall:
            return self._judge(self.rivals, job.probes, steps=0)
        net, _ = load(job.source, allow=job.net, device=job.device)
        self.method = method = run.make(net, self.manifest, job.adapt)
        steps = job.adapt.burst.steps if method.trains else 0
        frames = list(torch.from_numpy(job.frames))
        self.begun = time.perf_counter()  # the look before the burst counts as learning, and is rested from
        run.offline(method, frames, on_begin=self._look_first, on_step=self._after_step)
        self._add(self.rivals, AVERAGE, method.deployed, steps)
        judged = self._judge(self.rivals, job.probes, steps=steps)
        return replace(judged, accepted="deployed") if judged.accepted == self.first else judged  # it is in use

    def _look_first(self) -> None:
        """Tell what the target's statistics alone are worth: most of what a burst gains, and there before it."""
        from edge_sfda.live.rivals import STATISTICS, Rivals

        if self.job.look_first and len(self.job.probes) >= self.job.gate.least:
            first = Rivals(self.job, files=FIRST)
            self._add(first, STATISTICS, self.method.snapshot(), 0)
            judged = self._judge(first, self.job.probes[: self.job.gate.first], steps=0)
            self.connection.send(judged)
            self.first = judged.accepted
            if self.first == STATISTICS:  # to beat what was in use before is not enough any more
                self._add(self.rivals, STATISTICS, first.nets[STATISTICS], 0)

    def _judge(self, rivals: Rivals, probes: U8, *, steps: int) -> Judged:
        import json

        import torch

        from edge_sfda.adapt.gate import Gate
        from edge_sfda.adapt.probes import LabelledProbes

        labelled = None
        if self.job.labelled is not None:
            labelled = LabelledProbes(*(torch.from_numpy(part) for part in self.job.labelled))
        candidates = {"source": self.source, "deployed": self.deployed, **rivals.nets}
        gate, ruled_out = Gate(self.job.gate, self.manifest), dict[str, str]()
        while True:
            decision = gate.judge(candidates, torch.from_numpy(probes), labelled=labelled, more_vetoes=[ruled_out.get])
            winner = decision.accepted
            # an export takes as long as a few steps or many, so who wins is asked alone; if it falls, another may win
            words = None if winner == self.first else rivals.veto(winner)
            if words is None:
                break
            ruled_out[winner] = words
        manifest, exported = rivals.keep(decision.accepted) if rivals.nets else (self.manifest, False)
        return Judged(
            decision.accepted,
            decision.reason,
            json.loads(decision.to_json()),
            steps,
            manifest.to_json(),
            exported,
            rivals.files,
        )

    def _after_step(self, number: int, report: Any) -> None:
        from edge_sfda.adapt.run import check_report

        row = check_report(number, report, trains=True)
        seconds = time.perf_counter() - self.begun
        of, nan = self.job.adapt.burst.steps, float("nan")
        if number in _marks(of, self.job.gate.snapshots):
            self._add(self.rivals, f"step {number}", self.method.snapshot(), number)
        look = self._look(number) if number % _LOOK_EVERY == 0 or number == 1 else None
        self.connection.send(
            Step(number, of, row["loss"], row.get("reliability", nan), seconds, row.get("agreement", nan), look)
        )
        time.sleep(seconds * (1 / self.job.budget.share - 1))
        while self.paused or self.connection.poll():
            self.paused = bool(self.connection.recv())  # raises EOFError when the loop is gone, which ends the process
        self.begun = time.perf_counter()

    def _look(self, number: int) -> Look | None:
        import torch

        from edge_sfda.adapt.session import reliability_of

        image = self.job.frames[number % len(self.job.frames)]
        r = reliability_of(self.method, torch.from_numpy(image))
        return None if r is None else Look(image, np.round(255 * r.clip(0, 1)).astype(np.uint8))

    def _add(self, rivals: Rivals, name: str, net: Any, steps: int) -> None:
        from edge_sfda.adapt.session import adapted_manifest

        manifest = adapted_manifest(self.method, steps=steps, frames=len(self.job.frames), stopped=False)
        rivals.add(name, net, manifest)
