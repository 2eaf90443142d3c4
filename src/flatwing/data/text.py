"""A user's own text, one file or a folder of files, as bytes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from .corpus import HELD_OUT_PERCENT, split_of
from .samples import Pieces, cut
from .splits import SPLITS, Splits

LARGE = 1 << 24  # bytes; a file of this size or more is mapped into memory, not read
LOOK = 8192  # bytes at the start of a file in which a zero says that it is no text
SHOWN = 3  # names of skipped files for each reason


def text_bytes(path: str | os.PathLike[str], window: int = 2) -> tuple[Splits[Pieces], tuple[str, ...]]:
    """The bytes of a text file or a folder of them in three splits, and notes on what was skipped.

    A folder is split by file, by a hash of its path in the folder: a file stays in its split when others come or go.
    Its files are joined in the order of their paths. One file is cut into ranges, 88 % for "train" and then 6 % each
    for "valid" and "test"; so is a folder where otherwise a split would hold fewer than `window` bytes (a note says
    so). Hidden and binary files, empty ones, links to folders and what cannot be read are skipped.

    Raises `ValueError` for a path that is not there, a binary file, or no text at all. Cost: files of 16 MiB and more
    are memory-mapped, the smaller ones take their size in memory.
    """
    root = Path(path)
    if root.is_file():
        if reason := _unfit(root):
            raise ValueError(f"{str(root)!r} is {reason}. Rule: a text file, or a folder of them.")
        return by_ranges([_read(root)]), ()
    if not root.is_dir():
        raise ValueError(f"there is no file or folder {str(root)!r}. Rule: a text file, or a folder of them.")
    parts: dict[str, list[Path]] = {split: [] for split in SPLITS}
    skipped: dict[str, list[str]] = defaultdict(list)
    for name, reason in _names(root):
        reason = reason or _unfit(root / name)
        if reason:
            skipped[reason].append(name)
        else:
            parts[split_of(name)].append(root / name)
    notes = tuple(_note(reason, names) for reason, names in skipped.items())
    if not any(parts.values()):
        raise ValueError(f"the folder {str(root)!r} has no text files. Rule: at least one. {' '.join(notes)}".rstrip())
    pieces = {split: _joined(files) for split, files in parts.items()}
    if any(sum(map(len, part)) < window for part in pieces.values()):
        files = sorted(file for part in parts.values() for file in part)
        how = f"too few files to split by file ({len(files)}): the text is cut into three ranges."
        return by_ranges(_joined(files)), (*notes, how)
    return Splits(**pieces), notes


def by_ranges(pieces: Pieces) -> Splits[Pieces]:
    """The first 88 % of a row of tokens, the next 6 %, the last 6 %.

    >>> by_ranges([np.arange(50)]).valid
    [array([44, 45, 46])]
    """
    total = sum(map(len, pieces))
    held = total * HELD_OUT_PERCENT // 100
    ends = [0, total - 2 * held, total - held, total]
    return Splits(*(cut(pieces, start, stop) for start, stop in pairwise(ends)))


def _names(root: Path) -> Iterator[tuple[str, str]]:
    """Paths below a folder with forward slashes, in one order on every machine, each with a reason to skip it or ""."""
    found: list[tuple[str, str]] = []

    def unreadable(error: OSError) -> None:
        found.append((Path(error.filename).relative_to(root).as_posix(), "not readable"))

    for folder, below, files in os.walk(root, onerror=unreadable):
        here = Path(folder)
        reasons = {name: "hidden" for name in (*below, *files) if name.startswith(".")}
        reasons |= {name: "a link to a folder" for name in below if (here / name).is_symlink()}
        below[:] = [name for name in below if name not in reasons]  # os.walk then does not enter the others
        found += [((here / name).relative_to(root).as_posix(), reason) for name, reason in reasons.items()]
        found += [((here / name).relative_to(root).as_posix(), "") for name in files if name not in reasons]
    return iter(sorted(found))


def _unfit(file: Path) -> str:
    """Why a file is no text, or ""."""
    try:
        if not file.is_file():
            return "not a file"  # a pipe would wait for ever
        with file.open("rb") as opened:
            start = opened.read(LOOK)
    except OSError:
        return "not readable"
    if not start:
        return "empty"
    return "binary" if 0 in start else ""


def _read(file: Path) -> np.ndarray:
    if file.stat().st_size >= LARGE:
        return np.asarray(np.memmap(file, dtype=np.uint8, mode="r"))
    return np.fromfile(file, dtype=np.uint8)


def _joined(files: list[Path]) -> list[np.ndarray]:
    """The bytes of files in order: neighbours that were read are one array, so that a window is one look-up."""
    pieces: list[np.ndarray] = []
    small: list[np.ndarray] = []
    for file in files:
        data = _read(file)
        if len(data) < LARGE:
            small.append(data)
            continue
        pieces += [np.concatenate(small), data] if small else [data]
        small = []
    return [*pieces, np.concatenate(small)] if small else pieces


def _note(reason: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"skipped, {reason}: {', '.join(names[:SHOWN])}{more}."
