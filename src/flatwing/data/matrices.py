"""Example matrices: transforms with a known chain, kernels without one, and real data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from operator import index
from typing import final

import numpy as np
import torch
from jaxtyping import Int, Num

from ..core import Registry
from ..structure import Chain, transforms

LARGEST = 2**14  # a complex128 matrix of this size takes 4 GiB
DIGITS = 1797  # images in scikit-learn's load_digits


@final
@dataclass(frozen=True, slots=True)
class Example:
    """A matrix and what is known about it.

    `chain` is the natural chain, None if there is none. The matrix has it after its columns are reordered:
    matrix[:, perm_in] is the product (up to noise), where `perm` is "none", "bitrev" (bit reversal) or "own" and
    `perm_in` the order itself, None for "none".
    """

    name: str
    matrix: Num[torch.Tensor, "m n"]
    chain: Chain | None
    note: str
    perm: str = "none"
    perm_in: Int[torch.Tensor, " n"] | None = None


MATRICES: Registry[Callable[..., Example]] = Registry("example matrix")


@MATRICES.register("hadamard")
def hadamard(n: int = 64) -> Example:
    """Hadamard matrix in Sylvester's order; n is a power of two.

    >>> hadamard(2).matrix.tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    n = _power_of_two("hadamard", n)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return Example("hadamard", matrix, Chain.butterfly(n), "Walsh-Hadamard transform, entries +1 and -1")


@MATRICES.register("dft")
def dft(n: int = 64) -> Example:
    """Fourier matrix exp(-2 pi i j k / n), complex128; n >= 2."""
    known = transforms.dft(_size("dft", n))
    turns = torch.outer(torch.arange(n), torch.arange(n)) % n  # reduced first: the angle stays exact for any n
    matrix = torch.polar(torch.ones((), dtype=torch.float64), -2 * pi * turns.double() / n)
    perm = "bitrev" if n & (n - 1) == 0 else "own"
    return Example("dft", matrix, known.chain, "discrete Fourier transform", perm, known.perm_in)


@MATRICES.register("dct")
def dct(n: int = 64) -> Example:
    """DCT-II matrix cos(pi (2 j + 1) k / (2 n)), row k, unnormalized; n >= 2."""
    known = transforms.dct2(_size("dct", n))
    turns = torch.outer(torch.arange(n), 2 * torch.arange(n) + 1) % (4 * n)
    matrix = torch.cos(pi * turns.double() / (2 * n))
    return Example("dct", matrix, known.chain, "discrete cosine transform (DCT-II)", "own", known.perm_in)


@MATRICES.register("dst")
def dst(n: int = 64) -> Example:
    """DST-II matrix sin(pi (2 j + 1) (k + 1) / (2 n)), row k, unnormalized; n >= 2."""
    known = transforms.dst2(_size("dst", n))
    turns = torch.outer(torch.arange(1, n + 1), 2 * torch.arange(n) + 1) % (4 * n)
    matrix = torch.sin(pi * turns.double() / (2 * n))
    return Example("dst", matrix, known.chain, "discrete sine transform (DST-II)", "own", known.perm_in)


@MATRICES.register("hartley")
def hartley(n: int = 64) -> Example:
    """Hartley matrix cos(2 pi j k / n) + sin(2 pi j k / n); n >= 2."""
    known = transforms.hartley(_size("hartley", n))
    turns = torch.outer(torch.arange(n), torch.arange(n)) % n
    angle = 2 * pi * turns.double() / n
    return Example("hartley", angle.cos() + angle.sin(), known.chain, "Hartley transform", "own", known.perm_in)


@MATRICES.register("smooth")
def smooth(n: int = 64) -> Example:
    """Kernel 1 / (1 + 20 |x - y|) on n equispaced points of [0, 1]; n >= 2."""
    x = torch.linspace(0, 1, _size("smooth", n), dtype=torch.float64)
    matrix = 1 / (1 + 20 * (x[:, None] - x).abs())
    return Example("smooth", matrix, None, "kernel 1/(1+20|x-y|), smooth away from the diagonal")


@MATRICES.register("gaussian")
def gaussian(n: int = 64) -> Example:
    """Independent standard normal entries, seeded; n >= 2."""
    n = _size("gaussian", n)
    matrix = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Example("gaussian", matrix, None, "independent normal entries: no structure to find")


@MATRICES.register("hilbert")
def hilbert(n: int = 64) -> Example:
    """Hilbert matrix 1 / (j + k + 1), indices from 0; n >= 2."""
    k = torch.arange(_size("hilbert", n), dtype=torch.float64)
    return Example("hilbert", 1 / (k[:, None] + k + 1), None, "Hilbert matrix, low rank away from one corner")


@MATRICES.register("noisy-butterfly")
def noisy_butterfly(n: int = 64) -> Example:
    """Dyadic butterfly product with normal values plus noise of 1 % of its norm, seeded; n is a power of two."""
    chain = Chain.butterfly(_power_of_two("noisy-butterfly", n))
    generator = torch.Generator().manual_seed(0)
    clean = transforms.random_product(chain, generator=generator).dense()
    noise = torch.randn(n, n, dtype=torch.float64, generator=generator)
    matrix = clean + noise * (0.01 * clean.norm() / noise.norm())
    return Example("noisy-butterfly", matrix, chain, "random butterfly product plus 1 % noise")


@MATRICES.register("digits")
def digits(n: int = 1792) -> Example:
    """The first n of scikit-learn's 1797 handwritten digits, one image of 8 x 8 pixels per row; n x 64.

    The default 1792 = 2^8 * 7 drops five images, because 1797 = 3 * 599 has hardly any divisors.
    """
    n = _size("digits", n, largest=DIGITS)
    from sklearn.datasets import load_digits  # slow to import and needed only here

    images = np.asarray(load_digits(return_X_y=True)[0], dtype="float64")[:n].copy()
    return Example(
        "digits", torch.from_numpy(images), None, "handwritten digits: real data, one image of 8 x 8 pixels per row"
    )


def _size(name: str, n: int, largest: int = LARGEST) -> int:
    try:
        n = index(n)
    except TypeError:
        raise TypeError(f"{name} needs a whole number, got n={n!r} of type {type(n).__name__}.") from None
    if not 2 <= n <= largest:
        raise ValueError(
            f"{name} has no size n={n}. Rule: 2 <= n <= {largest}. The nearest good value is {min(max(n, 2), largest)}."
        )
    return n


def _power_of_two(name: str, n: int) -> int:
    n = _size(name, n)
    if n & (n - 1):
        nearest = 2 ** transforms.round_log2(n)
        raise ValueError(f"{name} has no size n={n}. Rule: a power of two. The nearest good value is {nearest}.")
    return n
