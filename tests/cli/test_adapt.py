from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda import config
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.cli import adapt
from edge_sfda.data import sources
from edge_sfda.data.frames import Frame, write_png
from edge_sfda.data.sources import SceneSource
from edge_sfda.errors import SourceError
from edge_sfda.nets import load

SCENE = "scene:dusk?frames=6&size=48x64&fps=2"
FILES = ["adapted.safetensors", "config.toml", "curves.png", "metrics.csv", "report.json", "strip.png"]


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text("[burst]\nsteps = 3\n[reliability]\nwarm_up = 2\n")
    return path


def test_adapt_leaves_everything_in_its_run_folder(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "dusk"
    ran = run_cli("adapt", "--frames", SCENE, "--model", nano, "--config", quick, "-o", run)
    assert ran.code == 0
    assert sorted(p.name for p in run.iterdir()) == FILES
    assert "stvm, offline: 6 frames, 3 steps" in ran.out
    assert "measured on 6 frames: the frames learned from" in ran.out
    assert str(run / "adapted.safetensors") in ran.out
    settings = config.load(run / "config.toml")
    assert (settings.burst.steps, settings.reliability.warm_up, settings.seed) == (3, 2, 0)
    assert load(run / "adapted.safetensors")[1].provenance["parent"] == load(nano)[1].tensors_sha256


def test_adapt_json_is_the_report_with_its_places(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran = run_cli("adapt", "--frames", SCENE, "--model", nano, "--config", quick, "-o", run, "--json")
    result = json.loads(ran.out)
    assert result.pop("run") == str(run)
    assert result.pop("checkpoint") == str(run / "adapted.safetensors")
    assert result == json.loads((run / "report.json").read_text())


def test_adapted_checkpoint_is_adapted_evaluated_and_predicted_with(run_cli, nano, quick, tmp_path: Path) -> None:
    args = ("--frames", SCENE, "--config", quick)
    run_cli("adapt", *args, "--model", nano, "-o", tmp_path / "one")
    adapted = tmp_path / "one" / "adapted.safetensors"
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    evaluated = json.loads(run_cli("evaluate", adapted, SCENE, "--json").out)
    assert evaluated["miou"] == pytest.approx(report["labelled"]["after"]["miou"])
    assert run_cli("predict", SCENE, "--model", adapted, "-o", tmp_path / "masks").code == 0
    assert run_cli("adapt", *args, "--model", adapted, "-o", tmp_path / "two").code == 0


def test_same_seed_gives_the_same_weights(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    def tensors(name: str, seed: int) -> str:
        args = ("--frames", SCENE, "--model", nano, "--config", quick, "--seed", seed, "-o", tmp_path / name)
        assert run_cli("adapt", *args).code == 0
        return load(tmp_path / name / "adapted.safetensors")[1].tensors_sha256

    assert tensors("a", 1) == tensors("b", 1) != tensors("c", 2)


def test_hold_out_measures_frames_that_were_not_learned_from(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    args = ("--frames", SCENE, "--model", nano, "--config", quick, "--hold-out", "0.5", "-o", tmp_path / "run")
    report = json.loads(run_cli("adapt", *args, "--json").out)
    assert (report["frames"], report["labelled"]["frames"]) == (3, 3)
    assert report["labelled"]["measured_on"] == "frames held out from learning"


def test_labels_from_a_folder_measure(run_cli, nano: Path, drive: Path, quick: Path, tmp_path: Path) -> None:
    args = ("--frames", drive / "images", "--labels", drive / "labels", "--model", nano, "--config", quick)
    report = json.loads(run_cli("adapt", *args, "-o", tmp_path / "run", "--json").out)
    assert report["labelled"]["frames"] == 3


def test_without_labels_the_report_says_what_changed(run_cli, nano, drive, quick, tmp_path: Path) -> None:
    ran = run_cli("adapt", "--frames", drive / "images", "--model", nano, "--config", quick, "-o", tmp_path / "run")
    assert ran.code == 0
    assert "no labels to measure with" in ran.out


def test_one_single_frame_is_enough(run_cli, nano: Path, drive: Path, quick: Path, tmp_path: Path) -> None:
    frame = drive / "images" / "f0.png"
    assert run_cli("adapt", "--frames", frame, "--model", nano, "--config", quick, "-o", tmp_path / "run").code == 0


def test_frames_of_mixed_sizes_are_learned_from(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("a", (40, 56, 3)), ("b", (90, 64, 3))):
        write_png(tmp_path / "in" / f"{name}.png", np.full(size, 90, np.uint8))
    ran = run_cli("adapt", "--frames", tmp_path / "in", "--model", nano, "--config", quick, "-o", tmp_path / "run")
    assert ran.code == 0


def test_video_is_learned_from(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    # OpenCV's own writer: FFmpeg's would settle its log's level for the process, before the package does
    writer = cv2.VideoWriter(
        str(tmp_path / "v.avi"), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48)
    )
    for value in (50, 100, 150):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    ran = run_cli(
        "adapt", "--video", tmp_path / "v.avi", "--model", nano, "--config", quick, "-o", tmp_path / "run", "--json"
    )
    assert json.loads(ran.out)["frames"] == 3


@pytest.mark.parametrize("source", [("--camera", SCENE, "--online"), ("--frames", SCENE, "--online")])
def test_stream_is_predicted_then_learned_frame_by_frame(run_cli, nano, tmp_path: Path, source) -> None:
    ran = run_cli("adapt", *source, "--model", nano, "-o", tmp_path / "run", "--limit", 4, "--json")
    report = json.loads(ran.out)
    assert (report["protocol"], report["frames"], report["steps"]) == ("online", 4, 4)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 5


@pytest.mark.parametrize("method", config.METHODS)
def test_each_method_runs(run_cli, nano: Path, quick: Path, tmp_path: Path, method: str) -> None:
    args = ("--frames", SCENE, "--model", nano, "--config", quick, "--method", method, "-o", tmp_path / "run")
    assert json.loads(run_cli("adapt", *args, "--json").out)["method"] == method


def test_settings_of_the_method_lie_under_the_file_and_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('method = "tent"\nseed = 4\n[burst]\nbatch = 3\n')
    settings = adapt._settings(path, None, None, None, None, 7)
    assert (settings.method, settings.seed) == ("tent", 4)
    assert (settings.burst.batch, settings.burst.steps) == (3, 7)
    assert settings.burst.rate == config.preset("tent").burst.rate
    assert adapt._settings(path, None, None, "bn", 5, None).method == "bn"
    assert adapt._settings(path, None, None, "bn", 5, None).seed == 5


def test_effort_lies_between_the_device_and_the_file(tmp_path: Path) -> None:
    cheap = adapt._settings(None, "cpu", "cheap", None, None, None)
    assert cheap == config.from_dict(config.EFFORTS["cheap"])
    assert adapt._settings(None, None, "full", None, None, None) == config.AdaptConfig()
    path = tmp_path / "c.toml"
    path.write_text("[burst]\nscale = 0.75\n")
    over = adapt._settings(path, None, "cheap", None, None, None).burst
    assert (over.scale, over.steps, over.every) == (0.75, 60, 2)


def test_cheap_run_keeps_its_settings(run_cli, nano: Path, tmp_path: Path) -> None:
    args = ("--frames", SCENE, "--model", nano, "--effort", "cheap", "--steps", 3, "-o", tmp_path / "run", "--json")
    assert json.loads(run_cli("adapt", *args).out)["steps"] == 3
    kept = config.load(tmp_path / "run" / "config.toml")
    assert kept == config.from_dict({"burst": {"steps": 3}}, base=config.from_dict(config.EFFORTS["cheap"]))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--effort", "little"), "effort 'little' is unknown; choose one of full, cheap"),
        (("--effort", "cheap", "--method", "tent"), "effort 'cheap' is of stvm, not of tent"),
    ],
)
def test_effort_that_does_not_fit_is_told(run_cli, tmp_path: Path, given, told: str) -> None:
    ran = run_cli("adapt", "--frames", SCENE, *given, "-o", tmp_path / "run")
    assert ran.code == 2
    assert told in ran.err
    assert not (tmp_path / "run").exists()


class _Interrupted(SceneSource):
    """A scene whose user presses Ctrl-C during the third frame."""

    def __next__(self) -> Frame:
        if self._next == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__next__()


def test_interrupt_of_a_stream_keeps_what_was_learned(run_cli, nano, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "open_source", lambda spec, **options: _Interrupted(spec))
    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell put this process into the background
    ran = run_cli("adapt", "--camera", SCENE, "--online", "--model", nano, "-o", tmp_path / "run", "--json")
    assert ran.code == 130
    assert json.loads(ran.out)["steps"] == 3
    assert "stopping after this step" in ran.err
    assert f"what 3 steps have learned is in {tmp_path / 'run' / 'adapted.safetensors'}" in ran.err
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted([*FILES, "state.safetensors"])
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupt_of_a_burst_keeps_what_was_learned(run_cli, nano, quick, tmp_path: Path, monkeypatch) -> None:
    step = Adapter.step

    def impatient(self, frames):
        if self.steps == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, frames)

    monkeypatch.setattr(Adapter, "step", impatient)
    ran = run_cli("adapt", "--frames", SCENE, "--model", nano, "--config", quick, "-o", tmp_path / "run")
    assert ran.code == 130
    assert "what 2 steps have learned" in ran.err
    assert load(tmp_path / "run" / "adapted.safetensors")[1].provenance["stopped"] is True


def test_second_interrupt_stops_at_once(run_cli, nano, quick, tmp_path: Path, monkeypatch) -> None:
    def twice(self, frames):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("goes on")

    monkeypatch.setattr(Adapter, "step", twice)
    ran = run_cli("adapt", "--frames", SCENE, "--model", nano, "--config", quick, "-o", tmp_path / "run")
    assert ran.code == 130
    assert not (tmp_path / "run" / "adapted.safetensors").exists()


class _Unplugged(SceneSource):
    def __next__(self) -> Frame:
        if self._next == 2:
            raise SourceError("the camera is gone; plug it in again")
        return super().__next__()


def test_camera_that_goes_away_is_exit_1_and_keeps_what_was_learned(run_cli, nano, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "open_source", lambda spec, **options: _Unplugged(spec))
    ran = run_cli("adapt", "--camera", SCENE, "--online", "--model", nano, "-o", tmp_path / "run")
    assert ran.code == 1
    assert ran.err == "error: the camera is gone; plug it in again\n"
    assert load(tmp_path / "run" / "adapted.safetensors")[1].provenance["steps"] == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--frames", "a", "--video", "b", "--model", "m"), "exclude each other"),
        (("--frames", "a"), "--model is missing"),
        (("--model", "m"), "nothing to learn from"),
        (("--camera", "0", "--online", "--model", "m", "--hold-out", "0.5"), "--hold-out goes with a set of frames"),
        (("--camera", "0", "--model", "m", "--hold-out", "0.5"), "--hold-out does not go with --camera alone"),
        (("--camera", SCENE, "--model", "NANO", "--mode", "bold"), "--mode 'bold' is unknown"),
        (("--camera", SCENE, "--model", "NANO", "--minutes", "0"), "--minutes 0.0 must be above 0"),
        (
            ("--camera", SCENE, "--model", "NANO", "--budget", "much"),
            "--budget has 'much', expected a share such as 0.2",
        ),
        (("--camera", SCENE, "--model", "NANO", "--budget", "0.2,watts="), "--budget has 'watts='"),
        (("--camera", SCENE, "--model", "NANO", "--budget", "2"), "budget.share = 2.0 must lie in 0.01..1"),
        (
            ("--camera", SCENE, "--model", "NANO", "--budget", "volts=5"),
            "unknown setting budget.volts; known here: celsius",
        ),
        (("--frames", SCENE, "--model", "NANO", "--method", "magic"), "method = 'magic' is unknown"),
        (("--frames", SCENE, "--model", "NANO", "--seed", "-1"), "seed = -1 must lie in"),
        (("--frames", SCENE, "--model", "NANO", "--steps", "-1"), "burst.steps = -1 must lie in"),
        (("--frames", SCENE, "--model", "NANO", "--config", "missing.toml"), "cannot read configuration"),
        (("--frames", SCENE, "--model", "NANO", "--labels", "missing"), "no folder of labels"),
        (("--frames", SCENE, "--model", "NANO", "--limit", "1", "--hold-out", "0.5"), "--hold-out needs two frames"),
    ],
)
def test_wrong_usage_exits_2_and_leaves_no_run(run_cli, nano: Path, tmp_path: Path, args, message: str) -> None:
    args = [str(nano) if arg == "NANO" else arg for arg in args]
    ran = run_cli("adapt", *args, "-o", tmp_path / "run")
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "run").exists()


def test_profile_lies_under_the_settings_file_and_over_the_method(run_cli, nano: Path, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text("[adapt.burst]\nsteps = 5\nbatch = 2\n[adapt.reliability]\nwarm_up = 1\n")
    (tmp_path / "mine.toml").write_text("[burst]\nsteps = 1\n")
    run = tmp_path / "run"
    ran = run_cli(
        *("adapt", "--frames", SCENE, "--model", nano, "--method", "tent", "-o", run),
        *("--profile", tmp_path / "board.toml", "--config", tmp_path / "mine.toml"),
    )
    assert ran.code == 0
    settings = config.load(run / "config.toml")
    assert (settings.burst.steps, settings.burst.batch, settings.burst.rate) == (1, 2, 1e-3)
    assert run_cli("adapt", "--profile", "toaster", "-o", tmp_path / "none").code == 2


def _spoil_frame(drive: Path) -> None:
    (drive / "images" / "f1.png").write_bytes(b"")


def _mislabel(drive: Path) -> None:
    write_png(drive / "labels" / "f1.png", np.full((40, 56), 77, np.uint8))


def _missize(drive: Path) -> None:
    write_png(drive / "labels" / "f2.png", np.zeros((8, 8), np.uint8))


def _rename(drive: Path) -> None:
    for path in (drive / "labels").iterdir():
        path.rename(path.with_name(f"x{path.name}"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_frame, "f1.png is an empty file"),
        (_mislabel, "77"),
        (_missize, "label of 8x8 for an image of 40x56"),
        (_rename, "none of 3 frames has a label"),
    ],
)
def test_bad_data_is_told_before_the_work(run_cli, nano, drive, quick, tmp_path: Path, spoil, message: str) -> None:
    spoil(drive)
    args = ("--frames", drive / "images", "--labels", drive / "labels", "--model", nano, "--config", quick)
    ran = run_cli("adapt", *args, "-o", tmp_path / "run")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert (tmp_path / "run" / "metrics.csv").read_text() == ""


def test_run_that_cannot_start_leaves_the_earlier_one_alone(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_cli("adapt", "--frames", SCENE, "--model", nano, "--config", quick, "-o", run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert run_cli("adapt", "--frames", tmp_path / "nothing", "--model", nano, "-o", run).code == 1
    assert run_cli("adapt", "--camera", "/dev/video99", "--model", nano, "-o", run).code == 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_stream_that_was_cut_goes_on_as_if_it_had_not_been(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    def adapt_online(name: str, *more: object) -> dict[str, object]:
        args = ("--frames", SCENE, "--online", "--model", nano, "--config", quick, "-o", tmp_path / name, "--json")
        ran = run_cli("adapt", *args, *more)
        assert ran.code == 0, ran.err
        report = json.loads(ran.out)
        return {
            key: value for key, value in report.items() if key not in ("seconds", "run", "checkpoint", "unlabelled")
        }

    whole = adapt_online("whole")
    adapt_online("cut", "--limit", 2, "--resume")  # nothing to go on from yet
    assert adapt_online("cut", "--resume") == whole
    one, two = tmp_path / "whole", tmp_path / "cut"
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    hashes = [load(folder / "adapted.safetensors")[1].tensors_sha256 for folder in (one, two)]
    assert hashes[0] == hashes[1]


def test_stream_without_resume_starts_anew(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    args = ("--frames", SCENE, "--online", "--model", nano, "--config", quick, "-o", tmp_path, "--limit", 2, "--json")
    first, second = (json.loads(run_cli("adapt", *args).out) for _ in range(2))
    assert first["steps"] == second["steps"] == 2


def test_resume_of_another_adaptation_is_told(run_cli, nano: Path, quick: Path, tmp_path: Path) -> None:
    args = ("--frames", SCENE, "--online", "--model", nano, "--config", quick, "-o", tmp_path, "--limit", 2)
    assert run_cli("adapt", *args).code == 0
    rows = (tmp_path / "metrics.csv").read_bytes()
    ran = run_cli("adapt", *args, "--resume", "--seed", 5)
    assert (ran.code, "with other settings" in ran.err) == (1, True)
    assert (tmp_path / "metrics.csv").read_bytes() == rows


def test_resume_of_a_set_of_frames_is_told(run_cli, nano: Path, tmp_path: Path) -> None:
    ran = run_cli("adapt", "--frames", SCENE, "--model", nano, "-o", tmp_path / "run", "--resume")
    assert (ran.code, "--resume goes with a stream" in ran.err) == (2, True)
    assert not (tmp_path / "run").exists()
