"""What a user sees when a command fails: one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from edge_sfda.cli.screen import ERR
from edge_sfda.errors import EdgeSfdaError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# The parser's own exceptions, which it shows itself. typer carries the class that its errors share under names that
# differ between versions; BadParameter is public in all of them.
_PARSER: tuple[type[BaseException], ...] = (
    typer.Exit,
    typer.Abort,
    *(kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind is not Exception),
)


class Commands(TyperGroup):
    """The group of all commands; turns exceptions into exit codes, here and nowhere else."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that `ctx` names."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that has gone is noticed here, not while the interpreter shuts down
            return result
        except _PARSER:
            raise
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(1) from None
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the last resort of the process
            if ctx.params.get("debug"):
                traceback.print_exc()
            raise typer.Exit(_report(error)) from None


def _report(error: BaseException) -> int:
    """Say what happened in one line and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        ERR.print(Text(f"interrupted{'; ' if error.args else ''}{error}", style="yellow"), soft_wrap=True)
        return INTERRUPTED
    if isinstance(error, EdgeSfdaError):
        text, code = f"error: {error}", error.exit_code
    else:
        text, code = f"internal error: {type(error).__name__}: {error}; edge-sfda --debug COMMAND shows where", 1
    ERR.print(Text(" ".join(text.split()), style="red"), soft_wrap=True)
    return code


def _drop_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter's own flush does not fail as well."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
