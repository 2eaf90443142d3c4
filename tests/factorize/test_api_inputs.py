"""Every matrix that a user may hand in, of any kind, memory layout, size and scale."""

import numpy as np
import pytest
import torch

from cases import random_matrix, relative_error
from flatwing import Chain, factorize
from flatwing.structure import transforms

CHAIN = Chain.from_radices((2, 3, 2), (3, 2, 2), (1, 2))  # 12 x 12
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_stay(dtype: torch.dtype) -> None:
    A = random_matrix(CHAIN, "gaussian", dtype)
    result = factorize(A, CHAIN)
    assert result.product.dtype == dtype
    assert result.notes == ()
    double = factorize(A.to(torch.promote_types(dtype, torch.float64)), CHAIN)
    close = 1e-5 if torch.finfo(dtype).bits == 32 else 1e-12
    for name in ("error", "lower_bound", "guarantee"):
        assert getattr(result.certificate, name) == pytest.approx(getattr(double.certificate, name), rel=close), name
    assert result.certificate.error == pytest.approx(relative_error(A, result.product), rel=close)
    of_numpy = factorize(A.numpy(), CHAIN)
    assert of_numpy.certificate == result.certificate
    assert of_numpy.product.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    A = torch.randn(12, 12).to(dtype)
    for chain in (CHAIN, CHAIN.T):
        result = factorize(A, chain)
        assert result.product.dtype == torch.float32
        assert result.notes == (f"{str(dtype).removeprefix('torch.')} input was computed in float32",)
        assert result.certificate == factorize(A.float(), chain).certificate
    half = factorize(np.eye(12, dtype=np.float16), CHAIN)
    assert half.notes == ("float16 input was computed in float32",)


def layouts() -> dict[str, object]:
    A = np.random.default_rng(0).standard_normal((12, 12))
    T = torch.from_numpy(A)
    wide = np.zeros((24, 36))
    wide[::2, ::3] = A
    read_only = A.copy()
    read_only.flags.writeable = False
    return {
        "Fortran order": np.asfortranarray(A),
        "strided": wide[::2, ::3],
        "negative strides": A[::-1, ::-1].copy()[::-1, ::-1],
        "read-only": read_only,
        "big endian": A.astype(">f8"),
        "rows of numbers": A.tolist(),
        "transposed tensor": T.T.contiguous().T,
        "strided tensor": torch.from_numpy(wide)[::2, ::3],
        "parameter": torch.nn.Parameter(T.clone()),
        "result of a graph": torch.nn.Parameter(T.clone()) * 1,
        "C order": A,
    }


@pytest.mark.parametrize("kind", layouts())
def test_every_layout_is_the_same_matrix(kind: str) -> None:
    given, expected = layouts()[kind], layouts()["C order"]
    copy = given.detach().clone() if isinstance(given, torch.Tensor) else np.array(given)
    result = factorize(given, CHAIN, refine=1)
    assert result.certificate.error == pytest.approx(factorize(expected, CHAIN, refine=1).certificate.error, rel=1e-12)
    assert relative_error(torch.as_tensor(expected), result.product) == pytest.approx(
        result.certificate.error, rel=1e-12
    )
    assert not any(w.requires_grad for w in result.product.factors)
    same = torch.equal(given, copy) if isinstance(given, torch.Tensor) else np.array_equal(given, copy)
    assert same, "the input is not modified"


@pytest.mark.parametrize(
    "view",
    [torch.conj, torch.adjoint, lambda A: A.conj().imag, lambda A: A.mH.real],
    ids=["conj", "adjoint", "imaginary", "real"],
)
def test_lazy_conjugates(view: object) -> None:
    A = view(torch.randn(12, 12, dtype=torch.complex128))  # type: ignore[operator]
    result = factorize(A, CHAIN)
    assert result.certificate.error == pytest.approx(relative_error(A.resolve_conj().resolve_neg(), result.product))


@pytest.mark.parametrize("order", ["best", "balanced"])
def test_an_expanded_tensor_is_not_written_to(order: str) -> None:
    A = torch.randn(1, 12, dtype=torch.float64).expand(12, 12)
    result = factorize(A, CHAIN, order=order)
    assert result.certificate.exact


def test_the_result_does_not_share_memory_with_the_input() -> None:
    for chain in (CHAIN, Chain.dense(12, 12), Chain.block_diagonal(12, 12, 3)):
        A = torch.randn(12, 12, dtype=torch.float64)
        result = factorize(A, chain)
        before = result.product.dense().clone()
        A.zero_()
        assert torch.equal(result.product.dense(), before)


@pytest.mark.parametrize(
    ("A", "chain"),
    [
        (torch.tensor([[3.0]]), Chain.dense(1, 1)),
        (torch.tensor([[-3.0]]), Chain.butterfly(1)),
        (torch.tensor([[0.0]]), Chain.low_rank(1, 1, 1)),
        (torch.tensor([[2.0, 1], [1, 2]]), Chain.butterfly(2)),
        (torch.tensor([[2.0, 4], [1, 2]]), Chain.low_rank(2, 2, 1)),
        (torch.ones(1, 5), Chain.low_rank(1, 5, 1)),
        (torch.ones(5, 1), Chain.low_rank(5, 1, 2)),
        (torch.ones(12, 12), CHAIN),
        (torch.eye(12), CHAIN),
        (torch.zeros(12, 12), CHAIN),
        (torch.zeros(12, 12, dtype=torch.complex64), Chain.butterfly(12)),
        (torch.arange(12.0)[:, None] * torch.arange(12.0), CHAIN),
    ],
    ids=lambda x: str(x) if isinstance(x, Chain) else "x".join(map(str, x.shape)),
)
def test_small_and_simple_matrices_are_exact(A: torch.Tensor, chain: Chain) -> None:
    for order in ("best", "balanced"):
        for orthonormalize in (True, False):
            result = factorize(A, chain, order=order, orthonormalize=orthonormalize, refine=1)
            assert result.certificate.exact
            assert result.certificate.lower_bound == 0
            torch.testing.assert_close(result.product.dense(), A, rtol=1e-5, atol=1e-5)


def test_the_smallest_matrix_that_is_not_exact() -> None:
    proof = factorize(torch.tensor([[2.0, 1], [1, 2]], dtype=torch.float64), Chain.low_rank(2, 2, 1)).certificate
    assert proof.error == pytest.approx(1 / 10**0.5)
    assert proof.lower_bound == pytest.approx(1 / 10**0.5)
    assert proof.guarantee == pytest.approx(1 / 10**0.5)


@pytest.mark.parametrize("order", ["best", "balanced"])
def test_duplicate_rows_and_missing_rank(order: str) -> None:
    A = torch.randn(12, 12, dtype=torch.float64)
    A[1::2] = A[::2]
    A[:, 7] = 0
    result = factorize(A, CHAIN, order=order, refine=2)
    proof = result.certificate
    assert 0 < proof.lower_bound <= proof.error <= proof.guarantee
    assert proof.error <= proof.factor * proof.lower_bound * (1 + 1e-14)
    assert proof.error == pytest.approx(relative_error(A, result.product), rel=1e-12)


SCALES = [(d, s) for d in (torch.float64, torch.complex128) for s in (1e-300, 1e-30, 1e30, 1e300)]
SCALES += [(d, s) for d in (torch.float32, torch.complex64) for s in (1e-30, 1e30)]


@pytest.mark.parametrize("order", ["l2r", "r2l", "balanced"])
@pytest.mark.parametrize(("dtype", "scale"), SCALES, ids=str)
def test_certificates_do_not_depend_on_the_scale(dtype: torch.dtype, scale: float, order: str) -> None:
    chain = Chain.butterfly(24)
    for A in (torch.randn(24, 24, dtype=dtype), transforms.random_product(chain, dtype=dtype).dense() / 8):
        scaled, plain = factorize(A * scale, chain, order=order), factorize(A, chain, order=order)
        close = {"rel": 1e-4, "abs": 1e-5} if torch.finfo(dtype).bits == 32 else {"rel": 1e-9, "abs": 1e-14}
        for name in ("error", "lower_bound", "guarantee"):
            expected = getattr(plain.certificate, name)
            assert getattr(scaled.certificate, name) == pytest.approx(expected, **close), name
        assert scaled.certificate.exact == plain.certificate.exact
        assert relative_error(A * scale, scaled.product) == pytest.approx(plain.certificate.error, **close)


def test_denormal_numbers() -> None:
    A = torch.randn(12, 12, dtype=torch.float64).abs() * 1e-310 + 1e-310
    result = factorize(A, CHAIN)
    assert relative_error(A * 2.0**900, result.product * 2.0**900) == pytest.approx(result.certificate.error, rel=1e-3)
