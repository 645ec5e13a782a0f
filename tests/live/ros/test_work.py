"""What the node does with frames, without ROS around it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sfda import profile
from edge_sfda.errors import ConfigError, UsageError
from edge_sfda.live.inference import Inference
from edge_sfda.live.loop import Loop
from edge_sfda.live.ros.parameters import PARAMETERS
from edge_sfda.live.ros.source import Mailbox
from edge_sfda.live.ros.work import Work, plan

MODEL = Path(__file__).parents[3] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"


def _values(**changes: Any) -> dict[str, Any]:
    return {parameter.name: parameter.default for parameter in PARAMETERS} | changes


def _message(seed: int) -> Any:
    pixels = np.random.default_rng(seed).integers(0, 256, (96, 128, 3), np.uint8)
    header = SimpleNamespace(stamp=SimpleNamespace(sec=seed, nanosec=5), frame_id="camera")
    return SimpleNamespace(
        header=header, encoding="bgr8", height=96, width=128, step=384, is_bigendian=0, data=pixels.tobytes()
    )


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({}, UsageError, "parameter model is not set"),
        ({"model": str(MODEL), "mode": "auto"}, UsageError, "mode auto needs run_folder"),
        ({"model": "student.onnx", "mode": "shadow", "run_folder": "run"}, UsageError, "learns from a checkpoint"),
        ({"model": str(MODEL), "settings": "/nowhere.toml"}, ConfigError, "cannot read configuration"),
        ({"model": str(MODEL), "profile": "toaster"}, ConfigError, "no profile 'toaster'"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(
    changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        plan(_values(**changes))


def test_profile_sets_threads_budget_and_burst_and_what_is_given_outranks_it(tmp_path: Path) -> None:
    nano = profile.load("orin-nano")
    settings = tmp_path / "settings.toml"
    settings.write_text("[burst]\nsteps = 7\n")
    made = plan(_values(model=str(MODEL), profile="orin-nano", settings=str(settings)))
    assert made.threads == nano.runtime.threads
    assert (made.budget.share, made.budget.memory_mb) == (nano.budget.share, nano.budget.memory_mb)
    assert made.adapt.mixing == nano.settings().mixing
    assert made.adapt.burst.steps == 7
    asked = plan(_values(model=str(MODEL), profile="orin-nano", threads=3, budget_share=0.75))
    assert (asked.threads, asked.budget.share) == (3, 0.75)
    assert asked.budget.seconds_per_hour == nano.budget.seconds_per_hour


def test_profile_that_never_adapts_can_only_infer(tmp_path: Path) -> None:
    path = tmp_path / "still.toml"
    path.write_text("[budget]\nshare = 0.0\n")
    assert plan(_values(model=str(MODEL), profile=str(path))).live.mode == "off"
    with pytest.raises(UsageError, match="never adapts"):
        plan(_values(model=str(MODEL), profile=str(path), mode="auto", run_folder="run"))


def test_labelled_probes_reach_the_loop(tmp_path: Path) -> None:
    work = Work(
        plan(_values(model=str(MODEL), mode="shadow", run_folder=str(tmp_path), probes="scene:dusk?frames=3&fps=1"))
    )
    box = Mailbox("/image", silence_s=10)
    try:
        runner, capture = work.start(box, lambda event: None)
        assert isinstance(runner, Loop)
        frames, labels = runner.place.labelled or (None, None)
        box.close()
        capture.close()
    finally:
        work.close()
    assert frames is not None
    assert labels is not None
    assert (frames.shape, labels.shape) == ((3, 3, 192, 256), (3, 192, 256))


@pytest.mark.parametrize(("mode", "kind"), [("infer", Inference), ("shadow", Loop)])
def test_mode_chooses_the_loop_and_each_predicts(mode: str, kind: type, tmp_path: Path) -> None:
    work = Work(plan(_values(model=str(MODEL), mode=mode, run_folder=str(tmp_path / "run"), threads=1)))
    told: list[str] = []
    box = Mailbox("/image", silence_s=10)
    seen: list[Any] = []
    done = threading.Event()

    def look(latest: Any, found: Any) -> None:
        seen.append(latest)
        done.set()

    try:
        runner, capture = work.start(box, lambda event: told.append(event["event"]))
        assert isinstance(runner, kind)
        thread = threading.Thread(target=runner.run, args=(look,))
        thread.start()
        box.put(_message(3))
        assert done.wait(30)
        runner.stop()
        thread.join(timeout=30)
        box.close()
        capture.close()
        expected = work.segmenter(seen[0].frame.image)
    finally:
        work.close()
    assert np.array_equal(seen[0].mask, expected)
    assert seen[0].frame.stamp == (3_000_000_005, "camera")
    assert told[0] == "started"
    assert told[-1] == "stopped"
    assert (tmp_path / "run").exists() is (mode != "infer")


def test_run_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    from edge_sfda.errors import WriteError

    (tmp_path / "run").touch()
    with pytest.raises(WriteError, match="cannot make run_folder"):
        Work(plan(_values(model=str(MODEL), mode="auto", run_folder=str(tmp_path / "run"))))
