"""The wisdom file: what of it is read, what is written, and what is left alone.

Only regular files are read and written, links are followed. A file is ours if it begins as we write it,
`{"format": 1,`, and is not too long. If ours is damaged, it is set aside as *.bad, *.bad.2 and so on before a new one
begins. Everything else that may be found in its place stays as it is, and storing is refused.
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from ..core import parse_json, replacing

FORMAT = 1
OURS = re.compile(rb'\s*\{\s*"format"\s*:\s*%d\s*[,}]' % FORMAT)
DEEPEST = 20  # levels of brackets; ours has five, and a chain or two in its names
LARGEST = 1 << 24  # bytes; ours is a thousand times smaller
BELIEVABLE = 1e-8, 1e5  # seconds that one multiplication may take

Entries = dict[str, dict[str, dict[str, float]]]  # "times" or "rates" -> task or device -> name -> number
Machines = dict[str, Entries]


class Found(NamedTuple):
    """What is in the place of a wisdom file."""

    machines: Machines
    why: str | None = None
    """Why there are none, if something is there that is not as we write it."""
    damaged: bool = False
    """Whether that is a file of ours, so that a new one may take its place."""


def read(place: Path) -> Found:
    """The machines in the file, none if there is no file; never raises, and opens only regular files.

    >>> read(Path(os.devnull))
    Found(machines={}, why='it is a device', damaged=False)
    """
    try:
        content = _content(place)
    except (FileNotFoundError, NotADirectoryError):
        return Found({})
    except OSError as error:
        return Found({}, f"it cannot be read ({error.strerror or error})")
    if isinstance(content, str):
        return Found({}, content)
    if content.strip() in (b"", b"{}"):  # nothing is known yet
        return Found({})
    if not OURS.match(content):
        return Found({}, "flatwing did not write it in this format")
    try:
        machines = parse_json(content.decode(), DEEPEST).get("machines")
    except ValueError as error:
        return Found({}, f"it cannot be read ({type(error).__name__})", damaged=True)
    if not isinstance(machines, dict) or not all(map(_is_valid, machines.values())):
        return Found({}, "it holds something else than names and believable numbers", damaged=True)
    return Found(machines)


def require_ours(place: Path, found: Found) -> None:
    """Raise `ValueError` unless a wisdom file may be written in the place where this was found."""
    if found.why is not None and not found.damaged:
        raise ValueError(
            f"{str(place)!r} is no wisdom file ({found.why}) and stays as it is. Rule: a file that flatwing wrote, or "
            f"a new one; name it with FLATWING_WISDOM, or {os.devnull} for none."
        )


def rewrite(place: Path, change: Callable[[Machines], Machines]) -> Machines:
    """Write what `change` makes of the machines in the file, while no other process does so; returns it.

    Raises `ValueError` where something else is than a file of ours, and `OSError` or `ValueError` if it cannot be
    written. A damaged file is kept beside it, with one warning.
    """
    target = Path(os.path.realpath(place))
    found = read(target)
    require_ours(place, found)  # before anything is written, be it the lock
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        found = read(target)
        require_ours(place, found)
        if found.damaged:
            aside = _free(target)
            target.rename(aside)
            warn(
                f"the wisdom file {str(place)!r} was damaged ({found.why}); it is now {aside.name!r}, a new one begins."
            )
        machines = change(found.machines)
        with replacing(target) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, "machines": machines}, indent=1), encoding="utf-8")
    return machines


def warn(text: str) -> None:
    """Warn; where warnings are errors, a multiplication must still not fail for its plan."""
    with suppress(RuntimeWarning):
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _content(place: Path) -> bytes | str:
    """The bytes of a regular file, or why they are not read."""
    status = os.stat(place)
    if not stat.S_ISREG(status.st_mode):  # opening others may wait forever, or do something
        return f"it is a {_kind(status.st_mode)}"
    if status.st_size > LARGEST:
        return f"it has {status.st_size:,} bytes, more than {LARGEST:,}"
    return place.read_bytes()


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _free(target: Path) -> Path:
    """The first of *.bad, *.bad.2, *.bad.3 that is not there."""
    names = chain([f"{target.name}.bad"], (f"{target.name}.bad.{i}" for i in count(2)))
    return next(path for name in names if not os.path.lexists(path := target.with_name(name)))


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """No other process writes meanwhile, where the system has locks; without them its new entries may be lost."""
    place = target.with_name(target.name + ".lock")
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(mode := os.stat(place).st_mode):
            raise OSError(f"{place.name} is a {_kind(mode)}")
    with open(place, "a", encoding="utf-8") as lock:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_valid(kinds: Any) -> bool:
    """Whether these are the times and rates of one machine: names of names of believable numbers."""
    if not isinstance(kinds, dict):
        return False
    for kind, own in kinds.items():
        low, high = BELIEVABLE if kind == "times" else (1e-12, 1e18)
        if not isinstance(own, dict) or not all(isinstance(numbers, dict) for numbers in own.values()):
            return False
        if not all(type(v) is float and low <= v <= high for numbers in own.values() for v in numbers.values()):
            return False
    return True
