"""Steps of rank r > 1, compiled by numba when the first of them comes: imported lazily, by `compiled.py` alone.

Memory is laid out as in `compiled_steps.py`: the parts of a block are columns of the left factor, next to each other,
and rows of the right one.
"""

from __future__ import annotations

import numpy as np

from .butterfly import NO_SIGN
from .compiled_blocks import UNPROVED, compiled, length, multiply_by
from .compiled_rank import EIGENVALUES, orthonormalize, truncate
from .compiled_steps import BOTH, CUT, LEFT, SIGNS, TAILS, TO_RIGHT, array, gather, layout


@compiled
def _cut(values, work, step, tails, tolerance, eps, scratch, wide, theta):
    """Rank r of every block of one node; returns how many blocks resisted, their tails are UNPROVED."""
    kind, source, left, right, tail_at, a, c1, b2, d, rows, columns, rank, weight = step
    node = values if source < 0 else work
    flip, write = columns < rows, kind == CUT
    small, large = min(rows, columns), max(rows, columns)
    group, pitch, apart, _ = layout(step)
    us, used = array(scratch, group * apart + small * pitch, group * rank, small)
    ws, used = array(scratch, used, group * rank, large)
    g, used = array(scratch, used, rank, small)
    spare, used = array(scratch, used, rank, large)
    turn, used = array(scratch, used, rank, rank)
    residual, used = array(scratch, used, 0 if small <= EIGENVALUES else small, large)
    ritz, used = array(wide, 0, rank, rank)
    turned, used = array(wide, used, rank, rank)
    squared = small if small <= EIGENVALUES else 0
    gram, used = array(wide, used, squared, squared)
    vectors, used = array(wide, used, squared, squared)
    groups, unproved = -(-c1 // group), 0
    for unit in range(a * d * b2 * groups):
        first, rest = unit % groups * group, unit // groups
        ib, rest = rest % b2, rest // b2
        i, k = rest // d, rest % d
        count, stride = min(group, c1 - first), b2 * c1 * columns
        at = max(source, 0) + (i * d + k) * rows * stride + (ib * c1 + first) * columns
        gather(node, at, stride, count, step, scratch)
        for n in range(count):
            u, w = us[n * rank : (n + 1) * rank], ws[n * rank : (n + 1) * rank]
            block, _ = array(scratch, n * apart, small, pitch)
            lower = not write
            tail = truncate(
                block, u, w, g, spare, residual, theta, turn, ritz, turned, gram, vectors, tolerance, eps, lower
            )
            unproved += tail == UNPROVED
            tails[tail_at + ((i * c1 + first + n) * b2 + ib) * d + k] = tail
            if write and weight == BOTH:
                for q in range(rank):
                    root = np.sqrt(length(w[q]))
                    multiply_by(u[q], root)
                    if root > 0:
                        multiply_by(w[q], 1 / root)
            elif write and (weight == LEFT) != flip:
                orthonormalize(w, u)
        for n in range(count if write else 0):
            u, w = (ws, us) if flip else (us, ws)
            for t in range(rows):
                to = left + (((i * b2 + ib) * d + k) * rows + t) * c1 * rank + (first + n) * rank
                for q in range(rank):
                    x = u[n * rank + q, t]
                    work[to + q] = np.conj(x) if flip else x
            for q in range(rank):
                to = right + ((((i * c1 + first + n) * d + k) * rank + q) * b2 + ib) * columns
                for j in range(columns):
                    x = w[n * rank + q, j]
                    work[to + j] = np.conj(x) if flip else x
    return unproved


@compiled
def _carry(work, step, scratch):
    """Between two neighbouring factors: move the weight to the right or left, or fix the signs."""
    kind, _, left, right, _, a, c1, b2, d, rows, columns, rank, _ = step
    u, used = array(scratch, 0, rank, rows)
    v, used = array(scratch, used, rank, columns)
    for unit in range(a * c1 * b2 * d):
        i, rest = unit // (b2 * d * c1), unit % (b2 * d * c1)
        ib, rest = rest // (d * c1), rest % (d * c1)
        k, ic = rest // c1, rest % c1
        at = left + ((i * b2 + ib) * d + k) * rows * c1 * rank + ic * rank
        to = right + (((i * c1 + ic) * d + k) * rank * b2 + ib) * columns
        for q in range(rank):
            for t in range(rows):
                u[q, t] = work[at + t * c1 * rank + q]
            for j in range(columns):
                v[q, j] = work[to + q * b2 * columns + j]
        if kind == SIGNS:
            for q in range(rank):
                size = np.float64(abs(u[q, 0]))
                if size > NO_SIGN:
                    phase = u[q, 0] * (1 / size)
                    multiply_by(u[q], np.conj(phase))
                    multiply_by(v[q], phase)
        elif kind == TO_RIGHT:
            orthonormalize(u, v)
        else:
            orthonormalize(v, u)
        for q in range(rank):
            for t in range(rows):
                work[at + t * c1 * rank + q] = u[q, t]
            for j in range(columns):
                work[to + q * b2 * columns + j] = v[q, j]


def run(values: np.ndarray, work: np.ndarray, tails: np.ndarray, step: np.ndarray, tolerance: float, eps: float) -> int:
    """Do one step; returns how many blocks resisted. Not compiled: its parts would be compiled once more inside it."""
    rows, columns, rank = step[9:12].tolist()
    if step[0] not in (CUT, TAILS):
        _carry(work, step, np.empty(rank * (rows + columns), values.dtype))
        return 0
    group, pitch, apart, _ = layout(step)
    small, sides = min(rows, columns), rows + columns
    room = group * (apart + rank * sides) + small * pitch + rank * (sides + rank) + rows * columns
    wide = np.empty(2 * (EIGENVALUES**2 + rank**2), np.result_type(values.dtype, np.float64))
    scratch = np.empty(room, values.dtype)
    return _cut(values, work, step, tails, tolerance, eps, scratch, wide, np.empty(rank))
