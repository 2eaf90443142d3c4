"""The command line: parses, calls the library, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from ..train.distributed import launched, leave
from . import advise, compress, demo, factorize, report, train, wellposed

app = typer.Typer(
    name="flatwing",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compress")(compress.command)
app.command("factorize")(factorize.command)
app.command("advise")(advise.command)
app.command("train")(train.command)
app.command("report")(report.command)
app.command("wellposed")(wellposed.command)
app.command("demo")(demo.command)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"flatwing {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find fast sparse structure in networks and matrices, with a proof of how good it is."""


def main() -> None:
    """Entry point of the `flatwing` script; the exit code is 0, 2 for a refusal, 130 for Ctrl-C."""
    try:
        app(prog_name="flatwing")
    except KeyboardInterrupt:  # outside of a command, while arguments are read
        raise SystemExit(130) from None
    except SystemExit as end:
        if launched() and isinstance(end.code, int):
            leave(end.code)
        raise
