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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sfda.config import AdaptConfig, BudgetConfig, GateConfig

U8 = npt.NDArray[np.uint8]

CANDIDATE = "candidate.safetensors"
ONNX = "candidate.onnx"

_LOOK_EVERY = 10  # steps; a look costs one forward of one frame, a step forty
_NICENESS = 10  # least urgent but for idle work: a mask always goes first


@dataclass(frozen=True, eq=False)
class Job:
    """What a burst needs.

    Args:
        source: checkpoint that the burst begins from.
        deployed: checkpoint in use, to be judged against; the source's where nothing else is.
        net: `module:factory` of a network of your own that the checkpoints may run.
        frames: to learn from, uint8 RGB [N, 3, H, W], of the network's input size.
        probes: to judge on, never learned from, likewise.
        labelled: probes with labels [M, H, W], or None.
        adapt: of the burst.
        gate: of the judgement.
        budget: its share of the time.
        folder: where the candidate goes.
        onnx: export the candidate as well, and rule it out where it is not its checkpoint.
        device: to learn on, as torch names it.
        recall: learn nothing, judge the source against the network in use alone.
    """

    source: Path
    deployed: Path
    net: str | None
    frames: U8
    probes: U8
    labelled: tuple[U8, U8] | None
    adapt: AdaptConfig
    gate: GateConfig
    budget: BudgetConfig
    folder: Path
    onnx: bool
    device: str = "cpu"
    recall: bool = False


@dataclass(frozen=True, eq=False)
class Look:
    """One of the job's frames with the reliability of the teacher's label: what a person looks at.

    Args:
        image: uint8 RGB [3, H, W].
        reliability: uint8 [h, w], 255 for 1, on the grid of the logits.
    """

    image: U8
    reliability: U8


@dataclass(frozen=True)
class Step:
    """A step was taken, in `seconds`; now and then with a look at what the teacher's labels are worth."""

    number: int
    of: int
    loss: float
    reliability: float
    seconds: float
    agreement: float = float("nan")  # share of pixels in which the student says what it is taught
    look: Look | None = None


@dataclass(frozen=True)
class Judged:
    """The burst is over.

    Args:
        accepted: name of the network to deploy: `source`, `deployed` or `adapted`.
        reason: in words.
        decision: the whole decision, as JSON values.
        steps: of the burst.
        manifest: of the candidate, as JSON.
        onnx: whether the candidate's model lies beside it.
    """

    accepted: str
    reason: str
    decision: dict[str, Any]
    steps: int
    manifest: str
    onnx: bool


@dataclass(frozen=True)
class Failed:
    """The burst came to nothing: its frames or settings do not do; trying again would not help."""

    reason: str


Message = Step | Judged | Failed


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
    try:
        job = connection.recv()
    except EOFError:  # whoever began it is gone
        return
    target(connection, job)


def work(connection: Any, job: Job) -> None:
    """Run a job and tell of it; the body of the process."""
    from edge_sfda.errors import EdgeSfdaError

    os.nice(_NICENESS)
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")  # below normal, where processes share a GPU through MPS
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


class _Burst:
    """One job under way."""

    def __init__(self, connection: Any, job: Job) -> None:
        self.connection = connection
        self.job = job
        self.paused = False

    def run(self) -> Judged:
        import torch

        from edge_sfda.adapt import run
        from edge_sfda.adapt.gate import Gate
        from edge_sfda.adapt.probes import LabelledProbes
        from edge_sfda.nets import load

        torch.set_num_threads(1)
        job = self.job
        source, manifest = load(job.source, allow=job.net, device=job.device)
        deployed, _ = load(job.deployed, allow=job.net, device=job.device)
        candidates = {"source": source, "deployed": deployed}
        steps, derived, vetoes, exported = 0, manifest, "", False
        if not job.recall:
            net, _ = load(job.source, allow=job.net, device=job.device)
            self.method = method = run.make(net, manifest, job.adapt)
            self.begun = time.perf_counter()
            run.offline(method, list(torch.from_numpy(job.frames)), on_step=self._after_step)
            steps = job.adapt.burst.steps if method.trains else 0
            derived = self._save(method, steps)
            vetoes, exported = self._export(method, derived)
            candidates["adapted"] = method.deployed
        labelled = None
        if job.labelled is not None:
            labelled = LabelledProbes(*(torch.from_numpy(part) for part in job.labelled))
        decision = Gate(job.gate, manifest).judge(
            candidates,
            torch.from_numpy(job.probes),
            labelled=labelled,
            more_vetoes=[lambda name: vetoes if name == "adapted" and vetoes else None],
        )
        import json

        return Judged(
            decision.accepted, decision.reason, json.loads(decision.to_json()), steps, derived.to_json(), exported
        )

    def _after_step(self, number: int, report: Any) -> None:
        from edge_sfda.adapt.run import check_report

        row = check_report(number, report, trains=True)
        seconds = time.perf_counter() - self.begun
        of, nan = self.job.adapt.burst.steps, float("nan")
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

    def _save(self, method: Any, steps: int) -> Any:
        from edge_sfda import checkpoint
        from edge_sfda.adapt.session import adapted_manifest

        manifest = adapted_manifest(method, steps=steps, frames=len(self.job.frames), stopped=False)
        return checkpoint.save(self.job.folder / CANDIDATE, method.deployed.state_dict(), manifest)

    def _export(self, method: Any, manifest: Any) -> tuple[str, bool]:
        """Export the candidate; returns why that rules it out, and whether a model is there."""
        if not self.job.onnx:
            return "", False
        import copy

        from edge_sfda.files import write_atomic
        from edge_sfda.runtime.export import ExportConfig, to_onnx
        from edge_sfda.runtime.parity import Sample, measure

        net = copy.deepcopy(method.deployed).cpu()  # where ONNX Runtime's own results are to be found again
        # with logits, as a checkpoint gives them: a swap must take no output away
        model = to_onnx(net, manifest, ExportConfig(logits=True))
        probes = self.job.probes[:4] if len(self.job.probes) else self.job.frames[:4]
        samples = [Sample(np.ascontiguousarray(probe[::-1].transpose(1, 2, 0))) for probe in probes]
        problems = measure(model, net, manifest, samples).problems()
        if problems:
            return f"its ONNX model is not the same network: {'; '.join(problems)}", False
        write_atomic(self.job.folder / ONNX, model.SerializeToString())
        return "", True
