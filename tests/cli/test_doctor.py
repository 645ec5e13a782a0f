from __future__ import annotations

import json
from typing import Any

import pytest

from edge_sfda import doctor
from edge_sfda.cli import main
from edge_sfda.doctor import Check, State


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*words: str, checks: list[Check] | None = None) -> int:
        if checks is not None:
            monkeypatch.setattr(doctor, "examine", lambda: iter(checks))
        with pytest.raises(SystemExit) as stop:
            main(["doctor", *words])
        return int(stop.value.code or 0)

    return run


FINE = Check("clock", State.OK, "right")
WARM = Check("heat", State.WARNING, "85 °C", "see to the fan")
FULL = Check("disk", State.FAILURE, "full", "make room")


def test_failure_exits_with_1_and_says_what_mends_it(visit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert visit(checks=[FINE, WARM, FULL]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok    clock  right",
        "warn  heat   85 °C",
        "             -> see to the fan",
        "FAIL  disk   full",
        "             -> make room",
    ]


def test_warnings_exit_with_0(visit: Any) -> None:
    assert visit(checks=[FINE, WARM]) == 0


def test_json_has_every_line(visit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    visit("--json", checks=[FINE, FULL])
    assert json.loads(capsys.readouterr().out) == [
        {"name": "clock", "state": "ok", "found": "right", "mend": ""},
        {"name": "disk", "state": "failure", "found": "full", "mend": "make room"},
    ]


def test_this_machine_is_examined_to_the_end(visit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    visit("--json")
    names = [line["name"] for line in json.loads(capsys.readouterr().out)]
    assert names[:3] == ["Python", "torch", "OpenCV"]
    assert names[-3:] == ["cameras", "clock", "heat"] or names[-2:] == ["clock", "heat"]
    assert "kernels by host" in names
