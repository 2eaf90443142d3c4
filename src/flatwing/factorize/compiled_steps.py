"""The steps of `program.py`, compiled by numba: imported lazily, by `compiled.py` alone.

Everything works on flat arrays: `values` holds the matrix on its support, `work` the nodes and factors, each in its
final layout (a*d, b, c). A block is copied once into a scratch of a few kilobytes, small side first, solved there and
written where it belongs.
"""

from __future__ import annotations

import numpy as np

from .compiled_blocks import (
    SQUARED,
    UNPROVED,
    compiled,
    length,
    multiply_by,
    normalize,
    power_iteration,
    square,
    two_rows,
)

CUT, TAILS, TO_RIGHT, TO_LEFT, SIGNS, MULTIPLY, RESIDUAL = range(7)
RIGHT, LEFT, BOTH = range(3)
LINE = 32  # entries that narrow blocks are gathered by: two cache lines or more
SCRATCH = 1 << 15  # entries of the group of blocks in scratch, where one block does not need more


@compiled
def _cut(values, work, step, tails, write, tolerance, eps, part, parts):
    """Rank one of every block of one node; returns how many blocks resisted, their tails are UNPROVED."""
    source, left, right, tail_at, a, c1, b2, d, rows, columns, _, weight = step[1:13]
    node = values if source < 0 else work
    source = max(source, 0)
    flip = columns < rows
    small, large = min(rows, columns), max(rows, columns)
    pitch = large + 16  # no two rows of the scratch in the same set of the cache
    # narrow blocks are gathered several at a time, because they share lines of memory
    group = max(1, min(c1, -(-LINE // columns)))
    group = max(1, min(group, SCRATCH // (small * pitch)))
    groups = -(-c1 // group)
    direct = small == 2 and not flip  # two long rows are best left where they are
    scratch = np.empty(1 if direct else group * small * pitch, dtype=values.dtype)
    us, ws = np.empty((group, small), dtype=values.dtype), np.empty((group, large), dtype=values.dtype)
    g = np.empty(small, dtype=values.dtype)
    squared = small if small <= SQUARED else 0
    power, spare = np.empty((squared, squared), dtype=values.dtype), np.empty((squared, squared), dtype=values.dtype)
    units, unproved = a * d * b2 * groups, 0
    for unit in range(units * part // parts, units * (part + 1) // parts):
        first, rest = unit % groups * group, unit // groups
        ib, rest = rest % b2, rest // b2
        i, k = rest // d, rest % d
        count = min(group, c1 - first)
        stride = b2 * c1 * columns
        at = source + (((i * d + k) * rows * b2 + ib) * c1 + first) * columns
        if flip:
            for t in range(rows):
                row = node[at + t * stride : at + t * stride + count * columns]
                for j in range(len(row)):
                    scratch[j * pitch + t] = np.conj(row[j])
        elif not direct:
            for t in range(rows):
                for n in range(count):
                    begin, to = at + t * stride + n * columns, (n * small + t) * pitch
                    scratch[to : to + columns] = node[begin : begin + columns]
        for n in range(count):
            u, w = us[n], ws[n]
            if direct:
                x = at + n * columns
                tail = two_rows(node[x : x + large], node[x + stride : x + stride + large], u, w)
            else:
                block = scratch[n * small * pitch : (n + 1) * small * pitch]
                if small == 2:
                    tail = two_rows(block[:large], block[pitch : pitch + large], u, w)
                else:
                    tail = power_iteration(block, pitch, large, u, w, g, power, spare, tolerance, eps, not write)
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
            y, x = (ws[n], us[n]) if flip else (us[n], ws[n])
            to = left + ((i * b2 + ib) * d + k) * rows * c1 + first + n
            for t in range(rows):
                work[to + t * c1] = np.conj(y[t]) if flip else y[t]
            to = right + (((i * c1 + first + n) * d + k) * b2 + ib) * columns
            for j in range(columns):
                work[to + j] = np.conj(x[j]) if flip else x[j]
    return unproved


@compiled
def _carry(work, step, part, parts):
    """Between two neighbouring factors of rank one: move the weight to the right or left, or fix the sign."""
    kind, _, left, right, _, a, c1, b2, d, rows, columns = step[:11]
    u, v = np.empty(rows, dtype=work.dtype), np.empty(columns, dtype=work.dtype)
    units = a * c1 * b2 * d
    for unit in range(units * part // parts, units * (part + 1) // parts):
        i, rest = unit // (b2 * d * c1), unit % (b2 * d * c1)
        ib, rest = rest // (d * c1), rest % (d * c1)
        k, ic = rest // c1, rest % c1
        at = left + ((i * b2 + ib) * d + k) * rows * c1 + ic
        to = right + (((i * c1 + ic) * d + k) * b2 + ib) * columns
        for t in range(rows):
            u[t] = work[at + t * c1]
        v[:] = work[to : to + columns]
        if kind == TO_RIGHT:
            multiply_by(v, normalize(u))
        elif kind == TO_LEFT:
            multiply_by(u, normalize(v))
        else:
            size = np.sqrt(square(u[0]))
            if not size > 0:
                continue
            phase = u[0] / size
            for t in range(rows):
                u[t] *= np.conj(phase)
            for j in range(columns):
                v[j] *= phase
        for t in range(rows):
            work[at + t * c1] = u[t]
        work[to : to + columns] = v


@compiled
def _multiply(values, work, step, tails, part, parts):
    """The product of two neighbours, of any rank: written to the node, or compared with the values block by block."""
    kind, target, left, right, tail_at, a, c1, b2, d, rows, columns, rank = step[:12]
    line = np.empty(columns, dtype=work.dtype)
    units = a * d * b2 * c1
    for unit in range(units * part // parts, units * (part + 1) // parts):
        ic, rest = unit % c1, unit // c1
        ib, rest = rest % b2, rest // b2
        i, k = rest // d, rest % d
        total = 0.0
        for t in range(rows):
            at = left + ((((i * b2 + ib) * d + k) * rows + t) * c1 + ic) * rank
            begin = (((i * d + k) * rows + t) * b2 + ib) * c1 * columns + ic * columns
            if kind == MULTIPLY:
                line[:] = 0
            else:
                line[:] = values[begin : begin + columns]
            for r in range(rank):
                to = right + ((((i * c1 + ic) * d + k) * rank + r) * b2 + ib) * columns
                row, c = work[to : to + columns], work[at + r]
                if kind != MULTIPLY:
                    c = -c
                for j in range(columns):
                    line[j] += c * row[j]
            if kind == MULTIPLY:
                work[target + begin : target + begin + columns] = line
            else:
                energy = square(line[0])
                for j in range(1, columns):
                    energy += square(line[j])
                total += energy
        if kind != MULTIPLY:
            tails[tail_at + ((i * c1 + ic) * b2 + ib) * d + k] = total


@compiled
def run(values, work, tails, steps, first, last, tolerance, eps, part, parts):
    """Steps first ... last-1, this part of each; returns the step that it could not do or finish, else `last`."""
    for index in range(first, last):
        step = steps[index]
        kind = step[0]
        if kind in (CUT, TAILS):
            if step[11] > 1 or _cut(values, work, step, tails, kind == CUT, tolerance, eps, part, parts) > 0:
                return index
        elif kind in (MULTIPLY, RESIDUAL):
            _multiply(values, work, step, tails, part, parts)
        elif step[11] > 1:
            return index
        else:
            _carry(work, step, part, parts)
    return last
