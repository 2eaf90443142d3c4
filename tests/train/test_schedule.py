"""Schedules begin at 1, never leave [0, 1], and rise before they fall."""

from itertools import pairwise

import pytest

from flatwing.train import SCHEDULES
from flatwing.train.schedule import factor


def test_names_are_frozen() -> None:
    assert list(SCHEDULES) == ["constant", "cosine", "linear", "wsd"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_starts_at_one_and_never_rises(name: str) -> None:
    values = [factor(name, step, 50) for step in range(50)]
    assert values[0] == 1
    assert all(0 <= later <= earlier for earlier, later in pairwise(values))


@pytest.mark.parametrize(("name", "last"), [("constant", 1.0), ("cosine", 0.02447), ("linear", 0.1)])
def test_last_factor(name: str, last: float) -> None:
    assert factor(name, 9, 10) == pytest.approx(last, abs=1e-5)


def test_warmup_rises_in_equal_parts_to_the_schedule() -> None:
    assert [factor("constant", step, 8, warmup=4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'cosin', did you mean 'cosine'"):
        factor("cosin", 0, 1)
