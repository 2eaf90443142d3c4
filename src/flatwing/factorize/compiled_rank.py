"""Rank-r approximation of one block, compiled by numba: imported lazily, through `compiled_rank_steps.py`.

A block is an array of rows, the small side first; of each row the first `large` entries count. Sets of vectors are
arrays of rows, too: block ~ sum_q u[q] (x) w[q] with orthonormal u and w[q] = u[q]^H block. Symbols: G is the Gram
matrix of the rows of the block, theta[q] = |w[q]|^2, R the residual, g[q] = R w[q]^H.
"""

from __future__ import annotations

import numpy as np

from .compiled_blocks import (
    SMALLEST,
    UNPROVED,
    combine,
    compiled,
    energies,
    gram_matrix,
    length,
    multiply_by,
    products,
    rotation,
    square,
    wide_square,
)
from .solvers import PROVABLE, PROVABLE_SHORT

EIGENVALUES = 16  # rows of the largest blocks whose eigenvalues are computed here: LAPACK is faster for larger ones
FIRST = 4  # from FIRST * rows^2 columns on they come first: that costs less than two rounds of iteration
ROUNDS, PATIENCE = 40, 8  # rounds of iteration in all, and before eigenvalues are asked for
SWEEPS, DOUBLE = 10, 2.2e-16  # of Jacobi rotations; rounding of float64, in which eigenvalues are computed


@compiled
def inner(x, y):
    """sum_j x_j conj(y_j)."""
    total = x[0] * 0
    for j in range(len(x)):
        total += x[j] * np.conj(y[j])
    return total


@compiled
def orthonormalize(x, y):
    """Make the rows of x orthonormal, at most as many as they are long, and keep sum_q x[q] (x) y[q] as it is.

    Each row is freed of the ones before it until that takes little away: it is orthogonal to working precision then.
    Rows that vanish become any vector that is orthogonal to the others, and have no weight. Cost: O(rank^2 (n + m)).
    """
    for q in range(len(x)):
        size, before = length(x[q]), 0.0
        for _ in range(4):
            before = size
            for p in range(q):
                c = inner(x[q], x[p])
                for j in range(x.shape[1]):
                    x[q, j] -= c * x[p, j]
                for j in range(y.shape[1]):
                    y[p, j] += c * y[q, j]
            size = length(x[q])
            if q == 0 or size > 0.5 * before or not size > SMALLEST:
                break
        if not (size > 0.5 * before and size > SMALLEST):
            size = 0.0
        multiply_by(y[q], size)
        if size == 0:
            best, least = 0, 2.0 * len(x)
            for j in range(x.shape[1]):
                x[q, j] = 0
                covered = 0.0
                for p in range(q):
                    covered += square(x[p, j])
                if covered < least:
                    best, least = j, covered
            x[q, best] = 1
            for _ in range(2):  # what is left of the unit vector that the others cover least is not small
                for p in range(q):
                    c = inner(x[q], x[p])
                    for j in range(x.shape[1]):
                        x[q, j] -= c * x[p, j]
            size = length(x[q])
        multiply_by(x[q], 1 / size)


@compiled
def jacobi(a, v, eps, floor):
    """Diagonalize a Hermitian matrix in place by cyclic rotations; the largest eigenvalues come first.

    Eigenvector p is v[p]. Entries below eps times the roots of their diagonal entries, or below `floor`, count as zero.
    Cost: about 10 n^3 operations per sweep.
    Source: G. H. Golub, C. F. Van Loan, Matrix Computations, section 8.5 (4th edition).
    """
    n = len(a)
    for p in range(n):
        for q in range(n):
            v[p, q] = 1 if p == q else 0
    for _ in range(SWEEPS):
        rotated = False
        for p in range(n - 1):
            for q in range(p + 1, n):
                high, low, between = a[p, p].real, a[q, q].real, a[p, q]
                size = abs(between)
                limit = max(floor, SMALLEST, eps * np.sqrt(max(high, 0.0)) * np.sqrt(max(low, 0.0)))
                if size <= limit and high >= low:
                    continue
                rotated = True
                c, s, _ = rotation(high, low, between)
                cc, cosine = np.conj(c), abs(c)
                gain = size * (s / cosine) if cosine >= s else size * (cosine / s)
                for k in range(n):
                    x, y = a[p, k], a[q, k]
                    a[p, k], a[q, k] = cc * x + s * y, c * y - s * x
                    x, y = v[p, k], v[q, k]
                    v[p, k], v[q, k] = c * x + s * y, cc * y - s * x
                for k in range(n):
                    a[k, p], a[k, q] = np.conj(a[p, k]), np.conj(a[q, k])
                a[p, q], a[q, p] = 0, 0
                a[p, p] = high + gain if cosine >= s else low + gain
                a[q, q] = low - gain if cosine >= s else high - gain
        if not rotated:
            break


@compiled
def _mix(turn, x, spare):
    """Replace the rows of x by their combinations turn x."""
    rank, size = x.shape
    for p in range(rank):
        for j in range(size):
            spare[p, j] = 0
        for q in range(rank):
            c = turn[p, q]
            for j in range(size):
                spare[p, j] += c * x[q, j]
    for p in range(rank):
        for j in range(size):
            x[p, j] = spare[p, j]


@compiled
def _look(block, u, w, g, spare, residual, theta, ritz, vectors, turn, eps):
    """Orthonormalize u, turn it so that the w = u^H block are orthogonal, the longest first; set theta and g.

    Returns |R|^2, and leaves R in the residual if that has rows.
    """
    rank, large = w.shape
    small, nothing = u.shape[1], spare[:, :0]
    orthonormalize(u, nothing)
    for q in range(rank):
        combine(block, large, u[q], w[q])
    for p in range(rank):
        for q in range(p, rank):
            ritz[p, q] = inner(w[p], w[q])
            ritz[q, p] = np.conj(ritz[p, q])
    jacobi(ritz, vectors, eps, 0.0)
    for p in range(rank):
        for q in range(rank):
            turn[p, q] = vectors[p, q]
    _mix(turn, u, spare)
    for p in range(rank):
        for q in range(rank):
            turn[p, q] = np.conj(turn[p, q])
    _mix(turn, w, spare)
    for q in range(rank):
        theta[q] = length(w[q]) ** 2
    rest, line = 0.0, spare[0]
    for i in range(small):
        if len(residual) > 0:
            line = residual[i]
        c, row = u[0, i], w[0]
        for j in range(large):
            line[j] = block[i, j] - c * row[j]
        for q in range(1, rank):
            c, row = u[q, i], w[q]
            for j in range(large):
                line[j] -= c * row[j]
        energy = square(c * 0)
        for j in range(large):
            energy += square(line[j])
        rest += energy
        for q in range(rank):
            g[q, i] = inner(line, w[q])
    return rest


@compiled
def _begin(block, large, u, w, g):
    """Set u to the block times its most independent rows: pivots of a Gram-Schmidt process, of which w holds the rows.

    Leaves energies of rows in g.
    """
    rank, small = u.shape
    for q in range(rank):
        best = 0
        for i in range(small):
            if g[0, i].real > g[0, best].real:
                best = i
        for j in range(large):
            w[q, j] = block[best, j]
        for p in range(q):
            c = inner(w[q], w[p])
            for j in range(large):
                w[q, j] -= c * w[p, j]
        size = length(w[q])
        if size > SMALLEST:
            multiply_by(w[q], 1 / size)
        products(block, 0, large, w[q], u[q])
        for i in range(small):
            g[0, i] -= square(u[q, i])
        g[0, best] = 0


@compiled
def _eigenvalues(block, large, gram, vectors):
    """Eigenvalues of the float64 Gram matrix of the rows, in place, and eigenvectors; returns the trace."""
    trace = gram_matrix(block, large, gram)
    jacobi(gram, vectors, DOUBLE, DOUBLE * trace)
    return trace


@compiled
def _top(residual, scratch):
    """No less than the largest eigenvalue of R R^H: its Frobenius norm. Cost: small^2 large."""
    small, large = residual.shape
    total = 0.0
    for i in range(small):
        row = scratch[: small - i]
        products(residual, i, large, residual[i], row)
        total -= wide_square(row[0])
        for j in range(len(row)):
            total += 2 * wide_square(row[j])
    return np.sqrt(total)


@compiled
def _gain(theta, g, rest, h, eps):
    """No r-dimensional space captures more than u does plus this, if h is no less than any eigenvalue of G outside u.

    Let D = diag(theta) - h > 0. In the basis of u and its complement G - h <= P for the positive matrix
    P = (D, C; C^H, C^H D^-1 C) where C holds the g. So the r largest eigenvalues of G sum to no more than
    r h + tr P = sum theta + sum |g|^2 / (theta - h). Rounding of the w is taken off theta.
    """
    gain, rank = 0.0, len(theta)
    for q in range(rank):
        gap = theta[q] * (1 - 64 * rank * eps) - h
        if not gap > 0:
            return rest
        size = 0.0
        for i in range(g.shape[1]):
            size += wide_square(g[q, i])
        gain += size / gap
    return min(gain, rest)


@compiled
def truncate(block, u, w, g, spare, residual, theta, turn, ritz, turned, gram, vectors, tolerance, eps, lower):
    """Rank r, proved: block ~ sum_q u[q] (x) w[q], orthonormal u; returns the squared residual or UNPROVED.

    With `lower`, what may be missing is taken off the residual: no approximation has a smaller one.

    Iterates u <- u + g / theta, that is G u / theta, and stops when `_gain` is small. For h serves the residual; where
    that is too much, the norm of R R^H in blocks of many rows. In blocks of few rows, and from the start if they are
    long, float64 eigenvalues of G are computed. They give u, and take the eigenvalues behind the first one outside off
    h: those of G on the complement of u are no smaller (Cauchy).

    All other arrays are scratch: g like u; spare like w; residual like the block, or without rows for blocks of few
    rows; theta, and turn, ritz, turned of rank x rank, the last two in float64 or complex128 like gram and vectors of
    small x small, which are empty for blocks of many rows. Cost: O(rank small large) per round, few rounds unless the
    singular values at the cut are close.
    """
    rank, large = w.shape
    small, total, scale = u.shape[1], 0.0, 0.0
    energies(block, large, g[0])
    for i in range(small):
        total += g[0, i].real
    if not total > 0:  # zero, or not a number
        for q in range(rank):
            for i in range(small):
                u[q, i] = 1 if i == q else 0
            for j in range(large):
                w[q, j] = 0
        return total
    if total < (PROVABLE_SHORT if eps > 1e-10 else PROVABLE):  # its products would lose digits where numbers end
        return UNPROVED
    few = small <= EIGENVALUES and large >= FIRST * small * small
    ask, known, patience, behind, least = few, False, PATIENCE, 0.0, 0.0
    if not ask:
        _begin(block, large, u, w, g)
    for turns in range(ROUNDS):
        if ask:
            trace = _eigenvalues(block, large, gram, vectors)
            for i in range(rank + 1, small):
                behind += gram[i, i].real
            slack = 32 * small * DOUBLE * trace
            least = gram[rank, rank].real + behind - slack
            behind -= slack
            for q in range(rank):
                for i in range(small):
                    u[q, i] = vectors[q, i]
            ask, known, patience = False, True, turns + 4
        rest = _look(block, u, w, g, spare, residual, theta, ritz, turned, turn, eps)
        scale = rest
        for q in range(rank):
            scale += theta[q]
        h = rest * (1 + 64 * eps) - behind if known else rest
        gain = _gain(theta, g, rest, h, eps)
        if gain == rest and turns > 0 and len(residual) > 0:
            gain = _gain(theta, g, rest, _top(residual, spare[0]) * (1 + 64 * eps), eps)
        if known:
            gain = min(gain, rest - least)
        gain = max(gain, 0.0)
        if gain <= tolerance * rest + (16 * eps) ** 2 * scale:
            return max(rest - gain, 0.0) if lower else rest
        if turns >= patience or (gain == rest and turns > 0):
            if known or small > len(gram):
                return UNPROVED
            ask = True
            continue
        for q in range(rank):
            if theta[q] > SMALLEST:
                for i in range(small):
                    u[q, i] += g[q, i] / theta[q]
    return UNPROVED
