"""Compilation on the user's machine: who waits for it is told why, once, and its results are known by their sources."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

WORTH_SAYING = 2.0
"""Seconds from which on the user is told what they were for."""

_IMPORT = re.compile(rb"^from \.(\w+) import", re.MULTILINE)
_log = logging.getLogger("flatwing")


@contextmanager
def compiling(what: str, folder: Callable[[], str | None]) -> Iterator[None]:
    """Log a warning if what happens inside took long: that it was compiled, and whether later processes will wait.

    `folder` tells where compiled code is kept, None where no folder can be written.

    >>> with compiling("kernels", lambda: None):
    ...     pass
    """
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    if seconds > WORTH_SAYING:
        where = folder()
        kept = f"kept for later processes in {where}"
        if where is None:
            kept = "as in every process, since no folder for compiled code can be written: set NUMBA_CACHE_DIR to one"
        _log.warning("%s compiled in %.0f s, %s", what, seconds, kept)


def source_digest(*sources: Path) -> str:
    """Names the state of source files and of all that they import from their folders.

    Caches of compiled code notice changes of one file only, though constants and callees of others are compiled in.

    >>> len(source_digest(Path(__file__)))
    12
    """
    found: dict[Path, bytes] = {}
    waiting = list(sources)
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found[path] = path.read_bytes()
            waiting += [path.with_name(f"{name.decode()}.py") for name in _IMPORT.findall(found[path])]
    return hashlib.sha256(b"".join(found[path] for path in sorted(found))).hexdigest()[:12]
