"""Compilation on the user's machine: who waits for it is told why, once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WORTH_SAYING = 2.0
"""Seconds from which on the user is told what they were for."""

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
        kept = (
            f"kept for later processes in {where}"
            if where
            else ("as in every process, since no folder for compiled code can be written: set NUMBA_CACHE_DIR to one")
        )
        _log.warning("%s compiled in %.0f s, %s", what, seconds, kept)
