from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sfda import checkpoint
from edge_sfda.adapt.generations import Generations


@pytest.fixture
def run(nano: Path, ram_path: Path) -> Path:
    """A run's folder with the source and three generations."""
    loaded = checkpoint.load(nano)
    generations = Generations(ram_path / "run" / "generations")
    generations.start(loaded.state, loaded.manifest)
    for number in (1, 2, 3):
        generations.accept(loaded.state, loaded.manifest, report={"reason": f"number {number}"})
    return ram_path / "run"


def test_rollback_goes_back_one_generation(run_cli, run: Path) -> None:
    ran = run_cli("rollback", run)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"now generation 2: {run / 'generations' / '0002' / 'checkpoint.safetensors'}\n"
    assert Generations(run / "generations").newest().number == 2


def test_rollback_goes_back_several_to_the_source(run_cli, run: Path) -> None:
    assert run_cli("rollback", run / "generations", 3).out.startswith("now the source: ")


def test_rollback_goes_to_a_number_and_prints_json(run_cli, run: Path) -> None:
    result = json.loads(run_cli("rollback", run, "--to", 1, "--json").out)
    assert (result["generation"], result["report"]) == (1, {"reason": "number 1"})
    assert Path(result["checkpoint"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4,), "give 1 to 3"),
        ((0,), "Usage: edge-sfda rollback"),
        (("--to", 7), "no generation 7; it has 0, 1, 2, 3"),
        ((2, "--to", 1), "not both"),
    ],
)
def test_rollback_that_cannot_be_is_told_and_changes_nothing(run_cli, run: Path, arguments, words: str) -> None:
    ran = run_cli("rollback", run, *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert Generations(run / "generations").newest().number == 3


def test_folder_without_generations_is_told(run_cli, ram_path: Path) -> None:
    ran = run_cli("rollback", ram_path / "none")
    assert (ran.code, "no folder at" in ran.err) == (2, True)
    (ram_path / "empty").mkdir()
    ran = run_cli("rollback", ram_path / "empty")
    assert (ran.code, "nothing to go back from" in ran.err) == (2, True)
    assert list((ram_path / "empty").iterdir()) in ([], [ram_path / "empty" / ".lock"])
