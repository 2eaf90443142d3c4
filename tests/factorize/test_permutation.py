"""Permutations under which a matrix has the structure of a chain."""

import numpy as np
import pytest
import torch

from cases import relative_error
from flatwing import Chain, factorize
from flatwing.factorize.permutation import candidate_permutations, permuted
from flatwing.structure import transforms
from strategies import as_user

CPU = torch.device("cpu")
CHAIN = Chain.from_radices((2, 3, 2), (3, 2, 2), (1, 1))


def fourier(n: int) -> torch.Tensor:
    return torch.fft.fft(torch.eye(n, dtype=torch.complex128))


@pytest.mark.parametrize("perm", [None, "none"])
def test_no_permutation(perm: str | None) -> None:
    assert candidate_permutations(perm, CHAIN, CPU) == {"none": (None, None)}


def test_names_stand_for_digit_reversals() -> None:
    columns, rows = transforms.digit_reversal((3, 2, 2)), transforms.digit_reversal((2, 3, 2))
    (label, pair), *others = candidate_permutations("bitrev", CHAIN, CPU).items()
    assert (label, others) == ("bitrev columns", [])
    assert torch.equal(pair[0], columns)
    assert pair[1] is None
    every = candidate_permutations("auto", CHAIN, CPU)
    assert list(every) == ["none", "bitrev columns", "bitrev rows", "bitrev rows and columns"]
    assert every["none"] == (None, None)
    assert every["bitrev rows"][0] is None
    assert torch.equal(every["bitrev rows"][1], rows)
    both = every["bitrev rows and columns"]
    assert torch.equal(both[0], columns)
    assert torch.equal(both[1], rows)


def test_digits_of_outer_blocks_are_reversed_too() -> None:
    chain = Chain.from_radices((2, 2), (2, 3), (1,), a1=2, dL=3)
    ((columns, _),) = candidate_permutations("bitrev", chain, CPU).values()
    assert torch.equal(columns, transforms.digit_reversal((2, 2, 3, 3)))


def test_permuted_is_by_rows_and_columns() -> None:
    A = torch.randn(2, 4, 6)
    columns, rows = torch.randperm(6), torch.randperm(4)
    assert torch.equal(permuted(A, (columns, rows)), A[:, rows][:, :, columns])
    assert torch.equal(permuted(A, (columns, None)), A[:, :, columns])
    assert permuted(A, (None, None)) is A


@pytest.mark.parametrize("order", ["best", "balanced"])
@pytest.mark.parametrize("n", [6, 8, 12, 30, 64])
def test_bitrev_makes_the_fourier_matrix_exact(n: int, order: str) -> None:
    result = factorize(fourier(n), Chain.butterfly(n), perm="bitrev", order=order)
    assert result.certificate.exact
    assert result.permutation == "bitrev columns"
    assert relative_error(fourier(n), result.product) < 1e-13


@pytest.mark.parametrize(
    ("permutation", "label"),
    [
        (lambda F, p: F, "bitrev columns"),
        (lambda F, p: F[:, p], "none"),
        (lambda F, p: F[p][:, p], "bitrev rows"),
        (lambda F, p: F[p], "bitrev rows and columns"),
    ],
)
def test_auto_finds_the_permutation(permutation: object, label: str) -> None:
    n = 64
    # a product without the symmetries of a transform: exactly one of the candidates is right
    core = transforms.random_product(Chain.butterfly(n)).dense()
    reverse = transforms.digit_reversal((2,) * 6)
    A = permutation(core[:, reverse], reverse)  # type: ignore[operator]
    result = factorize(A, Chain.butterfly(n), perm="auto")
    assert result.certificate.exact
    assert result.permutation == label
    assert relative_error(A, result.product) < 1e-13


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_given_permutations_are_undone_by_the_product(kind: type) -> None:
    core = transforms.random_product(CHAIN).dense()
    columns, rows = torch.randperm(12), torch.randperm(12)
    A = torch.empty_like(core)
    A[rows[:, None], columns] = core  # so that A[rows][:, columns] is the core
    perm = kind(columns.tolist()), kind(rows.tolist())
    result = factorize(A, CHAIN, perm=perm)
    assert result.permutation == "given"
    assert relative_error(A, result.product) < 1e-13
    x = torch.randn(12, dtype=A.dtype)
    torch.testing.assert_close(result.product @ x, A @ x)
    assert not factorize(A, CHAIN, perm=(columns, None)).certificate.exact
    assert not factorize(A, CHAIN, perm=(None, rows)).certificate.exact


def test_permutations_of_a_transposed_chain_are_those_of_the_matrix() -> None:
    core = transforms.random_product(CHAIN).dense().mT
    columns, rows = torch.randperm(12), torch.randperm(12)
    A = torch.empty_like(core)
    A[rows[:, None], columns] = core
    result = factorize(A, CHAIN.T, perm=(columns, rows))
    assert relative_error(A, result.product) < 1e-13
    assert torch.equal(result.product.perm_in, columns)
    assert torch.equal(result.product.perm_out, rows)


def test_certificates_count_the_permuted_matrix() -> None:
    A = torch.randn(12, 12, dtype=torch.float64)
    columns, rows = torch.randperm(12), torch.randperm(12)
    result = factorize(A, CHAIN, perm=(columns, rows))
    inner = factorize(A[rows][:, columns], CHAIN)
    assert result.certificate == inner.certificate
    assert relative_error(A, result.product) == pytest.approx(result.certificate.error, rel=1e-12)


@pytest.mark.parametrize(
    ("perm", "message"),
    [
        ("bitreverse", r"perm='bitreverse' is unknown here. Rule: None, 'none', 'bitrev', 'auto', 'search'"),
        (3, "perm=3 is unknown"),
        ([None], r"perm=\[None\] is unknown"),
        ((None,), r"perm=\(None,\) is unknown"),
        (([0, 1], None), r"perm_in must be a permutation of 0\.\.11: 12 whole numbers, got shape \(2,\)"),
        ((None, [0] * 12), r"perm_out must hold each of 0\.\.11 exactly once; it has 1"),
        (([0.5] * 12, None), r"perm_in must be a permutation of 0\.\.11: .* of float32"),
        (("ab", None), r"perm_in must be a permutation of 0\.\.11, got str"),
    ],
    ids=repr,
)
def test_bad_permutations(perm: object, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        factorize(torch.randn(12, 12), CHAIN, perm=perm)
