"""The loop's screen for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from edge_sfda.live.status import LoopStatus, Phase

_STYLES = {
    Phase.ADAPTING: "bold cyan",
    Phase.COLLECTING: "cyan",
    Phase.WAITING: "yellow",
    Phase.PAUSED: "yellow",
    Phase.RECOMMENDING: "bold magenta",
}


def picture(status: LoopStatus, lines: Sequence[str]) -> Panel:
    """Return what the terminal shows of a moment: numbers above, the newest events below."""
    table = Table.grid(padding=(0, 3))
    for name, value in _rows(status):
        table.add_row(Text(name, style="dim"), value)
    return Panel(Group(table, Text(""), *(Text(line, style="dim") for line in lines)), title="edge-sfda")


def _rows(status: LoopStatus) -> list[tuple[str, Text]]:
    phase = Text(status.phase.value, style=_STYLES.get(status.phase, "green"))
    if status.steps:
        phase.append(f" {status.step}/{status.steps}")
    phase.append(f"   {status.detail}", style="dim")
    capture = status.capture
    faults = ", ".join(f"{count} {name}" for name, count in capture.faults.items()) or "none"
    frames = Text(f"{status.frames} at {status.fps:.1f} a second, {capture.dropped} skipped, faults: {faults}")
    if status.stale:
        frames.append(f"   STALE: {capture.trouble or 'no sound frame'}", style="bold red")
    p50, p99 = status.latency_ms
    return [
        ("adaptation", phase),
        ("frames", frames),
        ("latency", Text(f"{_number(p50)} ms, 99 %: {_number(p99)} ms")),
        ("confidence", Text(f"{_number(status.confidence, 3)}   {status.doubt:.1f} spreads from usual")),
        ("burst", Text(f"reliability {_number(status.reliability, 3)}, loss {_number(status.loss, 3)}")),
        ("generation", Text(f"{status.generation}   learned {status.learned_s:.0f} s in the last hour")),
    ]


def _number(value: float, digits: int = 1) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
