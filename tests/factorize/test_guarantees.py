"""What a certificate promises, on random chains and matrices, and against candidates that try to beat the bound."""

from math import sqrt
from random import Random

import pytest
import torch

from cases import KINDS, by_projections, noisy, random_chain, random_matrix, relative_error
from flatwing import Chain, SparseProduct, factorize
from flatwing.factorize import problem
from flatwing.structure import transforms
from searching import least
from strategies import as_user

GROUPS, CASES = 20, 100  # 2000 cases, each in an order that peels ends and in another one
NOTHING = 1e-13
SLACK = 1 + 1e-7  # solvers stop at a tail within 1e-8


def peeling_order(rng: Random, factors: int) -> tuple[int, ...]:
    splits, order = list(range(1, factors)), []
    while splits:
        order.append(splits.pop(rng.choice([0, -1])))
    return tuple(order)


@pytest.mark.parametrize("group", range(GROUPS))
def test_no_promise_is_broken(group: int) -> None:
    rng = Random(group)
    torch.manual_seed(group)
    for case in range(CASES):
        chain = random_chain(rng)
        dtype = rng.choice([torch.float64, torch.complex128])
        A = random_matrix(chain, KINDS[case % len(KINDS)], dtype)
        shuffled = rng.sample(range(1, len(chain)), len(chain) - 1)
        splits = max(len(chain.reduced()) - 1, 1)
        peeling = peeling_order(rng, len(chain))
        for order in (peeling, "balanced" if case % 2 else shuffled):
            with as_user():  # types are checked in all other tests
                result = factorize(A, chain, order=order)
            proof, error = result.certificate, relative_error(A, result.product)
            context = f"{chain}, case {case}, order {order}: {proof!r}"
            assert proof.error == pytest.approx(error, rel=1e-9, abs=NOTHING), context
            assert proof.lower_bound <= error * SLACK + NOTHING, context
            assert error <= proof.guarantee * SLACK + NOTHING, context
            factor = sqrt(splits) if order == peeling else splits
            assert proof.factor <= factor * SLACK, context
            if proof.exact:
                assert error <= 64 * torch.finfo(dtype).eps * sqrt(splits + 1), context
            else:
                assert error <= factor * proof.lower_bound * SLACK + NOTHING, context


def test_the_product_is_that_of_successive_projections() -> None:
    """Each cut is the best approximation of every block of the whole current matrix, in any order."""
    rng = Random(0)
    for _ in range(60):
        chain = random_chain(rng).reduced()
        A = random_matrix(chain, "gaussian", rng.choice([torch.float64, torch.complex128]))
        order = rng.sample(range(1, len(chain)), len(chain) - 1)
        expected, steps = by_projections(A, chain, order)
        result = factorize(A, chain, order=order)
        scale = A.norm()
        # a solver may stop at a vector that is off by the root of its tolerance
        assert float((result.product.dense() - expected).norm() / scale) < 1e-3
        assert result.certificate.error == pytest.approx(float((A - expected).norm() / scale), rel=1e-5)
        reported = [result.splits[s - 1].error for s in order]
        assert reported == pytest.approx([step / float(scale) for step in steps], rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("level", [1e-1, 1e-3, 3e-5, 1e-6, 1e-9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_no_bound_above_the_product_that_made_the_matrix(dtype: torch.dtype, level: float) -> None:
    rng, factors = Random(0), []
    for _ in range(60):
        chain = random_chain(rng)
        product = transforms.random_product(chain, dtype=dtype).dense()
        A = noisy(product, level)
        known = float((A - product).norm() / A.norm())
        for order in ("best", "balanced"):
            proof = factorize(A, chain, order=order).certificate
            assert not proof.exact or len(chain.reduced()) == 1
            assert proof.lower_bound <= known * (1 + 1e-8), (chain, order)
            factors.append(proof.error / known)
    assert max(factors) < 1.5  # recovery at the level of the noise, in every order


def minimized(A: torch.Tensor, chain: Chain, starts: int) -> float:
    """The smallest relative error that L-BFGS finds from random starts: all start points in one batch."""
    factors = [torch.randn(starts, p.blocks, p.b, p.c, dtype=A.dtype) for p in chain]
    scale = A.norm() / SparseProduct(chain, factors).dense().flatten(1).norm(dim=1).mean()
    factors = [(w * scale ** (1 / len(chain))).requires_grad_() for w in factors]

    def errors() -> torch.Tensor:
        return (SparseProduct(chain, factors).dense() - A).flatten(1).norm(dim=1).square()

    return sqrt(least(factors, errors)) / float(A.norm())


SMALL = [
    Chain.butterfly(8),
    Chain.from_radices((2, 3, 2), (3, 2, 2), (1, 2)),
    Chain.from_radices((2, 2), (2, 3), (1,), a1=2, dL=2),
    Chain.butterfly(16),
    Chain.monarch(6, 8, blocks=2),
]


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize("chain", SMALL, ids=str)
def test_no_bound_above_what_gradients_find(chain: Chain, kind: str) -> None:
    with as_user():
        A = random_matrix(chain, kind)
        found = minimized(A, chain, starts=4)
    proof = factorize(A, chain).certificate
    assert proof.lower_bound <= found * (1 + 1e-9)
    assert found < 2 * proof.error  # the search did search
    assert factorize(A, chain, order="balanced").certificate.lower_bound == pytest.approx(proof.lower_bound, rel=1e-7)
    if len(chain.reduced()) == 2:
        assert found == pytest.approx(proof.lower_bound, rel=1e-2)
        assert proof.error == pytest.approx(proof.lower_bound, rel=1e-7)


@pytest.mark.parametrize("kind", KINDS[:4])
@pytest.mark.parametrize("chain", SMALL, ids=str)
def test_no_bound_above_what_many_refined_starts_find(chain: Chain, kind: str) -> None:
    A = random_matrix(chain, kind)
    proof = factorize(A, chain).certificate
    with as_user():
        for start in range(12):
            # the factorization of a disturbed matrix is a start for the true one
            seed = noisy(A, 0.05 * start)
            refined = factorize(A, chain, order="balanced" if start % 2 else "l2r", refine=10).certificate.error
            assert proof.lower_bound <= relative_error(A, factorize(seed, chain).product) * (1 + 1e-9)
            assert proof.lower_bound <= refined * (1 + 1e-9)


@pytest.mark.parametrize("large", [1, 1 << 14])
def test_single_precision_breaks_no_promise(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of float32 and complex64 runs hold against what float64 reaches, with and without the early stop."""
    monkeypatch.setattr(problem, "LARGE", large)
    generator = torch.Generator().manual_seed(large)

    def whole(high: int, size: int) -> list[int]:
        return torch.randint(1, high, (size,), generator=generator).tolist()

    checked = 0
    for case in range(60):
        factors = 2 + case % 3
        chain = Chain.from_radices(whole(4, factors), whole(4, factors), whole(4, factors - 1), *whole(3, 2))
        dtype = (torch.float32, torch.complex64)[case % 2]
        double = torch.promote_types(dtype, torch.float64)
        clean = transforms.random_product(chain, dtype=double, generator=generator).dense()
        noise = torch.randn(chain.shape, dtype=double, generator=generator)
        A = (clean + 10.0 ** -(case % 7) * noise * clean.norm() / noise.norm()).to(dtype)
        reached = factorize(A.to(double), chain, refine=2).certificate.error
        proof = factorize(A, chain, order=("l2r", "r2l", "balanced", "best")[case % 4]).certificate
        assert proof.lower_bound <= reached * (1 + 1e-12)
        assert proof.exact or proof.guarantee >= proof.error
        checked += not proof.exact
    assert checked > 30
