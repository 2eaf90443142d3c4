"""The race that `advise` measures with: everybody takes turns, nothing is left behind, nothing too large begins."""

import pytest
import torch

from flatwing import Chain, SparseProduct
from flatwing.kernels import BACKENDS, race
from flatwing.kernels.backend import Task
from flatwing.kernels.plan import plan_for

CHAIN = Chain.monarch(16, 24, blocks=4)


@pytest.mark.parametrize("layout", ["batch-first", "batch-last"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.bfloat16])
def test_all_backends_that_may_run_and_dense_take_part(dtype: torch.dtype, train: bool, layout: str) -> None:
    task = Task(CHAIN, 4, dtype, layout=layout, train=train)  # type: ignore[arg-type]
    timings = race.race(task, seconds=0.0)
    can = {name for name, backend in BACKENDS.items() if backend.unsupported_because(task) is None}
    assert set(timings) == (can - {"reference"}) | {"F.linear"}
    for timing in timings.values():
        assert 0 < timing.low <= timing.seconds <= timing.high
        assert timing.rounds == race.ROUNDS


def test_who_has_no_chance_does_not_take_part() -> None:
    task = Task(Chain.butterfly(1024), 1)
    times = dict(plan_for(task).times)
    assert times["dense"] > race.HOPELESS * min(times.values())
    assert set(race.race(task, seconds=0.0)) == set(times) - {"dense"} | {"F.linear"}


def test_a_step_takes_gradients_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    real = torch.autograd.grad

    def grad(y: torch.Tensor, leaves: list[torch.Tensor], g: torch.Tensor) -> object:
        shapes.append(sorted(tuple(leaf.shape) for leaf in leaves))
        return real(y, leaves, g)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    race.race(Task(CHAIN, 3, train=True), ["bmm"], seconds=0.0)
    dense, chain = sorted([(3, 24), (16, 24)]), sorted([(3, 24), *((p.blocks, p.b, p.c) for p in CHAIN)])
    assert {tuple(found) for found in shapes} == {tuple(dense), tuple(chain)}


def test_packed_products_take_part_in_packed_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    class Packed:
        def __init__(self, product: SparseProduct, *, backend: str) -> None:
            self.product, self.backend = product, backend

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.backend, tuple(x.shape)))
            return x

    monkeypatch.setattr(race, "Packed", Packed)
    assert set(race.race(Task(CHAIN, 3, packed=True), ["bmm", "dense"], seconds=0.0)) == {"bmm", "dense", "F.linear"}
    assert set(seen) == {("bmm", (3, 24)), ("dense", (3, 24))}


def test_packed_products_are_timed() -> None:
    task = Task(CHAIN, 3, packed=True)
    assert set(race.race(task, seconds=0.0)) == set(dict(plan_for(task).times)) | {"F.linear"}


def test_threads_are_as_before() -> None:
    seen = []
    real, before = torch.nn.functional.linear, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", lambda *a: (seen.append(torch.get_num_threads()), real(*a))[1])
        race.race(Task(CHAIN, 2, threads=before + 1), ["bmm"], seconds=0.0)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_turns_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "SAMPLE", 0.0)
    calls: list[str] = []
    times = race._turns({n: lambda n=n: calls.append(n) for n in "abc"}, 0.0, "cpu", seed=0)
    assert {n: len(own) for n, own in times.items()} == dict.fromkeys("abc", race.ROUNDS)
    rounds = ["".join(calls[i : i + 3]) for i in range(12, len(calls), 3)]  # after four calls each to warm up
    assert len(rounds) == race.ROUNDS
    assert {"".join(sorted(own)) for own in rounds} == {"abc"}
    assert len(set(rounds)) > 1, "in another order each time"


@pytest.mark.parametrize(("size", "rows", "train"), [(10**7, 1, False), (1 << 10, 1 << 40, False), (1 << 16, 1, True)])
def test_what_does_not_fit_is_refused_before_it_is_allocated(
    size: int, rows: int, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "free_memory", lambda device: 1 << 35)
    with pytest.raises(ValueError, match=r"takes about .*, free on cpu are 32 GiB.*Leave out --measure"):
        race.race(Task(Chain.low_rank(size, size, rank=1), rows, train=train))


def test_free_memory_is_believable() -> None:
    free = race.free_memory("cpu")
    assert free is None or 1 << 24 < free < 1 << 50
