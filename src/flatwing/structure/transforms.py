"""Known fast transforms as exact products of sparse factors."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, prod

import torch
from jaxtyping import Int, Num

from .chain import Chain
from .product import SparseProduct

Real = torch.float64


def digit_reversal(radices: Sequence[int]) -> Int[torch.Tensor, " n"]:
    """The permutation that reads mixed-radix digits backwards; for radices (2, ..., 2) it is bit reversal.

    >>> digit_reversal((2, 2, 2)).tolist()
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    order = torch.arange(prod(radices), device="cpu").reshape(tuple(reversed(radices)))
    return order.permute(*reversed(range(len(radices)))).reshape(-1)


def hadamard(n: int, *, normalized: bool = False, dtype: torch.dtype = Real) -> SparseProduct:
    """Hadamard matrix of size n = 2^L in Sylvester's order: L factors of (1, 1; 1, -1) blocks.

    `normalized` divides by sqrt(n). Raises `ValueError` if n is not a power of two.

    >>> hadamard(4).dense().int().tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    if n < 1 or n & (n - 1):
        raise ValueError(f"hadamard needs a power of two, got n={n}. The nearest is {2 ** round_log2(n)}.")
    block = torch.tensor([[1, 1], [1, -1]], dtype=dtype)[:n, :n]
    if normalized:
        block = block / len(block) ** 0.5
    chain = Chain.butterfly(n)
    return SparseProduct(chain, [block.expand(p.blocks, *block.shape) for p in chain])


def round_log2(n: int) -> int:
    """The exponent of the power of two nearest to n >= 1, or 0."""
    return max(0, (max(n, 1) * 2 // 3).bit_length())


def dft(n: int, radices: Sequence[int] | None = None, *, dtype: torch.dtype = torch.complex128) -> SparseProduct:
    """Fourier matrix exp(-2 pi i j k / n) for any n, by decimation in time over mixed radices.

    `perm_in` is the digit reversal. A prime n is one dense factor. Source: Cooley and Tukey 1965.

    >>> x = torch.arange(6).to(torch.complex128)
    >>> torch.allclose(dft(6) @ x, torch.fft.fft(x))
    True
    """
    if not dtype.is_complex:
        raise TypeError(
            f"dft has dtype {dtype}. Rule: complex64 or complex128; real kin are hartley, dct2, dct4, dst2."
        )
    chain = Chain.butterfly(n, radices)
    digits = chain.radices[0]
    factors, size = [], n
    for pattern, radix in zip(chain, digits, strict=True):
        # the blocks of one Fourier matrix of `size` points: entry (k1, j1) of block k2 is w^(j1 (k1 size/radix + k2))
        step = size // radix
        k2, k1, j1 = torch.meshgrid(torch.arange(step), torch.arange(radix), torch.arange(radix), indexing="ij")
        turns = (j1 * (k1 * step + k2)) % size  # reduced first: the angle stays exact for any n
        block = torch.polar(torch.ones((), dtype=Real), -2 * pi * turns.to(Real) / size)
        factors.append(block.repeat(pattern.a, 1, 1).to(dtype))
        size = step
    return SparseProduct(chain, factors, perm_in=digit_reversal(digits))


def hartley(n: int, *, dtype: torch.dtype = Real) -> SparseProduct:
    """Hartley matrix cos(2 pi j k / n) + sin(2 pi j k / n), splits of rank 2."""
    one = torch.ones(n, dtype=torch.complex128)
    return _real_fourier(n, (1 + 1j) * one, one, torch.arange(n), dtype)


def dct2(n: int, *, dtype: torch.dtype = Real) -> SparseProduct:
    """DCT-II matrix cos(pi (2 j + 1) k / (2 n)), rows k, unnormalized; splits of rank 2.

    >>> dct2(2).dense().round(decimals=4).tolist()
    [[1.0, 1.0], [0.7071, -0.7071]]
    """
    k = torch.arange(n, dtype=Real)
    return _real_fourier(n, _turn(-k / (4 * n)), torch.ones(n), _even_then_odd_reversed(n), dtype)


def dct4(n: int, *, dtype: torch.dtype = Real) -> SparseProduct:
    """DCT-IV matrix cos(pi (2 j + 1) (2 k + 1) / (4 n)), rows k, unnormalized; splits of rank 2."""
    k = torch.arange(n, dtype=Real)
    return _real_fourier(
        n, _turn(-(k + 0.5) / (4 * n)), _fold_sign(n) * _turn(-k / (2 * n)), _even_then_odd_reversed(n), dtype
    )


def dst2(n: int, *, dtype: torch.dtype = Real) -> SparseProduct:
    """DST-II matrix sin(pi (2 j + 1) (k + 1) / (2 n)), rows k, unnormalized; splits of rank 2."""
    k = torch.arange(n, dtype=Real)
    return _real_fourier(
        n, 1j * _turn(-(k + 1) / (4 * n)), _fold_sign(n) * _turn(-k / n), _even_then_odd_reversed(n), dtype
    )


def circulant(column: Num[torch.Tensor, " n"]) -> SparseProduct:
    """Circulant matrix with the given first column, as F^H diag(F column) F / n: a chain followed by its transpose.

    The result is complex; for a real column its imaginary part is rounding. The chain is not chainable.

    >>> circulant(torch.tensor([1.0, 2.0, 3.0])).dense().real.round().int().tolist()
    [[1, 3, 2], [2, 1, 3], [3, 2, 1]]
    """
    if column.ndim != 1:
        raise ValueError(f"circulant needs the first column, a vector; got shape {tuple(column.shape)}.")
    n = len(column)
    whole = not (column.is_floating_point() or column.is_complex())
    dtype = torch.complex128 if whole else torch.promote_types(column.dtype, torch.complex64)
    fourier = dft(n, dtype=dtype)
    assert fourier.perm_in is not None
    spectrum = torch.fft.fft(column.to(dtype))[fourier.perm_in] / n
    # F = K Q = (K Q)^T, so F^H D F = conj(K) (Q D Q^T) K^T: the two permutations cancel
    core = SparseProduct(fourier.chain, fourier.factors)
    return scale_columns(core.conj(), spectrum) @ core.T


def random_product(
    chain: Chain, *, dtype: torch.dtype = Real, generator: torch.Generator | None = None
) -> SparseProduct:
    """A product with independent standard normal values."""
    shapes = [(p.blocks, p.b, p.c) for p in chain]
    return SparseProduct(chain, [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes])


def random_orthogonal(
    n: int,
    radices: Sequence[int] | None = None,
    *,
    dtype: torch.dtype = Real,
    generator: torch.Generator | None = None,
) -> SparseProduct:
    """A random orthogonal (unitary) butterfly: every block is drawn uniformly (Haar) from the orthogonal matrices.

    >>> Q = random_orthogonal(8).dense()
    >>> torch.allclose(Q @ Q.T, torch.eye(8, dtype=torch.float64))
    True
    """
    gauss = random_product(Chain.butterfly(n, radices), dtype=dtype, generator=generator)
    factors = []
    for w in gauss.factors:
        q, r = torch.linalg.qr(w)
        factors.append(q * torch.sgn(r.diagonal(dim1=-2, dim2=-1))[:, None, :])  # makes the draw uniform
    return SparseProduct(gauss.chain, factors)


def real_part(product: SparseProduct) -> SparseProduct:
    """The real part of a complex product, as a real product whose ranks are doubled.

    Every complex number between two factors becomes a pair of reals; the first factor keeps only the real row, the
    last only the real column. Raises `ValueError` if the chain is not chainable.
    Source: Chaumette, Gribonval, Riccietti (real part of a butterfly).
    """
    if not product.factors[0].is_complex():
        return product
    q, p = product.chain.radices
    outer = product.chain[0].a, product.chain[-1].d
    chain = Chain.from_radices(q, p, [2 * r for r in product.chain.ranks], *outer)
    factors = []
    for i, (w, rank) in enumerate(zip(product.factors, (*product.chain.ranks, 1), strict=True)):
        pair = torch.stack([torch.stack([w.real, -w.imag]), torch.stack([w.imag, w.real])])  # (out, in, block, b, c)
        pair = pair[: 1 if i == 0 else 2, : 1 if i == len(product) - 1 else 2]
        # of the rank index between two factors, slow among rows and fast among columns, the pair is the slow part
        pair = pair.unflatten(-1, (-1, rank)).permute(2, 0, 3, 4, 1, 5)
        factors.append(pair.reshape(w.shape[0], chain[i].b, chain[i].c))
    return SparseProduct(chain, factors, product.perm_in, product.perm_out)


def scale_rows(product: SparseProduct, scale: Num[torch.Tensor, " m"]) -> SparseProduct:
    """diag(scale) P, absorbed by the first factor; `scale` is in the order of the rows of K_1."""
    a, b, _, d = product.chain[0]
    if scale.shape != (a * b * d,):
        raise ValueError(
            f"the scale of {a * b * d} rows or columns has shape {tuple(scale.shape)}. Rule: one number each."
        )
    by_block = scale.reshape(a, b, d).transpose(1, 2).reshape(a * d, b, 1)
    factors = [by_block * product.factors[0], *product.factors[1:]]
    return SparseProduct(product.chain, _one_dtype(factors), product.perm_in, product.perm_out)


def scale_columns(product: SparseProduct, scale: Num[torch.Tensor, " n"]) -> SparseProduct:
    """P diag(scale), absorbed by the last factor; `scale` is in the order of the columns of K_L."""
    return scale_rows(product.T, scale).T


def _one_dtype(factors: list[torch.Tensor]) -> list[torch.Tensor]:
    dtype = factors[0].dtype
    for factor in factors[1:]:
        dtype = torch.promote_types(dtype, factor.dtype)
    return [factor.to(dtype) for factor in factors]


def _real_fourier(
    n: int, rows: torch.Tensor, columns: torch.Tensor, order: Int[torch.Tensor, " n"], dtype: torch.dtype
) -> SparseProduct:
    """Re(diag(rows) F diag(columns)) applied to x[order], without redundant factors."""
    fourier = dft(n)
    assert fourier.perm_in is not None
    core = SparseProduct(fourier.chain, fourier.factors)
    core = scale_columns(scale_rows(core, rows), columns[fourier.perm_in])
    real = real_part(core)
    return SparseProduct(real.chain, real.factors, perm_in=order[fourier.perm_in]).reduced().to(dtype)


def _turn(fraction: torch.Tensor) -> torch.Tensor:
    """exp(2 pi i fraction)."""
    return torch.polar(torch.ones((), dtype=Real), 2 * pi * fraction)


def _even_then_odd_reversed(n: int) -> Int[torch.Tensor, " n"]:
    """0, 2, 4, ..., 5, 3, 1: the order in which a cosine transform becomes a Fourier transform (Makhoul 1980)."""
    order = torch.arange(n)
    return torch.cat([order[::2], order[1::2].flip(0)])


def _fold_sign(n: int) -> torch.Tensor:
    """+1 for the even samples, -1 for the reversed odd ones."""
    return torch.cat([torch.ones((n + 1) // 2, dtype=Real), -torch.ones(n // 2, dtype=Real)])
