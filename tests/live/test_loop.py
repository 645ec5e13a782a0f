"""What the loop does with what its worker says; the worker is a fake that says what a test wants to hear."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_sfda import checkpoint
from edge_sfda.adapt.trigger import Change
from edge_sfda.config import GateConfig, TriggerConfig
from edge_sfda.data.frames import Frame, to_input
from edge_sfda.data.sources import open_source
from edge_sfda.files import write_atomic
from edge_sfda.live.capture import CaptureStatus, Pace, Seen
from edge_sfda.live.job import CHECKPOINT, FIRST, LAST, Failed, Job, Judged, Step
from edge_sfda.live.loop import Loop
from edge_sfda.live.status import Latest, Phase
from edge_sfda.nets import load
from edge_sfda.nets.inference import Normaliser
from edge_sfda.nets.normalisation import estimate

Make = Callable[..., Any]

GATE = GateConfig(least=2)


class Fake:
    """Says one thing each time it is asked; `None` stands for a death."""

    pid = None

    def __init__(self, job: Job, script: Sequence[Any]) -> None:
        self.job = job
        self.script = list(script)
        self.alive = True
        self.stopped = False
        self.paused: list[bool] = []
        self.exit_code = -9
        self.silence = 0.0

    def messages(self) -> Iterator[Any]:
        if not self.script:
            return
        said = self.script.pop(0)
        if said is None:
            self.alive = False
        elif isinstance(said, float):
            self.silence = said
        elif callable(said):
            yield said(self.job)
        else:
            yield said

    def pause(self, wanted: bool) -> None:
        self.paused.append(wanted)

    def silent_s(self) -> float:
        return self.silence

    def stop(self) -> None:
        self.stopped = True


class Fakes:
    """Makes workers, each with the next script."""

    def __init__(self, *scripts: Sequence[Any]) -> None:
        self.scripts = list(scripts)
        self.made: list[Fake] = []

    def __call__(self, job: Job) -> Fake:
        self.made.append(Fake(job, self.scripts.pop(0) if self.scripts else []))
        return self.made[-1]


def _candidate(job: Job, accepted: str = "adapted", *, broken: bool = False, files: str = LAST) -> Judged:
    """Write a candidate that differs from the source, as a burst does."""
    net, manifest = load(job.source)
    with torch.no_grad():
        net.classifier.bias.add_(0.125)  # type: ignore[union-attr, operator]
        if broken:
            net.classifier.bias[3] += 1e4  # type: ignore[index]
    saved = checkpoint.save(job.folder / f"{files}{CHECKPOINT}", net.state_dict(), manifest.derive(kind="adapted"))
    return Judged(
        accepted, "it is better", {"accepted": accepted, "reason": "it is better"}, 2, saved.to_json(), False, files
    )


def _run(run: Any, on_frame: Callable[[Loop, int], None] = lambda loop, count: None) -> list[Latest]:
    seen: list[Latest] = []

    def look(latest: Latest, found: Any) -> None:
        seen.append(latest)
        on_frame(run.loop, len(seen))

    run.loop.run(look)
    return seen


def test_stream_begins_with_a_burst_and_a_better_candidate_is_deployed(make_loop: Make) -> None:
    fakes = Fakes([Step(1, 2, 0.5, 0.7, 0.01), _candidate])
    run = make_loop(worker=fakes, gate=GATE)
    before = run.loop.segmenter.info.checkpoint_sha256
    seen = _run(run)
    assert len(seen) == 60
    assert run.kinds()[:2] == ["started", "sound frames"]
    assert [k for k in run.kinds() if k in ("adapting", "judged", "watching", "swapped")] == [
        "adapting", "judged", "watching", "swapped",
    ]  # fmt: skip
    assert run.loop.status().generation == 1
    assert run.loop.segmenter.info.checkpoint_sha256 != before
    assert run.generations.newest().report["reason"] == "it is better"
    job = fakes.made[0].job
    assert job.frames.shape == (12, 3, 192, 256)
    assert len(job.probes) >= 2
    assert fakes.made[0].stopped


def test_probes_are_never_learned_from(make_loop: Make) -> None:
    fakes = Fakes([])
    _run(make_loop(worker=fakes, gate=GATE))
    job = fakes.made[0].job
    learned = {frame.tobytes() for frame in job.frames}
    assert len(learned) == 12
    assert not learned & {probe.tobytes() for probe in job.probes}


def test_candidate_that_is_not_better_changes_nothing(make_loop: Make) -> None:
    run = make_loop(worker=Fakes([lambda job: _candidate(job, "deployed")]), gate=GATE)
    _run(run)
    assert run.loop.status().generation == 0
    assert "swapped" not in run.kinds()
    assert run.loop.status().detail == "it is better"


def test_shadow_judges_and_deploys_nothing(make_loop: Make) -> None:
    run = make_loop(worker=Fakes([_candidate]), gate=GATE, mode="shadow")
    _run(run)
    assert "judged" in run.kinds()
    assert run.loop.status().generation == 0


def test_recommendation_waits_for_a_person(make_loop: Make) -> None:
    run = make_loop(worker=Fakes([_candidate]), gate=GATE, mode="recommend")
    phases = []

    def look(loop: Loop, count: int) -> None:
        phases.append(loop.status().phase)
        if count == 50:
            loop.accept()

    _run(run, look)
    assert Phase.RECOMMENDING in phases
    assert run.loop.status().generation == 1


def test_nothing_is_accepted_without_a_candidate(make_loop: Make) -> None:
    run = make_loop(worker=Fakes([]), gate=GATE)
    _run(run, lambda loop, count: loop.accept() if count == 5 else None)
    assert [e["why"] for e in run.told if e["event"] == "refused"] == ["there is no candidate to accept"]


def test_mode_off_never_learns(make_loop: Make) -> None:
    fakes = Fakes()
    run = make_loop(worker=fakes, gate=GATE, mode="off")
    assert len(_run(run, lambda loop, count: loop.adapt_now())) == 60
    assert fakes.made == []
    assert run.loop.status().phase is Phase.OFF


def test_worker_that_dies_is_begun_again_on_the_same_frames_and_in_the_end_given_up(make_loop: Make) -> None:
    fakes = Fakes([None], [None], [None])
    run = make_loop(worker=fakes, gate=GATE, retries=2)
    assert len(_run(run)) == 60
    assert len(fakes.made) == 3
    assert all(np.array_equal(fake.job.frames, fakes.made[0].job.frames) for fake in fakes.made)
    assert run.loop.status().restarts == 3
    assert run.loop.status().detail == "given up after 2 retries: the worker died with code -9"


def test_worker_that_hangs_is_stopped_and_begun_again(make_loop: Make) -> None:
    fakes = Fakes([31.0, 31.0], [_candidate])
    run = make_loop(worker=fakes, gate=GATE, hang_s=30.0)
    _run(run)
    assert fakes.made[0].stopped
    assert [e["why"] for e in run.told if e["event"] == "worker lost"] == ["the worker said nothing for 31 s"]
    assert run.loop.status().generation == 1


def test_burst_that_cannot_work_is_not_tried_again(make_loop: Make) -> None:
    fakes = Fakes([Failed("layer x is not finite")])
    run = make_loop(worker=fakes, gate=GATE)
    _run(run)
    assert len(fakes.made) == 1
    assert run.loop.status().detail == "the burst came to nothing: layer x is not finite"


def test_pause_lasts_over_the_end_of_a_burst(make_loop: Make) -> None:
    step = Step(1, 2, 0.5, 0.7, 0.01)
    fakes = Fakes([*[step] * 12, _candidate])
    run = make_loop(worker=fakes, gate=GATE)
    phases = []

    def look(loop: Loop, count: int) -> None:
        phases.append(loop.status().phase)
        if len(fakes.made) > 0 and Phase.PAUSED not in phases:
            loop.pause()
        if count == 55:
            loop.resume()

    _run(run, look)
    assert "judged" in run.kinds()
    begun = phases.index(Phase.PAUSED)
    assert begun < 50
    assert set(phases[begun:54]) == {Phase.PAUSED}
    assert phases[-1] is Phase.WATCHING


def test_worker_that_is_lost_during_a_pause_waits_like_the_one_before(make_loop: Make) -> None:
    step = Step(1, 2, 0.5, 0.7, 0.01)
    fakes = Fakes([step, step, step, None], [step] * 200)
    run = make_loop(worker=fakes, gate=GATE, retries=2)
    _run(run, lambda loop, count: loop.pause() if len(fakes.made) == 1 else None)
    assert [fake.paused for fake in fakes.made] == [[True], [True]]
    assert run.loop.status().phase is Phase.PAUSED


def test_pause_reaches_the_worker_and_resume_goes_on(make_loop: Make) -> None:
    fakes = Fakes([Step(1, 2, 0.5, 0.7, 0.01)] * 200)
    run = make_loop(worker=fakes, gate=GATE)
    phases = []

    def look(loop: Loop, count: int) -> None:
        phases.append(loop.status().phase)
        {40: loop.pause, 50: loop.resume}.get(count, lambda: None)()

    _run(run, look)
    assert fakes.made[0].paused == [True, False]
    assert phases[45] is Phase.PAUSED
    assert phases[-1] is Phase.ADAPTING


def _statistics(job: Job) -> Judged:
    return _candidate(job, "statistics", files=FIRST)


def test_what_the_first_look_accepts_is_in_use_while_the_burst_goes_on(make_loop: Make) -> None:
    step = Step(1, 2, 0.5, 0.7, 0.01)
    fakes = Fakes([_statistics, step, step, step, _kept()])
    run = make_loop(worker=fakes, gate=GATE)
    seen: list[tuple[Phase, int]] = []
    _run(run, lambda loop, count: seen.append((loop.status().phase, loop.status().generation)))
    assert fakes.made[0].job.look_first
    assert (Phase.ADAPTING, 1) in seen
    assert seen[-1] == (Phase.WATCHING, 1)
    assert [kind for kind in run.kinds() if kind in ("judged", "swapped")] == ["judged", "swapped", "judged"]


def test_burst_that_is_lost_after_its_first_look_begins_again_against_what_is_in_use_now(make_loop: Make) -> None:
    fakes = Fakes([_statistics, None], [_candidate])
    run = make_loop(worker=fakes, gate=GATE)
    _run(run)
    first, again = (fake.job for fake in fakes.made[:2])
    assert first.deployed != again.deployed
    assert again.deployed.parent.name == "0001"
    assert again.running == again.deployed
    assert run.loop.status().generation == 2


@pytest.mark.parametrize("mode", ["shadow", "recommend"])
def test_nothing_is_looked_at_first_where_a_person_decides(mode: str, make_loop: Make) -> None:
    fakes = Fakes([])
    _run(make_loop(worker=fakes, gate=GATE, mode=mode))
    assert not fakes.made[0].job.look_first


def test_burst_is_given_up_where_the_stream_changes_and_the_next_one_is_not(make_loop: Make) -> None:
    step = Step(1, 2, 0.5, 0.7, 0.01)
    fakes = Fakes([step] * 500, [step, step, _candidate], [])
    run = make_loop("scene:dusk?frames=120&fps=5&seed=5", worker=fakes, gate=GATE)

    def look(loop: Loop, count: int) -> None:
        if loop.status().phase is Phase.ADAPTING and len(fakes.made) < 3:
            loop._on_change(Change.SHIFT_FOUND)

    _run(run, look)
    first, second, third = fakes.made
    assert first.stopped
    assert first.script, "it went on to its end"
    assert [e["detail"] for e in run.told if e.get("phase") == "collecting"] == [
        "a shift was found during the burst",
        "a shift was found during the burst",
    ]
    kinds = run.kinds()
    assert kinds.index("collecting") < kinds.index("judged") < kinds.index("swapped")  # the second came to its end
    seen = [{f.tobytes() for f in fake.job.frames} for fake in (first, second, third)]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]


def _kept(**decision: Any) -> Judged:
    return Judged("deployed", "no better", {"accepted": "deployed", "reason": "no better", **decision}, 0, "", False)


@pytest.mark.parametrize(
    ("because", "said", "asks"),
    [
        ("a shift", _kept(), True),
        ("the start", _kept(), False),  # what is in use is good enough at home
        ("the start", _kept(evidence=["2 of 8 probes differ"]), True),
        ("a shift", Failed("it cannot be loaded"), True),
        ("the start", Failed("it cannot be loaded"), False),
    ],
)
def test_what_came_to_nothing_is_tried_again_later_each_time_after_twice_as_long(
    because: str, said: Any, asks: bool, make_loop: Make
) -> None:
    trigger = TriggerConfig(settle=4, window=1, cool_down=10)
    fakes = Fakes(*[[said]] * 9)
    run = make_loop("scene:dusk?frames=150&fps=5&seed=5", worker=fakes, gate=GATE, trigger=trigger)
    run.loop._on_change = lambda change: None  # type: ignore[method-assign]
    begun: list[int] = []

    def look(loop: Loop, count: int) -> None:
        if because == "a shift" and count == 1:
            loop._collect("a shift was found", shifted=True)
        begun.extend([count] * (len(fakes.made) - len(begun)))

    _run(run, look)
    assert (len(begun) > 2) == asks
    assert len(begun) > 0
    if asks:
        waits = np.diff(begun)
        assert waits[1] - waits[0] >= 5  # ten frames more, but for how fast enough probes were collected


def test_rollback_goes_to_the_generation_before(make_loop: Make) -> None:
    run = make_loop(worker=Fakes([_candidate]), gate=GATE)
    source = run.loop.segmenter.info.checkpoint_sha256
    _run(run, lambda loop, count: loop.rollback() if count == 55 else None)
    assert run.loop.status().generation == 0
    assert run.loop.segmenter.info.checkpoint_sha256 == source
    assert "rolled back" in run.kinds()


def test_rollback_beyond_the_source_is_refused_in_words(make_loop: Make) -> None:
    run = make_loop(worker=Fakes([]), gate=GATE)
    _run(run, lambda loop, count: loop.rollback() if count == 5 else None)
    (why,) = (e["why"] for e in run.told if e["event"] == "refused")
    assert "nothing to go back from" in why


def test_swap_after_which_one_class_swallows_the_picture_is_taken_back(make_loop: Make) -> None:
    run = make_loop(worker=Fakes([lambda job: _candidate(job, broken=True)]), gate=GATE, watch_after=8)
    _run(run)
    assert run.kinds().index("swapped") < run.kinds().index("rolled back")
    assert run.loop.status().generation == 0


def test_candidate_that_cannot_be_kept_leaves_the_old_one_in_use(
    make_loop: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(job: Job) -> Judged:
        judged = _candidate(job)
        shutil.rmtree(job.folder)
        return judged

    run = make_loop(worker=Fakes([vanish]), gate=GATE)
    assert len(_run(run)) == 60
    assert run.loop.status().generation == 0
    assert run.loop.status().detail.startswith("not deployed: ")


def test_masks_go_out_while_another_network_is_written_and_loaded(
    make_loop: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_loop("scene:dusk?frames=400&fps=50&seed=5", worker=Fakes([_candidate]), gate=GATE, pace=Pace.NATIVE)
    accept, enough = run.generations.accept, threading.Event()
    begun_at: list[int] = []

    def slowly(*args: Any, **kwargs: Any) -> Any:
        begun_at.append(run.loop.status().frames)
        assert enough.wait(60), "no frame was predicted while the disk was busy"
        return accept(*args, **kwargs)

    monkeypatch.setattr(run.generations, "accept", slowly)
    generations: list[int] = []

    def look(loop: Loop, count: int) -> None:
        generations.append(loop.status().generation)
        if begun_at and count == begun_at[0] + 5:
            loop.rollback()  # waits for the change under way, and then takes it back
            enough.set()
        if "rolled back" in run.kinds():
            loop.stop()

    _run(run, look)
    assert generations[begun_at[0] + 4] == 0
    assert run.kinds().index("swapped") < run.kinds().index("rolled back")
    assert run.loop.status().generation == 0


def _recalled(accepted: str) -> Judged:
    return Judged(accepted, f"{accepted} it is", {"accepted": accepted, "reason": f"{accepted} it is"}, 0, "", False)


def _shift_after_the_first_swap(loop: Loop, count: int) -> None:
    if loop.status().phase is Phase.WATCHING and loop.status().generation == 1 and not loop._recall:
        loop._on_change(Change.SHIFT_FOUND)


@pytest.mark.parametrize(("accepted", "generation"), [("source", 2), ("deployed", 1)])
def test_source_is_asked_as_soon_as_the_stream_has_changed(accepted: str, generation: int, make_loop: Make) -> None:
    fakes = Fakes([_candidate], [_recalled(accepted)])
    run = make_loop("scene:dusk?frames=120&fps=5&seed=5", worker=fakes, gate=GateConfig(least=4, recall=2))
    source = run.loop.segmenter.info.checkpoint_sha256
    _run(run, _shift_after_the_first_swap)
    asked = fakes.made[1].job
    assert asked.recall
    assert len(asked.frames) == 0
    assert (
        asked.gate.least == 2
    )  # of fewer probes than a burst is judged on: the source is what there is to fall back to
    assert len(asked.probes) == 3
    assert fakes.made[0].job.gate.least == fakes.made[2].job.gate.least == 4
    assert run.loop.status().generation == generation
    assert (run.loop.segmenter.info.checkpoint_sha256 == source) == (accepted == "source")
    assert not fakes.made[2].job.recall  # the burst follows all the same
    assert [e["detail"] for e in run.told if e.get("phase") == "collecting"] == ["a shift was found"]
    assert run.loop.status().phase is Phase.ADAPTING


def test_stream_that_leaves_what_was_learned_is_noticed_right_after_the_swap(make_loop: Make) -> None:
    run = make_loop("scene:dusk?frames=60&fps=5&seed=5", worker=Fakes([_candidate]), gate=GATE, learn=24)
    settling: list[bool] = []
    _run(run, lambda loop, count: settling.append(loop._trigger.settling))
    swapped = settling.index(False)  # 60 frames of the stream would be what a reference is taken from otherwise
    assert settling[swapped:] == [False] * (len(settling) - swapped)
    assert len(settling) - swapped > 10
    reference = run.loop._trigger._signals["brightness"]
    learned = run.loop._job.frames  # type: ignore[union-attr]
    assert reference.reference == pytest.approx(np.median(learned.mean((1, 2, 3)) / 255), abs=0.02)


def test_source_is_asked_again_while_probes_show_too_little(make_loop: Make) -> None:
    alike = Judged("deployed", "kept", {"accepted": "deployed", "evidence": ["2 of 8 probes differ"]}, 0, "", False)
    fakes = Fakes([_candidate], *[[alike]] * 3)
    run = make_loop("scene:dusk?frames=160&fps=5&seed=5", worker=fakes, gate=GATE)
    _run(run, _shift_after_the_first_swap)
    assert [fake.job.recall for fake in fakes.made] == [False, True, True, True, False]
    asked = [len(fake.job.probes) for fake in fakes.made[1:4]]
    assert asked[0] < asked[1] < asked[2]


@pytest.mark.parametrize("said", [None, Failed("it cannot be loaded")])
def test_question_that_comes_to_nothing_leaves_the_burst_to_come(said: Any, make_loop: Make) -> None:
    fakes = Fakes([_candidate], [said])
    run = make_loop("scene:dusk?frames=120&fps=5&seed=5", worker=fakes, gate=GATE)
    _run(run, _shift_after_the_first_swap)
    assert [fake.job.recall for fake in fakes.made] == [False, True, False]
    assert run.loop.status().generation == 1
    assert run.loop.status().phase is Phase.ADAPTING


@pytest.mark.parametrize(
    ("mode", "number", "accepted", "asks"),
    [
        ("auto", 3, "adapted", True),
        ("auto", 3, "source", False),  # it is in use
        ("auto", 0, "", False),
        ("shadow", 3, "adapted", False),
        ("recommend", 3, "adapted", False),
    ],
)
def test_source_is_asked_where_another_network_was_deployed_by_the_loop(
    mode: str, number: int, accepted: str, asks: bool, make_loop: Make
) -> None:
    loop = make_loop(worker=Fakes(), gate=GATE, mode=mode).loop
    loop.deployment.generation = replace(loop.deployment.generation, number=number, report={"accepted": accepted})
    loop._collect("a shift was found")
    assert bool(loop._recall) == asks


def _foggy(job: Job) -> Judged:
    """Write a candidate that is fitted to fog, whatever the job's frames show."""
    net, manifest = load(job.source)
    with open_source("scene:fog?frames=4&seed=7") as street:
        frames = torch.stack([torch.from_numpy(to_input(f.image, manifest.preprocessing)) for f in street])
    estimate(net, [Normaliser(manifest.preprocessing, torch.device("cpu"))(frames)], blend=1.0)
    saved = checkpoint.save(job.folder / f"{LAST}{CHECKPOINT}", net.state_dict(), manifest.derive(kind="adapted"))
    return Judged("adapted", "it is better", {"accepted": "adapted"}, 2, saved.to_json(), False, LAST)


def test_stream_that_comes_home_uses_the_source_at_once_and_learns_anew(make_loop: Make) -> None:
    fakes = Fakes([_foggy], [])
    run = make_loop("scene:day?frames=90&fps=5&seed=5", worker=fakes, gate=GATE)
    source = run.loop.segmenter.info.checkpoint_sha256
    used = []
    _run(run, lambda loop, count: used.append(loop.segmenter.info.checkpoint_sha256))
    foggy = [number for number, network in enumerate(used) if network != source]
    assert len(foggy) == foggy[-1] - foggy[0] + 1 == 2  # looks, at each of 5 frames a second
    assert used[-1] == source
    newest = run.generations.newest()
    assert (newest.number, newest.report["accepted"]) == (2, "source")
    kinds = run.kinds()
    assert kinds.count("came home") == 1
    assert kinds.count("swapped") == 2
    assert [e["detail"] for e in run.told if e.get("phase") == "collecting"] == ["the stream came home"]
    assert [fake.job.recall for fake in fakes.made] == [False, False]  # nobody needs to be asked
    assert fakes.made[1].job.deployed == newest.checkpoint


def test_run_that_is_taken_up_again_knows_what_is_in_use(make_loop: Make) -> None:
    run = make_loop("scene:day?frames=12&fps=5&seed=5", worker=Fakes(), gate=GATE)
    run.loop.deployment.generation = run.loop._keep(_foggy(run.loop._make_job(recall=True)))
    _run(run)
    assert run.kinds().count("came home") == 1
    assert run.loop.status().generation == 2


def test_question_to_the_source_under_way_is_dropped_at_home(make_loop: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sfda.live.home._EVERY_S", 2.0)  # the first probe comes sooner
    fakes = Fakes([_foggy], [])
    run = make_loop("scene:day?frames=90&fps=5&seed=5", worker=fakes, gate=GATE)

    def look(loop: Loop, count: int) -> None:
        if loop.status().generation == 1 and loop.status().phase is Phase.WATCHING:
            loop._on_change(Change.SHIFT_FOUND)
            loop._recall_at = 1

    _run(run, look)
    assert [fake.job.recall for fake in fakes.made] == [False, True, False]
    assert fakes.made[1].stopped
    assert run.loop.status().generation == 2


@pytest.mark.parametrize("mode", ["shadow", "recommend"])
def test_nobody_goes_home_where_a_person_decides(mode: str, make_loop: Make) -> None:
    def look(loop: Loop, count: int) -> None:
        if loop.status().phase is Phase.RECOMMENDING:
            loop.accept()

    run = make_loop("scene:day?frames=90&fps=5&seed=5", worker=Fakes([_foggy]), gate=GATE, mode=mode)
    _run(run, look)
    assert "came home" not in run.kinds()
    assert run.loop.status().generation == (1 if mode == "recommend" else 0)


def test_nobody_goes_home_during_a_pause(make_loop: Make) -> None:
    run = make_loop("scene:day?frames=90&fps=5&seed=5", worker=Fakes([_foggy]), gate=GATE)

    def look(loop: Loop, count: int) -> None:
        if loop.status().generation == 1 and loop.status().phase is Phase.WATCHING:
            loop.pause()

    _run(run, look)
    assert "came home" not in run.kinds()
    assert run.loop.status().generation == 1


def test_burst_that_takes_too_much_memory_is_given_up(make_loop: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sfda.live.loop._SENSE_S", 0.0)
    fakes = Fakes([Step(1, 2, 0.5, 0.7, 0.01)] * 200)
    run = make_loop(worker=fakes, gate=GATE)
    monkeypatch.setattr(run.loop.budget, "excess", lambda worker=None: "" if not fakes.made else "9000 MB are in use")
    _run(run)
    assert fakes.made[0].stopped
    assert len(fakes.made) == 1
    assert run.loop.status().detail == "the burst was given up: 9000 MB are in use"


def test_budget_that_is_spent_makes_the_burst_wait(make_loop: Make) -> None:
    fakes = Fakes([])
    run = make_loop(worker=fakes, gate=GATE)
    run.loop.budget.spend(1e6)
    _run(run)
    assert fakes.made == []
    assert run.loop.status().phase is Phase.WAITING
    assert "of learning in the last hour" in run.loop.status().detail


def test_faulty_frames_are_not_predicted_and_the_mask_goes_stale(make_loop: Make, tmp_path: Path) -> None:
    import cv2

    folder = tmp_path / "frames"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        image = rng.integers(0, 255, (192, 256, 3), np.uint8) if index in (0, 5) else np.zeros((192, 256, 3), np.uint8)
        write_atomic(folder / f"{index}.png", cv2.imencode(".png", image)[1].tobytes())
    run = make_loop(str(folder), worker=Fakes([]), gate=GATE)
    seen = _run(run)
    assert [latest.frame.seq for latest in seen] == [0, 5]
    assert [k for k in run.kinds() if k in ("stale", "sound frames")] == ["sound frames", "stale", "sound frames"]
    assert run.loop.status().capture.faults == {"dark": 4}


def test_stop_ends_after_the_frame_and_ends_the_worker(make_loop: Make) -> None:
    fakes = Fakes([Step(1, 2, 0.5, 0.7, 0.01)] * 200)
    run = make_loop(worker=fakes, gate=GATE)
    seen = _run(run, lambda loop, count: loop.stop() if count == 40 else None)
    assert len(seen) == 40
    assert fakes.made[0].stopped
    assert run.kinds()[-1] == "stopped"


def test_status_counts_what_happened(make_loop: Make) -> None:
    run = make_loop(worker=Fakes([Step(1, 2, 0.5, 0.7, 0.25)] * 200), gate=GATE)
    _run(run)
    status = run.loop.status()
    assert (status.frames, status.step, status.steps, status.loss, status.reliability) == (60, 1, 2, 0.5, 0.7)
    assert status.latency_ms[0] > 0
    assert 0 < status.confidence < 1
    assert status.learned_s >= 0.25
    assert not status.stale
    latest = run.loop.latest()
    assert latest is not None
    assert (latest.frame.seq, latest.mask.shape) == (59, (192, 256))


class Scarce:
    """A budget that refuses at the turns it is told to; learning may begin whatever it says."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers

    def refusal(self) -> str:
        return self.answers.pop(0) if self.answers else ""

    def excess(self, worker: int | None = None) -> str:
        return ""

    def spend(self, seconds: float) -> None: ...

    def spent_s(self) -> float:
        return 0.0


def test_burst_under_way_waits_while_the_budget_is_spent(make_loop: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sfda.live.loop._SENSE_S", 0.0)
    fakes = Fakes([Step(1, 2, 0.5, 0.7, 0.01)] * 200)
    run = make_loop(worker=fakes, gate=GATE)
    run.loop.budget = Scarce(["", "", "90 °C", "90 °C", ""])
    _run(run)
    assert fakes.made[0].paused == [True, False]
    assert [k for k in run.kinds() if k in ("held", "released")] == ["held", "released"]
    assert next(event for event in run.told if event["event"] == "held")["why"] == "90 °C"


def test_hold_is_no_hanging(make_loop: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sfda.live.loop._SENSE_S", 0.0)
    fakes = Fakes([1e6] * 200)
    run = make_loop(worker=fakes, gate=GATE)
    run.loop.budget = Scarce(["", *["90 °C"] * 200])
    _run(run)
    assert "worker lost" not in run.kinds()


def test_loop_stops_while_no_frame_comes(make_loop: Make) -> None:
    run = make_loop()
    run.loop.capture = Gone()
    turns: list[int] = []

    def turn() -> None:
        turns.append(1)
        if len(turns) == 3:
            run.loop.stop()

    run.loop.run(on_turn=turn)
    assert len(turns) == 3
    assert run.kinds()[-1] == "stopped"


class Gone:
    """A camera that is away."""

    ended = False

    def take(self, timeout_s: float) -> None:
        return None

    def status(self) -> CaptureStatus:
        return CaptureStatus(0, 0, 1, "unplugged", {})


class _Slow:
    """A capture whose frames come half a second apart, by a clock that only its waiting moves."""

    ended = False

    def __init__(self, frames: Sequence[Frame], *, gap_s: float) -> None:
        self.now, self.gap_s, self.left = 0.0, gap_s, list(frames)
        self.due = 0.0

    def take(self, timeout_s: float) -> Seen | None:
        if self.now < self.due:
            self.now += timeout_s
            return None
        self.due = self.now + self.gap_s
        self.ended = len(self.left) == 1
        return Seen(self.left.pop(0), None)

    def status(self) -> CaptureStatus:
        return CaptureStatus(0, 0, 1, "", {})


@pytest.mark.parametrize(("gap_s", "stale"), [(0.5, 0), (3.0, 2)])
def test_slow_camera_is_not_stale_between_two_frames(make_loop: Make, gap_s: float, stale: int) -> None:
    run = make_loop(mode="off")
    with open_source("scene:day?frames=3&fps=2&seed=5") as source:
        slow = _Slow(list(source), gap_s=gap_s)
    run.loop.capture.close()
    run.loop.capture, run.loop._clock = slow, lambda: slow.now
    run.loop._taken_at = 0.0
    assert len(_run(run)) == 3
    assert run.kinds().count("stale") == stale
