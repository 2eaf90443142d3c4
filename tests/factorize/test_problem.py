"""A matrix in the form that the algorithms work on, its error, and the bound that stops early on large matrices."""

from random import Random

import numpy as np
import pytest
import torch

from cases import KINDS, explicit_tails, explicit_tree_bound, noisy, random_chain, random_matrix, support
from flatwing import Chain, factorize
from flatwing.factorize import problem as module
from flatwing.factorize.problem import Problem, scaled
from flatwing.structure import transforms
from strategies import as_user, draw_product

OUTER = Chain.from_radices((2, 3), (3, 2), (1,), a1=2, dL=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
def test_energy_inside_and_outside_of_the_support(dtype: torch.dtype) -> None:
    A = random_matrix(OUTER, "gaussian", dtype)
    inside, outside = A * support(OUTER), A * (1 - support(OUTER))
    made = Problem.of(A, OUTER)
    assert made.exponents.tolist() == [0]
    assert made.outside.item() == pytest.approx(float(outside.norm() ** 2), rel=1e-5)
    assert made.norm.item() == pytest.approx(float(A.norm() ** 2), rel=1e-5)
    assert float(made.values.norm()) == pytest.approx(float(inside.norm()), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_squared_norms_of_long_and_turned_matrices(dtype: torch.dtype) -> None:
    matrices = torch.randn(2, 300, 1100, dtype=dtype, generator=torch.Generator().manual_seed(0)).mT
    matrices[1] *= 3
    wide = torch.promote_types(dtype, torch.float64)
    truth = torch.linalg.vector_norm(matrices.to(wide), dim=(1, 2)).square().numpy()
    # a sum of so many entries in short precision alone would lose more digits
    np.testing.assert_allclose(module.squared_norms(matrices), truth, rtol=max(4 * torch.finfo(dtype).eps, 1e-13))


def test_a_matrix_without_outside_is_not_copied() -> None:
    chain = Chain.butterfly(8)
    A = random_matrix(chain, "gaussian")
    made = Problem.of(A, chain)
    assert made.values.data_ptr() == A.data_ptr()
    assert made.outside.item() == 0


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_numbers_of_every_size_come_near_one(scale: float) -> None:
    A = random_matrix(OUTER, "gaussian", torch.complex128) * scale
    made = Problem.of(A, OUTER)
    assert 0.4 < float(torch.view_as_real(made.values).abs().max()) <= 1
    torch.testing.assert_close(
        scaled(made.values[None], made.exponents)[0] / scale, Problem.of(A / scale, OUTER).values, rtol=1e-14, atol=0
    )


def test_scaling_is_exact_and_does_not_overflow_on_the_way() -> None:
    def times(x: torch.Tensor, exponent: int) -> torch.Tensor:
        return scaled(x[None], np.array([exponent]))[0]

    x = torch.tensor([1.5, -1.25], dtype=torch.float64)
    for exponent in (0, 1, -7, 1000, -1000, 1023, -1022):
        assert torch.equal(times(x, exponent), torch.ldexp(x, torch.tensor(exponent)))
    assert times(times(x, 1020), -1020 - 1000).tolist() == [1.5 * 2.0**-1000, -1.25 * 2.0**-1000]
    assert times(x.float(), 120).tolist() == [1.5 * 2.0**120, -1.25 * 2.0**120]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_error_of_any_factors(dtype: torch.dtype) -> None:
    rng = Random(0)
    for seed in range(30):
        chain = random_chain(rng)
        A = random_matrix(chain, "gaussian", dtype)
        product = draw_product(chain, dtype=dtype, seed=seed)
        expected = float((A - product.dense()).norm() ** 2)
        assert Problem.of(A, chain).error(list(product.factors)).item() == pytest.approx(expected, rel=1e-12)


def test_error_of_a_batch_matrix_by_matrix() -> None:
    A = torch.randn(2, 3, *OUTER.shape, dtype=torch.float64)
    product = draw_product(OUTER, batch=(2, 3))
    made = Problem.of(A, OUTER)
    assert made.count == 6
    factors = [w.reshape(-1, *w.shape[-2:]) for w in product.factors]
    expected = (A - product.dense()).flatten(2).norm(dim=2).square().flatten()
    torch.testing.assert_close(torch.from_numpy(made.error(factors)), expected)
    torch.testing.assert_close(torch.from_numpy(made.norm), A.flatten(2).norm(dim=2).square().flatten())


def whole_bound(A: torch.Tensor, chain: Chain) -> float:
    outside = float((A * (1 - support(chain))).norm() ** 2)
    return ((outside + explicit_tree_bound(chain, explicit_tails(A, chain))) ** 0.5 / A.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_early_stop_is_valid(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every matrix called large: at most the whole tree bound, and near the error where it stopped."""
    monkeypatch.setattr(module, "LARGE", 1)
    rng, stopped, looked = Random(1), 0, 0
    for _ in range(80):
        chain = random_chain(rng).reduced()
        if len(chain) < 3:
            continue
        A = random_matrix(chain, kind, rng.choice([torch.float64, torch.complex128]))
        order = rng.choice(["l2r", "r2l", "balanced", rng.sample(range(1, len(chain)), len(chain) - 1)])
        with as_user():
            result = factorize(A, chain, order=order)
        proof, whole = result.certificate, whole_bound(A, chain)
        assert proof.exact or proof.lower_bound <= whole * (1 + 1e-7)
        assert proof.guarantee >= proof.error * (1 - 1e-9)
        assert proof.lower_bound <= proof.error
        if result.order in (tuple(range(1, len(chain))), tuple(range(1, len(chain)))[::-1]):
            outside = float((A * (1 - support(chain))).norm() ** 2)
            apriori = ((outside + sum(t.sum() for t in explicit_tails(A, chain))) ** 0.5 / A.norm()).item()
            assert proof.exact or proof.guarantee >= apriori * (1 - 1e-8), (
                "tails that were not looked at are not forgotten"
            )
        if any(split.matrix_error is None for split in result.splits):
            assert proof.lower_bound >= proof.error / module.CLOSE_ENOUGH
            stopped += 1
        elif not proof.exact:
            assert proof.lower_bound == pytest.approx(whole, rel=1e-7)
            looked += 1
    assert stopped > 1
    assert looked > 1


def test_early_stop_after_refinement_and_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)
    chain = Chain.butterfly(27)
    A = torch.stack([noisy(transforms.random_product(chain).dense(), level) for level in (0.05, 0.1)])
    for refine in (0, 3):
        result = factorize(A, chain, refine=refine)
        for i, proof in enumerate(result.certificates):
            assert proof.lower_bound <= whole_bound(A[i], chain) * (1 + 1e-9)
            assert proof.lower_bound > 0.9 * proof.error
            assert proof.guarantee >= proof.error


def test_no_early_stop_without_orthonormalization(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps then prove nothing: the bound is that of the matrix alone."""
    monkeypatch.setattr(module, "LARGE", 1)
    chain = Chain.butterfly(16)
    for kind in KINDS[:4]:
        A = random_matrix(chain, kind)
        result = factorize(A, chain, order="balanced", orthonormalize=False)
        assert result.certificate.lower_bound == pytest.approx(whole_bound(A, chain), rel=1e-8)
        assert all(split.matrix_error is not None for split in result.splits)
