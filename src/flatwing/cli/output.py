"""What the commands say: data on stdout, words and progress on stderr, errors without a traceback."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from math import isfinite
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")
WIDE = 200  # columns when nobody watches: a table in a file is not cut


class Format(str, Enum):
    """How a result is written."""

    human = "human"
    json = "json"
    quiet = "quiet"


def stdout() -> Console:
    """Console for data; as wide as the terminal, or `WIDE` without one."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def note(text: str) -> None:
    """Say something to the person on stderr."""
    typer.echo(text, err=True)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show on stderr that work goes on, with the seconds so far; nothing at all without a terminal."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(text, total=None)
        yield


def write_json(record: dict[str, Any]) -> None:
    """Write one JSON object; numbers that JSON has no word for become null."""
    typer.echo(json.dumps(_finite(record), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def plainly(command: Callable[P, R]) -> Callable[P, R]:
    """Decorator: a refusal becomes `error: ...` and exit code 2, Ctrl-C exit code 130; faults of ours stay visible."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            raise  # the reader has gone (as with `| head`); typer ends quietly
        except (ValueError, TypeError, OSError) as error:
            note(f"error: {error}")
            raise typer.Exit(2) from None
        except MemoryError as error:
            note(f"error: out of memory ({error or 'the matrix is too large'}). Try a smaller matrix or float32.")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            note("interrupted; no file was changed")
            raise typer.Exit(130) from None

    return run
