"""`edge-sfda rollback`: go back to an earlier accepted network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_sfda.cli import options
from edge_sfda.cli.screen import print_json, say
from edge_sfda.errors import UsageError

FOLDER = "generations"

EXAMPLES = options.examples(
    "edge-sfda rollback runs/live",
    "edge-sfda rollback runs/live 3",
    "# the source network, whatever was accepted since",
    "edge-sfda rollback runs/live --to 0",
)


def rollback(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a run, or its generations/.", show_default=False)
    ],
    steps: Annotated[int, typer.Argument(metavar="[N]", min=1, help="How many generations to go back.")] = 1,
    to: Annotated[
        int | None, typer.Option(min=0, help="Go back to this generation; 0 is the source.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Withdraw the newest accepted networks; they stay on disk as NUMBER.withdrawn and are not used again."""
    from edge_sfda.adapt.generations import Generations

    inner = folder / FOLDER
    place = inner if inner.is_dir() else folder
    if not place.is_dir():
        raise UsageError(f"no folder at {folder}; expected that of a run with {FOLDER}/ in it")
    if to is not None and steps != 1:
        raise UsageError("give either how many generations to go back or --to, not both")
    generations = Generations(place)
    now = generations.rollback(steps) if to is None else generations.return_to(to)
    if as_json:
        print_json({"generation": now.number, "checkpoint": now.checkpoint, "report": now.report})
    else:
        name = "the source" if now.number == 0 else f"generation {now.number}"
        say(f"now {name}: {now.checkpoint}")
