import inspect
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from flatwing.optim import BatchSizeSchedule
from flatwing.optim.batch_size import MicroBatch, excess_loss, optimal_switch, two_stage

STAGES = [(0, 6), (20, 11), (50, 16)]


def steps(schedule: BatchSizeSchedule) -> list[list[MicroBatch]]:
    done, found = [], []
    for part in schedule:
        found.append(part)
        if part.last:
            done.append(found)
            found = []
    assert not found
    return done


def test_stages_take_effect_where_a_step_begins() -> None:
    sizes = [sum(part.size for part in step) for step in steps(BatchSizeSchedule(STAGES, micro=4, total=100))]
    assert sizes == [6, 6, 6, 6, 11, 11, 11, 16, 16, 11]
    parts = [[part.size for part in step] for step in steps(BatchSizeSchedule(STAGES, micro=4, total=100))]
    assert parts[0] == [4, 2]
    assert parts[4] == [4, 4, 3]


batch = st.integers(1, 30)


@given(st.lists(st.tuples(st.integers(1, 60), batch), max_size=4), batch, st.integers(1, 9), st.integers(1, 300))
def test_every_sample_is_seen_once(later: list[tuple[int, int]], first: int, micro: int, total: int) -> None:
    starts = np.cumsum([0] + [gap for gap, _ in later]).tolist()
    stages = list(zip(starts, [first] + [size for _, size in later], strict=True))
    schedule = BatchSizeSchedule(stages, micro, total)
    done = steps(schedule)
    seen = [number for step in done for part in step for number in range(part.first, part.first + part.size)]
    assert seen == list(range(total))
    assert schedule.seen == total
    assert len(done) == schedule.steps == schedule.total_steps
    for step in done:
        assert sum(part.weight for part in step) == pytest.approx(1.0)
        assert all(part.size == micro for part in step[:-1])
        assert [part.last for part in step] == [False] * (len(step) - 1) + [True]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_accumulated_gradient_is_that_of_the_whole_batch(world: int) -> None:
    """Ragged micro-batches and ranks: the mean over ranks of the accumulated gradients is the gradient of the mean."""
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randn(60, 1, dtype=torch.float64)
    model = nn.Linear(5, 1, dtype=torch.float64)
    settings: dict[str, Any] = {"stages": [(0, 20), (40, 12)], "micro": 8, "total": 60, "world": world}
    first = 0
    ranks = [steps(BatchSizeSchedule(**settings, rank=rank)) for rank in range(world)]
    for number, size in enumerate((20, 20, 12, 8)):
        model.zero_grad()
        for rank in ranks:
            for part in rank[number]:
                here = slice(part.first, part.first + part.size)
                (part.weight / world * F.mse_loss(model(x[here]), y[here])).backward()
        found = model.weight.grad.clone()
        model.zero_grad()
        F.mse_loss(model(x[first : first + size]), y[first : first + size]).backward()
        torch.testing.assert_close(found, model.weight.grad, rtol=1e-12, atol=1e-14)
        first += size


def test_resumed_in_the_middle_of_a_stage_it_goes_on() -> None:
    whole = list(BatchSizeSchedule(STAGES, micro=4, total=100))
    first, begun = BatchSizeSchedule(STAGES, micro=4, total=100), []
    for part in first:
        begun.append(part)
        if part.last and first.steps == 5:
            saved = first.state_dict()
            break
    assert saved == {"seen": 35, "steps": 5}
    second = BatchSizeSchedule(STAGES, micro=4, total=100)
    second.load_state_dict(saved)
    assert begun + list(second) == whole
    assert begun + list(first) == whole  # the loop that was left goes on, too


def test_saved_within_a_step_the_step_begins_anew() -> None:
    schedule = BatchSizeSchedule([(0, 8)], micro=4)
    parts = iter(schedule)
    next(parts), next(parts), next(parts)
    assert schedule.state_dict() == {"seen": 8, "steps": 1}
    assert next(iter(schedule)).first == 8


def test_without_an_end_it_goes_on() -> None:
    schedule = BatchSizeSchedule([(0, 2), (4, 6)], micro=2)
    for part in schedule:
        if part.first >= 1000:
            break
    assert schedule.total_steps is None
    assert schedule.progress is None
    half = BatchSizeSchedule([(0, 5)], micro=5, total=10)
    next(iter(half))
    assert half.progress == 0.5


@pytest.mark.parametrize(("scale", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_learning_rate_follows_the_stage_and_not_the_cut_last_step(scale: str, factor: float) -> None:
    schedule = BatchSizeSchedule([(0, 4), (8, 16)], micro=4, total=34, lr_scale=scale)
    factors = [step[0].lr_factor for step in steps(schedule)]
    assert factors == [1.0, 1.0, factor, factor]


def test_schedulers_do_not_see_the_factor() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for part, _ in groupby(BatchSizeSchedule([(0, 1), (2, 4)], micro=4, total=10, lr_scale="linear")):
        p.grad = torch.ones(1)
        with part.scaled(optimizer):
            optimizer.step()
        scheduler.step()
    assert p.item() == -(1 + 0.5 + 4 * 0.25 + 4 * 0.125)
    with pytest.raises(RuntimeError, match="of the loop"), MicroBatch(0, 1, 1.0, True, 3.0).scaled(optimizer):
        raise RuntimeError("of the loop")
    assert optimizer.param_groups[0]["lr"] == 0.0625


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stages": []}, r"begin at \[\]"),
        ({"stages": [(5, 4)]}, r"begin at \[5\] samples. Rule: at 0"),
        ({"stages": [(0, 4), (9, 8), (7, 8)]}, "ascending"),
        ({"micro": 0}, "micro is 0"),
        ({"stages": [(0, 4), (8, 0)]}, "from 8 samples on is 0"),
        ({"total": -3}, "total is -3"),
        ({"lr_scale": "cubic"}, "Known: none, sqrt, linear"),
        ({"world": 2, "rank": 2}, "rank is 2 of 2"),
        ({"world": 3, "micro": 3}, "is 4. Rule: at least 1, divisible by 3 ranks. Nearest good value: 3"),
        ({"world": 4, "total": 30}, "total is 30.*Nearest good value: 32"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BatchSizeSchedule(**{"stages": [(0, 4)], "micro": 4, **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stages": None}, "stages is None. Rule: pairs"),
        ({"stages": {0: 64}}, r"stages is \{0: 64\}. Rule: pairs"),
        ({"stages": [64]}, r"a stage is 64. Rule: \(samples seen, batch size\)"),
        ({"stages": [(0, "x")]}, "a batch size is 'x'. Rule: a whole number"),
        ({"rank": "x"}, "rank is 'x'. Rule: a whole number"),
        ({"world": None}, "world is None. Rule: a whole number, at least 1"),
        ({"lr_scale": ["sqrt"]}, r"unknown lr_scale \['sqrt'\]"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused(settings: dict[str, Any], words: str) -> None:
    schedule = BatchSizeSchedule([(0, 4)], 4)
    make = inspect.unwrap(type(schedule).__init__)  # without the tests' check of annotations, which comes first
    with pytest.raises(ValueError, match=words):
        make(schedule, **{"stages": [(0, 4)], "micro": 4, **settings})


def test_counts_of_a_wrong_kind_are_refused() -> None:
    schedule = BatchSizeSchedule([(0, 4)], 4, total=10)
    for state, words in (({}, "with seen and steps"), ({"seen": 1.5, "steps": 1}, "seen is 1.5. Rule: a whole number")):
        with pytest.raises(ValueError, match=words):
            schedule.load_state_dict(state)
    with pytest.raises(ValueError, match=r"seen is -1. Rule: a whole number, at least 0"):
        schedule.batch_size(-1)
    with pytest.raises(ValueError, match=r"s is True. Rule: a number"):
        inspect.unwrap(two_stage)(100, 1, 4, s=True, beta=2.0)


def test_state_beyond_the_end_is_refused() -> None:
    with pytest.raises(ValueError, match="seen 11 samples"):
        BatchSizeSchedule([(0, 4)], 4, total=10).load_state_dict({"seen": 11, "steps": 3})


def test_excess_loss_is_the_integral() -> None:
    total, small, large, s, beta, noise, switch = 1000, 2, 10, 0.4, 2.5, 0.7, 600.0
    late = (total - switch) / large
    end = switch / small + late
    t = np.linspace(0, end, 2_000_001)
    kernel = (end - t + 1) ** -(2 - 1 / beta) / np.where(end - t > late, small, large)
    wanted = end**-s + noise * np.trapezoid(kernel, t)
    assert excess_loss(switch, total, small, large, s, beta, noise) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("s", "beta"), [(0.3, 2.0), (0.2, 3.0), (0.4, 4.0)])
def test_share_of_the_large_batch_falls_with_the_exponent_of_the_theory(s: float, beta: float) -> None:
    totals = [10**power for power in range(8, 15)]
    shares = [1 - optimal_switch(total, 1, 4, s, beta) / total for total in totals]
    slope = np.polyfit(np.log(totals), np.log(shares), 1)[0]
    assert abs(slope + (1 - 1 / beta - s) / (2 - 1 / beta)) < 0.01
    for total, share in zip(totals[-3:], shares[-3:], strict=True):
        stages = two_stage(total, 1, 4, s, beta)
        assert 1 - stages[1][0] / total == pytest.approx(share, rel=0.06)


@pytest.mark.parametrize("noise", [0.05, 1.0, 20.0])
@pytest.mark.parametrize(
    ("total", "s", "beta"), [(10**4, 0.3, 2.0), (10**7, 0.6, 2.0), (10**9, 0.1, 1.5), (10**3, 0.05, 6.0)]
)
def test_no_other_switch_is_better(total: int, s: float, beta: float, noise: float) -> None:
    best = excess_loss(optimal_switch(total, 2, 32, s, beta, noise), total, 2, 32, s, beta, noise)
    others = total * (1 - np.append(np.geomspace(1e-8, 1, 3001), 0.0))
    assert best <= excess_loss(others, total, 2, 32, s, beta, noise).min() * (1 + 1e-9)


def test_easy_tasks_take_the_large_batch_throughout() -> None:
    assert optimal_switch(10**10, 1, 4, 1.0, 2.0) == 0.0
    assert two_stage(10**10, 1, 4, 1.0, 2.0) == ((0, 4),)
    # with little noise only in the end: the share of small batches falls with the size of the data
    shares = [optimal_switch(total, 1, 4, 0.6, 2.0, 0.01) / total for total in (10**5, 10**9, 10**15, 10**30)]
    assert shares == sorted(shares, reverse=True)
    assert 0.7 < shares[0] < 0.9
    assert shares[-1] == 0.0
    _, (switch, _) = two_stage(10**5, 1, 4, 0.6, 2.0, 0.01)
    assert switch / 10**5 == pytest.approx(shares[0], abs=0.04)


def test_stages_of_the_theory_make_a_schedule() -> None:
    stages = two_stage(1_000_000, 16, 64, 0.3, 2.0)
    schedule = BatchSizeSchedule(stages, micro=16, total=1_000_000)
    assert [schedule.batch_size(seen) for seen in (0, stages[1][0] - 1, stages[1][0])] == [16, 16, 64]
    # so much noise that the large batch pays from the first sample on
    assert two_stage(1_000_000, 16, 64, 0.3, 2.0, noise=1e6) == ((0, 64),)


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"s": 0.0}, "s is 0.0"), ({"beta": 1.0}, "beta is 1.0"), ({"noise": -1.0}, "noise"), ({"small": 9}, "small 9")],
)
def test_law_is_checked(setting: dict[str, Any], words: str) -> None:
    given = {"total": 1000, "small": 1, "large": 4, "s": 0.3, "beta": 2.0, **setting}
    with pytest.raises(ValueError, match=words):
        two_stage(**given)
