"""The command line: parses, calls the library, prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from .. import __version__

COMMANDS = ("compress", "factorize", "advise", "train", "report", "wellposed", "demo")
"""Each is the function `command` of the module of its name."""

app: typer.Typer
"""The command line with all commands, made when it is first asked for."""


def app_of(names: Sequence[str]) -> typer.Typer:
    """The command line with some commands; the modules of others are not imported, nor is what only they need."""
    some = typer.Typer(
        name="flatwing",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    some.callback()(options)
    for name in names:
        some.command(name)(import_module(f".{name}", __name__).command)
    return some


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"flatwing {__version__}")
        raise typer.Exit
    return wanted


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find fast sparse structure in networks and matrices, with a proof of how good it is."""


def main() -> None:
    """Entry point of the `flatwing` script; the exit code is 0, 2 for a refusal, 130 for Ctrl-C."""
    try:
        first = sys.argv[1:2]
        app_of(first if first and first[0] in COMMANDS else COMMANDS)(prog_name="flatwing")
    except KeyboardInterrupt:  # outside of a command, while arguments are read
        raise SystemExit(130) from None
    except SystemExit as end:
        if "WORLD_SIZE" in os.environ:  # set by torchrun; a process alone has nobody to leave
            from ..train.distributed import launched, leave

            if launched() and isinstance(end.code, int):
                leave(end.code)
        raise


def __getattr__(name: str) -> typer.Typer:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["app"] = app_of(COMMANDS)
    return made
