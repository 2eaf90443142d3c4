"""Bad input meets its own error, before any work."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from flatwing import Chain, factorize
from flatwing.factorize import api
from strategies import as_user

CHAIN = Chain.butterfly(8)
GOOD = torch.randn(8, 8, dtype=torch.float64)


def with_entry(value: float) -> torch.Tensor:
    A = GOOD.clone()
    A[2, 3] = value
    return A


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("bad input was worked on")

    for name in ("attempt", "Problem", "refine_factors"):
        monkeypatch.setattr(api, name, work)


BAD_MATRICES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "NaN": (lambda: with_entry(float("nan")), ValueError, r"A has 1 entries that are NaN or Inf.*nan at \(2, 3\)"),
    "Inf": (lambda: with_entry(float("inf")), ValueError, r"A has 1 entries that are NaN or Inf.*inf at \(2, 3\)"),
    "-Inf": (lambda: with_entry(-float("inf")).numpy(), ValueError, r"NaN or Inf.*-inf at \(2, 3\)"),
    "complex NaN": (lambda: with_entry(float("nan")) * 1j, ValueError, "NaN or Inf"),
    "NaN in a batch": (lambda: torch.stack([GOOD, with_entry(float("nan"))]), ValueError, r"at \(1, 2, 3\)"),
    "half Inf": (lambda: with_entry(1e9).half(), ValueError, "NaN or Inf"),
    "no rows": (lambda: torch.zeros(0, 8), ValueError, r"A of shape \(0, 8\) is empty"),
    "no batch": (lambda: torch.zeros(0, 8, 8), ValueError, r"A of shape \(0, 8, 8\) is empty"),
    "empty list": (list, ValueError, r"A has shape \(0,\)"),
    "0-d": (lambda: np.float64(3.0), ValueError, r"A has shape \(\).*2 dimensions"),
    "number": (lambda: 3.0, ValueError, r"A has shape \(\).*2 dimensions"),
    "1-d": (lambda: torch.ones(8), ValueError, r"A has shape \(8,\).*A.reshape\(1, -1\)"),
    "ragged": (lambda: [[1.0, 2.0], [3.0]], ValueError, "A is ragged"),
    "object": (lambda: np.array([[1.0, "a"]], dtype=object), TypeError, "A has dtype object.*floating-point"),
    "complex object": (lambda: np.array([[1j, 2j]], dtype=object), TypeError, "A has dtype object.*floating-point"),
    "text": (lambda: [["a", "b"]], TypeError, "A has dtype <U1"),
    "path": (lambda: "A.npy", (TypeError, ValueError), r"A has (dtype|shape)"),
    "None": (lambda: None, TypeError, "A has dtype object"),
    "integer": (lambda: torch.ones(8, 8, dtype=torch.int64), TypeError, r"A has dtype int64.*A.double\(\)"),
    "integer list": (lambda: [[1, 2], [3, 4]], TypeError, "A has dtype int64"),
    "uint8": (lambda: np.ones((8, 8), np.uint8), TypeError, r"A has dtype uint8.*astype\('float64'\)"),
    "bool": (lambda: torch.ones(8, 8, dtype=torch.bool), TypeError, "A has dtype bool"),
    "long double": (lambda: np.ones((8, 8), np.longdouble), TypeError, "at most float64"),
    "sparse COO": (lambda: GOOD.to_sparse(), TypeError, r"A is a sparse tensor \(torch.sparse_coo\).*A.to_dense\(\)"),
    "scipy array": (lambda: scipy.sparse.eye_array(8), TypeError, r"A is a sparse dia_array.*A.toarray\(\)"),
    "scipy matrix": (lambda: scipy.sparse.csr_matrix(np.eye(8)), TypeError, r"A is a sparse csr_matrix"),
    "product": (lambda: api.SparseProduct(CHAIN, [torch.ones(4, 2, 2)] * 3), TypeError, r"A is a sparse SparseProduct"),
}


@pytest.mark.parametrize("kind", BAD_MATRICES)
def test_bad_matrices(kind: str) -> None:
    make, error, message = BAD_MATRICES[kind]
    with as_user(), pytest.raises(error, match=message):
        factorize(make(), CHAIN)


@pytest.mark.parametrize(
    ("shape", "chain", "message"),
    [
        ((8, 9), CHAIN, r"A is 8 x 9 and the chain .* is 8 x 8\. Rule: equal sizes\. The nearest chain for A is \(1,"),
        ((12, 12), CHAIN, r"A is 12 x 12 .* The nearest chain for A is \("),
        ((2, 16, 8), CHAIN, r"A is 16 x 8 \(.*batch of matrices\) and the chain .* is 8 x 8"),
        ((7, 5), Chain.dense(5, 7), r"A is 7 x 5 .* The nearest chain for A is \(1,7,5,1\)"),
        ((24, 24), Chain.from_radices((2, 2), (2, 2), (1,), 2, 2).T, "A is 24 x 24"),
    ],
    ids=str,
)
def test_wrong_size_names_the_nearest_chain(shape: tuple[int, ...], chain: Chain, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        factorize(torch.randn(shape), chain)
    named = Chain.parse(str(caught.value).rsplit("The nearest chain for A is ", 1)[1].rstrip("."))
    assert named.shape == shape[-2:]
    assert named.chainable or named.T.chainable
    assert len(named) == len(chain)


def test_not_chainable_names_pair_condition_and_the_nearest_chain() -> None:
    chain = Chain.parse("(1,128,128,3)(6,64,256,1)")
    pair = r"factors 0 and 1, \(1,128,128,3\) and \(6,64,256,1\) are not chainable"
    rule = r"they violate 'the rank is whole: a' divides a\*c', with a=1, c=128, d=3, a'=6"
    with pytest.raises(ValueError, match=rf"{pair}: {rule}.* The nearest chainable chain is \(") as caught:
        factorize(torch.randn(chain.shape), chain)
    named = Chain.parse(str(caught.value).rsplit("chain is ", 1)[1].rstrip("."))
    assert named.chainable
    assert named.shape == chain.shape


def test_neither_the_chain_nor_its_transpose_is_chainable() -> None:
    chain = CHAIN + CHAIN.T
    with pytest.raises(ValueError, match=r"not chainable: they violate .*The nearest chainable chain is \(") as caught:
        factorize(GOOD, chain)
    assert Chain.parse(str(caught.value).rsplit("chain is ", 1)[1].rstrip(".")).chainable


@pytest.mark.parametrize(
    ("chain", "error", "message"),
    [
        ("butterflies(8)", ValueError, "unknown chain family 'butterflies', did you mean 'butterfly'"),
        ("butterfly(8", ValueError, r"'butterfly\(8' is not a chain. Rule"),
        ("", ValueError, "'' is not a chain"),
        ("butterfly(radices=2)", ValueError, "missing a required argument"),
        ("(1,2,2,4)(2,2,2,1)", ValueError, "factors 0 and 1 do not fit"),
        (None, TypeError, r"chain is a NoneType. Rule: a Chain or its text, such as 'butterfly\(64\)'"),
        ([(1, 2, 2, 4)], TypeError, "chain is a list"),
    ],
    ids=repr,
)
def test_bad_chains(chain: object, error: type[Exception], message: str) -> None:
    with as_user(), pytest.raises(error, match=message):
        factorize(GOOD, chain)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("left", "unknown order 'left'. Rule: 'best', 'l2r', 'r2l', 'balanced' or a permutation"),
        ((1,), r"order \(1,\) is not a permutation of the splits 1 to 2.*\(1, 2\)"),
        ((0, 1), r"order \(0, 1\) is not a permutation"),
        ((1, 2, 3), r"order \(1, 2, 3\) is not a permutation"),
        (None, "order None is not a permutation"),
        (2, "order 2 is not a permutation"),
        (("1", None), "is not a permutation"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("chain", [CHAIN, CHAIN.T], ids=["chain", "dual"])
def test_bad_orders(chain: Chain, order: object, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        factorize(GOOD, chain, order=order)  # type: ignore[arg-type]


@pytest.mark.parametrize("refine", [-1, 1.5, True, "2", None], ids=repr)
def test_bad_refine(refine: object) -> None:
    with as_user(), pytest.raises(ValueError, match=rf"refine is {refine!r}. Rule: a whole number, at least 0"):
        factorize(GOOD, CHAIN, refine=refine)  # type: ignore[arg-type]


@pytest.mark.parametrize("sites", [0, 3, "two", None], ids=repr)
def test_bad_refine_sites(sites: object) -> None:
    with as_user(), pytest.raises(ValueError, match=rf"refine_sites={sites!r}. Rule: 1 .* or 2"):
        factorize(GOOD, CHAIN, refine=1, refine_sites=sites)  # type: ignore[arg-type]


@pytest.mark.parametrize("perm", ["reverse", 1, ([0, 1], None)], ids=repr)
def test_bad_perm(perm: object) -> None:
    with as_user(), pytest.raises(ValueError, match=r"perm(_in)?[ =].*(is unknown|must be a permutation of 0\.\.7)"):
        factorize(GOOD, CHAIN, perm=perm)
