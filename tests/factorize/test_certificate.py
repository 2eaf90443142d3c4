"""What a certificate says, in numbers, in words and as data."""

import json
from dataclasses import replace
from math import inf, nan, sqrt

import pytest
import torch

from flatwing import Chain, SparseProduct, factorize
from flatwing.factorize.certificate import Certificate, rounding_level
from flatwing.structure import transforms


def certificate(error: float, lower: float, exact: bool = False, guarantee: float = 1.0) -> Certificate:
    return Certificate(error, lower, guarantee, 2.0, "a theorem", exact)


@pytest.mark.parametrize(
    ("proof", "ratio"),
    [
        (certificate(0.3, 0.2), 1.5),
        (certificate(0.2, 0.2), 1.0),
        (certificate(0.2, 0.0), inf),
        (certificate(0.0, 0.0, exact=True), 1.0),
        (certificate(1e-15, 0.0, exact=True), 1.0),
    ],
)
def test_ratio(proof: Certificate, ratio: float) -> None:
    assert proof.ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("proof", "text"),
    [
        (certificate(3e-16, 0.0, exact=True), "this product is exact to rounding: relative error 3.0e-16"),
        (
            certificate(0.25, 0.25),
            "this product is the best any product of this shape can do: relative error 0.25, "
            "no product of this shape can be below 0.25",
        ),
        (
            certificate(0.3, 0.25),
            "this product is within 1.20x of the best any product of this shape can do: relative error 0.3, "
            "no product of this shape can be below 0.25",
        ),
        (
            certificate(0.3, 0.0),
            "relative error 0.3; how good the best product of this shape is, is not known",
        ),
    ],
    ids=["exact", "best", "within", "unknown"],
)
def test_sentence(proof: Certificate, text: str) -> None:
    assert str(proof) == text


@pytest.mark.parametrize("ratio", [1.001, 1.1, 1.2049, 1.205, 1.21000001, 2.999, 7.0])
def test_the_sentence_never_promises_too_much(ratio: float) -> None:
    proof = certificate(0.1 * ratio, 0.1)
    said = float(str(proof).split("within ")[1].split("x of")[0])
    assert proof.ratio <= said <= proof.ratio + 0.0101


def test_data_is_json() -> None:
    data = certificate(0.3, 0.0, guarantee=inf).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data == {
        "error": 0.3,
        "lower_bound": 0.0,
        "ratio": None,
        "guarantee": None,
        "factor": 2.0,
        "theorem": "a theorem",
        "exact": False,
        "order": "given",
        "summary": "relative error 0.3; how good the best product of this shape is, is not known",
    }
    assert certificate(0.3, 0.2, guarantee=nan).to_dict()["guarantee"] is None


def test_an_order_that_was_found_is_named_in_every_bound() -> None:
    found = replace(certificate(0.3, 0.25), order="found")
    assert str(found) == (
        "this product is within 1.20x of the best any product of this shape can do in this order of rows and columns: "
        "relative error 0.3, no product of this shape in this order can be below 0.25"
    )
    assert found.to_dict()["summary"] == str(found)
    assert found.to_dict()["order"] == "found"
    assert "can do in this order of rows and columns: " in str(replace(certificate(0.25, 0.25), order="found"))


@pytest.mark.parametrize(
    ("perm", "order"),
    [("search", "found"), ("auto", "found"), ("bitrev", "given"), ("none", "given"), ((None, range(8)), "given")],
    ids=str,
)
def test_who_chose_the_order(perm: object, order: str) -> None:
    """Another order of the same matrix is below the bound of the one that was found: the bound may not deny that."""
    A = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for matrix, chain in ((A, Chain.butterfly(8)), (A.mT, Chain.butterfly(8).T)):
        result = factorize(matrix, chain, perm=perm)
        assert [one.order for one in (result.certificate, *result.certificates)] == [order, order]
        assert ("in this order" in str(result)) == (order == "found")
    rows, columns = [3, 0, 1, 6, 2, 5, 4, 7], [1, 0, 7, 5, 2, 4, 3, 6]
    better = factorize(A[rows][:, columns], "butterfly(8)", refine=3).certificate.error
    if perm == "search":
        assert better == pytest.approx(0.391989, rel=1e-5)
        assert better < factorize(A, "butterfly(8)", perm=perm).certificate.lower_bound


def test_certificates_do_not_change() -> None:
    with pytest.raises(AttributeError, match="error"):
        certificate(0.3, 0.2).error = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_rounding_level(dtype: torch.dtype) -> None:
    """Above what a chain of exact factors leaves, below any error that a person would call one."""
    for factors in (1, 4, 9):
        level = rounding_level(dtype, factors)
        assert level == pytest.approx(64 * sqrt(factors) * torch.finfo(dtype).eps)
        assert level < (1e-13 if torch.finfo(dtype).bits == 64 else 1e-4)


def test_no_false_bound_without_orthonormalization() -> None:
    """A bad factorization of an almost exact product must not make rounding look like a proof."""
    chain = Chain.parse("(1,2,2,4)(2,2,2,2)(4,2,2,1)")
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        product = transforms.random_product(chain, generator=generator)
        scales = [10 ** (3 * torch.randn(w.shape, generator=generator, dtype=torch.float64)) for w in product.factors]
        A = SparseProduct(chain, [w * s for w, s in zip(product.factors, scales, strict=True)]).dense()
        A = A + 1e-11 * A.norm() * torch.randn(8, 8, generator=generator, dtype=torch.float64) / 8
        careless = factorize(A, chain, order="l2r", orthonormalize=False).certificate
        assert careless.lower_bound <= factorize(A, chain).certificate.error


def test_a_batch_is_exact_if_its_error_is_rounding() -> None:
    """A tiny inexact matrix beside an exact one does not make the whole batch inexact."""
    A = torch.stack([torch.randn(8, 8, dtype=torch.float64) * 1e-20, transforms.hadamard(8).dense()])
    result = factorize(A, Chain.butterfly(8))
    assert result.certificate.exact
    assert [c.exact for c in result.certificates] == [False, True]


@pytest.mark.parametrize("scale", [1e308, 1e-300])
def test_products_of_extreme_size_do_not_overflow(scale: float) -> None:
    A = transforms.hadamard(16).dense() * scale
    product = factorize(A, Chain.butterfly(16)).product
    torch.testing.assert_close(product.dense(), A, rtol=1e-14, atol=0)


def test_autocast_does_not_reach_the_proof() -> None:
    A = torch.randn(16, 16)
    plain = factorize(A, Chain.butterfly(16)).certificate
    with torch.autocast("cpu", torch.bfloat16):
        assert factorize(A, Chain.butterfly(16)).certificate == plain


@pytest.mark.parametrize("noise", [1e-5, 1e-4, 1e-2])
def test_float32_bounds_stay_below_the_optimum_of_float64(noise: float) -> None:
    """For two factors the optimum is known: the truncated singular value decompositions of the blocks."""
    chain = Chain.monarch(16, 16, blocks=4)
    clean = transforms.random_product(chain, dtype=torch.float32).dense()
    A = clean + noise * clean.norm() / 16 * torch.randn(16, 16)
    best = factorize(A.double(), chain).certificate.error
    proof = factorize(A, chain).certificate
    assert proof.lower_bound <= best * (1 + 1e-12)
    assert proof.guarantee >= proof.error
