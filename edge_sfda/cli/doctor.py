"""`edge-sfda doctor`: what this machine has, lacks and gets wrong, with the command that mends it."""

from __future__ import annotations

from dataclasses import asdict

import typer

from edge_sfda.cli import options
from edge_sfda.cli.screen import print_json, progress, say

EXAMPLES = options.examples("edge-sfda doctor", "edge-sfda doctor --json")

_SHOWN = {"ok": ("ok  ", "green"), "warning": ("warn", "yellow"), "failure": ("FAIL", "bold red")}


def doctor(as_json: options.Json = False) -> None:
    """Look at packages, GPU, cameras, disk, clock and heat; exit 1 when something must be mended."""
    from edge_sfda.doctor import State, examine

    checks = []
    with progress("looking") as step:
        for check in examine():
            checks.append(check)
            step(len(checks), None, check.name.strip())
    if as_json:
        print_json([asdict(check) | {"name": check.name.strip(), "state": check.state.value} for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            word, style = _SHOWN[check.state.value]
            say(f"{word}  {check.name:{width}}  {check.found}", style="" if check.state is State.OK else style)
            if check.mend:
                say(f"      {'':{width}}  -> {check.mend}")
    if any(check.state is State.FAILURE for check in checks):
        raise typer.Exit(1)
