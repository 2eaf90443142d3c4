"""Passes over memory, compiled for CPUs; each is the twin of torch code elsewhere, which says what it does.

Imported only when it is needed, by `memory.compiled`. Torch writes the result of every operation to memory and reads
it again, and a mask of bool it even converts first; one pass takes a fraction of that time.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from typing import Any, TypeVar, no_type_check

import numpy as np
import torch

from ..kernels.cpu.simd import compiled
from ..kernels.cpu.workers import run, split, useful

T = TypeVar("T")

SECONDS = 0.4e-9  # of one thread, per entry, of the fastest of them
LANES = 1024  # sums side by side, so that many are made at a time and each is of few terms

# bits of float64: exponents of 1 and of whole numbers, and what lifts sqrt(1/2) to the next exponent
_ONE, _WHOLE, _LIFT = np.uint64(1023 << 52), np.uint64(1075 << 52), np.uint64((1023 << 52) - 0x3FE6A09E667F3BCD)
_FRACTION = np.uint64(52)
_ROUND = 1.5 * 2.0**52  # added and taken away again, it rounds


def of_move(p: torch.Tensor, old: torch.Tensor, flat: torch.Tensor, kappa: float, shrink: float) -> None:
    """As `boost.of_move`."""
    _run(_of_move, (p, old, flat), np.float32(kappa), np.float32(shrink))


def of_adam(
    p: torch.Tensor, m: torch.Tensor, v: torch.Tensor, flat: torch.Tensor, a: float, b: float, eps: float
) -> None:
    """As `boost.of_adam`."""
    _run(_of_adam, (p, m, v, flat), np.float32(a), np.float32(b), np.float32(eps))


def climb(w: torch.Tensor, g: torch.Tensor, factor: float, eta: float) -> None:
    """As `perturb.climb` with an eta."""
    _run(_climb, (w, g), np.float32(factor), np.float32(eta))


def adaptive_square(w: torch.Tensor, g: torch.Tensor, eta: float) -> torch.Tensor:
    """The sum of the squares of (|w| + eta) g, float64."""
    sums = _run(_adaptive_square, (w, g), np.float32(eta))
    return torch.tensor(sum(sums), dtype=torch.float64)


def power(g: torch.Tensor, p: float, unit: float, out: torch.Tensor) -> None:
    """As `gradpower.power` for p > 0, into `out`; computed in float64 and rounded once."""
    _run(_power, (g, out), p, (1 - p) * log2(unit))


def counted(bits: torch.Tensor, prefix: int, above: int, shift: int, width: int) -> torch.Tensor:
    """As `quantile._counted`."""
    bins = 1 << width
    if above == 32:
        tables = _run(_count_first, (bits,), np.int32(shift), np.int32(bins))
    else:
        tables = _run(_count_within, (bits,), *map(np.int32, (prefix, above, shift, bins)))
    return torch.from_numpy(np.sum(tables, axis=0))


def _run(kernel: Callable[..., T], tensors: tuple[torch.Tensor, ...], *numbers: Any) -> list[T]:
    """What the kernel returns for each part of the tensors, parts at the same time if that is worth it."""
    arrays = [tensor.detach().view(-1).numpy() for tensor in tensors]
    size = arrays[0].size
    threads = useful(torch.get_num_threads(), size * SECONDS)
    return run(lambda i, j: kernel(*[array[i:j] for array in arrays], *numbers), split(size, threads, unit=LANES))


@compiled
@no_type_check
def _of_move(p, old, flat, kappa, shrink):
    for i in range(p.size):
        q = p[i] + kappa * ((p[i] - old[i]) + shrink * old[i])
        p[i] = q if flat[i] else p[i]


@compiled
@no_type_check
def _of_adam(p, m, v, flat, a, b, eps):
    for i in range(p.size):
        q = p[i] + (a * (m[i] / (np.sqrt(v[i]) + eps)) + b * p[i])
        p[i] = q if flat[i] else p[i]


@compiled
@no_type_check
def _climb(w, g, factor, eta):
    for i in range(w.size):
        size = abs(w[i]) + eta
        w[i] += size * size * g[i] * factor


@compiled
@no_type_check
def _adaptive_square(w, g, eta):
    lanes = np.zeros(LANES, np.float32)
    for begin in range(0, w.size, LANES):
        some, their = w[begin : begin + LANES], g[begin : begin + LANES]
        for i in range(some.size):
            term = (abs(some[i]) + eta) * their[i]
            lanes[i] += term * term
    return lanes.astype(np.float64).sum()


@compiled
@no_type_check
def _power(g, out, p, shift):
    # |g|^p = 2^(p log2 |g|): |g| = m 2^e with m around 1, log2 m from the series of artanh((m - 1) / (m + 1)),
    # the power of two of a whole number written into an exponent, that of the rest from the series of exp
    for i in range(g.size):
        x = np.float64(abs(g[i]))
        bits = x.view(np.uint64)
        exponent = (bits + _LIFT) >> _FRACTION
        m = np.uint64(bits - (exponent << _FRACTION) + _ONE).view(np.float64)
        e = np.uint64(exponent | _WHOLE).view(np.float64) - (2.0**52 + 1023)
        s = (m - 1) / (m + 1)
        t = s * s
        series = 1 + t * (1 / 3 + t * (1 / 5 + t * (1 / 7 + t * (1 / 9))))
        y = p * (e + 2.8853900817779268 * s * series) + shift
        y = min(max(y, -200.0), 200.0)  # beyond float32 in either case
        rounded = np.float64(y + _ROUND)
        r = 0.6931471805599453 * (y - (rounded - _ROUND))
        q = 1 + r * (1 + r * (1 / 2 + r * (1 / 6 + r * (1 / 24 + r * (1 / 120 + r * (1 / 720 + r * (1 / 5040)))))))
        q *= np.uint64((rounded.view(np.uint64) + np.uint64(1023)) << _FRACTION).view(np.float64)
        q = q if g[i] > 0 else -q
        out[i] = q if 0 < x < np.inf else g[i]


@compiled
@no_type_check
def _count_first(bits, shift, bins):
    # neighbours are often in one bin: in tables of their own they need not wait for each other
    a, b, c, d = np.zeros(bins, np.int64), np.zeros(bins, np.int64), np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    half = bins >> 1
    for i in range(bits.size >> 2):
        four = bits[4 * i : 4 * i + 4]
        a[np.uint32((four[0] >> shift) + half)] += 1
        b[np.uint32((four[1] >> shift) + half)] += 1
        c[np.uint32((four[2] >> shift) + half)] += 1
        d[np.uint32((four[3] >> shift) + half)] += 1
    for i in range(bits.size & ~3, bits.size):
        a[np.uint32((bits[i] >> shift) + half)] += 1
    return a + b + c + d


@compiled
@no_type_check
def _count_within(bits, prefix, above, shift, bins):
    table = np.zeros(bins, np.int64)
    for i in range(bits.size):
        if bits[i] >> above == prefix:
            table[np.uint32((bits[i] >> shift) & (bins - 1))] += 1
    return table
