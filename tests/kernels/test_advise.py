"""The advice: which chain, which batches, which sentence; and everything that it refuses."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatwing import Chain
from flatwing.kernels import BACKENDS, candidates, explain, wisdom
from flatwing.kernels.advice import percent
from flatwing.kernels.advise import LAST, advise
from flatwing.kernels.backend import Task
from flatwing.kernels.candidates import sensible, within
from flatwing.kernels.race import Timing
from strategies import as_user


def test_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    advice = advise(512, 1024, batches=(1, 100), dtype="float64", threads=2, train=True)
    record = advice.as_dict()
    assert record == json.loads(json.dumps(record, allow_nan=False))
    assert (record["shape"], record["dense_parameters"], record["dense_flops"]) == ([512, 1024], 2**19, 2**20)
    assert Chain.parse(record["chain"]) == advice.chain == Chain.monarch(512, 1024, blocks=(16, 32))
    assert (record["parameters"], record["flops"]) == (advice.chain.nnz, 2 * advice.chain.nnz)
    assert record["choice"].startswith("monarch(512, 1024, blocks=(16, 32)): Monarch with")
    assert (record["dtype"], record["device"], record["threads"], record["train"]) == ("float64", "cpu", 2, True)
    assert [(row["batch"], row["rows"]) for row in record["batches"]] == [(1, 1), (100, 128)]
    for row in record["batches"]:
        assert row["speedup"] == pytest.approx(row["dense_seconds"] / row["seconds"])
        assert row["seconds"] == min(row["times"].values()) == row["times"][row["backend"]]
        assert (row["measured"], row["interval"]) == (False, None)
    assert record["tried"] == [1 << i for i in range(17)]
    assert record["tried"][-1] == LAST
    assert record["alternatives"] == []
    assert str(advice) == record["sentence"]


@pytest.mark.parametrize("change", [{"train": True}, {"dtype": torch.complex128}, {"threads": 4}])
def test_task_reaches_the_prediction(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    plain, other = advise(1024, 1024, batches=[4096]), advise(1024, 1024, batches=[4096], **change)
    assert (other.rows[0].dense_seconds > plain.rows[0].dense_seconds) == ("threads" not in change)
    assert other.rows[0].seconds != plain.rows[0].seconds


def test_huge_sizes_are_predicted_without_allocating() -> None:
    advice = advise(10**7, 10**7, batches=[4096])
    assert (advice.verdict, advice.rows[0].speedup > 100) == ("structure", True)
    assert advise(10**7, 10**7, chain=Chain.low_rank(10**7, 10**7, rank=10**7)).verdict == "dense"


@pytest.mark.parametrize(
    ("m", "n", "spec"),
    [
        (1024, 1024, "monarch(1024, 1024, blocks=32)"),
        (1024, 4096, "monarch(1024, 4096, blocks=(32, 64))"),
        (1000, 3072, "monarch(1000, 3072, blocks=(25, 48))"),
        (1, 1, "low_rank(1, 1, rank=1)"),
        (97, 1024, "low_rank(97, 1024, rank=22)"),
    ],
)
def test_sensible_chain(m: int, n: int, spec: str) -> None:
    found, why = sensible(m, n)
    assert found == spec
    assert Chain.parse(found).shape == (m, n)
    assert why.startswith(("Monarch", "low rank"))


@pytest.mark.parametrize(("m", "n"), [(64, 64), (1024, 1024), (768, 3072), (97, 101), (30, 42)])
@pytest.mark.parametrize("budget", [0.1, 0.3, 1.0])
def test_candidates_are_within_the_budget_and_reach_everything(m: int, n: int, budget: float) -> None:
    families = within(m, n, budget)
    assert "low_rank" in families
    for specs in families.values():
        for spec in specs:
            chain = Chain.parse(spec)
            assert chain.shape == (m, n)
            assert chain.nnz <= budget * m * n
            assert chain.pattern.density == 1, "every input reaches every output"
        assert len(specs) == 1 or all(Chain.parse(spec).nnz >= 0.5 * int(budget * m * n) for spec in specs)


def test_budget_takes_the_fastest_that_uses_it() -> None:
    advice = advise(1024, 1024, budget=0.25, batches=[16, 256])
    rich = [other for other in advice.alternatives if other.parameters >= 0.5 * 0.25 * 2**20]
    assert advice.chain == Chain.parse(advice.alternatives[0].spec)
    assert advice.alternatives[0].speedup == max(other.speedup for other in rich)
    assert advice.alternatives[: len(rich)] == tuple(rich)
    assert len(advice.alternatives) >= 3
    ratios = dict(advice.alternatives[0].speedups)
    assert ratios == {row.batch: row.speedup for row in advice.rows}
    assert advice.alternatives[0].speedup == pytest.approx((ratios[16] * ratios[256]) ** 0.5)
    assert "predicted to be the fastest within 0.25" in advice.choice


def test_a_chain_that_leaves_the_budget_unused_is_not_chosen_for_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "USED", 0.95)
    advice = advise(1024, 1024, budget=0.25, batches=[256])
    rich = [other.parameters >= 0.95 * 0.25 * 2**20 for other in advice.alternatives]
    speedups = [other.speedup for other in advice.alternatives]
    assert rich == sorted(rich, reverse=True)
    assert max(speedups) > speedups[0], "a smaller one is faster"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_saves_no_parameter_is_not_recommended(size: int) -> None:
    advice = advise(size, size)
    assert advice.chain.density >= 1
    assert (advice.verdict, advice.break_even) == ("dense", None)
    assert advice.sentence.startswith(f"Keep dense: the chain has {percent(advice.chain.density)} of its parameters")


def test_tiny_shares_have_digits() -> None:
    advice = advise(chain=Chain.low_rank(10**7, 10**7, rank=2))
    assert "with 0.000040% of the parameters." in advice.sentence


def test_dense_chain_loses_and_is_told_so() -> None:
    advice = advise(chain=Chain.low_rank(256, 256, rank=256))
    assert (advice.verdict, advice.runs("structure")) == ("dense", ())
    assert all(row.speedup < 1 for row in advice.rows)


@pytest.fixture
def raced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Measuring takes no time and gives fixed times: dense wins below batch 10. The batches that were measured."""
    seen: list[int] = []

    def race(task: Any) -> dict[str, Timing]:
        seen.append(task.rows)
        bmm = 1e-5 if task.rows >= 10 else 3e-5
        return {
            **{name: Timing(9e-5, 8e-5, 1e-4, 7) for name in BACKENDS},
            "F.linear": Timing(2e-5, 1.9e-5, 2.1e-5, 7),
            "bmm": Timing(bmm, 0.9 * bmm, 1.2 * bmm, 7),
        }

    monkeypatch.setattr(sys.modules["flatwing.kernels.advise"], "race", race)
    return seen


def test_measured_advice_claims_nothing_between(raced: list[int], wisdom_file: Path) -> None:
    told: list[tuple[str, int, int]] = []
    advice = advise(64, 64, batches=(4, 100), measure=True, progress=lambda *a: told.append(a))
    assert raced == [4, 128]
    assert told == [("batch 4", 0, 2), ("batch 128", 1, 2)]
    assert (advice.outcomes, advice.verdict) == (((4, "dense"), (128, "structure")), "depends")
    assert "Batch 100 counts as 128" in advice.sentence
    low, high = advice.rows
    assert (high.batch, high.rows) == (100, 128)
    assert (low.backend, low.measured, low.speedup) == ("bmm", True, pytest.approx(2 / 3))
    assert (high.seconds, high.interval, high.dense_interval) == (1e-5, (0.9e-5, 1.2e-5), (1.9e-5, 2.1e-5))
    assert high.times[0] == ("bmm", 1e-5)
    assert sorted(dict(high.times)) == sorted(BACKENDS)
    later = advise(64, 64, batches=(128,))
    assert (later.rows[0].measured, later.rows[0].seconds, later.rows[0].dense_seconds) == (True, 1e-5, 2e-5)


def test_batches_of_one_plan_are_measured_once(raced: list[int], wisdom_file: Path) -> None:
    advice = advise(64, 64, batches=(33, 64, 48), measure=True)
    assert raced == [64]
    assert [(row.batch, row.rows) for row in advice.rows] == [(33, 64), (64, 64), (48, 64)]
    assert (advice.tried, advice.source) == ((64,), "measured")
    plan = explain(advice.chain, batch=33)
    assert (plan.measured, plan.task.rows) == (True, 64)
    assert "64 rows" in str(plan)


def test_without_a_time_of_dense_a_speed_up_is_not_measured(wisdom_file: Path) -> None:
    chain = Chain.monarch(64, 64, blocks=8)
    wisdom.store(Task(chain, 16), {"bmm": 1e-7})
    advice = advise(chain=chain, batches=16, threads=1)
    assert (advice.rows[0].seconds, advice.rows[0].measured, advice.source) == (1e-7, False, "predicted")
    wisdom.store(Task(chain, 16), {"F.linear": 1e-6})
    advice = advise(chain=chain, batches=16, threads=1)
    assert (advice.rows[0].measured, advice.source) == (True, "measured")
    assert advise(chain=chain, batches=[16, 64], threads=1).source == "in part measured"


def test_batches_beyond_the_grid_widen_it() -> None:
    advice = advise(1024, 1024, batches=[1 << 18])
    assert advice.tried == tuple(1 << i for i in range(19))


@as_user()
def test_numbers_of_numpy_are_numbers() -> None:
    advice = advise(np.int64(64), np.int32(64), batches=np.int64(16), threads=np.int64(1))  # type: ignore[arg-type]
    assert [type(row.batch) for row in advice.rows] == [int]
    assert advice.as_dict() == advise(64, 64, batches=16, threads=1).as_dict()
    json.dumps(advise(64, 64, batches=[np.int64(3), 5]).as_dict())  # type: ignore[list-item]


def test_packed_weights_are_advised_on_and_remembered_apart(raced: list[int], wisdom_file: Path) -> None:
    plain, packed = (advise(64, 64, batches=1, threads=1, packed=packed) for packed in (False, True))
    assert (plain.packed, packed.packed, packed.as_dict()["packed"]) == (False, True, True)
    assert packed.rows[0].seconds < plain.rows[0].seconds
    assert packed.rows[0].dense_seconds == plain.rows[0].dense_seconds
    advise(64, 64, batches=16, threads=1, packed=True, measure=True)
    plain, packed = (advise(64, 64, batches=16, threads=1, packed=packed) for packed in (False, True))
    assert (packed.rows[0].measured, packed.rows[0].seconds, packed.rows[0].dense_seconds) == (True, 1e-5, 2e-5)
    assert (plain.rows[0].measured, plain.rows[0].dense_seconds) == (False, 2e-5), "dense is the same in both"


def test_packed_weights_have_no_gradients() -> None:
    with pytest.raises(ValueError, match=r"train and packed were both asked for. Rule: at most one of them"):
        advise(64, 64, train=True, packed=True)


def test_a_device_of_torch_and_a_single_batch() -> None:
    advice = advise(64, 64, device=torch.device("cpu"), batches=16)
    assert (advice.device, [row.batch for row in advice.rows]) == ("cpu", [16])


def test_threads_beyond_the_cores_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    advice = advise(64, 64, threads=64)
    assert advice.threads == 2
    assert advice.notes == ("threads=64 are more than the 2 cores of this machine; the advice is for 2",)


def test_what_was_measured_before_an_interruption_is_kept(raced: list[int], wisdom_file: Path) -> None:

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        advise(64, 64, batches=(4, 100), measure=True, progress=interrupt)
    wisdom.forget()
    assert advise(64, 64, batches=(4, 100)).rows[0].measured
    assert not advise(64, 64, batches=(4, 100)).rows[1].measured


def test_a_file_that_cannot_be_written_costs_a_note(raced: list[int], wisdom_file: Path) -> None:
    wisdom_file.parent.write_text("a file where a folder should be")
    advice = advise(64, 64, batches=(4,), measure=True)
    assert advice.rows[0].measured
    assert len(advice.notes) == 2
    assert advice.notes[0].startswith("the rates of this machine could not be kept for later plans: ")
    assert advice.notes[1].startswith("the times of batch 4 could not be kept for later plans: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"m \(outputs\) is missing. Rule: both sizes"),
        ({"m": 8}, r"n \(inputs\) is missing"),
        ({"m": 0, "n": 8}, r"m \(outputs\) is 0. Rule: a whole number from 1"),
        ({"m": 8, "n": 1 << 41}, r"n \(inputs\) is 2199023255552"),
        ({"m": True, "n": 8}, r"m \(outputs\) is True"),
        ({"m": 8, "n": 8, "chain": "butterfly(16)"}, "shape 16 x 16, wanted is 8 x 8"),
        ({"m": 8, "chain": "butterfly(16)"}, "shape 16 x 16, wanted is 8 x 16"),
        ({"chain": "monarhc(8,8,blocks=2)"}, "did you mean 'monarch'"),
        ({"chain": "butterfly(16)", "budget": 0.5}, "a chain and a budget"),
        ({"m": 64, "n": 64, "budget": 0.0}, r"budget is 0.0. Rule: a number, above 0 and at most 1"),
        ({"m": 64, "n": 64, "budget": 1.5}, r"budget is 1.5. Rule: a number"),
        ({"m": 64, "n": 64, "budget": float("nan")}, r"budget is nan. Rule: a number"),
        ({"m": 64, "n": 64, "budget": 0.01}, r"allows 40 of 4,096 parameters, rank 1 needs 128. Rule: at least 0.031"),
        ({"m": 8, "n": 8, "batches": []}, "no batch was given"),
        ({"m": 8, "n": 8, "batches": [4, 0]}, "batch is 0. Rule"),
        ({"m": 8, "n": 8, "dtype": "float23"}, "unknown dtype 'float23', did you mean 'float32'"),
        ({"m": 8, "n": 8, "dtype": torch.int32}, "factors of dtype int32 are not multiplied. Rule: one of float32"),
        ({"m": 8, "n": 8, "batches": 0}, "batch is 0. Rule"),
        ({"m": 8, "n": 8, "batches": True}, "batch is True. Rule"),
        ({"m": 8, "n": 8, "device": torch.device("meta")}, "times on 'meta' are not predicted"),
        ({"m": 8, "n": 8, "device": "gpu"}, "times on 'gpu' are not predicted"),
        ({"m": 8, "n": 8, "threads": 0}, "threads is 0. Rule"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        advise(**arguments)


def test_no_cuda_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch sees no CUDA device here.*take 'cpu'"):
        advise(8, 8, device="cuda")
