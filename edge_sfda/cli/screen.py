"""How commands print: results to standard output; progress, notes and warnings to standard error."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from edge_sfda.report.plain import to_json

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)

OnStep = Callable[..., None]  # (done, total, aside=""); callers pass it on where they want fewer arguments


def print_json(value: Any) -> None:
    """Print `value` as JSON on standard output, as it is: no colours, no wrapping."""
    print(to_json(value))  # noqa: T201


def say(text: str, *, style: str = "") -> None:
    """Print a line of the result on standard output, as it is: no markup, no wrapping."""
    OUT.print(Text(text, style=style), soft_wrap=True)


def note(text: str) -> None:
    """Print a line about what was done; standard output stays for results."""
    ERR.print(Text(text), soft_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[OnStep]:
    """Show a bar on standard error while the body runs; it leaves nothing behind, and nothing shows in a pipe.

    Yields:
        a function to call with (done, total); at will with a text to show aside, and `what=` for another description.
        A total of None is not known.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[aside]}"),
    )
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as bar:
        shown, task = what, bar.add_task(what, total=None, aside="")

        def step(done: int, total: int | None, aside: str = "", *, what: str = what) -> None:
            nonlocal shown, task
            if what != shown:  # a task cannot go back to a total that is not known
                bar.remove_task(task)
                shown, task = what, bar.add_task(what, total=total, aside=aside)
            bar.update(task, completed=done, total=total, aside=aside)

        yield step


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Say on Ctrl-C in the body what is kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(what) from stop


def comparison(title: str, rows: Mapping[str, Mapping[str, float]], *, bold: str = "", judge: bool = True) -> Table:
    """Return a table of shares before and after.

    Args:
        title: over the names.
        rows: name -> `before` and `after`, shares of 0..1.
        bold: the name of a row that sums up.
        judge: more is better, so a change is green or red.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(title)
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        before, after = row["before"], row["after"]
        points = change(before, after)
        if not judge:
            points.style = ""
        table.add_row(Text(name), percent(before), percent(after), points, style="bold" if name == bold else "")
    return table


class Stop:
    """Turns Ctrl-C in the body into a wish that the work asks for between its steps; the second one stops at once.

    Attributes:
        wanted: somebody asked to stop.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        for kind in (signal.SIGINT, signal.SIGTERM):  # a service manager asks by SIGTERM
            self._before[kind] = signal.signal(kind, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        note("stopping after this step; Ctrl-C again stops at once")


def percent(share: float, *, digits: int = 1) -> str:
    """Return a share of 0..1 in percent; a dash for NaN."""
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f}"


def change(before: float, after: float) -> Text:
    """Return the difference of two shares of 0..1 in points, green for a gain and red for a loss."""
    if math.isnan(before) or math.isnan(after):
        return Text("")
    points = 100 * (after - before)
    style = "" if abs(points) < 0.05 else ("green" if points > 0 else "red")
    return Text(f"{points:+.1f}", style=style)


def show_warnings() -> None:
    """Print the package's own warnings on standard error, one line each."""
    logger = logging.getLogger("edge_sfda")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines(logging.WARNING))
        logger.propagate = False


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        ERR.print(Text(f"{record.levelname.lower()}: {record.getMessage()}", style="yellow"), soft_wrap=True)
