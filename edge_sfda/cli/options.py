"""Arguments and options that several commands share, spelt once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint (.safetensors).", show_default=False)]
Artefact = Annotated[
    Path,
    typer.Option("--model", help="Artefact: .onnx, .engine, or a checkpoint.", show_default=False),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, max=1024, help="CPU threads; as a rule all cores.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
ClassMap = Annotated[
    str | None,
    typer.Option("--classes", help="Class map of the labels: a built-in name or a TOML file.", show_default=False),
]
Net = Annotated[
    str | None,
    typer.Option(
        "--net", help="module:factory of a network of your own that the checkpoint may run.", show_default=False
    ),
]
Topic = Annotated[
    str | None, typer.Option(help="Of the images in a ROS bag; needed where there are several.", show_default=False)
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.")]


def examples(*lines: str) -> str:
    """Return the lines as the end of a command's help; each is a command line, or a remark when it starts with #."""
    # the help renderer joins lines and keeps paragraphs
    shown = (f"[dim]{line}[/dim]" if line.startswith("#") else f"[cyan]{line}[/cyan]" for line in lines)
    return "\n\n".join(["[bold]Examples[/bold]", *shown])
