"""Best-first enumeration of the chainable chains of a matrix within a parameter budget."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from math import gcd
from numbers import Integral
from typing import NamedTuple

from ..core import divisors, require_whole
from .chain import Chain


class _Node(NamedTuple):
    """First factors of a chain: their radices and ranks, the products Q and P of the radices, the parameters so far."""

    cost: int
    q: tuple[int, ...]
    p: tuple[int, ...]
    ranks: tuple[int, ...]
    rows: int
    columns: int


def search_chains(m: int, n: int, budget: int | float, max_factors: int | None = None) -> Iterator[Chain]:
    """`Chain.search`: the arguments are checked at once, the chains are found as they are asked for."""
    limit = budget if isinstance(budget, Integral) else budget * m * n
    if not limit > 0:
        raise ValueError(f"budget={budget} allows no parameter. Rule: a share > 0 (float) or a count >= 1 (int).")
    if max_factors is not None:
        require_whole("max_factors", max_factors, good=4, advice="Or None, for no limit.")
    common = gcd(m, n)
    outer = [(a1, dL) for a1 in divisors(common) for dL in divisors(common // a1)]
    searches = [_best_first(m, n, limit, max_factors, a1, dL) for a1, dL in outer]
    return heapq.merge(*searches, key=lambda chain: chain.nnz)


def _best_first(m: int, n: int, limit: int | float, max_factors: int | None, a1: int, dL: int) -> Iterator[Chain]:
    """Chains with these outer numbers, that is of a1 dL matrices of m / (a1 dL) x n / (a1 dL) at once.

    A* over the factors from the left, with the number of parameters as length.

    The bound on what is missing is that every factor still to come has at least one parameter per row and column.
    Ranks are opened one at a time, so nothing of the size of the search space is ever stored.
    """
    m, n, limit = m // (a1 * dL), n // (a1 * dL), limit / (a1 * dL)
    tie = count()  # equal costs come out in the order in which they were found: deterministic
    heap: list[tuple[int, int, _Node, bool]] = []

    def push(node: _Node, q: int, p: int, rank: int) -> None:
        """Append the factor with radices q, p and right rank `rank`, if the chain can still end within the budget."""
        previous = node.ranks[-1] if node.ranks else 1
        last = node.rows * q == m and node.columns * p == n and rank == 0
        right = 1 if last else rank
        cost = node.cost + node.columns * p * (m // node.rows) * previous * right
        rows, columns = node.rows * q, node.columns * p
        missing = 0 if last else max(n, columns * (m // rows) * right)
        if cost + missing <= limit:
            ranks = node.ranks if last else (*node.ranks, rank)
            heapq.heappush(
                heap, (cost + missing, next(tie), _Node(cost, (*node.q, q), (*node.p, p), ranks, rows, columns), last)
            )

    def expand(node: _Node) -> None:
        previous = node.ranks[-1] if node.ranks else 1
        push(node, m // node.rows, n // node.columns, 0)
        if max_factors is not None and len(node.q) >= max_factors - 1:
            return
        for q in divisors(m // node.rows):
            for p in divisors(n // node.columns):
                if q * previous > 1:  # the split after this factor must have 1 <= rank < q * previous
                    push(node, q, p, 1)

    start = _Node(0, (), (), (), 1, 1)
    expand(start)
    while heap:
        _, _, node, complete = heapq.heappop(heap)
        if complete:
            if _irredundant(node):
                yield Chain.from_radices(node.q, node.p, node.ranks, a1, dL)
            continue
        parent = _Node(
            0, node.q[:-1], node.p[:-1], node.ranks[:-1], node.rows // node.q[-1], node.columns // node.p[-1]
        )
        before, rank = (parent.ranks[-1] if parent.ranks else 1), node.ranks[-1]
        parent = parent._replace(cost=node.cost - node.columns * (m // parent.rows) * before * rank)
        if rank + 1 < node.q[-1] * before:
            push(parent, node.q[-1], node.p[-1], rank + 1)
        # r_{l-1} < p_l r_l fails for good only once this factor's right rank is known
        if not parent.ranks or before < node.p[-1] * rank:
            expand(node)


def _irredundant(node: _Node) -> bool:
    r = (1, *node.ranks, 1)
    return all(r[i] < min(node.q[i - 1] * r[i - 1], node.p[i] * r[i + 1]) for i in range(1, len(r) - 1))
