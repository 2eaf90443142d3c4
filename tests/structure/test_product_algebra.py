"""Products made from products: merged, sliced, transposed, composed, scaled, reduced and expanded."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing import Chain, SparseProduct
from strategies import as_user, chainable_chains, dense_product, draw_product, valid_chains

MONARCH = Chain.monarch(6, 8, blocks=2, rank=2)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@given(chainable_chains(), st.data())
def test_merge_is_exact(chain: Chain, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(chain) - 1))
    j = data.draw(st.integers(i, len(chain) - 1))
    product = draw_product(chain, perms=True)
    merged = product.merge(i, j)
    assert merged.chain == chain.merged(range(i + 1, j + 1))
    close(dense_product(merged), dense_product(product))


def test_merge_of_a_batch() -> None:
    product = draw_product(Chain.butterfly(8), batch=(2, 3))
    merged = product.merge(1, 2)
    assert merged.batch == (2, 3)
    close(merged.dense(), product.dense())


@pytest.mark.parametrize(("i", "j"), [(1, 0), (-1, 1), (0, 2), (2, 2)])
def test_merge_out_of_range(i: int, j: int) -> None:
    with pytest.raises(ValueError, match=rf"merge\({i}, {j}\) of 2 factors\. Rule: 0 <= i <= j < 2"):
        draw_product(MONARCH).merge(i, j)


def test_merge_of_the_dual_flavour() -> None:
    dual = draw_product(MONARCH).T
    assert dual.merge(1, 1).chain == dual.chain
    assert len(dual.merge(0, 1)) == 1
    close(dense_product(dual.merge(0, 1)), dense_product(dual))


@given(chainable_chains())
def test_reduced_and_expanded_are_inverse(chain: Chain) -> None:
    product = draw_product(chain, perms=True)
    reduced = product.reduced()
    assert reduced.chain == chain.reduced()
    close(dense_product(reduced), dense_product(product))
    expanded = reduced.expanded(chain)
    assert expanded.chain == chain
    close(dense_product(expanded), dense_product(product))
    close(expanded.reduced().dense(), reduced.dense())


def test_reduced_and_expanded_of_a_batch() -> None:
    chain = Chain.butterfly(16, rank=2)
    product = draw_product(chain, batch=(3,), perms=True)
    assert product.reduced().shape == (3, 16, 16)
    close(product.reduced().dense(), product.dense())
    close(product.reduced().expanded(chain).dense(), product.dense())


def test_expanded_on_a_chain_of_another_set() -> None:
    with pytest.raises(ValueError, match=r"reduces to .*, not to .* Rule: the same reduced chain"):
        draw_product(Chain.dense(16, 16)).expanded(Chain.butterfly(16, rank=2))


@given(valid_chains(), st.data())
def test_slices_multiply_to_the_whole(chain: Chain, data: st.DataObject) -> None:
    product = draw_product(chain, perms=True)
    cut = data.draw(st.integers(0, len(chain)))
    if 0 < cut < len(chain):
        left, right = product[:cut], product[cut:]
        assert left.perm_in is None
        assert right.perm_out is None
        close(dense_product(left) @ dense_product(right), dense_product(product), 1e-11)
        close(dense_product(left @ right), dense_product(product))
    close(dense_product(product[:]), dense_product(product))


def test_slices_that_are_no_products() -> None:
    product = draw_product(MONARCH)
    with (
        as_user(),
        pytest.raises(TypeError, match=r"a product is sliced, as in P\[0:2\], got P\[0\].*P\.factors\[i\]"),
    ):
        product[0]  # type: ignore[index]
    with pytest.raises(ValueError, match=r"sliced with step 1, got step -1"):
        product[::-1]
    with pytest.raises(ValueError, match=r"at least one pattern, got none"):
        product[2:]


@given(valid_chains(), st.sampled_from([torch.float64, torch.complex128]))
def test_transpose_adjoint_and_conjugate(chain: Chain, dtype: torch.dtype) -> None:
    product = draw_product(chain, dtype=dtype, perms=True)
    dense = dense_product(product)
    close(dense_product(product.T), dense.T, 1e-11)
    close(dense_product(product.H), dense.mH, 1e-11)
    close(dense_product(product.conj()), dense.conj(), 1e-11)
    assert product.T.chain == chain.T
    assert product.T.T.chain == chain
    assert product.T.factors[-1].data_ptr() == product.factors[0].data_ptr(), "values are shared, not copied"


def test_composition_is_lazy() -> None:
    left, right = draw_product(MONARCH), draw_product(Chain.low_rank(8, 5, 3), seed=1)
    whole = left @ right
    assert isinstance(whole, SparseProduct)
    assert whole.chain == left.chain + right.chain
    close(dense_product(whole), dense_product(left) @ dense_product(right))


def test_composition_keeps_the_outer_permutations() -> None:
    left, right = draw_product(MONARCH, perms=True), draw_product(MONARCH.T, perms=True, seed=3)
    right = SparseProduct(right.chain, right.factors, right.perm_in, left.perm_in)  # the same one between them: cancels
    close(dense_product(left @ right), dense_product(left) @ dense_product(right))
    gram = left @ left.H
    close(gram.dense(), dense_product(left) @ dense_product(left).mH)


@pytest.mark.parametrize("between", ["left", "right", "both"])
def test_composition_with_a_permutation_between(between: str) -> None:
    left, right = draw_product(Chain.butterfly(8), perms=True), draw_product(Chain.butterfly(8), perms=True, seed=1)
    if between == "left":
        right = SparseProduct(right.chain, right.factors)
    if between == "right":
        left = SparseProduct(left.chain, left.factors)
    with pytest.raises(ValueError, match=r"same \(or no\) permutation between them.* Use P @ Q\.dense\(\)"):
        left @ right


def test_composition_of_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"factors 1 and 2 do not fit"):
        draw_product(MONARCH) @ draw_product(MONARCH)
    with pytest.raises(ValueError, match=r"factor 2 is torch\.float32 .* Rule: one dtype"):
        draw_product(MONARCH) @ draw_product(MONARCH.T).to(torch.float32)


@pytest.mark.parametrize("scale", [2, -0.5, 1j, np.float64(3), torch.tensor(2.0)], ids=str)
def test_scaling(scale: object) -> None:
    product = draw_product(MONARCH, perms=True)
    dense = dense_product(product) * scale
    close((product * scale).dense(), dense)
    close((scale * product).dense(), dense)
    assert (product * scale).dtype == dense.dtype


@pytest.mark.parametrize("scale", [torch.ones(4), np.ones(4), [1.0, 2.0]], ids=["torch", "numpy", "list"])
def test_scaling_by_a_vector_would_be_ambiguous(scale: object) -> None:
    with as_user(), pytest.raises(TypeError, match=r"P \* x multiplies by a number.*write P @ x, for rows scale_rows"):
        draw_product(MONARCH) * scale  # type: ignore[operator]


def test_elementwise_product_of_products() -> None:
    product = draw_product(MONARCH)
    with as_user(), pytest.raises(TypeError, match=r"P \* x multiplies by a number"):
        product * product  # type: ignore[operator]


def test_to() -> None:
    product = draw_product(MONARCH, perms=True)
    single = product.to(torch.float32)
    assert single.dtype == torch.float32
    assert torch.equal(single.perm_in, product.perm_in)
    close(single.dense().double(), product.dense(), 1e-5)
    assert product.to("cpu", torch.complex64).dtype == torch.complex64
    with pytest.raises(TypeError, match=r"factors have dtype torch\.int64"):
        product.to(torch.int64)
