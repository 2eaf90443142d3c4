"""The command line: parses, calls the library, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from .demo import demo
from .factorize import factorize
from .output import plainly as plainly

app = typer.Typer(
    name="flatwing",
    help="Find fast sparse structure in a matrix, with a proof of how good it is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(factorize)
app.command()(demo)


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"flatwing {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which one.")] = False,
) -> None:
    """Find fast sparse structure in a matrix, with a proof of how good it is."""


def main() -> None:
    """Entry point of the `flatwing` script; the exit code is 0, 2 for a refusal, 130 for Ctrl-C."""
    try:
        app(prog_name="flatwing")
    except KeyboardInterrupt:  # while the arguments were being read
        raise SystemExit(130) from None
