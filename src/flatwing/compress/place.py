"""Place: where an output may stand and what may be removed for it; both kinds of runs keep these rules."""

from __future__ import annotations

import os
import re
from pathlib import Path

MARK = "flatwing.json"  # every directory that flatwing wrote has it
TEMPORARY = re.compile(r"\.(?P<stem>[\w.-]+)-[a-z0-9_]{8}\.(json|safetensors)")  # as `core.replacing` names them


def is_temporary(path: Path, *prefixes: str) -> bool:
    """Whether this is a file that was being written when a run was killed, of one of these names if any are given.

    >>> is_temporary(Path("out.partial/.job-0ab_cdef.json")), is_temporary(Path("out.partial/.env"))
    (True, False)
    """
    found = TEMPORARY.fullmatch(path.name)
    return found is not None and found["stem"].startswith(prefixes or "")


def files_in(folder: Path) -> list[Path]:
    """All that lies in a folder at any depth and is no folder itself; links count, they are not followed."""
    return [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def require_parent(out: Path) -> None:
    """Raise `ValueError` unless the folder around `out` exists and can be written."""
    if not out.parent.is_dir():
        raise ValueError(f"the folder {str(out.parent)!r} does not exist. Make it first, or choose another OUT.")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"the folder {str(out.parent)!r} cannot be written. Choose another OUT.")


def require_free(out: Path, *, overwrite: bool) -> None:
    """Raise `ValueError` if `out` exists, unless `overwrite` and it is an empty directory or one that flatwing wrote.

    A link is never overwritten: what it points to may be used under other names.
    """
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise exists(out)
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file()):
        raise ValueError(
            f"{str(out)!r} is not a directory that flatwing wrote, so it is not overwritten. Rule: --overwrite "
            f"replaces directories with a {MARK}; choose another OUT."
        )


def require_apart(out: Path, given: str | os.PathLike[str], what: str) -> None:
    """Raise `ValueError` if `out` lies in what is read (`given`) or the other way round, links resolved."""
    here, there = Path(given).resolve(), out.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise ValueError(
            f"OUT {str(out)!r} and {what} {str(given)!r} overlap, so writing the one would change the other. "
            "Rule: separate places; choose another OUT."
        )


def exists(out: Path) -> ValueError:
    """The error for an `out` that is taken."""
    return ValueError(f"{str(out)!r} exists. Rule: nothing is overwritten without --overwrite.")
