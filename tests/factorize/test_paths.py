"""Shortest paths through cuts, against every path."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch

from cases import by_formula
from flatwing import Chain
from flatwing.factorize.paths import Path, cheapest_path, thin
from flatwing.factorize.tails import Cut, measure, places


def cuts_of(A: torch.Tensor) -> list[Cut]:
    return [measure((A / A.norm())[None], q, p, True) for q, p in places(*A.shape, 1e12)]


def every_path(cuts: list[Cut], m: int, n: int) -> Iterator[tuple[int, float]]:
    """Parameters and squared error of every chain of cuts at every rank; parameters are counted by `Chain.nnz`."""

    def sequences(done: list[Cut]) -> Iterator[list[Cut]]:
        yield done
        for cut in cuts:
            last = done[-1] if done else None
            if last is None or (
                cut.rows % last.rows == 0
                and cut.columns % last.columns == 0
                and (cut.rows, cut.columns) != (last.rows, last.columns)
            ):
                yield from sequences([*done, cut])

    for chosen in sequences([]):
        for ranks in product(*(range(1, len(cut.tails) + 1) for cut in chosen)):
            places = [(cut.rows, cut.columns) for cut in chosen]
            chain = Path(tuple(places), ranks, 0, 0.0).chain(m, n)
            yield chain.nnz, sum(float(cut.tails[r - 1]) for cut, r in zip(chosen, ranks, strict=True))


@pytest.mark.parametrize("name", ["hilbert", "invabs", "sin"])
def test_the_path_is_within_the_error_and_nearly_the_cheapest(name: str) -> None:
    m, n = 4, 8
    cuts = cuts_of(by_formula(name, m, n))
    every = list(every_path(cuts, m, n))
    for tolerance in (1e-6, 1e-3, 0.03, 0.1, 0.3, 0.6):
        found = cheapest_path(cuts, m, n, tolerance**2, m * n)
        assert found.squared_error <= tolerance**2
        assert found.chain(m, n).shape == (m, n)
        assert found.chain(m, n).nnz <= found.parameters
        # errors are counted upwards in 128 steps, a few per path
        cheapest = min(parameters for parameters, error in every if error <= tolerance**2 * (1 - 4 / 128))
        assert found.parameters <= cheapest
        assert found.parameters >= min(parameters for parameters, error in every if error <= tolerance**2)


def test_no_path_but_the_dense_one() -> None:
    cuts = cuts_of(torch.randn(8, 8, dtype=torch.float64))
    dense = cheapest_path(cuts, 8, 8, 1e-12, 64)
    assert (dense.places, dense.ranks, dense.parameters, dense.squared_error) == ((), (), 64, 0.0)
    assert dense.chain(8, 8) == Chain.dense(8, 8)
    assert cheapest_path([], 5, 7, 1.0, 35).parameters == 35


def test_thin_lowers_ranks_as_far_as_the_error_allows() -> None:
    cut = Cut(4, 2, torch.tensor([0.5, 0.1, 0.01, 0.0]))
    start = Path(((4, 2),), (4,), 4 * (8 * 2 + 2 * 8), 0.0)
    assert thin(start, [cut], 8, 8, 0.05).ranks == (3,)
    assert thin(start, [cut], 8, 8, 0.2).ranks == (2,)
    assert thin(start, [cut], 8, 8, 0.001).ranks == (4,)
    lowest = thin(start, [cut], 8, 8, 1.0)
    assert (lowest.ranks, lowest.parameters) == ((1,), lowest.chain(8, 8).nnz)
    assert lowest.squared_error == pytest.approx(0.5)
