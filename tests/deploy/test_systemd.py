from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from edge_sfda import profile
from edge_sfda.cli import app

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = FOLDER / "edge-sfda.service"
RULES = FOLDER / "99-edge-sfda-camera.rules"

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


class _Repeated(dict):  # type: ignore[type-arg]
    """Keeps every value of a key that comes several times, as units have it."""

    def __setitem__(self, key: str, value: object) -> None:
        if isinstance(value, list) and key in self:
            self[key].extend(value)
        else:
            super().__setitem__(key, value)


@pytest.fixture(scope="module")
def service() -> dict[str, list[str]]:
    parser = configparser.RawConfigParser(strict=False, dict_type=_Repeated, comment_prefixes="#", delimiters="=")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return {key: value.splitlines() for key, value in parser["Service"].items()}


@needs_analyze
def test_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # the only thing that is not on a test machine
    unit.write_text(UNIT.read_text().replace("/opt/edge-sfda/bin/edge-sfda", "/bin/true"))
    ran = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@needs_analyze
def test_sandbox_leaves_little_exposed() -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(UNIT)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized option" in ran.stderr:
        pytest.skip("this systemd-analyze judges no files (needs systemd 250)")
    assert ran.returncode == 0, ran.stdout


def test_service_is_watched_and_comes_back(service: dict[str, list[str]]) -> None:
    assert service["Type"] == ["notify"]
    assert service["WatchdogSec"] == ["30s"]
    assert service["Restart"] == ["always"]
    assert service["RestartPreventExitStatus"] == ["2"]  # `errors.UsageError`
    assert service["User"] == ["edge-sfda"]


def test_command_line_of_the_service_is_one_that_adapt_knows(service: dict[str, list[str]]) -> None:
    environ = dict(line.split("=", 1) for line in service["Environment"])
    (line,) = service["ExecStart"]
    for name, value in environ.items():
        line = line.replace(f"${{{name}}}", value)
    assert "$" not in line
    _, command, *arguments = shlex.split(line)
    known = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    parsed = known.make_context(command, list(arguments)).params
    assert parsed["camera"] == "/dev/edge-sfda-camera"
    assert parsed["profile"] in profile.names()
    assert parsed["out"].is_relative_to("/var/lib/edge-sfda")  # StateDirectory: all else is read-only


def test_rule_gives_the_name_that_the_service_opens(service: dict[str, list[str]]) -> None:
    (rule,) = (line for line in RULES.read_text().splitlines() if not line.startswith("#"))
    assert 'SYMLINK+="edge-sfda-camera"' in rule
    assert "EDGE_SFDA_CAMERA=/dev/edge-sfda-camera" in service["Environment"]
    assert UNIT.name in rule


def test_rule_is_valid() -> None:
    udevadm = shutil.which("udevadm")
    if udevadm is None or "verify" not in subprocess.run([udevadm, "--help"], capture_output=True, text=True).stdout:
        pytest.skip("needs udevadm with its command verify (systemd 254)")
    ran = subprocess.run([udevadm, "verify", "--resolve-names=never", str(RULES)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
