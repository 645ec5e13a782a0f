"""The command line: one file a command, each parses, calls and prints.

Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed (see
`edge_sfda.errors`), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import edge_sfda
from edge_sfda.cli import adapt, bench, demo, doctor, evaluate, export, predict, rollback, train_source
from edge_sfda.cli.failure import Commands
from edge_sfda.cli.screen import OUT, show_warnings

app = typer.Typer(
    cls=Commands,
    help="Adapt a semantic segmentation network to a new domain from its frames alone.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # `Commands` shows errors
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.command("train-source", epilog=train_source.EXAMPLES)(train_source.train_source)
app.command("adapt", epilog=adapt.EXAMPLES)(adapt.adapt)
app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("predict", epilog=predict.EXAMPLES)(predict.predict)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("rollback", epilog=rollback.EXAMPLES)(rollback.rollback)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends in SystemExit with the exit code.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    # threads that spin while they wait halve the speed of everything else on a board; must be set before torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app(args=list(sys.argv[1:] if argv is None else argv), prog_name="edge-sfda")


def _print_version(wanted: bool) -> None:
    if wanted:
        OUT.print(f"edge-sfda {edge_sfda.__version__}")
        raise typer.Exit


@app.callback()
def _before_every_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # `Commands` reads
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    show_warnings()
