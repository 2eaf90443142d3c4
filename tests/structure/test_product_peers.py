"""A product among numpy, scipy and lazylinop."""

import warnings

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch

from flatwing import Chain, SparseProduct
from strategies import dense_product, draw_product

CHAIN = Chain.from_radices((2, 3, 2), (3, 2, 2), (2, 2))  # 12 x 12, all three factors different
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def tolerance(dtype: torch.dtype) -> float:
    return 100 * torch.finfo(dtype).eps


@pytest.fixture(params=DTYPES, ids=str)
def product(request: pytest.FixtureRequest) -> SparseProduct:
    return draw_product(CHAIN, dtype=request.param, perms=True)


def test_numpy_in_numpy_out(product: SparseProduct) -> None:
    dense, rng = dense_product(product).numpy(), np.random.default_rng(0)
    for shape in ((12,), (12, 12), (3, 12, 12)):
        x = rng.standard_normal(shape).astype(dense.real.dtype)
        for ours, theirs in ((product @ x, dense @ x), (x @ product, x @ dense)):
            assert isinstance(ours, np.ndarray)
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=tolerance(product.dtype), atol=10 * tolerance(product.dtype))


@pytest.mark.parametrize("kind", ["read-only", "reversed", "big endian", "Fortran", "integer"])
def test_every_memory_layout_of_numpy(kind: str) -> None:
    product = draw_product(CHAIN)
    x = np.arange(24.0).reshape(12, 2)
    if kind == "read-only":
        x.flags.writeable = False
    x = {
        "reversed": x[::-1],
        "big endian": x.astype(">f8"),
        "Fortran": np.asfortranarray(x),
        "integer": x.astype(int),
    }.get(kind, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(product @ x, dense_product(product).numpy() @ x, rtol=1e-13, atol=1e-12)
        np.testing.assert_allclose(x.T @ product, x.T @ dense_product(product).numpy(), rtol=1e-13, atol=1e-12)


def test_numpy_with_gradients_and_without_bfloat16() -> None:
    leaf = [w.clone().requires_grad_() for w in draw_product(CHAIN).factors]
    assert (SparseProduct(CHAIN, leaf) @ np.ones(12)).dtype == np.float64
    assert (draw_product(CHAIN).to(torch.bfloat16) @ np.ones(12, dtype=np.int32)).dtype == np.float32


def test_numpy_of_no_use() -> None:
    with pytest.raises(ValueError, match=r"P has 12 columns, x has shape \(5,\)"):
        draw_product(CHAIN) @ np.ones(5)
    with pytest.raises(TypeError, match=r"can't convert np\.ndarray of type numpy\.object_"):
        draw_product(CHAIN) @ np.full(12, None)


def test_aslinearoperator(product: SparseProduct) -> None:
    operator, dense = sla.aslinearoperator(product), dense_product(product).numpy()
    assert operator.shape == dense.shape
    assert operator.dtype == dense.dtype
    rng = np.random.default_rng(0)
    x, many = rng.standard_normal(12).astype(dense.dtype), rng.standard_normal((12, 3)).astype(dense.dtype)
    for ours, theirs in (
        (operator.matvec(x), dense @ x),
        (operator.rmatvec(x), dense.conj().T @ x),
        (operator.matmat(many), dense @ many),
        (operator.rmatmat(many), dense.conj().T @ many),
        ((operator.H @ operator) @ x, dense.conj().T @ (dense @ x)),
    ):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance(product.dtype) * np.abs(theirs).max())


def test_scipy_is_told_a_numpy_dtype_of_every_product() -> None:
    for dtype, name in [(torch.bfloat16, "float32"), (torch.float16, "float16"), (torch.complex64, "complex64")]:
        assert sla.aslinearoperator(draw_product(CHAIN).to(dtype)).dtype == np.dtype(name)
    half = draw_product(CHAIN).to(torch.bfloat16)
    expected = half.to(torch.float32).dense().numpy() @ np.ones(12, np.float32)
    np.testing.assert_allclose(sla.aslinearoperator(half) @ np.ones(12, np.float32), expected, rtol=1e-5)


def test_svds_and_lsqr_of_scipy() -> None:
    product = draw_product(Chain.monarch(20, 15, blocks=5, rank=2), perms=True)
    dense = dense_product(product).numpy()
    values = sla.svds(sla.aslinearoperator(product), k=4, v0=np.ones(15), return_singular_vectors=False)
    np.testing.assert_allclose(np.sort(values)[::-1], np.linalg.svd(dense, compute_uv=False)[:4], rtol=1e-8)
    right = dense @ np.arange(15.0)
    solution = sla.lsqr(product, right, atol=1e-14, btol=1e-14)[0]
    np.testing.assert_allclose(dense @ solution, right, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_ks_values_are_the_layout_of_lazylinop(dtype: torch.dtype) -> None:
    with warnings.catch_warnings(record=True):  # of its own imports
        from lazylinop.butterfly import ksm

        product = draw_product(CHAIN, dtype=dtype)
        values = product.ks_values()
        assert [tuple(v.shape) for v in values] == [tuple(p) for p in CHAIN]
        dense = ksm([v.contiguous().numpy() for v in values]).toarray()
    np.testing.assert_allclose(dense, dense_product(product).numpy(), rtol=1e-12, atol=1e-12)


def test_ks_values_by_their_formula() -> None:
    """K[i b d + j d + l, i c d + k d + l] = T[i, j, k, l]."""
    product = draw_product(CHAIN)[1:2]
    ((a, b, c, d),) = product.chain
    (values,) = product.ks_values()
    dense = dense_product(product)
    i, j, k, l = torch.meshgrid(*map(torch.arange, (a, b, c, d)), indexing="ij")  # noqa: E741
    assert torch.equal(dense[i * b * d + j * d + l, i * c * d + k * d + l], values)


def test_ks_values_of_a_batch() -> None:
    values = draw_product(CHAIN, batch=(5,)).ks_values()
    assert [tuple(v.shape) for v in values] == [(5, *p) for p in CHAIN]
    single = SparseProduct(CHAIN, [w[3] for w in draw_product(CHAIN, batch=(5,)).factors])
    assert all(torch.equal(v[3], s) for v, s in zip(values, single.ks_values(), strict=True))
