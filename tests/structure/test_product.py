"""A product applied, made dense, and differentiated, against the dense definition."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing import Chain, SparseProduct
from strategies import as_user, dense_product, draw_product, valid_chains

CHAIN = Chain([(1, 3, 4, 2), (2, 4, 3, 1), (1, 6, 5, 1)])  # 6 x 5; its first pair is chainable, its last is not
BUTTERFLY = Chain.from_radices((2, 3), (4, 2), (2,))  # 6 x 8


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-13) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(7))


def test_the_examples_cover_both_kinds() -> None:
    assert BUTTERFLY.chainable
    assert not CHAIN.chainable


@given(valid_chains(), st.booleans(), st.integers(1, 3))
def test_apply_and_dense_are_the_definition(chain: Chain, perms: bool, k: int) -> None:
    product = draw_product(chain, perms=perms)
    dense = dense_product(product)
    x = randn(chain.shape[1], k)
    close(product.dense(), dense, 1e-12)
    close(product @ x, dense @ x, 1e-11)


def test_permutations_reorder_rows_and_columns() -> None:
    plain = draw_product(BUTTERFLY)
    perm_in, perm_out = torch.randperm(8), torch.randperm(6)
    dense = SparseProduct(BUTTERFLY, plain.factors, perm_in.tolist(), perm_out.numpy()).dense()
    close(dense[perm_out][:, perm_in], plain.dense())
    only_in = SparseProduct(BUTTERFLY, plain.factors, perm_in=perm_in)
    close(only_in.dense()[:, perm_in], plain.dense())
    assert only_in.perm_out is None


@pytest.mark.parametrize("chain", [CHAIN, BUTTERFLY], ids=str)
@pytest.mark.parametrize("stack", [(), (1,), (3,), (2, 0), (2, 3, 4)], ids=str)
def test_vectors_matrices_and_stacks(chain: Chain, stack: tuple[int, ...]) -> None:
    product = draw_product(chain, perms=True)
    dense = dense_product(product)
    m, n = chain.shape
    x, y = randn(*stack, n, 4), randn(*stack, 4, m)
    close(product @ x, dense @ x)
    close(y @ product, y @ dense)
    assert (product @ x).shape == (*stack, m, 4)
    close(product @ randn(n), dense @ randn(n))
    close(randn(m) @ product, randn(m) @ dense)


def test_strided_input() -> None:
    product = draw_product(BUTTERFLY)
    x = randn(4, 16)[:, ::2].T
    close(product @ x, dense_product(product) @ x)


@pytest.mark.parametrize("chain", [CHAIN, BUTTERFLY], ids=str)
@pytest.mark.parametrize("batch", [(1,), (3,), (2, 3)], ids=str)
def test_a_batch_of_products_is_that_many_products(chain: Chain, batch: tuple[int, ...]) -> None:
    product = draw_product(chain, batch=batch, perms=True)
    flat = [w.reshape(-1, *w.shape[-3:]) for w in product.factors]
    singles = [SparseProduct(chain, ws, product.perm_in, product.perm_out) for ws in zip(*flat, strict=True)]
    dense = torch.stack([dense_product(p) for p in singles]).reshape(*batch, *chain.shape)
    m, n = chain.shape
    assert product.shape == (*batch, m, n)
    assert product.nnz == len(singles) * chain.nnz
    close(product.dense(), dense)
    close(product.T.dense(), dense.mT)
    close(product @ randn(n), dense @ randn(n))
    close(product @ randn(n, 2), dense @ randn(n, 2))
    close(product @ randn(*batch, n, 2), dense @ randn(*batch, n, 2))
    close(randn(*batch, 2, m) @ product, randn(*batch, 2, m) @ dense)


def test_a_batch_that_does_not_fit() -> None:
    product = draw_product(BUTTERFLY, batch=(3,))
    for stack in ((2,), (5, 3)):
        with pytest.raises(ValueError, match=r"P has batch \(3,\), x has \(.*\)\. Rule: the same batch, or none"):
            product @ randn(*stack, 8, 1)


@pytest.mark.parametrize(
    ("values", "given_dtype", "result"),
    [
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.complex128, torch.float64, torch.complex128),
        (torch.float64, torch.complex64, torch.complex128),
        (torch.float32, torch.int64, torch.float32),
        (torch.float16, torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
    ],
    ids=str,
)
def test_dtypes_are_promoted(values: torch.dtype, given_dtype: torch.dtype, result: torch.dtype) -> None:
    product = draw_product(BUTTERFLY).to(values)
    x = (4 * randn(8, 3)).to(given_dtype)
    y = product @ x
    assert y.dtype == result
    exact = dense_product(product.to(torch.complex128)) @ x.to(torch.complex128)
    error = (y.to(torch.complex128) - exact).abs().max() / exact.abs().max()
    assert error < 8 * max(torch.finfo(values).eps, torch.finfo(result).eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("chain", [CHAIN, BUTTERFLY], ids=str)
def test_gradients(chain: Chain, dtype: torch.dtype) -> None:
    product = draw_product(chain, dtype=dtype, perms=True)
    leaves = [w.clone().requires_grad_() for w in product.factors]
    x = randn(chain.shape[1], 2, dtype=dtype).requires_grad_()

    def rebuilt(ws: Sequence[torch.Tensor]) -> SparseProduct:
        return SparseProduct(chain, ws, product.perm_in, product.perm_out)

    assert torch.autograd.gradcheck(lambda x, *ws: rebuilt(ws) @ x, (x, *leaves))
    assert torch.autograd.gradcheck(lambda *ws: rebuilt(ws).dense(), tuple(leaves))
    assert torch.autograd.gradcheck(lambda *ws: rebuilt(ws).H.dense(), tuple(leaves))
    assert not rebuilt(leaves).detach().factors[0].requires_grad


def test_gradients_of_a_batch() -> None:
    product = draw_product(BUTTERFLY, batch=(2,))
    leaves = [w.clone().requires_grad_() for w in product.factors]
    assert torch.autograd.gradcheck(lambda *ws: SparseProduct(BUTTERFLY, ws) @ randn(8, 1), tuple(leaves))


def test_attributes() -> None:
    product = draw_product(BUTTERFLY, dtype=torch.complex64)
    assert product.shape == BUTTERFLY.shape == (6, 8)
    assert product.dtype == torch.complex64
    assert product.device == torch.device("cpu")
    assert product.nnz == BUTTERFLY.nnz
    assert len(product) == 2
    assert repr(product) == f"SparseProduct(shape=(6, 8), chain='{BUTTERFLY}', nnz={BUTTERFLY.nnz}, dtype=complex64)"


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(6), r"P has 8 columns, x has shape \(6,\)\. Rule: x is \(8,\) or \(\.\.\., 8, k\)"),
        (torch.ones(6, 8), r"P has 8 columns, x has shape \(6, 8\)"),
        (torch.ones(()), r"P has 8 columns, x has shape \(\)"),
    ],
)
def test_sizes_that_do_not_fit(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_product(BUTTERFLY) @ x


@pytest.mark.parametrize("shape", [(8,), (6, 8), ()], ids=str)
def test_sizes_that_do_not_fit_from_the_left(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"P has 6 rows, x has shape \(.*\)\. Rule: x @ P with x \(6,\) or \(\.\.\., k, 6\)"
    ):
        torch.ones(shape) @ draw_product(BUTTERFLY)


GOOD = {"chain": Chain.monarch(6, 6, blocks=3), "factors": [torch.ones(3, 2, 3), torch.ones(3, 3, 2)]}
LEFT, RIGHT = GOOD["factors"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"factors": [LEFT]}, ValueError, r"the chain .* has 2 factors, got 1 tensors"),
        ({"factors": [LEFT, LEFT]}, ValueError, r"factor 1 .* Rule: \(\*batch, a\*d, b, c\), here"),
        ({"factors": [LEFT[0], RIGHT]}, ValueError, r"factor 0 of pattern .* has shape \(2, 3\)"),
        ({"factors": [LEFT, RIGHT.expand(5, -1, -1, -1)]}, ValueError, r"factor 1 .* has shape \(5, 3, 3, 2\)"),
        ({"factors": [LEFT, RIGHT.double()]}, ValueError, r"factor 1 is torch\.float64 .* Rule: one dtype and one"),
        (
            {"factors": [LEFT.long(), RIGHT.long()]},
            TypeError,
            r"factors have dtype torch\.int64\. Rule: real or complex",
        ),
        (
            {"factors": [LEFT.numpy(), RIGHT.numpy()]},
            TypeError,
            r"a Chain and torch tensors, got Chain, ndarray, ndarray",
        ),
        ({"chain": "butterfly(4)"}, TypeError, r"made of a Chain and torch tensors, got str, Tensor, Tensor"),
        ({"perm_in": [0, 1, 2, 3, 4, 4]}, ValueError, r"perm_in must hold each of 0\.\.5 exactly once"),
        ({"perm_out": [0, 1]}, ValueError, r"perm_out must be a permutation of 0\.\.5: 6 whole numbers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_no_product(changes: dict, error: type[Exception], message: str) -> None:
    SparseProduct(**GOOD)
    with as_user(), pytest.raises(error, match=message):
        SparseProduct(**GOOD | changes)


def test_things_that_are_not_multiplied() -> None:
    product = draw_product(BUTTERFLY)
    for operation in (lambda: product @ [1.0] * 8, lambda: [1.0] * 6 @ product, lambda: product @ np.float64(2)):
        with as_user(), pytest.raises(TypeError, match="unsupported operand"):
            operation()
