"""What a burst puts before the gate: its average and snapshots, written; and who wins, exported, proven and timed."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edge_sfda import checkpoint
from edge_sfda.adapt import vetoes
from edge_sfda.files import write_atomic
from edge_sfda.live.job import CHECKPOINT, LAST, ONNX, Job
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.runtime.predict import Segmenter

if TYPE_CHECKING:
    from pathlib import Path

AVERAGE = "adapted"  # the name of the burst's end
STATISTICS = "statistics"  # of the source with what step 0 gives

_TURNS = 8  # frames that each of two artefacts predicts, in turn; the least of its times counts
_TRIES = 3  # of that before a candidate is called slow: the machine has other things to do
_PROVEN_ON = 4  # frames, the first of them timed
_TRACE = f"trace{ONNX}"  # in the folder, from one burst to the next


class Rivals:
    """The networks of one burst, by name; asked about a winner, it says what rules it out.

    Args:
        job: of the burst; `folder` takes the files.
        files: what the ones that stay are called, see `job.FIRST`.
        slowdown: times one artefact against another on a frame, HWC uint8 BGR; another one in tests.
    """

    def __init__(
        self, job: Job, *, files: str = LAST, slowdown: Callable[[Path, Path, Job], float] | None = None
    ) -> None:
        self.job, self.files = job, files
        self.nets: dict[str, SegmentationNet] = {}
        self.manifests: dict[str, Manifest] = {}  # as written
        self._slowdown = slowdown or slowdown_of

    def add(self, name: str, net: SegmentationNet, manifest: Manifest) -> None:
        """Write a network's checkpoint.

        Raises:
            WriteError: the disk is full, or the folder is not writable.
        """
        self.nets[name] = net
        self.manifests[name] = checkpoint.save(self._path(name, CHECKPOINT), net.state_dict(), manifest)

    def veto(self, name: str) -> str | None:
        """Return why a network of the burst is ruled out: its model is another network, or slow; None for others."""
        if name not in self.nets:
            return None
        if self.job.onnx:
            problems = self._export(name)
            if problems:
                return f"its ONNX model is not the same network: {'; '.join(problems)}"
        artefact = self._path(name, ONNX) if self.job.onnx else self._path(name, CHECKPOINT)
        words: list[str] = []
        for _ in range(_TRIES):
            words = vetoes.of_latency(self._slowdown(artefact, self.job.running, self.job), self.job.gate)
            if not words:
                return None
        return "; ".join(words)

    def keep(self, accepted: str) -> tuple[Manifest, bool]:
        """Leave one network's files as the candidate's, no other's; returns its manifest and whether it has a model.

        Args:
            accepted: by the gate; the newest network is kept where that is none of the burst's.
        """
        name = accepted if accepted in self.nets else list(self.nets)[-1]
        for other in self.nets:
            for kind in (CHECKPOINT, ONNX):
                path, kept = self._path(other, kind), self.job.folder / f"{self.files}{kind}"
                if other != name:
                    path.unlink(missing_ok=True)
                elif path.exists():
                    os.replace(path, kept)
                else:
                    kept.unlink(missing_ok=True)  # an earlier burst's model is not this network's
        return self.manifests[name], (self.job.folder / f"{self.files}{ONNX}").exists()

    def _path(self, name: str, kind: str) -> Path:
        return self.job.folder / f"of-{name.replace(' ', '-')}{kind}"

    def _export(self, name: str) -> list[str]:
        """Write a network's ONNX model where it is the same network, else return what differs."""
        from edge_sfda.runtime.export import ExportConfig, to_onnx
        from edge_sfda.runtime.parity import Sample, measure

        net = copy.deepcopy(self.nets[name]).cpu()  # where ONNX Runtime's own results are to be found again
        frames = [Sample(frame) for frame in _frames(self.job)]
        trace = self.job.folder / _TRACE
        while True:
            kept = trace.exists()
            # with logits, as a checkpoint gives them: a swap must take no output away
            model = to_onnx(net, self.manifests[name], ExportConfig(logits=True), cache=trace)
            problems = measure(model, net, self.manifests[name], frames).problems()
            if not problems:
                write_atomic(self._path(name, ONNX), model.SerializeToString())
            if not (problems and kept):
                return problems
            trace.unlink()  # may be of other code of a network of your own: once more, traced anew


def slowdown_of(candidate: Path, running: Path, job: Job) -> float:
    """Return what a frame takes one artefact, as a multiple of what it takes another, by the least of several each.

    Raises:
        EdgeSfdaError: an artefact does not load.
    """
    frame = _frames(job)[0]
    with (
        Segmenter.load(candidate, device=job.device, threads=1, net=job.net) as mine,
        Segmenter.load(running, device=job.device, threads=1, net=job.net) as theirs,
    ):
        return ratio(lambda: mine(frame), lambda: theirs(frame))


def ratio(mine: Callable[[], object], theirs: Callable[[], object]) -> float:
    """Return the least time that one call takes over the least that the other takes, called in turn."""
    least = [float("inf"), float("inf")]
    for _ in range(_TURNS):
        for index, call in enumerate((mine, theirs)):
            start = time.perf_counter()
            call()
            least[index] = min(least[index], time.perf_counter() - start)
    return least[0] / max(least[1], 1e-9)


def _frames(job: Job) -> list[np.ndarray]:
    """Return a few probes, or of what was learned from where there are none, as HWC BGR."""
    seen = job.probes if len(job.probes) else job.frames
    return [np.ascontiguousarray(frame[::-1].transpose(1, 2, 0)) for frame in seen[:_PROVEN_ON]]
