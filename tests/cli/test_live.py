"""`edge-sfda adapt --camera`: the service from the command line, in this process and as one that gets signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_sfda.cli import live
from edge_sfda.config import MODES, BudgetConfig

MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"
SCENE = "scene:dusk?frames=30&fps=10&seed=5"


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", MODES)
def test_recording_is_predicted_to_its_end(run_cli, tmp_path: Path, mode: str) -> None:
    ran = run_cli("adapt", "--camera", SCENE, "--fast", "--mode", mode, "--model", MODEL, "-o", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("30 frames, ")
    assert ran.out.endswith(", generation 0\n")
    events = _events(tmp_path / "run")
    assert [event["event"] for event in (events[0], events[-1])] == ["started", "stopped"]
    assert (tmp_path / "run" / "generations" / "0000" / "checkpoint.safetensors").is_file()


def test_scene_as_a_camera_needs_no_model(run_cli, tmp_path: Path) -> None:
    ran = run_cli("adapt", "--camera", "scene:day-dusk", "--fast", "--limit", 3, "-o", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("3 frames, ")


def test_budget_is_a_share_and_any_other_bound() -> None:
    assert live.bounded(BudgetConfig(celsius=70), "0.2") == BudgetConfig(share=0.2, celsius=70)
    found = live.bounded(BudgetConfig(), "watts=10, seconds_per_hour=600,memory_mb=2000,celsius=80")
    assert found == BudgetConfig(watts=10, seconds_per_hour=600, memory_mb=2000, celsius=80)


def test_burst_waits_under_the_budget_of_the_command_line(run_cli, tmp_path: Path) -> None:
    run_cli(
        *("adapt", "--camera", "scene:dusk?frames=90&fps=5&seed=5", "--fast", "--model", MODEL, "-o", tmp_path / "run"),
        *("--budget", "0.5,memory_mb=1"),
    )
    waits = [event["detail"] for event in _events(tmp_path / "run") if event.get("phase") == "waiting"]
    assert len(waits) == 1
    assert waits[0].endswith("1 MB are allowed")


def test_events_are_json_lines_on_request(run_cli, tmp_path: Path) -> None:
    ran = run_cli(
        "adapt", "--camera", SCENE, "--fast", "--json", "--limit", 5, "--model", MODEL, "-o", tmp_path / "run"
    )
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert [event["event"] for event in told] == ["started", "sound frames", "stopped"]
    assert told[-1]["frames"] == 5


def test_run_goes_on_from_the_newest_generation(run_cli, tmp_path: Path) -> None:
    args = ("adapt", "--camera", SCENE, "--fast", "--limit", 3, "--model", MODEL, "-o", tmp_path / "run")
    assert run_cli(*args).code == 0
    from edge_sfda import checkpoint
    from edge_sfda.adapt.generations import Generations

    generations = Generations(tmp_path / "run" / "generations")
    loaded = checkpoint.load(MODEL)
    generations.accept(loaded.state, loaded.manifest.derive(kind="adapted"), report={"reason": "a test"})
    ran = run_cli(*args)
    assert ran.out.endswith(", generation 1\n")


def test_generations_of_another_source_are_refused(run_cli, nano: Path, tmp_path: Path) -> None:
    args = ("adapt", "--camera", SCENE, "--fast", "--limit", 3, "-o", tmp_path / "run", "--model")
    assert run_cli(*args, MODEL).code == 0
    ran = run_cli(*args, nano)
    assert ran.code == 1
    assert "holds generations of another source" in ran.err


def test_camera_that_does_not_open_is_exit_1_and_leaves_nothing(run_cli, tmp_path: Path) -> None:
    ran = run_cli("adapt", "--camera", "/dev/video99", "--model", MODEL, "-o", tmp_path / "run")
    assert ran.code == 1
    assert "camera /dev/video99 does not open" in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_service_with_0(number: signal.Signals, tmp_path: Path) -> None:
    endless = "scene:dusk?frames=100000&fps=20&seed=5"
    words = ["adapt", "--camera", endless, "--json", "--model", str(MODEL), "-o", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "edge_sfda", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:  # it is at work
            if json.loads(line)["event"] == "sound frames":
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["event"] == "stopped"
    assert _events(tmp_path / "run")[-1]["event"] == "stopped"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("--width", "640"), "needs width and height"),
        (("--fourcc", "JPEG2"), "must have four characters"),
        (("--exposure", "5", "--lock-exposure"), "give one of them"),
        (("--fps", "30"), "is no camera"),
    ],
)
def test_camera_options_that_make_no_sense_are_usage_errors(
    run_cli, tmp_path: Path, asked: tuple[str, ...], message: str
) -> None:
    ran = run_cli("adapt", "--camera", SCENE, *asked, "--model", MODEL, "-o", tmp_path / "run")
    assert ran.code == 2
    assert message in " ".join(ran.err.split())
    assert not (tmp_path / "run").exists()


def test_metrics_are_served_while_it_runs(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_sfda.live import telemetry

    asked = []

    class Recorded(telemetry.Telemetry):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            asked.append(self.port)

    monkeypatch.setattr(telemetry, "Telemetry", Recorded)
    args = ("adapt", "--camera", SCENE, "--fast", "--limit", 2, "--model", MODEL, "-o", tmp_path / "run")
    assert run_cli(*args, "--metrics", 0).code == 0
    assert len(asked) == 1
    taken = telemetry.Telemetry(lambda: None, port=0)
    try:
        ran = run_cli(*args, "--metrics", taken.port)
    finally:
        taken.close()
    assert ran.code == 2
    assert f"metrics cannot be served on 127.0.0.1:{taken.port}" in ran.err


def test_dashboard_says_where_it_is(run_cli, tmp_path: Path) -> None:
    words = ("adapt", "--camera", "scene:day", "--fast", "--limit", 3, "--mode", "off", "--dashboard", 0)
    ran = run_cli(*words, "-o", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "dashboard on http://127.0.0.1:" in ran.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--dashboard", "here"), "--dashboard 'here' must be [HOST:]PORT"),
        (("--dashboard", "0.0.0.0:0"), "can be reached from other machines"),
        (("--dashboard", "0", "--dashboard-token", "/nowhere/token"), "/nowhere/token cannot be read"),
    ],
)
def test_dashboard_that_cannot_be_is_a_usage_error(
    run_cli, tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    ran = run_cli("adapt", "--camera", "scene:day", "--limit", 3, *words, "-o", tmp_path / "run")
    assert ran.code == 2
    assert expected in ran.err
    assert not (tmp_path / "run").exists()


def test_dashboard_s_token_comes_from_a_file_or_the_environment(
    run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    words = ("adapt", "--camera", "scene:day", "--fast", "--limit", 2, "--mode", "off", "--dashboard", "0.0.0.0:0")
    token.write_text("\n")
    assert "is empty" in run_cli(*words, "--dashboard-token", token, "-o", tmp_path / "a").err
    token.write_text("0123456789abcdef\n")
    assert run_cli(*words, "--dashboard-token", token, "-o", tmp_path / "b").code == 0
    monkeypatch.setenv("EDGE_SFDA_TOKEN", "fedcba9876543210")
    assert run_cli(*words, "-o", tmp_path / "c").code == 0
