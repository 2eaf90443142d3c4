"""The chainable chain nearest to a given chain, for error messages that offer a way out."""

from __future__ import annotations

from math import gcd, log

from ..core import divisors
from .chain import Chain

BEAM = 500


def nearest_chainable(chain: Chain, m: int | None = None, n: int | None = None) -> Chain:
    """The chainable chain of an m x n matrix (default: of the same size) closest to `chain`, with as many factors.

    Distance: sum of |log| ratios of the entries of the patterns. Dynamic programming over the products of the radices
    used so far; cost: about (divisors of m * divisors of n)^2 * factors.

    >>> broken = Chain([(1, 128, 128, 3), (6, 64, 256, 1)])
    >>> print(nearest_chainable(broken))
    (1,128,126,3)(6,63,256,1)
    """
    m, n = m or chain.shape[0], n or chain.shape[1]
    a1, dL = gcd(gcd(m, n), chain[0].a), 1
    dL = gcd(gcd(m, n) // a1, chain[-1].d)
    rows, columns, last = m // (a1 * dL), n // (a1 * dL), len(chain) - 1
    # (product of q, product of p, rank) -> (distance, radices and ranks so far)
    best: dict[tuple[int, int, int], tuple[float, tuple, tuple, tuple]] = {(1, 1, 1): (0.0, (), (), ())}
    for i, target in enumerate(chain):
        reached: dict[tuple[int, int, int], tuple[float, tuple, tuple, tuple]] = {}
        for (done_q, done_p, rank), (cost, qs, ps, ranks) in best.items():
            for q in divisors(rows // done_q) if i < last else (rows // done_q,):
                for p in divisors(columns // done_p) if i < last else (columns // done_p,):
                    d = dL * (rows // (done_q * q))
                    here = cost + _far(a1 * done_p, target.a) + _far(q * rank, target.b) + _far(d, target.d)
                    right = max(1, round(target.c / p)) if i < last else 1
                    key = done_q * q, done_p * p, right
                    here += _far(p * right, target.c)
                    if key not in reached or here < reached[key][0]:
                        reached[key] = here, (*qs, q), (*ps, p), ranks if i == last else (*ranks, right)
        # a beam keeps huge sizes fast; small ones are searched completely
        best = dict(sorted(reached.items(), key=lambda item: item[1][0])[:BEAM])
    _, qs, ps, ranks = min(best.values())
    return Chain.from_radices(qs, ps, ranks, a1, dL)


def _far(value: int, target: int) -> float:
    return abs(log(value / target))
