"""Rank-one approximation of one block, compiled by numba: imported lazily, through `compiled_steps.py`.

A block is an array of rows, the small side first; of each row the first `large` entries count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from ..core import source_digest
from .solvers import PROVABLE

# sums may be reordered, that is what vector instructions need; infinities and NaN keep their meaning
FAST = {"reassoc", "contract", "nsz", "arcp"}
OPTIONS = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}
ROUNDS, PATIENCE = 40, 6  # turns of power iteration in all, and before the Gram matrix is made
SQUARED = 64  # rows of the largest blocks whose Gram matrix is made: LAPACK is faster for larger ones
SMALLEST = 1e-300  # smaller numbers have no reciprocal
UNPROVED = -1.0  # returned instead of a tail


def compiled(function: Callable[..., Any], allocates: bool = False) -> Callable[..., Any]:
    """`numba.njit` that releases the interpreter lock and keeps the machine code on disk.

    References to arrays are counted, at the price of a small block, only in functions that allocate some.
    """
    function = inspect.unwrap(function)  # checks of argument types, which tests put around functions, are no loops
    # numba notices changes of one file only
    function.__qualname__ += f"_{source_digest(Path(function.__code__.co_filename))}"
    options: dict[str, Any] = {**OPTIONS, "_nrt": allocates}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that can be written: compile in every process
        return njit(**options)(function)


@compiled
def square(z):
    """Squared absolute value."""
    return z.real * z.real + z.imag * z.imag


@compiled
def wide_square(z):
    """The same in float64: products of products leave the range of float32, and that of float64 below `PROVABLE`."""
    return np.float64(z.real) ** 2 + np.float64(z.imag) ** 2


@compiled
def length(x):
    """Euclidean norm; squares of short precision, summed in float64."""
    total = square(x[0] * 0)
    for j in range(len(x)):
        total += square(x[j])
    return np.sqrt(np.float64(total))


@compiled
def normalize(x):
    """Normalize x and return its norm; zeros become the first unit vector."""
    norm = length(x)
    if norm > 0:
        scale = 1 / norm
        for j in range(len(x)):
            x[j] *= scale
    else:
        x[:] = 0
        x[0] = 1
    return norm


@compiled
def multiply_by(x, scale):
    """Scale a vector in place."""
    for j in range(len(x)):
        x[j] *= scale


@compiled
def rotation(g11, g22, g12):
    """Top unit vector (c, s) of the Hermitian matrix (g11, g12; conj g12, g22), s >= 0, and its eigenvalue."""
    size = np.float64(abs(g12))  # not the root of a square, which could underflow and leave no unit vector
    size = size if size > SMALLEST else 0.0
    difference = np.float64(g11) - np.float64(g22)
    # half the angle whose tangent is 2 |g12| / (g11 - g22); of cosine and sine the larger one comes from a root
    hypotenuse = np.sqrt(4 * size * size + difference * difference)
    cosine, sine = 1.0, 0.0
    if hypotenuse > 0 and difference >= 0:
        cosine = np.sqrt(0.5 * (1 + difference / hypotenuse))
        sine = size / (hypotenuse * cosine)
    elif hypotenuse > 0:
        sine = np.sqrt(0.5 * (1 - difference / hypotenuse))
        cosine = size / (hypotenuse * sine)
    phased = g12 * (cosine / size) if size > 0 else g12 * 0 + cosine
    return phased, sine, 0.5 * (g11 + g22 + hypotenuse)


@compiled
def two_rows(x, y, u, w):
    """Two rows, rank one, in closed form: rows x, y ~ u w with a unit vector u; returns the squared residual.

    The rotation that diagonalizes the 2 x 2 Gram matrix makes w of the rows, and the residual beside it.
    """
    w[0] = 0  # a product with a literal zero would make sums of float64
    zero = w[0]
    g11, g22, g12 = square(zero), square(zero), zero
    for j in range(len(x)):
        g11 += square(x[j])
        g22 += square(y[j])
        g12 += x[j] * np.conj(y[j])
    phased, sine, _ = rotation(g11, g22, g12)
    cosine = abs(phased)
    u[0] = cosine  # no sign is left to be fixed there
    u[1] = np.conj(phased) * (sine / cosine) if cosine > 0 else phased + sine
    c, s = u[0], u[1]
    sc, tail = np.conj(s), square(zero)
    for j in range(len(x)):
        w[j] = c * x[j] + sc * y[j]
        tail += square(c * y[j] - s * x[j])
    return np.float64(tail)


@compiled
def products(block, first, large, x, y):
    """Set y = block x^H for the rows from the first one on, in its precision; four at a time, as below."""
    y[0] = 0
    zero, last = y[0], first + len(y)
    four = last - len(y) % 4
    for i in range(first, four, 4):
        z0, z1, z2, z3 = zero, zero, zero, zero
        for j in range(large):
            c = zero + np.conj(x[j])
            z0 += block[i, j] * c
            z1 += block[i + 1, j] * c
            z2 += block[i + 2, j] * c
            z3 += block[i + 3, j] * c
        y[i - first], y[i + 1 - first], y[i + 2 - first], y[i + 3 - first] = z0, z1, z2, z3
    for i in range(four, last):
        z0 = zero
        for j in range(large):
            z0 += block[i, j] * (zero + np.conj(x[j]))
        y[i - first] = z0


@compiled
def energies(block, large, y):
    """Set y to the squared norms of the rows, summed in their precision."""
    y[0] = 0
    zero, last = square(y[0]), len(y)
    four = last - last % 4
    for i in range(0, four, 4):
        z0, z1, z2, z3 = zero, zero, zero, zero
        for j in range(large):
            z0 += square(block[i, j])
            z1 += square(block[i + 1, j])
            z2 += square(block[i + 2, j])
            z3 += square(block[i + 3, j])
        y[i], y[i + 1], y[i + 2], y[i + 3] = z0, z1, z2, z3
    for i in range(four, last):
        z0 = zero
        for j in range(large):
            z0 += square(block[i, j])
        y[i] = z0


@compiled
def combine(block, large, u, w):
    """Set w = u^H block."""
    small = len(u)
    four = small // 4 * 4
    for j in range(large):
        w[j] = 0
    for i in range(0, four, 4):
        c0, c1, c2, c3 = np.conj(u[i]), np.conj(u[i + 1]), np.conj(u[i + 2]), np.conj(u[i + 3])
        for j in range(large):
            w[j] += (c0 * block[i, j] + c1 * block[i + 1, j]) + (c2 * block[i + 2, j] + c3 * block[i + 3, j])
    for i in range(four, small):
        c0 = np.conj(u[i])
        for j in range(large):
            w[j] += c0 * block[i, j]


@compiled
def _look(block, large, u, w, g):
    """Normalize u, set w = u^H block and g = R w^H with the residual R = block - u w; returns |w|^2, |R|^2, |g|^2."""
    g[0] = 0  # a literal zero, or a product with one, would make sums of float64
    small, zero = len(u), g[0]
    four, rest, gradient = small // 4 * 4, 0.0, 0.0
    normalize(u)
    combine(block, large, u, w)
    for i in range(0, four, 4):
        c0, c1, c2, c3 = u[i], u[i + 1], u[i + 2], u[i + 3]
        energy, z0, z1, z2, z3 = square(zero), zero, zero, zero, zero
        for j in range(large):
            y = w[j]
            x0, x1 = block[i, j] - c0 * y, block[i + 1, j] - c1 * y
            x2, x3 = block[i + 2, j] - c2 * y, block[i + 3, j] - c3 * y
            y = np.conj(y)
            energy += (square(x0) + square(x1)) + (square(x2) + square(x3))
            z0 += x0 * y
            z1 += x1 * y
            z2 += x2 * y
            z3 += x3 * y
        rest += energy
        gradient += (wide_square(z0) + wide_square(z1)) + (wide_square(z2) + wide_square(z3))
        g[i], g[i + 1], g[i + 2], g[i + 3] = z0, z1, z2, z3
    for i in range(four, small):
        c0, energy, z0 = u[i], square(zero), zero
        for j in range(large):
            x0 = block[i, j] - c0 * w[j]
            energy += square(x0)
            z0 += x0 * np.conj(w[j])
        rest += energy
        gradient += wide_square(z0)
        g[i] = z0
    return length(w) ** 2, rest, gradient


@compiled
def gram_matrix(block, large, gram):
    """Gram matrix of the rows; returns its trace."""
    small, trace = len(gram), 0.0
    for i in range(small):
        products(block, i, large, block[i], gram[i, i:])
        for k in range(i, small):
            gram[k, i] = gram[i, k]
            gram[i, k] = np.conj(gram[i, k])
        trace += gram[i, i].real
    return trace


@compiled
def _gram(block, large, power):
    """Gram matrix of the rows, divided by its trace; returns the logarithm of that."""
    trace = gram_matrix(block, large, power)
    for i in range(len(power)):
        multiply_by(power[i], 1 / trace)
    return np.log(trace)


@compiled
def _square_up(power, spare):
    """Square a Hermitian matrix in place and divide it by its trace; returns the logarithm of that."""
    small, trace = len(power), 0.0
    for i in range(small):
        to = spare[i]
        for j in range(small):
            to[j] = 0
        for k in range(small):
            c, row = power[i, k], power[k]
            for j in range(small):
                to[j] += c * row[j]
        trace += to[i].real
    for i in range(small):
        for j in range(small):
            power[i, j] = spare[i, j] / trace
    return np.log(trace)


@compiled
def _outside(power, u, g, times, logarithm, eps):
    """No more than this is the largest eigenvalue of the Gram matrix G outside u, seen from P = G^p, p = 2^times.

    (x^H G x)^2p <= x^H P^2 x for every unit vector x, and outside u the trace of P^2 is |P|^2 - |P u|^2. The rounding
    of the powers is added to that. Leaves P u in g.
    """
    small, total, zero = len(u), 0.0, u[0] * 0
    for i in range(small):
        row = power[i]
        z, energy = zero, square(zero)
        for j in range(small):
            z += row[j] * u[j]
            energy += square(row[j])
        g[i] = z
        total += energy - square(z)
    p = 2.0**times
    return np.exp((logarithm + 0.5 * np.log(max(total, 0.0) + 16 * small * eps * p)) / p)


@compiled
def power_iteration(block, large, u, w, g, power, spare, tolerance, eps, lower):
    """Rank one by power iteration, proved: block ~ u w with a unit vector u; returns the squared residual or UNPROVED.

    Turning u towards any direction gains at most |g|^2 / (theta - h), where theta is what u captures and h is no less
    than the largest eigenvalue of the Gram matrix outside u: see `solvers.top_vector`. For h serves the residual, and
    for small blocks where that does not do, powers of the Gram matrix: they are better proofs and longer strides.

    With `lower`, that gain is taken off the residual: no approximation has a smaller one. Turning towards g gains at
    least |g|^2 / (theta + |g|^2 / theta), so the truth is not far above even while u still has far to go.
    """
    small, total, best = len(u), 0.0, 0
    energies(block, large, g)
    for i in range(small):
        total += g[i].real
        if g[i].real > g[best].real:
            best = i
    if not total > 0:  # zero, or not a number
        for i in range(small):
            u[i] = 0
        normalize(u)
        for j in range(large):
            w[j] = 0
        return total
    if eps < 1e-10 and total < PROVABLE:
        return UNPROVED
    products(block, 0, large, block[best], u)
    floor, times, logarithm, patience = (16 * eps) ** 2, -1, 0.0, PATIENCE
    for turn in range(ROUNDS):
        theta, rest, gradient = _look(block, large, u, w, g)
        h = rest
        if times >= 0:
            h = min(rest, _outside(power, u, spare[0], times, logarithm, eps))
        gap = theta - h
        doubt = (h + gradient / theta) / theta if lower else 1.0  # the share of that gain which nobody may have
        if gap > 0 and gradient * (doubt + tolerance) <= gap * (tolerance * rest + floor * theta):
            return max(rest - gradient / gap, 0.0) if lower else rest
        if turn == patience or (gap <= 0 and turn > 0):
            patience = turn + 2
            if len(power) < small or 2.0**times * 64 * small * eps > 1:
                return UNPROVED
            logarithm *= 2
            logarithm += _gram(block, large, power) if times < 0 else _square_up(power, spare)
            times += 1
            _outside(power, u, g, times, logarithm, eps)
            for i in range(small):
                u[i] = g[i]
        else:
            for i in range(small):
                u[i] += g[i] / theta
    return UNPROVED
