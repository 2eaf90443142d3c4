"""How many threads the linear algebra of many small blocks may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 256


@contextmanager
def threads_for(side: int) -> Iterator[None]:
    """One thread while blocks with a small side up to `SMALL` are solved, all threads for larger ones; then as before.

    A batch of small blocks is many short calls. Threads that wait for each other in every one of them gain nothing on
    an idle machine and lose a factor of ten to a hundred on a busy one.
    """
    before = torch.get_num_threads()
    if side > SMALL or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
