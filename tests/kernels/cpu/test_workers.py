import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from flatwing.kernels.cpu import workers


def test_split_covers_every_row_once_at_multiples_of_the_unit() -> None:
    for rows in (0, 1, 7, 16, 100, 1000):
        for parts in (1, 2, 3, 8):
            for unit in (1, 4, 32):
                pieces = workers.split(rows, parts, unit)
                assert [i for start, stop in pieces for i in range(start, stop)] == list(range(rows))
                assert len(pieces) <= parts
                assert all(start % unit == 0 for start, _ in pieces)


def test_pieces_are_even() -> None:
    sizes = [stop - start for start, stop in workers.split(128, 3, 16)]
    assert sizes == [48, 48, 32]


def test_parts_run_at_the_same_time_and_return_in_order() -> None:
    meeting = threading.Barrier(3, timeout=30)

    def part(i: int) -> tuple[int, str]:
        meeting.wait()  # passes only if all three are inside
        return i, threading.current_thread().name

    results = workers.run(part, [(0,), (1,), (2,)])
    assert [i for i, _ in results] == [0, 1, 2]
    assert results[0][1] == threading.current_thread().name, "the caller takes the first part"
    assert len({name for _, name in results}) == 3


def test_first_failure_is_raised_when_every_part_has_ended() -> None:
    ended = []

    def part(i: int) -> None:
        if i in (1, 2):
            raise ValueError(f"part {i}")
        ended.append(i)

    with pytest.raises(ValueError, match="part 1"):
        workers.run(part, [(0,), (1,), (2,), (3,)])
    assert sorted(ended) == [0, 3]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")
@pytest.mark.parametrize("where", ["in the caller's part", "while it waits", "while threads are asked"])
def test_an_interruption_waits_for_the_parts_that_run(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else memory is freed while threads write to it. The alarm rings again while those are waited for."""
    running, caller = threading.Event(), threading.current_thread()
    begun: list[int] = []
    ended: list[int] = []

    def part(i: int) -> None:
        if threading.current_thread() is caller:
            running.wait()
            if where == "in the caller's part":
                time.sleep(30)
        else:
            begun.append(i)
            running.set()
            time.sleep(0.5)
            ended.append(i)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if where == "while threads are asked":
        pool = workers._workers()
        real = pool.submit

        def submit(function: Callable[..., None], *arguments: int) -> None:
            real(function, *arguments)
            running.wait()
            time.sleep(30)  # made, but not returned

        monkeypatch.setattr(pool, "submit", submit)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            workers.run(part, [(i,) for i in range(3)])
        signal.setitimer(signal.ITIMER_REAL, 0)
        others = list(begun)
        assert others, "threads were at work"
        assert sorted(ended) == sorted(others), "all that began had ended"
        time.sleep(0.05)
        assert begun == others, "nothing begins later"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


NESTED = """
from flatwing.kernels.cpu import workers

def part(i):
    return sum(workers.run(lambda: i, [(), (), ()]))

print(workers.run(part, [(i,) for i in range(50)]) == [3 * i for i in range(50)])
"""


def test_a_busy_pool_does_not_block() -> None:
    # every part asks for two more: without taking work back, the pool would wait for itself, here and at exit
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True"]


def test_useful() -> None:
    assert workers.useful(1, 10.0) == 1
    assert workers.useful(4, 100e-6) == 1
    assert workers.useful(4, 10.0) == 4
    assert 1 < workers.useful(64, 3e-3) < 8
    assert workers.useful(64, 10.0) == 8, "no more than cores"


def test_scratch_is_aligned_and_belongs_to_one_thread() -> None:
    address, array = workers.scratch(1000)
    assert address % 64 == 0
    assert array.ctypes.data <= address
    assert address + 1000 <= array.ctypes.data + array.nbytes
    assert workers.scratch(500)[0] == address, "kept"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: workers.scratch(500)[0]).result() != address


def test_large_scratch_is_not_kept() -> None:
    small = workers.scratch(100)[1]
    assert workers.scratch(workers.KEPT + 1)[1].nbytes > workers.KEPT
    assert workers.scratch(100)[1] is small


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_its_own_pool() -> None:
    workers.run(abs, [(-1,), (-2,)])  # threads of the parent's pool, which a child does not have
    child = os.fork()
    if child == 0:
        met = False
        try:
            meeting = threading.Barrier(2, timeout=20)  # passes only if two threads are inside
            met = sorted(workers.run(meeting.wait, [(), ()])) == [0, 1]
        finally:
            os._exit(0 if met else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
