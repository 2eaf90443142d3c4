import dataclasses
import json
from dataclasses import replace

import pytest
import torch

from flatwing import Chain, SparseProduct, kernels
from flatwing.kernels import plan as plans
from flatwing.kernels.backend import Backend, Task
from flatwing.kernels.plan import plan_for
from flatwing.structure import transforms
from strategies import as_user


class Fixed(Backend):
    """Takes the time it is told to; supports what it is told to."""

    native = True

    def __init__(self, time: float, reason: str | None = None) -> None:
        self.time, self.reason = time, reason

    def unsupported_because(self, task):
        return self.reason

    def seconds(self, task):
        return self.time

    def forward(self, x, factors, depths, last):
        return torch.full((len(x), 4), self.time)


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"slow": Fixed(3.0), "fast": Fixed(2.0), "none": Fixed(1.0, "it rains"), "reference": Fixed(0.1)}
    monkeypatch.setattr(kernels.BACKENDS, "_entries", entries)
    caches = (plans._plan_for, plans._plan_of, plans._runner_of)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("fixed")
def test_the_fastest_that_can_run_is_chosen() -> None:
    task = Task(Chain.butterfly(4), 8)
    plan = plans.plan_for(task)
    assert plan.backend == "fast"
    assert plan.seconds == pytest.approx(2.0, abs=1e-4)
    assert [name for name, _ in plan.times] == ["fast", "slow"]
    assert dict(plan.skipped) == {
        "none": "it rains",
        "reference": "the definition, for comparison: runs when it is named",
    }
    assert "fast: 2e+06 us predicted" in str(plan)
    assert "none skipped: it rains" in str(plan)
    P = SparseProduct(Chain.butterfly(4), [torch.ones(2, 2, 2)] * 2)
    assert kernels.multiply(torch.ones(3, 4), P)[0, 0] == 2.0
    assert kernels.multiply(torch.ones(3, 4), P, backend="slow")[0, 0] == 3.0
    assert plans.plan_for(task, "reference").reason == "asked for by name"
    with pytest.raises(ValueError, match=r"'none' cannot multiply this: it rains. Rule: .*here slow, fast, ref"):
        plans.plan_for(task, "none")


@pytest.mark.usefixtures("fixed")
def test_what_was_measured_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(Chain.butterfly(4), 8)
    assert not plans.plan_for(task).measured
    monkeypatch.setattr(plans.wisdom, "lookup", lambda task: {"slow": 0.5, "F.linear": 2.0})
    monkeypatch.setattr(plans.wisdom, "version", lambda: 12345)
    plan = plans.plan_for(task)
    assert (plan.backend, plan.measured, plan.speedup) == ("slow", True, 4.0)


def test_a_plan_is_immutable_and_cached() -> None:
    task = Task(Chain.butterfly(64), 8)
    plan = plans.plan_for(task)
    assert plans.plan_for(Task(Chain.butterfly(64), 8)) is plan
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"backend"):
        plan.backend = "dense"  # pyright: ignore
    assert json.loads(json.dumps(plan.as_dict()))["backend"] == plan.backend


def test_rows_are_rounded_up_to_a_power_of_two() -> None:
    chain = Chain.butterfly(8)
    asked = {
        rows: plans.plan_of(chain, torch.ones(rows, 8), False, False, "bmm").task.rows for rows in (1, 2, 3, 5, 64, 65)
    }
    assert asked == {1: 1, 2: 2, 3: 4, 5: 8, 64: 64, 65: 128}
    assert plans.plan_of(chain, torch.ones(8, 5), True, False, "bmm").task.layout == "batch-last"


@pytest.mark.parametrize(
    "chain", [Chain.butterfly(256), Chain.butterfly(256).T, Chain.butterfly(81), Chain.monarch(64, 64, blocks=8)]
)
@pytest.mark.parametrize("rows", [1, 4096])
def test_merges_are_exact(chain: Chain, rows: int) -> None:
    plan = plans.plan_for(Task(chain, rows, torch.float64), "bmm")
    P = transforms.random_product(chain)
    factors = plans.merged_factors(chain, P.factors, plan.merged)
    assert [tuple(w.shape) for w in factors] == [(p.blocks, p.b, p.c) for p in plan.chain]
    torch.testing.assert_close(SparseProduct(plan.chain, factors).dense(), P.dense())


def test_merges_pay_for_themselves() -> None:
    many = plans.plan_for(Task(Chain.butterfly(1024), 4096), "bmm")
    assert many.merged
    assert len(many.chain) < 10
    assert plans.plan_for(Task(Chain.monarch(1024, 1024, blocks=32), 256), "bmm").merged == ()
    broken = Chain.parse("(1,2,2,64)(2,2,2,32)(1,2,2,64)(64,2,2,1)")  # has no product pattern
    assert plans.plan_for(Task(broken, 4096), "bmm").merged == ()
    assert "merged first, exactly" in str(many)


def test_merged_neighbours_are_differentiated() -> None:
    chain = Chain.butterfly(64)
    plan = plans.plan_for(Task(chain, 4096, torch.float64, train=True), "bmm")
    assert plan.merged
    P = transforms.random_product(chain)
    factors = [w.clone().requires_grad_() for w in P.factors]
    x = torch.randn(4096, 64, dtype=torch.float64, requires_grad=True)
    got = torch.autograd.grad(
        kernels.multiply(x, SparseProduct(chain, factors), backend="bmm").square().sum(), [x, *factors]
    )
    want = torch.autograd.grad((x @ SparseProduct(chain, factors).dense().T).square().sum(), [x, *factors])
    torch.testing.assert_close(got, want)


def test_a_batch_is_compared_with_a_batch_of_dense_matrices() -> None:
    chain = Chain.butterfly(64)
    product = SparseProduct(chain, [torch.ones(8, p.blocks, p.b, p.c) for p in chain])
    plan = kernels.explain(product, 16)
    assert plan.task.chain.shape == (512, 512)
    diagonal = kernels.explain(plan.task.chain, 16)
    assert plan.dense_seconds < diagonal.dense_seconds / 4
    assert plan.speedup < 2, "eight products of 64 x 64 are no faster than batched GEMM"


def test_devices_are_named_properly() -> None:
    chain = Chain.butterfly(64)
    assert kernels.explain(chain, 16, device="cuda:0").task.device == "cuda"
    assert kernels.explain(chain, 16, device=torch.device("cpu")).task.device == "cpu"
    with pytest.raises(ValueError, match=r"times on 'cpuu' are not predicted, did you mean 'cpu'\? Rule: cpu or cuda"):
        kernels.explain(chain, 16, device="cpuu")
    with as_user(), pytest.raises(TypeError, match=r"device is 0. Rule: a device of torch or its name"):
        kernels.explain(chain, 16, device=0)  # type: ignore[arg-type]


def test_more_threads_than_cores_promise_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for text in ("butterfly(1024)", "monarch(1024, 1024, blocks=32)"):
        task = Task(Chain.parse(text), 65536, threads=4)
        assert plan_for(replace(task, threads=1000), "numba").seconds == plan_for(task, "numba").seconds


def test_a_reason_that_is_a_sentence_ends_with_one_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans.BACKENDS["bmm"], "unsupported_because", lambda task: "it is not here. Try `this`.")
    with pytest.raises(ValueError, match=r"cannot multiply this: it is not here\. Try `this`\. Rule: a backend"):
        plan_for(Task(Chain.parse("(7,3,5,2)"), 1), "bmm")  # a task whose plan nobody else asks for
