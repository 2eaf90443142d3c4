"""Tails and the tree bound against their definitions, index by index."""

from random import Random

import numpy as np
import pytest
import torch

from cases import by_formula, explicit_tails, explicit_tree_bound, random_chain, random_matrix
from flatwing import Chain
from flatwing.factorize import bounds
from flatwing.factorize.bounds import gram_tails, gram_tails_by_eigenvalues, matrix_tails, tails_by_residual, tree_bound
from flatwing.factorize.story import Story
from flatwing.structure.factor import extract
from flatwing.structure.split import Split

COMPLEX = [torch.float64, torch.complex128]


def splits_of(chain: Chain) -> list[Split]:
    return [Split(chain[:s].pattern, chain[s:].pattern) for s in range(1, len(chain))]


def chains(count: int, least: int = 2) -> list[Chain]:
    """Irredundant chains with at least two factors."""
    rng, found = Random(0), []
    while len(found) < count:
        chain = random_chain(rng).reduced()
        if len(chain) >= least:
            found.append(chain)
    return found


@pytest.mark.parametrize("careful", [True, False])
@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "sparse", "spiky", "scaled"])
def test_tails_are_those_of_explicit_blocks(kind: str, dtype: torch.dtype, careful: bool) -> None:
    for chain in chains(25):
        A = random_matrix(chain, kind, dtype)
        found = matrix_tails(extract(A, chain.pattern), splits_of(chain), careful=careful)
        for tails, expected in zip(found, explicit_tails(A, chain), strict=True):
            assert tails.shape == expected.shape
            assert tails.dtype == torch.float64
            size = float(A.norm().square())
            torch.testing.assert_close(tails, torch.from_numpy(expected), rtol=2e-8, atol=1e-13 * size)
            assert bool((tails <= torch.from_numpy(expected) * (1 + 2e-8) + 1e-13 * size).all())


def test_tails_of_large_splits_come_in_many_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.from_radices((4, 3, 2), (2, 3, 4), (2, 2), a1=2, dL=2)
    values = extract(random_matrix(chain, "gaussian"), chain.pattern)
    whole = matrix_tails(values, splits_of(chain), careful=False)
    pieces_of = bounds.chunks
    monkeypatch.setattr(bounds, "chunks", lambda blocks, *_, **options: pieces_of(blocks, 64, **options))
    for careful in (False, True):
        pieces = matrix_tails(values, splits_of(chain), careful=careful)
        for x, y in zip(whole, pieces, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_careful_tails_hold_at_every_size() -> None:
    """Gram matrices lose tails below rounding of the energy; residuals do not."""
    chain = Chain.from_radices((2, 3, 2), (3, 2, 2), (1, 2))
    for level in (1e-5, 1e-9, 1e-13):
        A = torch.ones(chain.shape, dtype=torch.float64) + level * random_matrix(chain, "gaussian")
        found = matrix_tails(extract(A, chain.pattern), splits_of(chain), careful=True)
        for tails, expected in zip(found, explicit_tails(A, chain), strict=True):
            torch.testing.assert_close(tails.sqrt(), torch.from_numpy(expected).sqrt(), rtol=1e-6, atol=1e-14)


def test_tails_of_float32_are_accumulated_in_double() -> None:
    chain = Chain.from_radices((4, 4), (4, 4), (1,))
    A = random_matrix(chain, "gaussian", torch.float32)
    (tails,) = matrix_tails(extract(A, chain.pattern), splits_of(chain), careful=False)
    torch.testing.assert_close(tails, torch.from_numpy(explicit_tails(A.double(), chain)[0]), rtol=2e-8, atol=1e-12)
    residual = tails_by_residual(extract(A, chain.pattern), splits_of(chain)[0])
    torch.testing.assert_close(residual, tails, rtol=2e-5, atol=1e-6)


def test_tree_bound_is_its_recursion() -> None:
    rng = torch.Generator().manual_seed(0)
    for chain in chains(60):
        splits = splits_of(chain)
        tails = [torch.rand(split.regions, dtype=torch.float64, generator=rng) ** 4 for split in splits]
        found = tree_bound(Story.of({s: t.numpy() for s, t in enumerate(tails)}))
        assert found.shape == (splits[0].regions[0], splits[-1].regions[1])
        assert float(found.sum()) == pytest.approx(explicit_tree_bound(chain, [t.numpy() for t in tails]), rel=1e-12)
        assert all(float(found.sum()) >= float(t.sum()) * (1 - 1e-12) for t in tails), "never below a single split"
        assert float(found.sum()) <= sum(float(t.sum()) for t in tails) * (1 + 1e-12)


def test_tree_bound_beats_every_single_split_where_errors_lie_apart() -> None:
    """Two splits that fail in different regions: both failures count, not only the larger one."""
    chain = Chain.butterfly(8)
    splits = splits_of(chain)
    tails = [np.zeros(split.regions) for split in splits]
    tails[0][0, 0] = 1.0  # column cluster 0, rows of residue 0
    tails[1][3, 1] = 2.0  # inside column cluster 1, rows of residue 1
    assert float(tree_bound(Story.of(dict(enumerate(tails)))).sum()) == 3.0
    tails[1][:] = 0
    tails[1][1, 0] = 2.0  # inside the same region: only the larger counts
    assert float(tree_bound(Story.of(dict(enumerate(tails)))).sum()) == 2.0


def test_tree_bound_of_the_regression_table() -> None:
    chain = Chain.butterfly(16)
    A = by_formula("sin", 16, 16)
    tails = explicit_tails(A, chain)
    assert (explicit_tree_bound(chain, tails) ** 0.5 / A.norm()).item() == pytest.approx(0.56357173, abs=6e-9)


@pytest.mark.parametrize("size", [2, 3, 5, 16])
@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_gram_tails_are_sums_of_the_smallest_eigenvalues(dtype: torch.dtype, size: int) -> None:
    for rows in (size, 3 * size):
        x = torch.randn(40, size, rows, dtype=dtype)
        x[:10, 1:] *= 1e-3
        x[10] = 0
        gram = x @ x.mH
        energies = gram.diagonal(dim1=1, dim2=2).real.sum(1)
        for rank in range(1, size + 2):
            expected = torch.linalg.svdvals(x)[:, rank:].square().sum(1)
            for found in (gram_tails(gram, rank), gram_tails_by_eigenvalues(gram, min(rank, size))):
                torch.testing.assert_close(found, expected, rtol=2e-8, atol=1e-12)
                assert bool((found <= expected * (1 + 1e-12) + 1e-14 * energies).all()), "never more than the truth"
                assert bool((found >= 0).all())


def test_gram_tails_where_power_iteration_cannot_decide() -> None:
    q = torch.linalg.qr(torch.randn(30, 12, 12, dtype=torch.float64)).Q
    for spectrum in (torch.ones(12), torch.linspace(1, 0.9, 12), torch.eye(12)[0] + torch.eye(12)[1]):
        gram = (q * spectrum.double()) @ q.mH
        expected = float(spectrum.double().sum() - spectrum.max())
        torch.testing.assert_close(
            gram_tails(gram, 1), torch.full((30,), expected, dtype=torch.float64), rtol=1e-10, atol=1e-12
        )
