"""The known transforms against scipy, and the random products against their distribution."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing import Chain, SparseProduct
from flatwing.structure import transforms
from strategies import as_user, chainable_chains, dense_product, draw_product

SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 25, 30, 31, 60, 64, 97, 105, 128]
REAL = {
    "hartley": lambda eye: scipy.fft.fft(eye, axis=0).real - scipy.fft.fft(eye, axis=0).imag,
    "dct2": lambda eye: scipy.fft.dct(eye, type=2, axis=0) / 2,
    "dct4": lambda eye: scipy.fft.dct(eye, type=4, axis=0) / 2,
    "dst2": lambda eye: scipy.fft.dst(eye, type=2, axis=0) / 2,
}


def relative_error(product: SparseProduct, expected: np.ndarray) -> float:
    return float(np.linalg.norm(product.dense().numpy() - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("n", SIZES)
def test_dft_is_that_of_scipy(n: int) -> None:
    product = transforms.dft(n)
    assert product.chain == Chain.butterfly(n)
    assert relative_error(product, scipy.fft.fft(np.eye(n), axis=0)) < 1e-13


def test_angles_stay_exact_for_a_large_prime() -> None:
    expected = scipy.fft.fft(np.eye(997), axis=0)
    assert relative_error(transforms.dft(997), expected) < 5e-15


@pytest.mark.parametrize("radices", [(2, 3, 4), (4, 3, 2), (3, 8), (24,), (1, 6, 1, 4), (2, 2, 2, 3)], ids=str)
def test_dft_in_any_mixed_radix(radices: tuple[int, ...]) -> None:
    product = transforms.dft(24, radices)
    assert product.chain == Chain.butterfly(24, radices)
    assert relative_error(product, scipy.fft.fft(np.eye(24), axis=0)) < 1e-13


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", REAL)
def test_real_transforms_are_those_of_scipy(name: str, n: int) -> None:
    product = getattr(transforms, name)(n)
    assert product.dtype == torch.float64
    assert relative_error(product, REAL[name](np.eye(n))) < 1e-13
    assert product.chain.chainable
    assert product.chain.redundant_splits == ()


@pytest.mark.parametrize("name", REAL)
def test_real_transforms_are_fast(name: str) -> None:
    product = getattr(transforms, name)(256)
    assert set(product.chain.ranks) == {2}
    assert product.nnz <= 4 * Chain.butterfly(256).nnz


def test_transforms_in_single_precision() -> None:
    for name, dtype in [("dft", torch.complex64), *((name, torch.float32) for name in REAL)]:
        build = getattr(transforms, name)
        assert build(30, dtype=dtype).dtype == dtype
        torch.testing.assert_close(build(30, dtype=dtype).dense(), build(30).dense().to(dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4, 32, 256])
def test_hadamard_is_that_of_scipy(n: int) -> None:
    product = transforms.hadamard(n)
    assert np.array_equal(product.dense().numpy(), scipy.linalg.hadamard(n))
    assert product.nnz == max(1, 2 * n * int(math.log2(n)))
    scaled = transforms.hadamard(n, normalized=True)
    assert relative_error(scaled, scipy.linalg.hadamard(n) / n**0.5) < 1e-14
    assert transforms.hadamard(n, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(("n", "nearest"), [(0, 1), (-4, 1), (3, 4), (5, 4), (7, 8), (12, 16), (100, 128), (90, 64)])
def test_hadamard_of_another_size(n: int, nearest: int) -> None:
    with pytest.raises(ValueError, match=rf"hadamard needs a power of two, got n={n}\. The nearest is {nearest}\."):
        transforms.hadamard(n)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_circulant_is_that_of_scipy(n: int, dtype: torch.dtype) -> None:
    column = torch.randn(n, dtype=dtype)
    assert relative_error(transforms.circulant(column), scipy.linalg.circulant(column.numpy())) < 1e-13


def test_circulant_needs_a_vector() -> None:
    with as_user(), pytest.raises(ValueError, match=r"circulant needs the first column, a vector; got shape \(2, 3\)"):
        transforms.circulant(torch.ones(2, 3))


def test_dft_is_complex() -> None:
    with pytest.raises(TypeError, match=r"dft has dtype torch\.float64\. Rule: complex64 or complex128; .* hartley"):
        transforms.dft(4, dtype=torch.float64)


@pytest.mark.parametrize("name", ["dft", *REAL])
def test_size_zero(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be >= 1, got \[0"):
        getattr(transforms, name)(0)


@pytest.mark.parametrize("radices", [(2, 2, 2), (2, 3), (3, 2), (4, 1, 5), (7,)], ids=str)
def test_digit_reversal_by_its_definition(radices: tuple[int, ...]) -> None:
    def reverse(i: int) -> int:
        result = 0
        for radix in radices:  # least significant digit of the first radix first
            result, i = result * radix + i % radix, i // radix
        return result

    order = transforms.digit_reversal(radices).tolist()
    n = math.prod(radices)
    backwards = transforms.digit_reversal(radices[::-1])
    assert sorted(order) == list(range(n))
    assert torch.equal(torch.tensor(order)[backwards], torch.arange(n)), "reading twice gives the number back"
    assert order in ([reverse(i) for i in range(n)], torch.tensor([reverse(i) for i in range(n)]).argsort().tolist())


@given(chainable_chains(), st.booleans())
def test_real_part(chain: Chain, perms: bool) -> None:
    product = draw_product(chain, dtype=torch.complex128, perms=perms)
    real = transforms.real_part(product)
    assert real.dtype == torch.float64
    assert real.chain.ranks == tuple(2 * r for r in chain.ranks)
    torch.testing.assert_close(dense_product(real), dense_product(product).real, rtol=1e-12, atol=1e-12)


def test_real_part_of_others() -> None:
    product = draw_product(Chain.butterfly(4))
    assert transforms.real_part(product) is product
    with pytest.raises(ValueError, match="are not chainable: they violate 'a grows"):
        transforms.real_part(draw_product(Chain.butterfly(4), dtype=torch.complex128).T)


@given(chainable_chains(), st.sampled_from([torch.float64, torch.complex128]))
def test_scaled_rows_and_columns(chain: Chain, dtype: torch.dtype) -> None:
    product = draw_product(chain)
    dense = dense_product(product).to(dtype)
    m, n = chain.shape
    rows, columns = torch.randn(m, dtype=dtype), torch.randn(n, dtype=dtype)
    by_rows, by_columns = transforms.scale_rows(product, rows), transforms.scale_columns(product, columns)
    torch.testing.assert_close(dense_product(by_rows), rows[:, None] * dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dense_product(by_columns), dense * columns, rtol=1e-12, atol=1e-12)
    assert by_rows.chain == by_columns.chain == chain


@pytest.mark.parametrize("scale", [transforms.scale_rows, transforms.scale_columns])
def test_scale_of_another_size(scale: Callable) -> None:
    with (
        as_user(),
        pytest.raises(ValueError, match=r"the scale of 4 rows or columns has shape \(3,\)\. Rule: one number"),
    ):
        scale(draw_product(Chain.butterfly(4)), torch.ones(3))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(product: SparseProduct) -> torch.Tensor:
    return torch.cat([w.flatten() for w in product.factors])


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: transforms.random_product(Chain.butterfly(8), generator=g),
        lambda g: transforms.random_orthogonal(8, generator=g),
    ],
    ids=["product", "orthogonal"],
)
def test_random_products_depend_on_the_generator_alone(draw: Callable[[torch.Generator], SparseProduct]) -> None:
    first = values(draw(generator(1)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(values(draw(generator(1))), first)
    assert not torch.equal(values(draw(generator(2))), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_random_product_is_standard_normal(dtype: torch.dtype) -> None:
    chain = Chain.butterfly(2048, radices=(32, 64))
    product = transforms.random_product(chain, dtype=dtype, generator=generator(0))
    assert product.chain == chain
    assert product.dtype == dtype
    x = values(product)
    stderr = x.numel() ** -0.5
    assert abs(x.mean()) < 4 * stderr
    assert abs(x.abs().square().mean() - 1) < 4 * 2**0.5 * stderr


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("radices", [None, (3, 4), (12,)], ids=str)
def test_random_orthogonal_is_orthogonal(dtype: torch.dtype, radices: tuple[int, ...] | None) -> None:
    product = transforms.random_orthogonal(12, radices, dtype=dtype, generator=generator(0))
    assert product.chain == Chain.butterfly(12, radices)
    q = product.dense()
    torch.testing.assert_close(q @ q.mH, torch.eye(12, dtype=dtype), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_random_orthogonal_is_uniform(dtype: torch.dtype) -> None:
    """Haar: every entry has mean 0 and mean square 1/r, and so has every eigenvalue angle no preferred direction."""
    r = 3
    blocks = transforms.random_orthogonal(3**8, [r] * 8, dtype=dtype, generator=generator(0)).factors[0]
    stderr = len(blocks) ** -0.5
    assert float(blocks.mean(0).abs().max()) < 4 * stderr * r**-0.5
    assert float((blocks.abs().square().mean(0) - 1 / r).abs().max()) < 4 * stderr * 2**0.5 / r
    trace = blocks.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert abs(float(trace.abs().square().mean()) - 1) < 4 * stderr * 2, "E |tr Q|^2 = 1 for the Haar measure"
