"""The steps of `program.py`, compiled by numba: imported lazily, by `compiled.py` alone.

Everything works on flat arrays: `values` holds the matrix on its support, `work` the nodes and factors, each in its
final layout (a*d, b, c). Neighbouring blocks are copied once into a scratch, small side first, solved there and written
where they belong.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .butterfly import NO_SIGN
from .compiled_blocks import (
    SQUARED,
    UNPROVED,
    compiled,
    length,
    multiply_by,
    normalize,
    power_iteration,
    square,
)
from .compiled_two import BOTH, LEFT, PAIRS, cut_two_columns, cut_two_rows

CUT, TAILS, TO_RIGHT, TO_LEFT, SIGNS, MULTIPLY, RESIDUAL = range(7)
LINE = 1024  # entries of each row that are gathered together
SCRATCH = 1 << 16  # entries of the group of blocks in scratch, where one block does not need more


@compiled
def layout(step):
    """Of the scratch of a cut: how many blocks, entries from row to row and from block to block; rows of Gram matrices.

    Neighbouring blocks are copied together, for memory is read in lines and pages. Their rows stay side by side, but
    for blocks that are turned.
    """
    c1, rows, columns = step[6], step[9], step[10]
    small, large = min(rows, columns), max(rows, columns)
    group = max(1, min(c1, -(-LINE // columns), SCRATCH // (small * large)))
    pitch = (large if columns < rows else group * columns) + 16  # no two rows in the same set of the cache
    return group, pitch, small * pitch if columns < rows else columns, small if 2 < small <= SQUARED else 0


@compiled
def _room(step):
    """Entries of scratch that the step needs."""
    small, large = min(step[9], step[10]), max(step[9], step[10])
    if step[0] != CUT and step[0] != TAILS:
        return small + large
    group, pitch, apart, squared = layout(step)
    return max(group * (apart + small + large) + small * pitch + small + 2 * squared * squared, 5 * PAIRS)


@compiled
def gather(node, at, stride, count, step, scratch):
    """Copy neighbouring blocks, or their Hermitian transposes, the first of which begins at `at`, as `layout` says."""
    rows, columns = step[9], step[10]
    _, pitch, _, _ = layout(step)
    for t in range(rows):
        row = node[at + t * stride : at + t * stride + count * columns]
        if columns < rows:
            for j in range(len(row)):
                scratch[j * pitch + t] = np.conj(row[j])
        else:
            to = scratch[t * pitch : t * pitch + count * columns]
            for j in range(len(row)):
                to[j] = row[j]


@compiled
def array(scratch, at, rows, columns):
    """A matrix in the scratch, and where the rest begins."""
    end = at + rows * columns
    return scratch[at:end].reshape((rows, columns)), end


@compiled
def _cut(values, work, step, tails, write, tolerance, eps, scratch):
    """Rank one of blocks of more than two rows and columns; returns how many resisted, their tails are UNPROVED."""
    source, left, right, tail_at, a, c1, b2, d, rows, columns, _, weight = step[1:13]
    node = values if source < 0 else work
    source = max(source, 0)
    flip = columns < rows
    small, large = min(rows, columns), max(rows, columns)
    group, pitch, apart, squared = layout(step)
    groups = -(-c1 // group)
    us, used = array(scratch, group * apart + small * pitch, group, small)
    ws, used = array(scratch, used, group, large)
    gs, used = array(scratch, used, 1, small)
    power, used = array(scratch, used, squared, squared)
    spare, used = array(scratch, used, squared, squared)
    stride = b2 * c1 * columns
    units, unproved = a * d * b2 * groups, 0
    for unit in range(units):
        first, rest = unit % groups * group, unit // groups
        ib, rest = rest % b2, rest // b2
        i, k = rest // d, rest % d
        count = min(group, c1 - first)
        at = source + (((i * d + k) * rows * b2 + ib) * c1 + first) * columns
        gather(node, at, stride, count, step, scratch)
        for n in range(count):
            u, w = us[n], ws[n]
            if write and not flip:  # in its place right away
                to = right + (((i * c1 + first + n) * d + k) * b2 + ib) * columns
                w = work[to : to + columns]
            block, _ = array(scratch, n * apart, small, pitch)
            tail = power_iteration(block, large, u, w, gs[0], power, spare, tolerance, eps, not write)
            unproved += tail == UNPROVED
            tails[tail_at + ((i * c1 + first + n) * b2 + ib) * d + k] = tail
            if write and weight == BOTH:
                root = np.sqrt(length(w))
                multiply_by(u, root)
                if root > 0:
                    multiply_by(w, 1 / root)
            elif write and (weight == LEFT) != flip:
                multiply_by(u, normalize(w))
        if not write:
            continue
        for n in range(count):
            to = left + ((i * b2 + ib) * d + k) * rows * c1 + first + n
            if not flip:
                for t in range(rows):
                    work[to + t * c1] = us[n, t]
                continue
            for t in range(rows):
                work[to + t * c1] = np.conj(ws[n, t])
            to = right + (((i * c1 + first + n) * d + k) * b2 + ib) * columns
            for j in range(columns):
                work[to + j] = np.conj(us[n, j])
    return unproved


@compiled
def _carry(work, step, scratch):
    """Between two neighbouring factors of rank one: move the weight to the right or left, or fix the sign."""
    kind, _, left, right, _, a, c1, b2, d, rows, columns = step[:11]
    u = scratch[:rows]
    for i in range(a):
        for ib in range(b2):
            for k in range(d):
                for ic in range(c1):
                    at = left + ((i * b2 + ib) * d + k) * rows * c1 + ic
                    to = right + (((i * c1 + ic) * d + k) * b2 + ib) * columns
                    _move(kind, work[at : at + (rows - 1) * c1 + 1], c1, work[to : to + columns], u)


@compiled
def _move(kind, column, stride, v, u):
    """The same for one pair: every `stride`-th entry of the column, and the row v; u is scratch."""
    size = np.float64(abs(column[0]))
    if kind == SIGNS and (column[0] == size or not size > NO_SIGN):
        return
    for t in range(len(u)):
        u[t] = column[t * stride]
    if kind == TO_RIGHT:
        multiply_by(v, normalize(u))
    elif kind == TO_LEFT:
        multiply_by(u, normalize(v))
    else:
        phase = u[0] * (1 / size)
        multiply_by(u, np.conj(phase))
        multiply_by(v, phase)
    for t in range(len(u)):
        column[t * stride] = u[t]


@compiled
def _four_rows(rows, stride, u, apart, w):
    """Squared norm of four rows of a matrix, one every `stride` entries, less u w; one entry of u every `apart`."""
    columns = len(w)
    x0, x1 = rows[:columns], rows[stride : stride + columns]
    x2, x3 = rows[2 * stride : 2 * stride + columns], rows[3 * stride : 3 * stride + columns]
    c0, c1, c2, c3 = u[0], u[apart], u[2 * apart], u[3 * apart]
    total = square(c0 * 0)
    for j in range(columns):
        y = w[j]
        total += (square(x0[j] - c0 * y) + square(x1[j] - c1 * y)) + (square(x2[j] - c2 * y) + square(x3[j] - c3 * y))
    return total


@compiled
def _multiply(values, work, step, tails, line, energies):
    """The product of two neighbours, of any rank: written to the node, or compared with the values block by block."""
    kind, target, left, right, tail_at, a, c1, b2, d, rows, columns, rank = step[:12]
    node = values if target < 0 else work
    target = max(target, 0)
    units = a * d * b2
    for unit in range(units):
        ib, i, k = unit % b2, unit // b2 // d, unit // b2 % d
        for ic in range(c1):
            energies[ic] = 0
        done = rows // 4 * 4 if kind == RESIDUAL and rank == 1 else 0
        for t in range(0, done, 4):
            at = left + (((i * b2 + ib) * d + k) * rows + t) * c1
            begin = target + (((i * d + k) * rows + t) * b2 + ib) * c1 * columns
            for ic in range(c1):
                to = right + (((i * c1 + ic) * d + k) * b2 + ib) * columns
                four = node[begin + ic * columns : begin + (3 * b2 * c1 + ic + 1) * columns]
                energies[ic] += _four_rows(four, b2 * c1 * columns, work[at + ic :], c1, work[to : to + columns])
        for t in range(done, rows):  # along the rows of the node, as they lie in memory
            at = left + (((i * b2 + ib) * d + k) * rows + t) * c1 * rank
            begin = target + (((i * d + k) * rows + t) * b2 + ib) * c1 * columns
            for ic in range(c1):
                to = right + ((i * c1 + ic) * d + k) * rank * b2 * columns + ib * columns
                row, c = work[to : to + columns], work[at + ic * rank]
                out = node[begin : begin + columns]
                for j in range(columns):
                    line[j] = c * row[j]
                for r in range(1, rank):
                    to += b2 * columns
                    row, c = work[to : to + columns], work[at + ic * rank + r]
                    for j in range(columns):
                        line[j] += c * row[j]
                for j in range(columns):
                    if kind == MULTIPLY:
                        out[j] = line[j]
                    else:
                        energies[ic] += square(out[j] - line[j])
                begin += columns
        if kind == RESIDUAL:
            for ic in range(c1):
                tails[tail_at + ((i * c1 + ic) * b2 + ib) * d + k] = energies[ic]


@partial(compiled, allocates=True)
def run(values, work, tails, steps, first, last, tolerance, eps):
    """Steps first ... last-1, this part of each; returns the step that it could not do or finish, else `last`."""
    room, pairs = 0, 2 * PAIRS
    for index in range(first, last):
        room, pairs = max(room, _room(steps[index])), max(pairs, steps[index, 6])
    scratch, sums = np.empty(room, dtype=values.dtype), np.empty(pairs)
    wide = np.empty(PAIRS, dtype=(values[:0] * sums[:0]).dtype)  # float64 or complex128
    for index in range(first, last):
        step = steps[index]
        kind, rank = step[0], step[11]
        if kind in (MULTIPLY, RESIDUAL):
            _multiply(values, work, step, tails, scratch, sums)
        elif rank > 1:
            return index
        elif kind not in (CUT, TAILS):
            _carry(work, step, scratch)
        elif step[9] == 2:
            cut_two_rows(values, work, step, tails, kind == CUT, scratch)
        elif step[10] == 2:
            cut_two_columns(values, work, step, tails, kind == CUT, scratch, sums, wide)
        elif _cut(values, work, step, tails, kind == CUT, tolerance, eps, scratch) > 0:
            return index
    return last


@compiled
def squared_norms(matrices, found):
    """Squared norm of each row; squares in its precision are summed in float64."""
    for i in range(len(matrices)):
        row, total = matrices[i], 0.0
        for j in range(len(row)):
            total += square(row[j])
        found[i] = total


@partial(compiled, allocates=True)
def tree_bound(level, shapes):
    """The recursion of `bounds.tree_bound`, in place: arrays of these shapes one after the other, the result first."""
    by_rows, by_columns, shapes = np.empty(len(level)), np.empty(len(level)), shapes.copy()
    for count in range(len(shapes) - 1, 0, -1):
        begin, to = 0, 0
        for s in range(count):  # join each array with its right neighbour; the result is not longer than the left one
            columns, rows = shapes[s, 0], shapes[s + 1, 1]
            size, wide, tall = columns * rows, shapes[s, 1], shapes[s + 1, 0] // columns
            end = begin + columns * wide
            for i in range(size):
                by_rows[i], by_columns[i] = 0, 0
            for i in range(columns):
                for first in range(begin + i * wide, begin + (i + 1) * wide, rows):
                    for j in range(rows):
                        by_rows[i * rows + j] += level[first + j]
                for first in range(end + i * tall * rows, end + (i + 1) * tall * rows, rows):
                    for j in range(rows):
                        by_columns[i * rows + j] += level[first + j]
            for i in range(size):
                level[to + i] = max(by_rows[i], by_columns[i])
            begin, to, shapes[s, 1] = end, to + size, rows
