"""Cuts into blocks of two rows or columns, in closed form, compiled by numba: imported lazily, as the others."""

from __future__ import annotations

import numpy as np

from .compiled_blocks import compiled, length, multiply_by, normalize, rotation, square, two_rows

RIGHT, LEFT, BOTH = range(3)
PAIRS, ROWS = 2048, 64  # blocks of two columns solved side by side; rows that are summed in short precision


@compiled
def cut_two_rows(values, work, step, tails, write, scratch):
    """Rank one of blocks of two rows: they are read where they are, one after the other as they lie in memory."""
    _, source, left, right, tail_at, a, c1, b2, d, _, columns, _, weight = step
    node = values if source < 0 else work
    source = max(source, 0)
    u, spare, half = scratch[:2], scratch[2 : 2 + columns], b2 * c1 * columns
    for i in range(a):
        for k in range(d):
            x = source + 2 * (i * d + k) * half
            for ib in range(b2):
                to = left + ((i * b2 + ib) * d + k) * 2 * c1
                for ic in range(c1):
                    place = (((i * c1 + ic) * d + k) * b2 + ib) * columns + right
                    w = work[place : place + columns] if write else spare
                    tail = two_rows(node[x : x + columns], node[x + half : x + half + columns], u, w)
                    tails[tail_at + ((i * c1 + ic) * b2 + ib) * d + k] = tail
                    x += columns
                    if not write:
                        continue
                    if weight == LEFT:
                        multiply_by(u, normalize(w))
                    elif weight == BOTH:
                        root = np.sqrt(length(w))
                        multiply_by(u, root)
                        if root > 0:
                            multiply_by(w, 1 / root)
                    work[to + ic], work[to + c1 + ic] = u[0], u[1]


@compiled
def cut_two_columns(values, work, step, tails, write, scratch, sums, wide):
    """Rank one of blocks of two columns and more rows: row by row through many neighbouring blocks."""
    _, source, left, right, tail_at, a, c1, b2, d, rows, _, _, weight = step
    group = min(c1, PAIRS)
    groups = -(-c1 // group)
    node = values if source < 0 else work
    source = max(source, 0)
    g11, g22, g12 = sums[:group], sums[group : 2 * group], wide[:group]
    p11, p22, p12 = scratch[:group], scratch[group : 2 * group], scratch[2 * group : 3 * group]
    cs, ss = scratch[3 * group : 4 * group], scratch[4 * group : 5 * group]
    units = a * d * b2 * groups
    for unit in range(units):
        first, rest = unit % groups * group, unit // groups
        ib, rest = rest % b2, rest // b2
        i, k = rest // d, rest % d
        count = min(group, c1 - first)
        stride = b2 * c1 * 2
        at = source + (((i * d + k) * rows * b2 + ib) * c1 + first) * 2
        for n in range(count):
            g11[n], g22[n], g12[n] = 0, 0, 0
        for begin in range(0, rows, ROWS):  # sums over some rows in the precision of the matrix, over all in float64
            for n in range(count):
                p11[n], p22[n], p12[n] = 0, 0, 0
            for t in range(begin, min(begin + ROWS, rows)):
                row = node[at + t * stride : at + t * stride + 2 * count]
                for n in range(count):
                    x, y = row[2 * n], row[2 * n + 1]
                    p11[n] += square(x)
                    p22[n] += square(y)
                    p12[n] += np.conj(x) * y
            for n in range(count):
                g11[n] += p11[n].real
                g22[n] += p22[n].real
                g12[n] += p12[n]
        for n in range(count):
            c, s, top = rotation(g11[n], g22[n], g12[n])
            root = np.sqrt(top)
            root = 1.0 if weight == LEFT else np.sqrt(root) if weight == BOTH else root
            g11[n], g22[n] = 1 / root if root > 0 else 0.0, 0  # the scale of the left part; the tail
            cs[n], ss[n] = c, s
            if write:
                to = right + (((i * c1 + first + n) * d + k) * b2 + ib) * 2
                work[to], work[to + 1] = np.conj(cs[n]) * root, ss[n] * root
        for begin in range(0, rows, ROWS):
            for n in range(count):
                p11[n], p22[n] = 0, g11[n]
            for t in range(begin, min(begin + ROWS, rows)):
                row = node[at + t * stride : at + t * stride + 2 * count]
                to = left + (((i * b2 + ib) * d + k) * rows + t) * c1 + first
                if write:
                    out = work[to : to + count]
                    for n in range(count):
                        out[n] = (cs[n] * row[2 * n] + ss[n] * row[2 * n + 1]) * p22[n]
                for n in range(count):
                    p11[n] += square(np.conj(cs[n]) * row[2 * n + 1] - ss[n] * row[2 * n])
            for n in range(count):
                g22[n] += p11[n].real
        for n in range(count):
            tails[tail_at + ((i * c1 + first + n) * b2 + ib) * d + k] = g22[n]
            if write and weight == RIGHT and g11[n] == 0:  # a zero block gets some unit vector
                work[left + ((i * b2 + ib) * d + k) * rows * c1 + first + n] = 1
