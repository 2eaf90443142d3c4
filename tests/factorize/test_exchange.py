"""Exchanges of clusters that repair an order of rows and columns."""

from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import torch

from cases import noisy
from flatwing import Chain, Factorization, factorize
from flatwing.factorize.exchange import EXCESS, MOVES, SUSPECTS, exchange, exchanges, measure
from flatwing.factorize.permutation import Permutations
from flatwing.structure import transforms

MODULE = import_module("flatwing.factorize.exchange")
MIXED = Chain.from_radices((3, 2, 2, 2), (2, 2, 2, 3), (1, 1, 1))
EVERY = {"butterfly": Chain.butterfly(32), "mixed": MIXED}


def fitter(A: torch.Tensor, chain: Chain) -> Callable[[Permutations], Factorization]:
    return lambda perms: factorize(A, chain, perm=perms)


def swapped(n: int, *pairs: tuple[int, int]) -> torch.Tensor:
    order = torch.arange(n)
    for i, j in pairs:
        order[i], order[j] = j, i
    return order


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("moved", ["rows", "columns", "both"])
def test_misplaced_rows_and_columns_go_home(name: str, moved: str) -> None:
    chain = EVERY[name]
    m, n = chain.shape
    A = noisy(transforms.random_product(chain).dense(), 0.01)
    columns = swapped(n, (1, n - 2)) if moved != "rows" else None
    rows = swapped(m, (0, 5)) if moved != "columns" else None
    better = exchange(A, chain, (columns, rows), fitter(A, chain))
    assert better is not None
    truth = factorize(A, chain).certificate.error
    assert factorize(A, chain, perm=(columns, rows)).certificate.error > 2 * truth
    assert factorize(A, chain, perm=better).certificate.error == pytest.approx(truth, rel=1e-9)
    for order, size, name in zip(better, (n, m), ("rows", "columns"), strict=True):
        if moved == name:  # what fits is left as it is
            assert torch.equal(order, torch.arange(size))


def test_whole_clusters_are_exchanged() -> None:
    chain = Chain.butterfly(32)
    A = noisy(transforms.random_orthogonal(32).dense(), 0.01)
    pairs = [(4, 24), (5, 25), (6, 26), (7, 27)]  # neighbours under different parents
    columns = swapped(32, *pairs)
    better = exchange(A, chain, (columns, None), fitter(A, chain))
    assert better is not None
    truth = factorize(A, chain).certificate.error
    assert factorize(A, chain, perm=better).certificate.error == pytest.approx(truth, rel=1e-9)


def test_an_order_that_fits_all_alike_is_left() -> None:
    chain, calls = Chain.butterfly(32), []
    A = noisy(transforms.dft(32).dense()[:, transforms.digit_reversal((2,) * 5)], 0.1)
    fit = fitter(A, chain)
    assert exchange(A, chain, (None, None), lambda perms: calls.append(perms) or fit(perms)) is None  # type: ignore[func-returns-value]
    assert len(calls) == 1


def test_progress_counts_moves() -> None:
    chain, said = Chain.butterfly(16), []
    A = noisy(transforms.random_product(chain).dense(), 0.01)
    order = swapped(16, (1, 14))
    exchange(A, chain, (order, None), fitter(A, chain), lambda *words: said.append(words))
    assert said[:2] == [("exchanging rows and columns", i, 50) for i in range(2)]


def test_only_suspects_under_different_parents_are_exchanged() -> None:
    left = np.ones(16)
    left[[0, 1, 6]] = EXCESS + 1
    given = [x[:8].tolist() for x in exchanges(np.arange(16), left, (2, 2, 2, 2))]
    # of single places 0, 1 and 6, where 0 and 1 are siblings; of pairs 0-1 and 6-7; no larger cluster is suspect
    assert given == [[6, 1, 2, 3, 4, 5, 0, 7], [0, 6, 2, 3, 4, 5, 1, 7], [6, 7, 2, 3, 4, 5, 0, 1]]
    assert list(exchanges(np.arange(8), np.ones(8), (2, 2, 2))) == []


def test_no_more_than_some_suspects() -> None:
    left = np.concatenate([np.full(20, 10.0), np.ones(44)])
    count = len(list(exchanges(np.arange(64), left, (32, 2))))
    assert count == SUSPECTS * (SUSPECTS - 1) // 2 - SUSPECTS // 2


def test_measure_is_that_of_the_certificate() -> None:
    A, chain = torch.randn(12, 16, dtype=torch.float64), Chain.from_radices((3, 2, 2), (2, 4, 2), (1, 1))
    perms = torch.randperm(16), torch.randperm(12)
    result = factorize(A, chain, perm=perms)
    bound, tails = measure(A, chain, perms)
    assert bound == pytest.approx(result.certificate.lower_bound, rel=1e-6)
    each = [split.matrix_error for split in result.splits]
    assert tails == pytest.approx(sum(error**2 for error in each if error is not None), rel=1e-9)
    assert measure(torch.zeros(12, 16), chain, (None, None)) == (0, 0)


def test_clusters_are_of_the_radices_from_the_end() -> None:
    # 2 clusters of 3 clusters of 4 places: places 0 and 20 are suspect, then the clusters of 4 that they stand in
    left = np.ones(24)
    left[[0, 3, 20]] = 5
    given = [x.tolist() for x in exchanges(np.arange(24), left, (2, 3, 4))]
    single = [[20, *range(1, 20), 0, *range(21, 24)], [0, 1, 2, 20, *range(4, 20), 3, *range(21, 24)]]
    assert given == [*single, [*range(20, 24), *range(4, 20), *range(4)]]


def test_a_cluster_is_judged_by_its_sum_and_beyond_the_excess_only() -> None:
    left = np.ones(16)
    left[[0, 8]] = 2
    # pairs that hold 3 of a median of 2, exactly 1.5 times
    assert len(list(exchanges(np.arange(16), left, (4, 2, 2)))) == 1
    left[[0, 8]] = EXCESS
    assert list(exchanges(np.arange(16), left, (4, 2, 2))) == []


def test_the_order_given_is_not_written_to() -> None:
    order, left = np.arange(8), np.ones(8)
    left[[0, 7]] = 9
    assert len(list(exchanges(order, left, (2, 2, 2)))) == 2
    assert order.tolist() == list(range(8))


def test_suspects_are_sought_in_what_the_product_leaves_place_by_place(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[np.ndarray, np.ndarray, tuple[int, ...]]] = []
    monkeypatch.setattr(MODULE, "exchanges", lambda *words: given.append(words) or iter(()))
    m, n = MIXED.shape
    A, perms = torch.randn(m, n, dtype=torch.float64), (torch.randperm(n), torch.randperm(m))
    assert exchange(A, MIXED, perms, fitter(A, MIXED)) is None
    (columns, of_columns, p), (rows, of_rows, q) = given
    assert (tuple(q[::-1]), tuple(p)) == tuple(map(tuple, MIXED.reduced().radices))
    assert columns.tolist() == perms[0].tolist()
    energy = (A - factorize(A, MIXED, perm=perms).product.dense()).square()
    np.testing.assert_allclose(of_columns, energy.sum(0)[columns])
    np.testing.assert_allclose(of_rows, energy.sum(1)[rows])
    assert sorted(rows.tolist()) == list(range(m))


@pytest.mark.parametrize(("share", "moves"), [(1.0, 0), (1.001, 0), (1 - 1e-4, MOVES)])
def test_every_gain_is_taken_and_nothing_else(share: float, moves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, calls, fits = Chain.butterfly(8), [], []

    def measured(*_: object) -> tuple[float, float]:
        calls.append(1)
        return 0.0, share ** len(calls)

    def fit(perms: Permutations) -> Factorization:
        fits.append(perms)
        assert len(fits) <= MOVES
        return product

    A = torch.randn(8, 8, dtype=torch.float64)
    A[0, 0] += 50  # where orders are suspect whatever is tried
    product = factorize(torch.zeros_like(A), chain)
    A[7, 7] -= 50
    monkeypatch.setattr(MODULE, "measure", measured)
    found = exchange(A, chain, (None, None), fit)
    assert (found is None) == (moves == 0)
    assert len(fits) == max(moves, 1)
