"""Candidates: chains of a given shape that somebody who wants speed would try, by the text that makes them."""

from __future__ import annotations

from math import isqrt

from ..core import divisors, nearest_divisor
from ..structure import Chain

SHARE = 0.25  # of the dense parameters, where nothing else says how many
USED = 0.5  # of a budget must be used: the fastest chain of all would otherwise have next to no parameters


def sensible(m: int, n: int) -> tuple[str, str]:
    """The chain to start with for an m x n matrix, as text for `Chain.parse`, and why it is this one.

    >>> sensible(1024, 4096)
    ('monarch(1024, 4096, blocks=(32, 64))', 'Monarch with the square roots of the sizes as numbers of blocks')
    >>> sensible(7, 11)[0]
    'low_rank(7, 11, rank=1)'
    """
    rows, columns = nearest_divisor(m, isqrt(m)), nearest_divisor(n, isqrt(n))
    if min(rows, columns) == 1:  # a side is prime, or next to: no blocks
        rank = max(1, int(SHARE * m * n / (m + n)))
        why = f"low rank with {SHARE:.0%} of the parameters, as {m} x {n} has no even blocks"
        return f"low_rank({m}, {n}, rank={rank})", why
    exact = rows * rows == m and columns * columns == n
    blocks = "square roots of" if exact else "divisors next to the square roots of"
    why = f"Monarch with the {blocks} the sizes as numbers of blocks"
    return f"monarch({m}, {n}, blocks={(rows, columns) if rows != columns else rows})", why


def within(m: int, n: int, budget: int | float) -> dict[str, list[str]]:
    """Chains of at most `budget` m n parameters in which every input reaches every output, by family.

    Each family offers its members that use at least `USED` of the budget, or its largest one. The texts are for
    `Chain.parse`. Raises `ValueError` if not even rank 1 fits.

    >>> {family: texts[:2] for family, texts in within(64, 64, 0.25).items()}
    {'low_rank': ['low_rank(64, 64, rank=8)'],
     'monarch': ['monarch(64, 64, blocks=2, rank=4)', 'monarch(64, 64, blocks=4, rank=2)'],
     'butterfly': ['butterfly(64)', 'butterfly(64, radices=(4, 4, 4))']}
    """
    limit = int(budget * m * n)
    if limit < m + n:
        raise ValueError(
            f"budget={budget:g} allows {limit:,} of {m * n:,} parameters, rank 1 needs {m + n:,}. "
            f"Rule: at least {(m + n) / (m * n):.2g} for {m} x {n}."
        )
    families = {
        "low_rank": [f"low_rank({m}, {n}, rank={limit // (m + n)})"],
        "monarch": _monarchs(m, n, limit),
        "butterfly": _butterflies(n) if m == n else [],
        "block_butterfly": [f"block_butterfly({n}, block={b})" for b in divisors(n)[1:-1]] if m == n else [],
    }
    found: dict[str, list[str]] = {}
    for family, texts in families.items():
        sizes = {text: Chain.parse(text).nnz for text in texts}
        fitting = {text: size for text, size in sizes.items() if size <= limit}
        rich = [text for text, size in fitting.items() if size >= USED * limit]
        if fitting:
            found[family] = rich or [max(fitting, key=lambda text: fitting[text])]
    return found


def _monarchs(m: int, n: int, limit: int) -> list[str]:
    """For each number of blocks the largest rank within the limit."""
    texts = []
    for blocks in _common(m, n):
        rank = min(limit // (blocks * (m + n)), m // blocks, n // blocks)
        if rank >= 1 and blocks > 1:
            texts.append(f"monarch({m}, {n}, blocks={blocks}" + (f", rank={rank})" if rank > 1 else ")"))
    return texts


def _common(m: int, n: int) -> list[int]:
    return [k for k in divisors(n) if m % k == 0]


def _butterflies(n: int) -> list[str]:
    """All prime factors, and as equal radices as there are, with growing ranks: fewer factors with larger blocks."""
    texts = [f"butterfly({n})"]
    for radix in (4, 8, 16, 32, 64, 128):
        radices, rest = [], n
        while rest % radix == 0 and rest > 1:
            radices.append(radix)
            rest //= radix
        radices = sorted([*radices, rest] if rest > 1 else radices)
        if len(radices) > 1 and radices[-1] == radix:
            texts += [
                f"butterfly({n}, radices={tuple(radices)}" + (f", rank={rank})" if rank > 1 else ")")
                for rank in (1 << i for i in range(8))
                if rank < radices[0]  # else the first factor restricts nothing
            ]
    return texts
