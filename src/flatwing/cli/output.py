"""What the commands say: data on stdout, words and progress on stderr, errors without a traceback."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from math import isfinite
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from safetensors import SafetensorError

P = ParamSpec("P")
R = TypeVar("R")
Advance = Callable[[str, int, int], None]
WIDE = 200  # columns when nobody watches: a table in a file is not cut


class Format(StrEnum):
    """How a result is written."""

    human = "human"
    json = "json"
    quiet = "quiet"


def stdout() -> Console:
    """Console for data; as wide as the terminal, or `WIDE` without one."""
    return Console(highlight=False, width=None if sys.stdout and sys.stdout.isatty() else WIDE)


def note(text: str) -> None:
    """Say something to the person on stderr."""
    typer.echo(text, err=True)


@contextmanager
def working(text: str) -> Iterator[Advance]:
    """Show on stderr what goes on, how far it is and the time left; nothing at all without a terminal.

    Yields what the library calls as progress(what, done, total).
    """
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    text_column = TextColumn("{task.description}", markup=False)
    columns = SpinnerColumn(), text_column, BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=None)

        def advance(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"{text}: {what}", completed=done, total=total)

        yield advance


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
    """Decorator: a refusal becomes `error: ...` and exit code 2, Ctrl-C exit code 130; our own faults stay visible."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:
            raise  # the reader has gone (as with `| head`); typer ends quietly
        except (ValueError, TypeError, OSError, SafetensorError) as error:  # the last one: the disk is full
            note(f"error: {error}")
            raise typer.Exit(2) from None
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate" not in str(error):  # torch has no class of its own
                raise
            note(f"error: out of memory ({error or 'the matrix is too large'}). Try a smaller matrix or float32.")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            note("interrupted")
            raise typer.Exit(130) from None

    return run
