from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from edge_sfda.cli.failure import Commands
from edge_sfda.errors import ConfigError, EdgeSfdaError, FrameError

ROOT = Path(__file__).parents[2]


def _app(error: BaseException) -> typer.Typer:
    app = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @app.callback()
    def _options(debug: bool = False) -> None: ...

    @app.command()
    def fail() -> None:
        raise error

    return app


def _exit_code(app: typer.Typer, *args: str) -> object:
    with pytest.raises(SystemExit) as stop:
        app(args=list(args))
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FrameError("frame a.png is an empty file"), 1, "error: frame a.png is an empty file\n"),
        (ConfigError("seed = -1 must lie in 0..9"), 2, "error: seed = -1 must lie in 0..9\n"),
        (EdgeSfdaError("two\nlines"), 1, "error: two lines\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("the masks so far are in out"), 130, "interrupted; the masks so far are in out\n"),
        (ZeroDivisionError("x"), 1, "internal error: ZeroDivisionError: x; edge-sfda --debug COMMAND shows where\n"),
        (FrameError("[red]brackets[/red] " + "long " * 60), 1, f"error: [red]brackets[/red] {'long ' * 59}long\n"),
    ],
)
def test_error_becomes_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(_app(error), "fail") == code
    captured = capsys.readouterr()
    assert captured.err == line
    assert captured.out == ""


def test_debug_shows_the_traceback_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(_app(FrameError("empty")), "--debug", "fail") == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: empty\n")


def test_exit_of_a_command_keeps_its_code() -> None:
    assert _exit_code(_app(typer.Exit(7)), "fail") == 7


def test_wrong_value_of_an_option_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert _exit_code(_app(typer.BadParameter("no such thing")), "fail") == 2
    assert "no such thing" in capsys.readouterr().err


def test_reader_that_has_gone_ends_the_command_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "edge_sfda", "--help"], stdout=write, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(write)
    assert process.stderr == b""
    assert process.returncode == 1
