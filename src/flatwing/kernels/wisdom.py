"""Wisdom: measured times of this machine, which plans prefer to predictions, kept in a small file between processes.

The file is `$FLATWING_WISDOM`, or flatwing/wisdom.json in the user's cache folder; the null device (`/dev/null`) stands
for no file at all. It is read once per process, when the first plan is made, and again when something is stored. What
is not as we write it is ignored with one warning; what happens to it when something is stored tells `wisdom_file`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..core.machine import __version__, processor
from .backend import Task
from .wisdom_file import BELIEVABLE, Entries, Found, Machines, read, require_ours, rewrite, warn

DENSE = "F.linear"  # the name of the dense layer among the backends
KEPT = 4096  # tasks per machine; the oldest are forgotten
MACHINES = 16  # machines, or versions of torch or flatwing on one, in one file

_version = 0
_known: Machines | None = None  # None: not read yet
_ignored: str | None = None  # why what was found is not read


def version() -> int:
    """A number that changes when what is known changes, so that cached plans are not older than it."""
    return _version


def lookup(task: Task) -> Mapping[str, float]:
    """Measured seconds per backend (and "F.linear") for a task; empty if it was never measured here.

    Numbers of rows between two powers of two share one entry, as they share one plan. A packed task and the same one
    that reads and packs in every call share the time of the dense layer, where only one of them was measured.

    >>> from flatwing import Chain
    >>> dict(lookup(Task(Chain.butterfly(2), rows=3)))
    {}
    """
    times = _entries(task.device).get("times", {})
    if task.train:
        return times.get(key(task), {})
    other = times.get(key(replace(task, packed=not task.packed)), {})
    dense = {DENSE: other[DENSE]} if DENSE in other else {}
    return dense | times.get(key(task), {})


def rates(device: str) -> Mapping[str, float]:
    """Measured rates of a kind of device, by their names in `cost.Machine`; empty if none were stored."""
    return _entries(device).get("rates", {}).get(device, {})


def store(task: Task, seconds: Mapping[str, float]) -> None:
    """Keep measured seconds per backend (and "F.linear") for a task; later plans use them, in all processes.

    What other processes stored meanwhile stays; of one entry the last one stays. Raises `ValueError` for seconds
    outside of `BELIEVABLE`, for a number of rows that is no power of two (another entry would take its name), or if
    the file cannot be written, or is something else than a file of ours.
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
    dtype = str(task.dtype).removeprefix("torch.")
    what = "step" if task.train else "packed" if task.packed else "forward"
    threads = f" threads={task.threads}" if task.device == "cpu" else ""
    several = f" products={task.products}" if task.products > 1 else ""  # dense are so many matrices, not one
    return f"{task.chain} rows={rounded(task.rows)} {dtype} {task.device} {task.layout} {what}{threads}{several}"


def path() -> Path | None:
    """Where the file is, whether it exists or not; None for the null device, or without a home directory."""
    named = os.environ.get("FLATWING_WISDOM")
    if named:
        return None if os.devnull in (named, os.path.realpath(named)) else Path(named)
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


def require_place() -> None:
    """Raise `ValueError` if what stands in the place of the file is none of ours, so that nothing can be stored.

    To be called before numbers are measured that must be kept: the work would be for nothing.
    """
    if (place := path()) is not None:
        require_ours(place, read(place))


def keeps() -> bool:
    """Whether numbers that are measured now will be kept; a damaged file is set aside first, with one warning.

    False for the null device, and with the warning that it is ignored for anything else that is no file of ours.
    Raises `ValueError` if a new file cannot be written.
    """
    place = path()
    if place is not None and read(place).damaged:
        _rewrite(place, dict)
    return place is not None and _read_once() is None


def _entries(device: str) -> Entries:
    """What is known of this machine."""
    _read_once()
    return _known.get(machine(device), {}) if _known else {}


def _read_once() -> str | None:
    """Read the file if it was not read yet; why it is ignored, if it is."""
    global _known, _ignored
    if _known is None:
        place = path()
        found = Found({}) if place is None else read(place)
        _known, _ignored = found.machines, found.why
        if found.why is not None:
            warn(
                f"the wisdom file {str(place)!r} is ignored, plans follow predictions: {found.why}. Remove it, or name "
                "another with FLATWING_WISDOM."
            )
    return _ignored


def _store(kind: str, device: str, entry: str, numbers: Mapping[str, float]) -> None:
    place = path()
    if place is None:
        return

    def add(machines: Machines) -> Machines:
        mine = machines.pop(machine(device), {})  # the newest last, in the file as in what is kept
        old = mine.setdefault(kind, {})
        old[entry] = {**old.pop(entry, {}), **{name: float(value) for name, value in numbers.items()}}
        mine[kind] = _newest(old, KEPT)
        return _newest({**machines, machine(device): mine}, MACHINES)

    _rewrite(place, add)


def _rewrite(place: Path, change: Callable[[Machines], Machines]) -> None:
    """Change the file and what is known of it."""
    global _known, _ignored, _version
    try:
        _known, _ignored = rewrite(place, change), None
    except OSError as error:
        raise ValueError(
            f"the wisdom file {str(place)!r} cannot be written ({error.strerror or error}). Rule: a file in a folder "
            f"that may be written; name another with FLATWING_WISDOM, or {os.devnull} for none."
        ) from error
    _version += 1


def _newest(entries: dict[str, Any], count: int) -> dict[str, Any]:
    return dict(islice(entries.items(), max(0, len(entries) - count), None))
