"""MaskedProduct: the definition of its operations is the dense matrix."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flatwing.structure import MaskedProduct, Support
from strategies import as_user

DTYPES = [torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128]


def product(dtype: torch.dtype = torch.float64, seed: int = 0) -> MaskedProduct:
    generator = np.random.default_rng(seed)
    sizes = [5, 4, 6, 3]
    masks = [generator.random(pair) < 0.6 for pair in itertools.pairwise(sizes)]
    torch.manual_seed(seed)
    return MaskedProduct(masks, [torch.randn(mask.shape, dtype=dtype) for mask in masks])


def test_values_outside_of_the_supports_are_dropped() -> None:
    given = torch.ones(2, 3)
    P = MaskedProduct([np.array([[1, 0, 1], [0, 1, 0]]) > 0], [given])
    assert P.dense().tolist() == [[1, 0, 1], [0, 1, 0]]
    assert (P.nnz, P.shape, len(P), P.dtype) == (3, (2, 3), 1, torch.float32)
    assert bool(given.all())


def test_even_nan_outside_of_the_support_is_dropped() -> None:
    P = MaskedProduct([torch.eye(2) > 0], [torch.tensor([[1.0, torch.nan], [torch.inf, 2.0]])])
    assert P.dense().tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_multiplies_like_the_dense_matrix(dtype: torch.dtype) -> None:
    P = product(dtype)
    dense = P.factors[0] @ P.factors[1] @ P.factors[2]
    torch.testing.assert_close(P.dense(), dense)
    for shape in ((3,), (3, 2), (2, 3, 4)):
        x = torch.randn(shape, dtype=dtype)
        torch.testing.assert_close(P @ x, dense @ x)
        np.testing.assert_allclose(P @ x.numpy(), (dense @ x).numpy())
    for shape in ((5,), (2, 5), (3, 2, 5)):
        x = torch.randn(shape, dtype=dtype)
        torch.testing.assert_close(x @ P, x @ dense)
        np.testing.assert_allclose(x.numpy() @ P, (x @ dense).numpy())
    torch.testing.assert_close(P.T.dense(), dense.T)
    torch.testing.assert_close(P.H.dense(), dense.mH)
    assert P.T.supports == tuple(support.T for support in reversed(P.supports))


def test_dtypes_are_promoted_and_changed() -> None:
    P = product(torch.float32)
    assert (P @ torch.randn(3, dtype=torch.float64)).dtype == torch.float64
    assert (P @ torch.randn(3, dtype=torch.complex64)).dtype == torch.complex64
    assert P.to(torch.float64).dtype == torch.float64


def test_gradients_reach_the_values_on_the_supports_only() -> None:
    support = Support(np.tri(3) > 0)
    values = torch.randn(3, 3, requires_grad=True)
    MaskedProduct([support], [values]).dense().sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad != 0, support.mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saved_and_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    P = product(dtype) if dtype != torch.float16 else product().to(dtype)
    path = tmp_path / "p.safetensors"
    P.save(path)
    back = MaskedProduct.load(path)
    assert back.supports == P.supports
    assert back.dtype == dtype
    assert all(torch.equal(one, other) for one, other in zip(P.factors, back.factors, strict=True))


def test_file_holds_the_values_and_one_bit_per_entry(tmp_path: Path) -> None:
    mask = torch.rand(400, 400) < 0.01
    path = tmp_path / "p.safetensors"
    MaskedProduct([mask], [torch.randn(400, 400, dtype=torch.float64)]).save(path)
    assert path.stat().st_size < int(mask.sum()) * 8 + 400 * 400 // 8 + 1000


def test_conjugated_views_are_saved_as_they_are_read(tmp_path: Path) -> None:
    P = product(torch.complex128)
    P.H.save(tmp_path / "h.safetensors")
    torch.testing.assert_close(MaskedProduct.load(tmp_path / "h.safetensors").dense(), P.dense().mH)


def test_nothing_stays_when_saving_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        product().save(tmp_path / "no" / "p.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_foreign_and_truncated_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    with pytest.raises(ValueError, match="there is no file"):
        MaskedProduct.load(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"holds no product with supports .*format None"):
        MaskedProduct.load(path)
    product().save(path)
    content = path.read_bytes()
    for size in (0, 7, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="holds no product with supports"):
            MaskedProduct.load(path)


@pytest.mark.parametrize(
    ("masks", "factors", "error", "message"),
    [
        ([(2, 3), (4, 2)], [(2, 3), (4, 2)], ValueError, r"support 0 is \(2, 3\), support 1 is \(4, 2\)"),
        ([(2, 3)], [], ValueError, "there are 1 supports and 0 factors"),
        ([], [], ValueError, "there is no support"),
        ([(2, 3)], [(3, 2)], ValueError, r"factor 0 has shape \(3, 2\). Rule: its support's"),
    ],
)
def test_shapes_are_refused(masks: list, factors: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MaskedProduct([np.ones(shape, bool) for shape in masks], [torch.ones(shape) for shape in factors])


def test_kinds_are_refused() -> None:
    mask = np.ones((2, 2), bool)
    with pytest.raises(TypeError, match=r"factor 0 has dtype torch\.int64"):
        MaskedProduct([mask], [torch.ones(2, 2, dtype=torch.int64)])
    with pytest.raises(ValueError, match="Rule: all alike"):
        MaskedProduct([mask, mask], [torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64)])
    with pytest.raises(ValueError, match=r"P has 3 columns, x has shape \(5,\)"):
        product() @ torch.ones(5)
    with pytest.raises(TypeError, match="unsupported operand"):
        product() @ "x"
    assert repr(product()) == f"MaskedProduct(5x4 @ 4x6 @ 6x3, nnz={product().nnz}, dtype=float64)"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, complex(0, torch.nan)], ids=str)
def test_values_that_are_no_numbers_are_refused_where_they_count(bad: complex) -> None:
    mask = np.tri(2) > 0
    factor = torch.ones(2, 2, dtype=torch.complex64 if isinstance(bad, complex) else torch.float32)
    factor[0, 1] = bad
    assert MaskedProduct([mask], [factor]).dense()[0, 1] == 0
    factor[1, 1] = bad
    with pytest.raises(ValueError, match=r"factor 1 \(\w+\) has 1 entries on its support that are NaN or Inf"):
        MaskedProduct([mask, mask], [torch.ones_like(factor), factor])


def test_a_dtype_too_narrow_is_refused() -> None:
    large = MaskedProduct([np.ones((2, 2), bool)], [torch.full((2, 2), 1e6)])
    with pytest.raises(ValueError, match=r"factor 0 \(float16\) has 4 entries .* a dtype with a wider range"):
        large.to(torch.float16)


def test_factors_that_are_no_tensors_are_refused() -> None:
    with as_user(), pytest.raises(TypeError, match=r"factor 0 is a ndarray\. Rule: a tensor"):
        MaskedProduct([np.ones((2, 2), bool)], [np.ones((2, 2))])
