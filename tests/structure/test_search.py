import math
from itertools import islice, pairwise, product

import numpy as np
import pytest

from flatwing import Chain
from flatwing.core import divisors
from strategies import as_user


def ordered_factorizations(n: int, length: int) -> list[tuple[int, ...]]:
    if length == 1:
        return [(n,)]
    return [(k, *rest) for k in divisors(n) for rest in ordered_factorizations(n // k, length - 1)]


def irredundant(chain: Chain) -> bool:
    return all(p.rank(q) < min(p.b, q.c) for p, q in pairwise(chain))


def brute_force(m: int, n: int, budget: int) -> set[Chain]:
    """All irredundant chainable chains of an m x n matrix, from all outer numbers, radices and ranks."""
    outer = [(a, d) for a in divisors(math.gcd(m, n)) for d in divisors(math.gcd(m, n) // a)]
    return set().union(*(brute_force_within(m // (a * d), n // (a * d), budget, a, d) for a, d in outer))


def brute_force_within(m: int, n: int, budget: int, a1: int, dL: int) -> set[Chain]:
    found = set()
    longest = 1 + int(math.log2(m * n))  # each factor of an irredundant chain has a radix larger than 1
    for length in range(1, longest + 1):
        for q, p in product(ordered_factorizations(m, length), ordered_factorizations(n, length)):
            for ranks in product(range(1, min(m, n) + 1), repeat=length - 1):
                chain = Chain.from_radices(q, p, ranks, a1, dL)
                if chain.nnz <= budget and irredundant(chain):
                    found.add(chain)
    return found


@pytest.mark.parametrize(
    ("m", "n", "budget"), [(1, 1, 1), (1, 6, 6), (4, 4, 24), (4, 6, 20), (6, 2, 20), (3, 9, 30), (2, 8, 24)]
)
def test_finds_what_brute_force_finds_once_and_in_order(m: int, n: int, budget: int) -> None:
    with as_user():  # the check of every argument would take most of the time
        expected = brute_force(m, n, budget)
        found = list(Chain.search(m, n, budget))
    assert expected, "the example must have chains"
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert [c.nnz for c in found] == sorted(c.nnz for c in found)


def test_budget_as_a_share_or_as_a_number() -> None:
    by_number = list(Chain.search(8, 8, 40))
    assert by_number == list(Chain.search(8, 8, 40 / 64))
    assert max(c.nnz for c in by_number) == 40
    with as_user():  # numpy's numbers are shares and counts, too
        assert by_number == list(Chain.search(8, 8, np.float32(40 / 64)))
        assert by_number == list(Chain.search(8, 8, np.int64(40)))


def test_budget_too_small_for_any_chain() -> None:
    assert list(Chain.search(8, 8, 7)) == []
    assert next(Chain.search(8, 8, 8)).nnz == 8, "a diagonal matrix"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_max_factors(limit: int) -> None:
    everything = list(Chain.search(8, 4, 40))
    assert max(map(len, everything)) == 3
    few = list(Chain.search(8, 4, 40, max_factors=limit))
    assert set(few) == {c for c in everything if len(c) <= limit}


def test_same_order_every_time() -> None:
    assert list(Chain.search(12, 12, 60)) == list(Chain.search(12, 12, 60))


def test_large_and_lazy() -> None:
    """The number of chains of this size is astronomical; what is not asked for costs nothing."""
    first = list(islice(Chain.search(4096, 4096, budget=1.0), 50))
    assert [c.nnz for c in first] == sorted(c.nnz for c in first)
    assert first[0].nnz == 4096, "a diagonal matrix is the cheapest that reaches every row"
    assert len(set(first)) == 50
    for chain in first:
        assert chain.shape == (4096, 4096)
        assert chain.chainable
        assert irredundant(chain)


def test_butterfly_is_found() -> None:
    butterfly = Chain.butterfly(16)
    assert butterfly in set(Chain.search(16, 16, butterfly.nnz))
    assert butterfly not in set(Chain.search(16, 16, butterfly.nnz - 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 4, 0), r"budget=0 allows no parameter\. Rule: a share > 0 \(float\) or a count >= 1 \(int\)"),
        ((4, 4, -0.5), r"budget=-0\.5 allows no parameter"),
        ((4, 4, float("nan")), r"budget=nan allows no parameter"),
        ((4, 4, 16, 0), r"max_factors is 0\. Rule: a whole number, at least 1.* Or None"),
        ((0, 4, 16), r"m and n must be >= 1, got \[0, 4\]"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chain.search(*arguments)  # nothing has been taken from the iterator


def test_sizes_are_whole() -> None:
    with as_user(), pytest.raises(TypeError, match=r"m and n must be whole numbers, got \[4\.5, 4\]"):
        Chain.search(4.5, 4, 16)  # type: ignore[arg-type]
