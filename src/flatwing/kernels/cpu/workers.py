"""Threads for compiled kernels: a pool of our own, and memory that each thread keeps.

Numba's parallel layers bring a second OpenMP runtime beside torch's, or abort when two threads enter them at once. The
kernels release the interpreter lock, so plain Python threads run them in parallel, whatever else the process does.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

WORTH = 1e-3
"""Seconds of work below which threads are not worth waking: it takes them 50 to 100 microseconds to start, and their
cores, which slept, begin with empty caches (measured: half of 0.45 ms of work took a second thread 0.53 ms).
"""

KEPT = 16 << 20
"""Bytes of memory that a thread keeps between calls, at most."""

ALIGNMENT = 64

LARGE = 8 << 20
"""Bytes of a result from which on it is worth asking for huge pages."""

_PAGE, _HUGE_PAGES = 4096, 14  # of Linux
_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
if _madvise is not None:
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_local = threading.local()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    """Drop the pool and the lock: after a fork, their threads exist in the parent only."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _workers() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(4, os.cpu_count() or 1), thread_name_prefix="flatwing")
        return _pool


def useful(threads: int, seconds: float) -> int:
    """How many of the threads to use for work that takes one of them so many seconds.

    No more than the machine has cores: further ones would only take turns. Torch allows one thread inside the workers
    of a DataLoader, so `torch.get_num_threads()` is right there as well.

    >>> useful(8, 20e-6), useful(1000, 1.0) <= os.cpu_count()
    (1, True)
    """
    return max(1, min(threads, os.cpu_count() or 1, int(seconds / WORTH) + 1)) if seconds > WORTH else 1


def split(rows: int, parts: int, unit: int = 1) -> list[tuple[int, int]]:
    """Cut `range(rows)` into at most `parts` even, non-empty pieces (start, stop) at multiples of `unit`.

    >>> split(100, 3, unit=16)
    [(0, 48), (48, 80), (80, 100)]
    """
    units = -(-rows // unit)
    parts = max(1, min(parts, units))
    size, extra = divmod(units, parts)
    cuts = [unit * (i * size + min(i, extra)) for i in range(parts)] + [rows]
    return list(pairwise(cuts))


def run(function: Callable[..., T], parts: Sequence[tuple[Any, ...]]) -> list[T]:
    """`[function(*part) for part in parts]`, at the same time; the caller takes the first part.

    What no thread has begun when the caller is done, the caller takes, too, so that a busy pool delays but never
    blocks. Returns, or raises what the first failing part raised, when every part has ended. An interruption
    (Ctrl-C) of the caller begins no further part, and leaves here when those that run have ended, however often it is
    repeated: they write to memory that is freed afterwards.

    >>> run(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    todo = deque(range(1, len(parts)))
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}
    entered: list[None] = []
    left: list[None] = []
    bell: SimpleQueue[None] = SimpleQueue()

    def take(number: int) -> None:
        try:
            results[number] = function(*parts[number])
        except BaseException as error:
            failures[number] = error
            if not isinstance(error, Exception):
                todo.clear()

    def take_all() -> None:
        with suppress(IndexError):
            while True:
                take(todo.popleft())

    def help_() -> None:
        entered.append(None)  # before it takes a part: who finds none to take and nobody inside knows that all ended
        try:
            take_all()
        finally:
            left.append(None)
            bell.put(None)

    interruption: BaseException | None = None
    try:
        # an interrupted submission may have been made or not: hence we count ourselves who is at work
        _submit(help_, len(parts) - 1)
        take(0)
        take_all()
    except BaseException as error:
        interruption = error
    ended = False
    while not ended:
        try:
            todo.clear()
            while len(entered) > len(left):
                with suppress(Empty):
                    bell.get(timeout=0.1)  # an interruption may swallow a ring
            ended = True
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption
    if failures:
        raise failures[min(failures, key=lambda number: (isinstance(failures[number], Exception), number))]
    return [results[number] for number in range(len(parts))]


def _submit(function: Callable[[], None], times: int) -> None:
    try:
        for _ in range(times):
            _workers().submit(function)
    except RuntimeError:  # the interpreter is ending, no thread starts any more
        return


def scratch(size: int) -> tuple[int, np.ndarray]:
    """Address of `size` bytes that are this thread's until it asks again, aligned to 64; and the array that holds them.

    Keep a reference to the array: large ones are not kept here. Contents are arbitrary.
    """
    held = getattr(_local, "held", None)
    if held is None or held[2] < size:
        held = (*aligned(size), size)
        if size <= KEPT:
            _local.held = held
    return held[0], held[1]


def aligned(size: int) -> tuple[int, np.ndarray]:
    """Address of `size` fresh bytes, aligned to 64; and the array that holds them, which lives as long as they do."""
    array = np.empty(size + ALIGNMENT, np.uint8)
    address = array.ctypes.data
    return address + -address % ALIGNMENT, array


def expect(address: int, size: int) -> None:
    """Tell the system that `size` fresh bytes at an address will all be written: huge pages, where it has them.

    Touching a large result for the first time takes longer than computing it, if its pages come one by one.
    """
    if size >= LARGE and _madvise is not None:
        start = address + -address % _PAGE
        _madvise(start, (address + size - start) // _PAGE * _PAGE, _HUGE_PAGES)  # advice: it may be declined
