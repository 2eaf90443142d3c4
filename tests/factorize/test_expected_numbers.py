"""Numbers that are known beforehand: exact transforms, the regression table, recovery from noise, another library."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from cases import by_formula, noisy, relative_error
from flatwing import Chain, SparseProduct, factorize
from flatwing.factorize import problem
from flatwing.structure import transforms

ORDERS = ["best", "l2r", "r2l", "balanced"]
EXACT = 1e-13


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [64, 128, 256, 512])
def test_hadamard_is_exact(n: int, order: str) -> None:
    A = transforms.hadamard(n).dense()
    result = factorize(A, Chain.butterfly(n), order=order)
    assert relative_error(A, result.product) <= EXACT
    assert result.certificate.exact


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [64, 128, 256, 512])
def test_fourier_with_reversed_columns_is_exact(n: int, order: str) -> None:
    F = torch.fft.fft(torch.eye(n, dtype=torch.complex128))
    A = F[:, transforms.digit_reversal((2,) * (n.bit_length() - 1))]
    result = factorize(A, Chain.butterfly(n), order=order)
    assert relative_error(A, result.product) <= EXACT
    assert result.certificate.exact


def test_a_large_hadamard_is_exact() -> None:
    A = transforms.hadamard(4096).dense()
    result = factorize(A, Chain.butterfly(4096), order="l2r")
    assert float((result.product.dense() - A).norm() / A.norm()) <= EXACT
    assert result.certificate.exact


@pytest.mark.parametrize("order", [*ORDERS, (2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("radices", [(2, 3, 5), (8, 8, 8), (5, 7, 3)], ids=str)
def test_fourier_of_mixed_radices_is_exact(radices: tuple[int, ...], order: str | tuple[int, ...]) -> None:
    n = int(np.prod(radices))
    F = torch.fft.fft(torch.eye(n, dtype=torch.complex128))
    A = F[:, transforms.digit_reversal(radices)]
    assert relative_error(A, factorize(A, Chain.butterfly(n, radices), order=order).product) <= EXACT


@pytest.mark.parametrize("n", [4, 8, 16, 64])
def test_fourier_with_columns_in_place_is_not_of_this_shape(n: int) -> None:
    """Its singular values are tied, so only the bound is a number; by it no product of this shape is near."""
    F = torch.fft.fft(torch.eye(n, dtype=torch.complex128))
    assert factorize(F, Chain.butterfly(n)).certificate.lower_bound > 0.7


DYADIC16, DYADIC64 = Chain.butterfly(16), Chain.butterfly(64)
RANK2 = Chain.parse("(1,4,8,16)(4,4,4,8)(8,4,4,4)(16,8,4,1)")
MONARCH = Chain.parse("(1,3,4,4)(4,4,5,1)")
RECTANGULAR = Chain.parse("(1,2,3,12)(3,3,8,4)(12,8,3,1)")
OUTER = Chain.parse("(2,2,2,12)(4,2,2,6)(8,2,2,3)")
# chain, matrix, largest of the bounds of the splits, tree bound, guarantee, l2r, r2l, l2r without orthonormalization
TABLE = [
    (DYADIC16, "hilbert", 0.08568080, 0.08776510, 0.13333740, 0.11433137, 0.11435011, 0.12337937),
    (DYADIC16, "sin", 0.53387550, 0.56357173, 0.80239271, 0.64396140, 0.64315589, 0.64554057),
    (DYADIC64, "hilbert", 0.10005330, 0.10614327, 0.19289852, 0.15615875, 0.15621639, 0.20752114),
    (DYADIC64, "invabs", 0.07253042, 0.07253042, 0.09052513, 0.07639728, 0.07643245, 0.07640139),
    (RANK2, "hilbert", 0.00453292, 0.00460932, 0.00687759, 0.00661401, 0.00661431, 0.01242260),
    (RANK2, "sin", 0.67108790, 0.67325858, 1.04385971, 0.76923551, 0.73668534, 0.77126964),
    (MONARCH, "hilbert", 0.09078615, 0.09078615, 0.09078615, 0.09078615, 0.09078615, 0.09078615),
    (RECTANGULAR, "sin", 0.62073462, 0.62073462, 0.67411271, 0.62977245, 0.63886255, None),
    (OUTER, "sin", 0.94083996, 0.94342119, 0.96272489, 0.95013361, 0.95026083, 0.95040085),
]


def six_digits(value: float) -> object:
    return pytest.approx(value, rel=5e-7, abs=6e-9)  # the table has eight decimals


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[1]}-{len(row[0])}-{row[0].shape[0]}")
def test_regression_table(row: tuple) -> None:
    chain, name, largest, tree, guarantee, l2r, r2l, plain = row
    A = by_formula(name, *chain.shape)
    left = factorize(A, chain, order="l2r")
    right = factorize(A, chain, order="r2l")
    assert max(split.matrix_error for split in left.splits) == six_digits(largest)
    assert left.certificate.error == six_digits(l2r)
    assert right.certificate.error == six_digits(r2l)
    for result in (left, right):
        assert result.certificate.lower_bound == six_digits(tree)
        assert result.certificate.guarantee == six_digits(guarantee)
    if plain is not None:
        result = factorize(A, chain, order="l2r", orthonormalize=False)
        assert result.certificate.error == six_digits(plain)
        assert result.certificate.lower_bound == six_digits(tree)


@pytest.mark.parametrize(
    ("chain", "order", "name", "error"),
    [
        (DYADIC16, (2, 1, 3), "hilbert", 0.11432737),
        (DYADIC16, (2, 1, 3), "sin", 0.64038712),
        (DYADIC64, (3, 1, 2, 4, 5), "hilbert", 0.15616042),
    ],
    ids=["hilbert-16", "sin-16", "hilbert-64"],
)
def test_regression_table_of_balanced_orders(chain: Chain, order: tuple[int, ...], name: str, error: float) -> None:
    A = by_formula(name, *chain.shape)
    for given in (order, "balanced"):
        result = factorize(A, chain, order=given)
        assert result.order == order
        assert result.certificate.error == six_digits(error)


@pytest.mark.parametrize(
    ("n", "error", "lower", "l2r", "balanced"),
    [
        (64, 0.0943, 0.0870, 0.116, 0.0979),
        (256, 0.0979, 0.0930, 0.140, 0.1020),
        (512, 0.0987, 0.0949, 0.153, 0.1037),
    ],
)
def test_recovery_from_noise(
    n: int, error: float, lower: float, l2r: float, balanced: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise level .1 is ||noise|| / ||product||, so ||noise|| / ||A|| is .0995 on average, which the error approaches.

    Mean of 3 draws. Without orthonormalization the errors vary from draw to draw, hence the wide margins there.
    """
    monkeypatch.setattr(problem, "LARGE", 1 << 62)  # the whole tree bound for all sizes
    chain, found = Chain.butterfly(n), []
    for _ in range(3):
        A = noisy(transforms.random_product(chain).dense(), 0.1)
        best = factorize(A, chain).certificate
        plain = [factorize(A, chain, order=o, orthonormalize=False).certificate.error for o in ("l2r", "balanced")]
        found.append([best.error, best.lower_bound, *plain])
    means = np.mean(found, axis=0)
    assert means[0] == pytest.approx(error, rel=0.02)
    assert means[1] == pytest.approx(lower, rel=0.02)
    assert means[2] == pytest.approx(l2r, rel=0.2)
    assert means[3] == pytest.approx(balanced, rel=0.05)


def test_orthonormalization_pays_for_positive_factors() -> None:
    chain = Chain.from_radices((8, 2, 2, 8), (8, 2, 2, 8), (4, 4, 4))
    uniform = [torch.rand(p.blocks, p.b, p.c, dtype=torch.float64) for p in chain]
    A = noisy(SparseProduct(chain, uniform).dense(), 0.01)
    assert factorize(A, chain, order="l2r").certificate.error == pytest.approx(0.0083, rel=0.02)
    assert factorize(A, chain, order="l2r", orthonormalize=False).certificate.error > 0.02
    assert factorize(A, chain, order="balanced", orthonormalize=False).certificate.error > 0.012


@contextmanager
def quiet() -> Iterator[None]:
    """lazylinop warns about packages that it does not need here."""
    with warnings.catch_warnings(record=True):
        yield


@pytest.mark.parametrize("orthonormalize", [True, False])
@pytest.mark.parametrize("order", ["l2r", "balanced"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_errors_are_those_of_lazylinop(dtype: torch.dtype, order: str, orthonormalize: bool) -> None:
    with quiet():
        from lazylinop.butterfly import Chain as PeerChain
        from lazylinop.butterfly import ksd

        A = noisy(transforms.random_product(DYADIC64, dtype=dtype).dense(), 0.1)
        peer = ksd(A.numpy(), PeerChain.square_dyadic((64, 64)), ortho=orthonormalize, order=order).toarray()
    expected = float(np.linalg.norm(A.numpy() - peer) / np.linalg.norm(A.numpy()))
    ours = factorize(A, DYADIC64, order=order, orthonormalize=orthonormalize)
    assert ours.certificate.error == pytest.approx(expected, abs=1e-12)
