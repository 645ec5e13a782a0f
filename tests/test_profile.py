from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edge_sfda import config, profile
from edge_sfda.errors import ConfigError
from edge_sfda.profile import BudgetProfile, InputSize, Profile, RuntimeProfile

SHIPPED = ("agx-orin", "cpu", "orin-nano", "orin-nx", "thor", "x86-rtx")


def test_profile_of_each_board_is_shipped() -> None:
    assert tuple(profile.names()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_states_every_value_with_its_reason(name: str) -> None:
    loaded = profile.load(name)
    assert loaded.board
    lines = (profile.folder() / f"{name}.toml").read_text().splitlines()
    stated = {line.split(" =")[0] for line in lines if " = " in line}
    for part in (InputSize, RuntimeProfile, BudgetProfile):
        assert {field.name for field in dataclasses.fields(part)} <= stated
    # the two sides of the input share the reason beside their table's name
    bare = [line for line in lines if " = " in line and "#" not in line]
    assert all(line.startswith(("board", "height", "width")) for line in bare)
    assert loaded.settings() == config.from_dict(loaded.adapt)


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("cpu", "x86-rtx")])
def test_jetson_takes_the_tensorrt_of_its_jetpack(name: str) -> None:
    assert profile.load(name).runtime.trt_flavor == "enterprise"


def test_cpu_takes_no_tensorrt_and_no_half_precision() -> None:
    assert profile.load("cpu").runtime == RuntimeProfile(precision="fp32", trt_flavor="none", threads=2)


def test_file_lies_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('board = "mine"\n[budget]\nshare = 1\n[adapt.burst]\nsteps = 7\n')
    loaded = profile.load(str(path))
    assert loaded == Profile(board="mine", budget=BudgetProfile(share=1.0), adapt={"burst": {"steps": 7}})
    settings = loaded.settings(config.preset("tent"))
    assert (settings.method, settings.burst.steps, settings.burst.rate) == ("tent", 7, 1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[input]\nheight = 361", "input.height = 361 must be a multiple of 8 in 64..4096"),
        ("[input]\nwidth = 8", "input.width = 8 must be a multiple of 8 in 64"),
        ('[runtime]\nprecision = "fp8"', "runtime.precision = 'fp8' must be one of fp32, fp16, int8"),
        ('[runtime]\ntrt_flavor = "lite"', "runtime.trt_flavor = 'lite' must be one of none, enterprise, rtx"),
        ("[runtime]\nthreads = -1", "runtime.threads = -1 must lie in 0..256"),
        ("[budget]\nshare = 1.1", "budget.share = 1.1 must lie in 0..1"),
        ("[budget]\nshare = nan", "budget.share = nan must lie in 0..1"),
        ("[budget]\nseconds_per_hour = 4000", "budget.seconds_per_hour = 4000.0 must lie in 0..3600"),
        ("[budget]\nmemory_mb = 1", "budget.memory_mb = 1 must lie in 64"),
        ("[budget]\nmemory_mb = 2.5", "budget.memory_mb = 2.5 must be of type int"),
        ("[adapt.burst]\nsteps = -1", "adapt: burst.steps = -1 must lie in"),
        ("[adapt.burst]\nstep = 1", "adapt: unknown setting burst.step"),
        ("[fan]\nspeed = 1", "unknown setting fan; known here: adapt, board, budget, input, runtime"),
        ("budget = 3", "budget = 3 must be a table"),
        ("[", "is not TOML"),
    ],
)
def test_bad_value_is_told_with_its_name_and_profile(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as told:
        profile.load(str(path))
    assert str(told.value).startswith(f"profile {path}: ")
    assert message in str(told.value)


def test_unknown_name_is_told_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no profile 'orin'; choose one of agx-orin, cpu, .* or name a TOML file"):
        profile.load("orin")
    with pytest.raises(ConfigError, match="no profile"):
        profile.load(str(tmp_path))
