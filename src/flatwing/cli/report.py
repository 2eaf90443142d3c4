"""`flatwing report`: a run folder in, one HTML file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import report
from .output import Format, note, plainly, write_json


@plainly
def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder: the OUT of flatwing compress.")],
    out: Annotated[Path | None, typer.Option(help="Write to this .html file; report.html in RUN by default.")] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
    format: Annotated[Format, typer.Option(help="human and quiet print the path, json also the size.")] = Format.human,
) -> None:
    """Write the report of a finished run: one HTML file that needs no network. An older report is replaced."""
    path = report.write(run, out)
    size = path.stat().st_size
    if format is Format.json:
        write_json({"run": str(run), "report": str(path), "bytes": size})
    else:
        typer.echo(str(path))
    if format is Format.human:
        note(f"{size / 1000:.0f} kB, one file. Open it in any browser, or give --open.")
    if open_it:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()) and format is not Format.quiet:
            note("no browser was found; open the file yourself")
