"""The cost model: near what was measured, reasonable everywhere else, and as fast as the machine it runs on."""

import os
from dataclasses import replace

import pytest
import torch

from flatwing import Chain
from flatwing.kernels import BACKENDS, cost, rates, wisdom
from flatwing.kernels.advise import advise
from flatwing.kernels.backend import Layout, Task
from flatwing.kernels.plan import plan_for

# microseconds, best of many, one core of a Zen 4 processor; rows, training step?, F.linear, bmm
MEASURED = [
    ("butterfly(64)", 256, False, 27.6, 161),
    ("butterfly(256)", 16, False, 31.7, 277),
    ("butterfly(1024)", 256, True, 1.8e4, 5.68e3),
    ("butterfly(1024)", 4096, False, 9.44e4, 2.29e4),
    ("monarch(1024,1024,blocks=32)", 16, False, 530, 115),
    ("monarch(1024,1024,blocks=32)", 256, True, 1.94e4, 2.57e3),
    ("monarch(4096,4096,blocks=64)", 256, False, 1.06e05, 7.28e3),
    ("monarch(256,256,blocks=16)", 4096, False, 6.78e3, 4.47e3),
    ("low_rank(768,3072,rank=700)", 256, True, 3.93e4, 4.72e4),
    ("low_rank(1024,1024,rank=400)", 256, False, 5.49e3, 4.96e3),
    ("block_diagonal(96,96,blocks=3)", 16, True, 47.6, 135),
    ("block_butterfly(1024,block=32)", 256, False, 5.53e3, 2.59e3),
    ("kronecker([(3,5),(7,9),(4,4)])", 64, True, 108, 401),
    ("low_rank(256,256,rank=32)", 1024, False, 1373, 404),
    ("low_rank(64,64,rank=8)", 16, False, 6.7, 20.3),
    ("butterfly(48)", 1, True, 33.8, 406),
]


@pytest.mark.parametrize(("spec", "rows", "train", "dense", "bmm"), MEASURED)
def test_predictions_are_near_what_was_measured(spec: str, rows: int, train: bool, dense: float, bmm: float) -> None:
    task = Task(Chain.parse(spec), rows, train=train)
    plan = plan_for(task, "bmm")
    assert plan.dense_seconds == pytest.approx(1e-6 * dense, rel=0.6)
    assert 0.4 < plan.seconds / (1e-6 * bmm) < 1.7
    assert (plan.speedup > 1) == (dense > bmm)


# the same, for whole calls that take little more than what is fixed
SMALL = [
    ("low_rank(64,64,rank=8)", 1, True, "numba", 157),
    ("butterfly(64)", 1, True, "numba", 102),
    ("butterfly(256)", 1, True, "numba", 115),
    ("butterfly(1024)", 4, True, "numba", 154),
    ("butterfly(48)", 1, True, "numba", 155),
    ("block_diagonal(96,96,blocks=3)", 4, True, "numba", 151),
    ("monarch(1024,1024,blocks=32)", 1, True, "numba", 175),
    ("low_rank(64,64,rank=8)", 4, False, "numba", 13.3),
    ("butterfly(256)", 4, False, "numba", 9.1),
    ("monarch(1024,1024,blocks=32)", 4, False, "numba", 27.9),
    ("low_rank(64,64,rank=8)", 1, False, "bmm", 14.6),
    ("block_diagonal(96,96,blocks=3)", 1, False, "bmm", 19.7),
    ("low_rank(64,64,rank=8)", 1, True, "bmm", 74.7),
    ("block_diagonal(96,96,blocks=3)", 1, False, "dense", 42.7),
    ("low_rank(64,64,rank=8)", 1, False, "dense", 80.7),
]


# the same, for large blocks, whose weights and gradients no cache holds
LARGE = [
    ("monarch(16384,16384,blocks=128)", 16, True, "bmm", 1.22e4),
    ("monarch(16384,16384,blocks=128)", 64, True, "bmm", 3.04e4),
    ("monarch(16384,16384,blocks=128)", 256, True, "bmm", 1.1e5),
    ("monarch(4096,4096,blocks=64)", 256, True, "bmm", 1.69e4),
]


@pytest.mark.parametrize(("spec", "rows", "train", "backend", "measured"), [*SMALL, *LARGE])
def test_small_and_large_are_predicted(spec: str, rows: int, train: bool, backend: str, measured: float) -> None:
    plan = plan_for(Task(Chain.parse(spec), rows, train=train), backend)
    assert 0.75 < plan.seconds / (1e-6 * measured) < 1.3


# the same, for numba: columns, or numbers of two bytes, which take the long way
LONG = [
    ("butterfly(64)", 1, "batch-last", torch.float32, 23.9),
    ("butterfly(4096)", 1, "batch-last", torch.float32, 40.4),
    ("monarch(256,256,blocks=16)", 1, "batch-last", torch.float64, 20.3),
    ("butterfly(1024)", 1, "batch-first", torch.bfloat16, 41.7),
    ("butterfly(4096)", 2, "batch-first", torch.bfloat16, 73.1),
    ("low_rank(1024,4096,rank=64)", 1, "batch-first", torch.bfloat16, 73.6),
]


@pytest.mark.parametrize(("spec", "rows", "layout", "dtype", "measured"), LONG)
def test_the_long_way_is_predicted(spec: str, rows: int, layout: Layout, dtype: torch.dtype, measured: float) -> None:
    plan = plan_for(Task(Chain.parse(spec), rows, dtype, layout=layout), "numba")
    assert 0.6 < plan.seconds / (1e-6 * measured) < 1.5


TASKS = [
    Task(Chain.parse(spec), 64, dtype, layout=layout, train=train)  # type: ignore[arg-type]
    for spec in ("butterfly(64)", "monarch(1024,512,blocks=32)", "low_rank(300,500,rank=7)", "(1,2,2,3)(3,2,2,1)")
    for dtype in (torch.float32, torch.complex128)
    for layout in ("batch-first", "batch-last")
    for train in (False, True)
]


@pytest.mark.parametrize("task", TASKS, ids=wisdom.key)
@pytest.mark.parametrize("name", ["F.linear", "bmm", "dense", "reference"])
def test_more_work_takes_longer(task: Task, name: str) -> None:
    def seconds(task: Task) -> float:
        return cost.dense_seconds(task) if name == "F.linear" else BACKENDS[name].seconds(task)

    assert 0 < seconds(task) < seconds(replace(task, rows=4096))
    assert seconds(replace(task, train=False)) < seconds(replace(task, train=True))
    assert seconds(replace(task, rows=4096, dtype=torch.float32)) < seconds(
        replace(task, rows=4096, dtype=torch.complex128)
    )
    assert seconds(replace(task, rows=4096, threads=4)) <= seconds(replace(task, rows=4096))
    assert seconds(replace(task, rows=1, threads=64)) <= seconds(replace(task, rows=1)), "threads that do not pay rest"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_absurd_sizes_have_a_prediction(device: str) -> None:
    task = Task(Chain.low_rank(10**9, 10**9, rank=4), 10**9, torch.float64, device)
    assert 1 < cost.native_seconds(task) < cost.dense_seconds(task) < 1e20


def test_merging_costs_what_it_moves() -> None:
    small, large = (Task(Chain.monarch(n, n, blocks=16), 1) for n in (256, 2048))
    assert cost.merge_seconds(small) < cost.merge_seconds(large)
    pair = Chain.butterfly(1024).patterns[:2]
    assert cost.merge_seconds(small, pair) < cost.merge_seconds(small, Chain.butterfly(1024).patterns[:4])
    unchainable = Task(Chain([(2, 2, 2, 1), (1, 2, 2, 2)]), 4)
    assert not unchainable.chain.chainable
    assert cost.merge_seconds(unchainable) > 0


@pytest.mark.usefixtures("wisdom_file")
def test_measured_rates_take_the_place_of_shipped_ones() -> None:
    task = Task(Chain.monarch(1024, 1024, blocks=32), 1024)
    before = cost.dense_seconds(task), plan_for(task, "bmm").seconds
    shipped = cost.MACHINES["cpu"]._asdict()
    wisdom.store_rates("cpu", {name: shipped[name] / 2 for name in ("gemm", "cached", "memory")} | {"unknown": 1.0})
    assert cost.dense_seconds(task) == pytest.approx(2 * before[0], rel=0.1)
    assert plan_for(task, "bmm").seconds > 1.3 * before[1]
    wisdom.store_rates("cpu", {"width bfloat16": 20.0})
    half = replace(task, dtype=torch.bfloat16)
    assert cost.dense_seconds(half) == pytest.approx(20 * cost.dense_seconds(task), rel=0.1)


@pytest.mark.usefixtures("wisdom_file")
def test_rates_of_no_machine_are_not_believed() -> None:
    task = Task(Chain.monarch(1024, 1024, blocks=32), 1024)
    before = cost.dense_seconds(task)
    wisdom.store_rates("cpu", {"gemm": 1.0, "call": 1e9, "width float32": 1e6})
    assert cost.dense_seconds(task) == before


def test_rates_are_those_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.0)
    found, threads = rates.measure_rates(), torch.get_num_threads()
    assert set(found) == {"call", "cached", "memory", "gemm"} | {
        f"width {name}" for name in ("float64", "complex64", "complex128", "bfloat16", "float16")
    }
    assert all(value > 0 for value in found.values())
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("wisdom_file")
def test_advice_measures_the_rates_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(rates, "measure_rates", lambda: calls.append(1) or {"gemm": 50e9})
    slow = advise(64, 64, batches=[1024])
    assert slow.notes == ()
    advise(64, 64, batches=[1024])
    assert calls == [1]
    assert wisdom.rates("cpu") == {"gemm": 50e9}
    monkeypatch.setenv("FLATWING_WISDOM", os.devnull)
    wisdom.forget()
    assert advise(64, 64, batches=[1024]).rows[0].dense_seconds < slow.rows[0].dense_seconds
    assert calls == [1], "without a file nothing is measured"


def test_numbers_of_two_bytes_are_not_cheap_to_read() -> None:
    wide = Task(Chain.low_rank(1024, 1024, rank=32), 1)
    half = replace(wide, dtype=torch.bfloat16)
    assert cost.dense_seconds(half) > cost.dense_seconds(wide), "they are brought into another form"
    assert cost.dense_seconds(replace(half, rows=4096)) < cost.dense_seconds(replace(wide, rows=4096))
    on_gpu = replace(wide, device="cuda"), replace(half, device="cuda")
    assert cost.dense_seconds(on_gpu[1]) < cost.dense_seconds(on_gpu[0])


@pytest.mark.parametrize("train", [False, True])
def test_a_call_costs_something(train: bool) -> None:
    task = Task(Chain.butterfly(64), 1, train=train)
    own, torchs = (cost.overhead_seconds(task, native=native) for native in (False, True))
    assert 0 < min(own, torchs) < max(own, torchs) < 5e-4
    assert (own > torchs) == train, "kernels are called at once where nothing is to be recorded"
    assert plan_for(task, "bmm").seconds > BACKENDS["bmm"].seconds(task), "a plan predicts the whole call"


def test_threads_divide_arithmetic_and_not_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def gain(n: int, rows: int, threads: int, train: bool = False) -> float:
        task = Task(Chain.low_rank(n, n, rank=n), rows, train=train)
        return cost.dense_seconds(task) / cost.dense_seconds(replace(task, threads=threads))

    assert gain(4096, 4096, 8) > 6, "nothing but arithmetic"
    assert gain(4096, 1, 8) == 1, "one vector: the matrix is read by one thread"
    assert 1 < gain(4096, 2, 8) < 2, "little but reading"
    assert gain(4096, 2, 8, train=True) < 2
    task = Task(Chain.butterfly(4096), 4096)
    assert cost.native_seconds(task) / cost.native_seconds(replace(task, threads=8)) < 2, "mostly moving"


def test_more_threads_than_cores_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(Chain.monarch(1024, 1024, blocks=32), 1024, threads=4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for seconds in (cost.dense_seconds, cost.native_seconds, cost.merge_seconds):
        assert seconds(replace(task, threads=64)) == seconds(task) < seconds(replace(task, threads=1))


# microseconds of F.linear, best of many, one core of a Zen 4 processor
TWO_BYTES = [(512, 16, 1, 15.5), (100, 100, 3, 15.9), (64, 64, 64, 16.4), (256, 256, 16, 26.3), (512, 512, 64, 174.8)]


@pytest.mark.parametrize(("m", "n", "rows", "measured"), TWO_BYTES)
def test_matrices_of_bfloat16_have_their_price(m: int, n: int, rows: int, measured: float) -> None:
    task = Task(Chain([(1, m, n, 1)]), rows, torch.bfloat16)
    assert cost.layer_seconds(m, n, task) == pytest.approx(1e-6 * measured, rel=0.35)
