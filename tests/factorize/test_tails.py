"""Tails at every rank of every cut, against chains that make one cut."""

from math import log

import pytest
import torch

from cases import by_formula, explicit_tails
from flatwing import Chain
from flatwing.factorize.tails import measure, places


@pytest.mark.parametrize("precise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
def test_tails_of_every_rank(dtype: torch.dtype, precise: bool) -> None:
    m, n = 12, 18
    A = torch.randn(m, n, dtype=dtype)
    for rows, columns in places(m, n, 1e12):
        cut = measure(A[None], rows, columns, precise)
        small = min(rows, n // columns)
        assert (cut.rows, cut.columns, len(cut.tails)) == (rows, columns, small)
        assert cut.tails.dtype == torch.float64
        for rank in range(1, small + 1):
            chain = Chain.from_radices((rows, m // rows), (columns, n // columns), (rank,))
            (expected,) = explicit_tails(A.to(torch.promote_types(dtype, torch.float64)), chain)
            assert float(cut.tails[rank - 1]) == pytest.approx(float(expected.sum()), rel=1e-9, abs=1e-11)


def test_precise_tails_have_digits_far_below_rounding_of_the_energy() -> None:
    A = torch.ones(8, 8, dtype=torch.float64) + 1e-10 * by_formula("sin", 8, 8)
    exact, quick = (float(measure(A[None], 4, 2, precise).tails[0]) for precise in (True, False))
    (expected,) = explicit_tails(A, Chain.from_radices((4, 2), (2, 4), (1,)))
    assert exact == pytest.approx(float(expected.sum()), rel=1e-4)
    assert abs(quick - exact) < 1e-12


def test_places_are_all_cuts_if_there_is_work_enough() -> None:
    rows, columns = (2, 3, 4, 6, 12), (1, 2, 3, 6, 9)
    assert places(12, 18, 1e12) == sorted((q, p) for q in rows for p in columns)
    assert places(1, 5, 1e12) == []


def test_little_work_keeps_the_straight_ways() -> None:
    every, few = places(64, 64, 1e12), places(64, 64, 3e5)
    assert 0 < len(few) < len(every)
    assert set(few) <= set(every)
    kinds = {min(abs(log(q / p)), abs(log(q * p / 64))) for q, p in few}
    assert kinds == {0.0}
    assert len(places(64, 64, 0.0)) == 1
