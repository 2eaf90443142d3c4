"""Rank-one approximation of one block, compiled by numba: imported lazily, through `compiled_steps.py`.

A block is a flat array of rows, `pitch` entries from one to the next, the small side first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

# sums may be reordered, that is what vector instructions need; infinities and NaN keep their meaning
FAST = {"reassoc", "contract", "nsz", "arcp"}
OPTIONS = {"nogil": True, "fastmath": FAST, "error_model": "numpy"}
ROUNDS = 10
SQUARED = 64  # rows of the largest blocks whose Gram matrix is squared: LAPACK is faster for larger ones
MOST = 12  # squarings
UNPROVED = -1.0  # returned instead of a tail


@lru_cache(maxsize=1)
def _digest() -> str:
    """Names the state of the compiled functions: numba's cache on disk notices changes of one file only."""
    sources = sorted(Path(__file__).parent.glob("compiled_*.py"))
    return sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`numba.njit` that releases the interpreter lock and keeps the machine code on disk."""
    function = inspect.unwrap(function)  # checks of argument types, which tests put around functions, are no loops
    function.__qualname__ += f"_{_digest()}"
    try:
        return njit(**OPTIONS, cache=True)(function)
    except RuntimeError:  # no folder that can be written: compile in every process
        return njit(**OPTIONS)(function)


@compiled
def square(z):
    """Squared absolute value."""
    return z.real * z.real + z.imag * z.imag


@compiled
def length(x):
    """Euclidean norm; rows are summed in their own precision."""
    total = square(x[0])
    for j in range(1, len(x)):
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
def two_rows(x, y, u, w):
    """Two rows, rank one, in closed form: rows x, y ~ u w with a unit vector u; returns the squared residual.

    The rotation that diagonalizes the 2 x 2 Gram matrix makes w of the rows, and the residual beside it.
    """
    g11, g22, g12 = square(x[0]), square(y[0]), x[0] * np.conj(y[0])
    for j in range(1, len(x)):
        g11 += square(x[j])
        g22 += square(y[j])
        g12 += x[j] * np.conj(y[j])
    size = np.sqrt(np.float64(square(g12)))
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
    u[0], u[1] = cosine, sine
    if size > 0:
        u[0] = g12 * (cosine / size)
    c, s = u[0], u[1]
    cc, tail = np.conj(c), square(x[0]) * 0
    for j in range(len(x)):
        w[j] = cc * x[j] + s * y[j]
        tail += square(c * y[j] - s * x[j])
    return np.float64(tail)


@compiled
def _look(block, pitch, large, u, w, g):
    """Normalize u, set w = u^H block and g = R w^H with the residual R = block - u w; returns |w|^2, |R|^2, |g|^2."""
    small, i = len(u), 0
    normalize(u)
    for j in range(large):
        w[j] = 0
    while i < small:  # four rows at a time: w is written less often
        n, at = min(i + 1, small - 1), i * pitch
        r0, c0 = block[at : at + large], np.conj(u[i])
        if i + 4 > small:
            for j in range(large):
                w[j] += c0 * r0[j]
            i += 1
            continue
        r1, r2 = block[n * pitch : n * pitch + large], block[at + 2 * pitch : at + 2 * pitch + large]
        r3 = block[at + 3 * pitch : at + 3 * pitch + large]
        c1, c2, c3 = np.conj(u[n]), np.conj(u[i + 2]), np.conj(u[i + 3])
        for j in range(large):
            w[j] += (c0 * r0[j] + c1 * r1[j]) + (c2 * r2[j] + c3 * r3[j])
        i += 4
    rest, gradient = 0.0, 0.0
    for i in range(small):
        row, c = block[i * pitch : i * pitch + large], u[i]
        r = row[0] - c * w[0]
        energy, z = square(r), r * np.conj(w[0])
        for j in range(1, large):
            r = row[j] - c * w[j]
            energy += square(r)
            z += r * np.conj(w[j])
        rest += energy
        gradient += square(z)
        g[i] = z
    return length(w) ** 2, rest, gradient


@compiled
def _squares(block, pitch, large, power, spare, eps):
    """Square the Gram matrix of the rows until one eigenvalue is left.

    Returns how often it was squared and the logarithm of what the result, of trace 1, was divided by.
    """
    small = len(power)
    for i in range(small):
        x = block[i * pitch : i * pitch + large]
        for k in range(i, small):
            y = block[k * pitch : k * pitch + large]
            z = x[0] * np.conj(y[0])
            for j in range(1, large):
                z += x[j] * np.conj(y[j])
            power[i, k] = z
            power[k, i] = np.conj(z)
    times, scale = 0, 0.0
    while True:
        trace, total = 0.0, 0.0
        for i in range(small):
            trace += power[i, i].real
        for i in range(small):
            for j in range(small):
                power[i, j] /= trace
                total += square(power[i, j])
        scale = 2 * scale + np.log(trace) if times else np.log(trace)
        if 1 - total <= 64 * eps or 2.0**times * 64 * small * eps > 1 or times == MOST:
            return times, scale
        for i in range(small):
            for j in range(small):
                spare[i, j] = 0
            for k in range(small):
                c = power[i, k]
                for j in range(small):
                    spare[i, j] += c * power[k, j]
        for i in range(small):
            for j in range(small):
                power[i, j] = spare[i, j]
        times += 1


@compiled
def _outside(power, u, times, scale, eps):
    """No more than this is the largest eigenvalue of the Gram matrix outside u.

    With P = G^p: (x^H G x)^p <= x^H P x for every unit vector x, and outside u the trace of P is tr P - u^H P u.
    """
    small, inside = len(u), 0.0
    for i in range(small):
        z = power[i, 0] * u[0]
        for j in range(1, small):
            z += power[i, j] * u[j]
        inside += (np.conj(u[i]) * z).real
    return np.exp((scale + np.log(max(1 - inside, 0.0) + 8 * small * eps * 2.0**times)) / 2.0**times)


@compiled
def power_iteration(block, pitch, large, u, w, g, power, spare, tolerance, eps, lower):
    """Rank one by power iteration, proved: block ~ u w with a unit vector u; returns the squared residual or UNPROVED.

    With `lower`, what may be missing is taken off the residual: no approximation has a smaller one.

    Turning u towards any direction gains at most |g|^2 / (theta - h), where theta is what u captures and h is no less
    than the largest eigenvalue of the Gram matrix outside u: see `solvers.top_vector`. For h serves the residual, and
    for small blocks that do not converge soon, high powers of the Gram matrix.
    """
    small, total, largest, best = len(u), 0.0, -1.0, 0
    for i in range(small):
        row = block[i * pitch : i * pitch + large]
        energy = square(row[0])
        for j in range(1, large):
            energy += square(row[j])
        total += energy
        if energy > largest:
            largest, best = np.float64(energy), i
    if not total > 0:
        normalize(u)
        for j in range(large):
            w[j] = 0
        return 0.0
    start = block[best * pitch : best * pitch + large]
    for i in range(small):
        row = block[i * pitch : i * pitch + large]
        z = row[0] * np.conj(start[0])
        for j in range(1, large):
            z += row[j] * np.conj(start[j])
        u[i] = z
    floor, times, scale, squared = (64 * eps) ** 2, 0, 0.0, False
    for turn in range(ROUNDS):
        theta, rest, gradient = _look(block, pitch, large, u, w, g)
        h = min(rest, _outside(power, u, times, scale, eps)) if squared else rest
        gap = theta - h
        if gap > 0 and gradient <= gap * (tolerance * rest + floor * theta):
            return max(rest - gradient / gap, 0.0) if lower else rest
        if turn > 0 and not squared and len(power) == small:
            times, scale = _squares(block, pitch, large, power, spare, eps)
            squared, best = True, 0
            for i in range(small):
                if power[i, i].real > power[best, best].real:
                    best = i
            for i in range(small):
                u[i] = power[i, best]
        else:
            if gap <= 0 and turn > 1:
                break
            for i in range(small):
                u[i] += g[i] / theta
    return UNPROVED
