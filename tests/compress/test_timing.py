import gc
import time

import numpy as np
import pytest
import torch
from torch import nn
from typing_extensions import override

from flatwing.compress import timing
from flatwing.compress.batch import Batch
from flatwing.compress.timing import ROUNDS, latency, layer_speed, median_interval
from flatwing.nn import StructuredLinear


class Sleeper(nn.Module):
    """Takes `ms` milliseconds per row."""

    def __init__(self, ms: float, log: list[str] | None = None, name: str = "") -> None:
        super().__init__()
        self.ms, self.log, self.name = ms, log if log is not None else [], name

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(self.name)
        time.sleep(self.ms * len(x) / 1e3)
        return x


def rows(size: int) -> Batch:
    return Batch((torch.ones(size, 4),))


def test_latency_by_batch_size_with_its_interval() -> None:
    found = latency({"slow": Sleeper(2.0), "fast": Sleeper(1.0)}, rows, sizes=(1, 3), seconds=0.05)
    assert list(found) == ["slow", "fast"]
    assert [row["batch"] for row in found["slow"]] == [1, 3]
    for slow, fast in zip(found["slow"], found["fast"], strict=True):
        assert set(slow) == {"batch", "ms", "low", "high"}
        assert slow["low"] <= slow["ms"] <= slow["high"]
        assert slow["low"] >= 2.0 * slow["batch"]
        assert 1.3 < slow["ms"] / fast["ms"] < 2.7


def test_the_models_take_turns_in_an_order_that_the_seed_decides() -> None:
    logs: list[list[str]] = []
    for seed in (0, 0, 1):
        log: list[str] = []
        models = {name: Sleeper(0.1, log, name) for name in "abc"}
        latency(models, rows, sizes=(1,), seconds=0.0, seed=seed)
        logs.append(log)
    timed = logs[0][6:]  # after two calls each to warm up
    rounds = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert len(rounds) == ROUNDS
    assert all(sorted(own) == ["a", "b", "c"] for own in rounds)
    assert len({tuple(own) for own in rounds}) > 1
    assert logs[0] == logs[1] != logs[2]


def test_modes_and_the_collector_are_as_before() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    latency({"net": model}, rows, sizes=(1,), seconds=0.0)
    assert model.training
    assert gc.isenabled()


@pytest.mark.parametrize("n", [6, 7, 20, 101, 301])
def test_the_interval_covers_the_median_and_is_no_wider_than_it_needs_to_be(n: int) -> None:
    generator = np.random.default_rng(0)
    draws = generator.exponential(size=(3000, n))
    intervals = np.array([median_interval(list(row)) for row in draws])
    covered = ((intervals[:, 0] <= np.log(2)) & (np.log(2) <= intervals[:, 1])).mean()
    assert 0.94 < covered < 0.985


def test_few_values_give_their_extremes() -> None:
    assert median_interval([3.0]) == (3.0, 3.0)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_speed_of_a_layer_is_relative_to_the_dense_one() -> None:
    big, small = nn.Linear(1024, 1024), nn.Linear(1024, 64)
    assert layer_speed(big, small, rows=64) > 3
    assert layer_speed(small, big, rows=64) < 1 / 3


def test_a_layer_that_is_stored_the_other_way_round_is_timed_as_well() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    dense = pytorch_utils.Conv1D(32, 1024)
    assert layer_speed(dense, nn.Linear(1024, 32), rows=4, seconds=0.01) > 0
    assert layer_speed(dense, dense, rows=4, seconds=0.01) > 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="0 models"):
        latency({}, rows)
    with pytest.raises(ValueError, match=r"batch sizes \(0, 1\)"):
        latency({"a": nn.Linear(4, 4)}, rows, sizes=(0, 1))


def test_structured_layers_are_timed_packed_and_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        foreign = StructuredLinear("butterfly(16)")  # nobody counts its changes: it cannot be packed
    mine, other = StructuredLinear("butterfly(16)"), StructuredLinear("butterfly(16)")
    mine.pack()
    model = nn.Sequential(mine, nn.ReLU(), other, foreign)
    seen = []
    forward = StructuredLinear.forward
    monkeypatch.setattr(StructuredLinear, "forward", lambda self, x: seen.append(self.is_packed) or forward(self, x))
    timing.latency({"net": model}, lambda n: Batch((torch.ones(n, 16),)), sizes=(2,), seconds=0.01)
    assert seen[:3] == [True, True, False]
    assert [layer.is_packed for layer in (mine, other, foreign)] == [True, False, False]
    seen.clear()
    timing.race_layers({"a": other}, rows=2, seconds=0.01)
    assert all(seen)
    assert not other.is_packed
