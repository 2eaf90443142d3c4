"""Every epoch visits every sample once, in an order that depends on seed and epoch alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing.data import visits


@given(size=st.integers(1, 300), epoch=st.integers(0, 5), seed=st.integers(-5, 2**64))
def test_an_epoch_visits_every_sample_once(size: int, epoch: int, seed: int) -> None:
    assert sorted(visits(epoch * size, size, size, seed).tolist()) == list(range(size))


@given(size=st.integers(1, 50), first=st.integers(0, 200), count=st.integers(1, 60), at=st.integers(0, 59))
def test_a_range_is_a_part_of_the_sequence(size: int, first: int, count: int, at: int) -> None:
    whole = visits(first, count, size, seed=3)
    assert visits(first + at % count, 1, size, seed=3).item() == whole[at % count]


def test_epochs_and_seeds_differ() -> None:
    first = visits(0, 100, 100)
    assert not torch.equal(first, visits(100, 100, 100))
    assert not torch.equal(first, visits(0, 100, 100, seed=1))
    assert not torch.equal(visits(100, 100, 100), visits(0, 100, 100, seed=1))  # seed and epoch are not added up


def test_order_is_frozen() -> None:
    # a change would silently change every run that is resumed
    assert visits(0, 8, 1257, seed=0).tolist() == [350, 21, 449, 1157, 31, 972, 881, 168]
    assert visits(10**12, 3, 9_000_000, seed=7).tolist() == [8230956, 6954723, 4874241]


@pytest.mark.parametrize("size", [5, 10, 64])
def test_every_sample_is_equally_likely_at_every_place(size: int) -> None:
    seeds, counts = 2000, torch.zeros(size, size)
    for seed in range(seeds):
        counts[torch.arange(size), visits(0, size, size, seed)] += 1
    freedom = (size - 1) ** 2
    chi2 = ((counts - seeds / size) ** 2 / (seeds / size)).sum().item()
    assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_size_beyond_memory_costs_nothing() -> None:
    numbers = visits(2**50, 1000, 2**45, seed=1)
    assert len(numbers.unique()) == 1000
    assert 0.4 < (numbers.double() / 2**45).mean() < 0.6


@pytest.mark.parametrize(("name", "arguments"), [("first", (-1, 1, 1)), ("count", (0, 0, 1)), ("size", (0, 1, 0))])
def test_senseless_ranges_are_refused(name: str, arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*Rule: a whole number, at least"):
        visits(*arguments)
