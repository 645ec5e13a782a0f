"""The real process of a burst, over the built-in street."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sfda import checkpoint
from edge_sfda.config import AdaptConfig, BudgetConfig, GateConfig, from_dict
from edge_sfda.data.frames import to_input
from edge_sfda.data.sources import open_source
from edge_sfda.live.job import CHECKPOINT, FIRST, LAST, Failed, Job, Judged, Message, Step
from edge_sfda.live.rivals import Rivals
from edge_sfda.live.worker import Worker, work
from edge_sfda.manifest import Manifest
from edge_sfda.runtime.predict import Segmenter

MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"
SHORT = {"burst": {"steps": 3, "batch": 2}, "statistics": {"frames": 8}, "reliability": {"warm_up": 1}}

# takes what is no worse, at dusk the target's statistics; and times nothing, for the machine may be busy
LENIENT = GateConfig(least=2, first=4, latency=1000, information=0, nuclear=0, consistency=0)

MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    manifest = checkpoint.read_manifest(MODEL)
    with open_source("scene:dusk?frames=16&fps=1&seed=5") as source:
        frames = np.stack([to_input(frame.image, manifest.preprocessing) for frame in source])

    def make(**changes: Any) -> Job:
        fields: dict[str, Any] = {
            "source": MODEL,
            "deployed": MODEL,
            "running": MODEL,
            "net": None,
            "frames": frames[:10],
            "probes": frames[10:],
            "labelled": None,
            "adapt": from_dict(SHORT),
            "gate": GateConfig(least=2, latency=1000),  # the machine may be busy
            "budget": BudgetConfig(share=1.0),
            "folder": tmp_path,
            "onnx": False,
        }
        return Job(**fields | changes)

    return make


def _hear(worker: Worker, until: Callable[[Message], bool], seconds: float = 600) -> list[Message]:
    """Return what it says until something, or its end."""
    heard: list[Message] = []
    nap = threading.Event()
    for _ in range(int(seconds / 0.02)):
        alive = worker.alive
        for message in worker.messages():
            heard.append(message)
            if until(message):
                return heard
        if not alive:
            return heard
        nap.wait(0.02)
    raise AssertionError(f"nothing of what was waited for within {seconds} s: {heard}")


def test_burst_tells_its_steps_and_leaves_a_whole_candidate(make_job: MakeJob, tmp_path: Path) -> None:
    worker = Worker(make_job())
    try:
        heard = _hear(worker, lambda message: isinstance(message, Judged))
    finally:
        worker.stop()
    assert [m.number for m in heard if isinstance(m, Step)] == [1, 2, 3]
    judged = heard[-1]
    assert isinstance(judged, Judged)
    assert set(judged.decision["scores"]) == {"source", "deployed", "adapted", "step 1", "step 2"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{LAST}{CHECKPOINT}"]
    candidate = checkpoint.load(tmp_path / f"{LAST}{CHECKPOINT}")
    assert candidate.manifest.tensors_sha256 == Manifest.from_json(judged.manifest).tensors_sha256
    assert candidate.manifest.provenance["kind"] == "adapted"
    assert candidate.manifest.tensors_sha256 != checkpoint.read_manifest(MODEL).tensors_sha256


@pytest.mark.parametrize("probes", [6, 1])
def test_statistics_are_judged_before_the_burst(probes: int, make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(look_first=True, gate=LENIENT)
    worker = Worker(replace(job, probes=job.probes[:probes]))
    try:
        heard = _hear(worker, lambda message: isinstance(message, Judged) and message.files == LAST)
    finally:
        worker.stop()
    last = heard[-1]
    assert isinstance(last, Judged)
    if probes < LENIENT.least:  # there is no evidence either way
        assert [type(message) for message in heard] == [Step, Step, Step, Judged]
        return
    first = heard[0]
    assert isinstance(first, Judged)
    assert (first.files, first.steps, first.accepted) == (FIRST, 0, "statistics")
    assert set(first.decision["scores"]) == {"source", "deployed", "statistics"}
    assert first.decision["probes"] == 4
    assert Manifest.from_json(first.manifest).provenance["steps"] == 0
    saved = {name: checkpoint.load(tmp_path / f"{name}{CHECKPOINT}").manifest for name in (FIRST, LAST)}
    assert saved[FIRST].tensors_sha256 == Manifest.from_json(first.manifest).tensors_sha256
    assert saved[LAST].tensors_sha256 == Manifest.from_json(last.manifest).tensors_sha256
    # it competes with what came of the burst, and is no change where it wins
    assert set(last.decision["scores"]) == {"source", "deployed", "statistics", "adapted", "step 1", "step 2"}
    assert last.accepted in ("deployed", "adapted", "step 1", "step 2")
    assert (last.accepted == "deployed") == (last.decision["accepted"] in ("deployed", "statistics"))


def test_recall_judges_without_learning(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(recall=True)
    worker = Worker(replace(job, frames=job.frames[:0]))
    try:
        (judged,) = _hear(worker, lambda message: isinstance(message, Judged))
    finally:
        worker.stop()
    assert isinstance(judged, Judged)
    assert set(judged.decision["scores"]) == {"source", "deployed"}
    assert (judged.accepted, judged.steps, judged.onnx) == ("deployed", 0, False)
    assert not (tmp_path / f"{LAST}{CHECKPOINT}").exists()


def test_candidate_is_exported_and_proven(make_job: MakeJob, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    adapt = from_dict({"burst": {"steps": 1, "batch": 2}, "reliability": {"enabled": False}})
    worker = Worker(make_job(adapt=adapt, onnx=True, gate=LENIENT))
    try:
        judged = _hear(worker, lambda message: isinstance(message, Judged))[-1]
    finally:
        worker.stop()
    assert isinstance(judged, Judged)
    assert judged.accepted == "adapted"
    assert judged.onnx
    assert (tmp_path / "candidate.onnx").stat().st_size > 100_000
    with Segmenter.load(MODEL) as segmenter:  # the source runs as a checkpoint
        segmenter.swap(tmp_path / "candidate.onnx")
        assert segmenter.info.checkpoint_sha256 == Manifest.from_json(judged.manifest).tensors_sha256


class _Pipe:
    """The loop's end of a worker in this process."""

    def __init__(self) -> None:
        self.said: list[Message] = []

    def send(self, message: Message) -> None:
        self.said.append(message)

    def poll(self) -> bool:
        return False


def test_winner_that_is_ruled_out_leaves_the_others_to_win(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def veto(self: Rivals, name: str) -> str | None:
        asked.append(name)
        return "it is slow" if len(asked) == 1 else None

    monkeypatch.setattr(Rivals, "veto", veto)
    pipe = _Pipe()
    work(pipe, make_job(gate=LENIENT))
    judged = pipe.said[-1]
    assert isinstance(judged, Judged)
    first, second = asked
    assert first in ("adapted", "step 1", "step 2")
    assert judged.accepted == second != first
    assert judged.decision["vetoes"] == {first: ["it is slow"]}
    assert [path.name for path in tmp_path.iterdir()] == [f"{LAST}{CHECKPOINT}"]


def test_failure_comes_in_words(make_job: MakeJob, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no checkpoint")
    worker = Worker(make_job(deployed=broken))
    try:
        (failed,) = _hear(worker, lambda message: isinstance(message, Failed))
    finally:
        worker.stop()
    assert isinstance(failed, Failed)
    assert "broken.safetensors" in failed.reason


def test_worker_gives_way_waits_when_told_and_dies_when_killed(make_job: MakeJob) -> None:
    adapt = from_dict({"burst": {"steps": 10_000}}, base=from_dict(SHORT, base=AdaptConfig()))
    worker = Worker(make_job(adapt=adapt))
    try:
        _hear(worker, lambda message: isinstance(message, Step))
        assert worker.pid is not None
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
        worker.pause(True)
        nap = threading.Event()
        for _ in range(400):  # steps under way come to an end
            before = len(list(worker.messages()))
            nap.wait(0.25)
            if before == 0 and not list(worker.messages()):
                break
        else:
            raise AssertionError("it goes on although it was told to wait")
        worker.pause(False)
        _hear(worker, lambda message: isinstance(message, Step))
        os.kill(worker.pid, signal.SIGKILL)
        _hear(worker, lambda message: False)
        assert not worker.alive
        assert worker.exit_code == -signal.SIGKILL
    finally:
        worker.stop()


def test_begin_pause_and_stop_wait_for_no_process_that_reads_nothing(make_job: MakeJob) -> None:
    worker = Worker(make_job(frames=np.zeros((64, 3, 512, 512), np.uint8)))  # far more than a pipe holds
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    assert worker._sender.is_alive(), "the job was read before the loop got on"
    worker.pause(True)
    worker.pause(False)
    worker.stop()
    assert not worker.alive
    assert not worker._sender.is_alive()


def test_process_ends_by_itself_when_the_loop_is_gone(make_job: MakeJob, capfd: pytest.CaptureFixture[str]) -> None:
    worker = Worker(make_job(adapt=from_dict({**SHORT, "burst": {"steps": 10_000, "batch": 2}})))
    _hear(worker, lambda message: isinstance(message, Step))
    worker._mine.close()
    worker._process.join(60)
    assert worker.exit_code == 0
    assert "Traceback" not in capfd.readouterr().err
    worker.stop()
