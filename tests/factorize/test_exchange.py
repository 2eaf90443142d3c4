"""Exchanges of clusters that repair an order of rows and columns."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cases import noisy
from flatwing import Chain, Factorization, factorize
from flatwing.factorize.exchange import EXCESS, SUSPECTS, exchange, exchanges, measure
from flatwing.factorize.permutation import Permutations
from flatwing.structure import transforms

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
