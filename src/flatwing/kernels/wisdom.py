"""Wisdom: measured times of this machine, which plans prefer to predictions, kept in a small file between processes.

The file is `$FLATWING_WISDOM`, or flatwing/wisdom.json in the user's cache folder; the null device (`/dev/null`) stands
for no file at all. It is read once per process, when the first plan is made, and again when something is stored. A
file that is not as we write it is ignored with one warning; when something is to be stored, it is kept as *.bad.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..core import parse_json, replacing
from ..core.machine import __version__, processor
from .backend import Task

FORMAT = 1
DEEPEST = 20  # levels of brackets; ours has five, and a chain or two in its names
LARGEST = 1 << 24  # bytes; ours is a thousand times smaller
BELIEVABLE = 1e-8, 1e5  # seconds that one multiplication may take
KEPT = 4096  # tasks per machine; the oldest are forgotten
MACHINES = 16  # machines, or versions of torch or flatwing on one, in one file

Entries = dict[str, dict[str, dict[str, float]]]  # "times" or "rates" -> task or device -> name -> number

_version = 0
_known: dict[str, Entries] | None = None  # by machine; None: not read yet


def version() -> int:
    """A number that changes when what is known changes, so that cached plans are not older than it."""
    return _version


def lookup(task: Task) -> Mapping[str, float]:
    """Measured seconds per backend (and "F.linear") for a task; empty if it was never measured here.

    Numbers of rows between two powers of two share one entry, as they share one plan.

    >>> from flatwing import Chain
    >>> dict(lookup(Task(Chain.butterfly(2), rows=3)))
    {}
    """
    return _entries(task.device).get("times", {}).get(key(task), {})


def rates(device: str) -> Mapping[str, float]:
    """Measured rates of a kind of device, by their names in `cost.Machine`; empty if none were stored."""
    return _entries(device).get("rates", {}).get(device, {})


def store(task: Task, seconds: Mapping[str, float]) -> None:
    """Keep measured seconds per backend (and "F.linear") for a task; later plans use them, in all processes.

    What other processes stored meanwhile stays; of one entry the last one stays. Raises `ValueError` for seconds
    outside of `BELIEVABLE`, for a number of rows that is no power of two (another entry would take its name), or if
    the file cannot be written.
    """
    if task.rows != rounded(task.rows):
        raise ValueError(
            f"times of {task.rows} rows cannot be kept. Rule: a power of two, as plans are made for; "
            f"measure {rounded(task.rows)} rows."
        )
    low, high = BELIEVABLE
    bad = {name: value for name, value in seconds.items() if not low <= value <= high}
    if bad:
        raise ValueError(f"seconds {bad} are no time of a multiplication. Rule: between {low:g} and {high:g}.")
    _store("times", task.device, key(task), seconds)


def store_rates(device: str, found: Mapping[str, float]) -> None:
    """Keep measured rates of a kind of device, by their names in `cost.Machine`. Raises as `store` does."""
    _store("rates", device, device, found)


def forget() -> None:
    """Read the file again before the next plan, as after another process wrote to it."""
    global _known, _version
    _known = None
    _version += 1


def rounded(rows: int) -> int:
    """The number (of rows, mostly) whose plan and measured times so many follow: the next power of two.

    >>> [rounded(rows) for rows in (1, 2, 3, 33, 64)]
    [1, 2, 4, 64, 64]
    """
    return 1 << (rows - 1).bit_length() if rows > 1 else 1


def key(task: Task) -> str:
    """The name of a task in the file; rows are rounded up to a power of two.

    >>> from flatwing import Chain
    >>> key(Task(Chain.butterfly(4), rows=5))
    '(1,2,2,2)(2,2,2,1) rows=8 float32 cpu batch-first forward threads=1'
    """
    dtype, what = str(task.dtype).removeprefix("torch."), "step" if task.train else "forward"
    threads = f" threads={task.threads}" if task.device == "cpu" else ""
    return f"{task.chain} rows={rounded(task.rows)} {dtype} {task.device} {task.layout} {what}{threads}"


def path() -> Path | None:
    """Where the file is, whether it exists or not; None for the null device, or without a home directory."""
    named = os.environ.get("FLATWING_WISDOM")
    if named:
        return None if named == os.devnull else Path(named)
    home = os.path.expanduser("~")
    folders = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": f"{home}/Library/Caches"}
    folder = folders.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or f"{home}/.cache"
    return None if folder.startswith("~") else Path(folder) / "flatwing" / "wisdom.json"


@cache
def machine(device: str = "cpu") -> str:
    """What measured times depend on besides the task: processor or GPU, versions of torch and flatwing."""
    if device == "cuda" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        name = processor() if device == "cpu" else device
    return f"{name}, torch {torch.__version__}, flatwing {__version__}"


def _entries(device: str) -> Entries:
    """What is known of this machine."""
    global _known
    if _known is None:
        place = path()
        _known, why = ({}, None) if place is None else _read(place)
        if why is not None:
            _warn(f"the wisdom file {str(place)!r} is ignored, plans follow predictions: {why}. Remove it.")
    return _known.get(machine(device), {}) if _known else {}


def _store(kind: str, device: str, entry: str, numbers: Mapping[str, float]) -> None:
    global _known, _version
    place = path()
    if place is None:
        return
    try:
        _known = _add(place, kind, device, entry, numbers)
    except OSError as error:
        raise ValueError(
            f"the wisdom file {str(place)!r} cannot be written ({error.strerror or error}). Rule: a file in a folder "
            f"that may be written; name another with FLATWING_WISDOM, or {os.devnull} for none."
        ) from error
    _version += 1


def _add(place: Path, kind: str, device: str, entry: str, numbers: Mapping[str, float]) -> dict[str, Entries]:
    """Write numbers into the file beside what is there; all that it holds now."""
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    place.parent.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        machines, why = _read(place)
        if why is not None:
            place.replace(place.with_name(place.name + ".bad"))
            _warn(f"{str(place)!r} was no wisdom file ({why}); it is now {place.name + '.bad'!r}, a new one begins.")
        mine = machines.pop(machine(device), {})  # the newest last, in the file as in what is kept
        old = mine.setdefault(kind, {})
        old[entry] = {**old.pop(entry, {}), **{name: float(value) for name, value in numbers.items()}}
        mine[kind] = _newest(old, KEPT)
        machines = _newest({**machines, machine(device): mine}, MACHINES)
        with replacing(place) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, "machines": machines}, indent=1), encoding="utf-8")
    return machines


def _newest(entries: dict[str, Any], count: int) -> dict[str, Any]:
    return dict(islice(entries.items(), max(0, len(entries) - count), None))


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """No other process stores meanwhile, where the system has locks; without them its new entries may be lost."""
    with open(place.with_name(place.name + ".lock"), "a", encoding="utf-8") as lock:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(place: Path) -> tuple[dict[str, Entries], str | None]:
    """The machines in the file, and why they are none if the file is not as we write it."""
    try:
        if not place.exists():
            return {}, None
        if not place.is_file():
            return {}, "it is not a file"
        if place.stat().st_size > LARGEST:
            return {}, f"it has {place.stat().st_size:,} bytes, more than {LARGEST:,}"
        text = place.read_text(encoding="utf-8")
        content = parse_json(text, DEEPEST)
    except (OSError, ValueError) as error:
        return {}, f"it cannot be read ({type(error).__name__})"
    if content == {}:  # nothing is known yet
        return {}, None
    # True is equal to 1
    if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] != FORMAT:
        return {}, f"it is not of format {FORMAT}"
    machines = content.get("machines")
    if not isinstance(machines, dict) or not all(map(_is_valid, machines.values())):
        return {}, "it holds something else than names and believable numbers"
    return machines, None


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


def _warn(text: str) -> None:
    with suppress(RuntimeWarning):  # where warnings are errors, a multiplication must still not fail for its plan
        warnings.warn(text, RuntimeWarning, stacklevel=3)
