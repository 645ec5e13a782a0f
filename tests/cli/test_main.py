from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import edge_sfda
from edge_sfda.cli import app


def test_version_is_printed(run_cli) -> None:
    ran = run_cli("--version")
    assert (ran.code, ran.out) == (0, f"edge-sfda {edge_sfda.__version__}\n")


def test_no_arguments_show_help_as_wrong_usage(run_cli) -> None:
    ran = run_cli()
    assert ran.code == 2
    assert "Usage: edge-sfda" in ran.out + ran.err


@pytest.mark.parametrize(
    "args", [("no-such-command",), ("evaluate",), ("evaluate", "--no-such-option"), ("predict", "a")]
)
def test_wrong_usage_exits_2_and_says_so_on_standard_error(run_cli, args) -> None:
    ran = run_cli(*args)
    assert ran.code == 2
    assert ran.out == ""
    assert "Usage: edge-sfda" in ran.err


@pytest.mark.parametrize("command", sorted(command.name or "" for command in app.registered_commands))
def test_help_of_each_command_has_examples_of_it(run_cli, command: str) -> None:
    ran = run_cli(command, "--help")
    assert ran.code == 0
    assert "Examples" in ran.out
    assert ran.out.count(f"edge-sfda {command}") >= 2


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom edge_sfda.cli import main\ntry:\n    main(['predict', '--help'])\n"
        "except SystemExit:\n    print(sorted({'torch', 'cv2', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_warnings_of_the_package_are_one_line_on_standard_error(run_cli, capsys: pytest.CaptureFixture[str]) -> None:
    run_cli("predict", "scene:day", "--model", "missing.safetensors", "-o", "out")
    logging.getLogger("edge_sfda.data.sources").warning("%s ended after %d frames", "a.mp4", 3)
    assert capsys.readouterr().err == "warning: a.mp4 ended after 3 frames\n"
