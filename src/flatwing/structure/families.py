"""The named families of chains. Each is a few radices and ranks given to `Chain.from_radices`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import gcd, prod
from operator import index, mul
from typing import TYPE_CHECKING

from ..core import nearest_divisor
from .pattern import Pattern

if TYPE_CHECKING:
    from .chain import Chain

LARGEST = 1 << 40  # beyond, finding prime factors by trial division takes longer than a user waits


class ChainFamilies:
    """Constructors of `Chain`; they live here so that the algebra and the zoo are two files."""

    @staticmethod
    def from_radices(q: Sequence[int], p: Sequence[int], ranks: Sequence[int], a1: int = 1, dL: int = 1) -> Chain:
        """The chainable chain with row radices q, column radices p and split ranks r; reaches every chainable chain.

        Factor l has a = a1 p_1...p_{l-1}, b = q_l r_{l-1}, c = p_l r_l, d = dL q_{l+1}...q_L with r_0 = r_L = 1, so the
        matrix has a1 dL prod(q) rows and a1 dL prod(p) columns. Raises `ValueError` if the lengths do not agree.

        >>> from flatwing import Chain
        >>> print(Chain.from_radices(q=(3, 4), p=(4, 5), ranks=(1,)))
        (1,3,4,4)(4,4,5,1)
        """
        if not (len(q) == len(p) == len(ranks) + 1):
            raise ValueError(
                f"a chain of L factors has L row radices, L column radices and L-1 ranks, "
                f"got {len(q)}, {len(p)} and {len(ranks)}. Write for example from_radices((2, 2), (2, 2), (1,))."
            )
        q, p, r = _whole("q", q), _whole("p", p), (1, *_whole("ranks", ranks), 1)
        a1, dL = _whole("a1", [a1])[0], _whole("dL", [dL])[0]
        a = list(accumulate(p[:-1], mul, initial=a1))
        d = list(accumulate(reversed(q[1:]), mul, initial=dL))[::-1]
        return _chain(Pattern(a[i], q[i] * r[i], p[i] * r[i + 1], d[i]) for i in range(len(q)))

    @classmethod
    def butterfly(cls, n: int, radices: Sequence[int] | None = None, rank: int = 1) -> Chain:
        """Square butterfly of size n, one factor per radix; the Hadamard and Fourier matrices live here.

        `radices` multiply to n; by default the prime factors of n, largest last (a prime n is one dense factor). With
        `rank` r every split has rank r; small ends are then redundant and `.reduced()` merges them.

        >>> from flatwing import Chain
        >>> print(Chain.butterfly(12), Chain.butterfly(12, radices=(4, 3)))
        (1,2,2,6)(2,2,2,3)(4,3,3,1) (1,4,4,3)(4,3,3,1)
        """
        n, rank = _whole("n and rank", [n, rank])
        radices = _primes(n) if radices is None else _whole("radices", radices)
        if prod(radices) != n or not radices:
            raise ValueError(
                f"radices {tuple(radices)} multiply to {prod(radices)}, but n={n}. "
                f"Rule: their product is n; the finest choice is {_primes(n)}."
            )
        return cls.from_radices(radices, radices, [rank] * (len(radices) - 1))

    @classmethod
    def monarch(cls, m: int, n: int, blocks: int | tuple[int, int], rank: int = 1) -> Chain:
        """Monarch product of m x n: a strided and a contiguous block-diagonal factor; every block has rank `rank`.

        `blocks` = (A, B) are the numbers of blocks along the rows and along the columns, one number stands for both;
        A divides m and B divides n. Costs `rank` * (B m + A n) parameters. Source: Dao et al. 2022, rectangular form.

        >>> from flatwing import Chain
        >>> print(Chain.monarch(1024, 1024, blocks=32))
        (1,32,32,32)(32,32,32,1)
        >>> print(Chain.monarch(6, 8, blocks=(1, 2), rank=3))
        (1,6,6,1)(2,3,4,1)
        """
        pair = blocks if isinstance(blocks, (tuple, list)) else (blocks, blocks)
        if len(pair) != 2:
            raise ValueError(f"blocks={blocks!r}. Rule: one number, or two such as (2, 4) for rows and columns.")
        m, n, A, B, rank = _whole("m, n, blocks and rank", [m, n, *pair, rank])
        if A == B:
            _divides("blocks", A, m, n)
        _divides("blocks", A, m)
        _divides("blocks", B, n)
        return cls.from_radices((m // A, A), (B, n // B), (rank,))

    @classmethod
    def block_diagonal(cls, m: int, n: int, blocks: int) -> Chain:
        """One block-diagonal factor with `blocks` blocks of (m / blocks) x (n / blocks).

        >>> from flatwing import Chain
        >>> print(Chain.block_diagonal(6, 4, blocks=2))
        (2,3,2,1)
        """
        m, n, blocks = _whole("m, n and blocks", [m, n, blocks])
        _divides("blocks", blocks, m, n)
        return _chain([Pattern(blocks, m // blocks, n // blocks, 1)])

    @classmethod
    def low_rank(cls, m: int, n: int, rank: int) -> Chain:
        """Products of an m x rank and a rank x n matrix.

        >>> from flatwing import Chain
        >>> print(Chain.low_rank(6, 4, rank=2))
        (1,6,2,1)(1,2,4,1)
        """
        m, n, rank = _whole("m, n and rank", [m, n, rank])
        return cls.from_radices((m, 1), (1, n), (rank,))

    @classmethod
    def block_butterfly(cls, n: int, block: int, radices: Sequence[int] | None = None) -> Chain:
        """Butterfly of size n whose entries are blocks of `block` x `block`; every split has rank `block`.

        `radices` multiply to n / block, by default its prime factors. Source: Chen et al. 2021 (Pixelfly).

        >>> from flatwing import Chain
        >>> print(Chain.block_butterfly(32, block=4))
        (1,8,8,4)(2,8,8,2)(4,8,8,1)
        """
        n, block = _whole("n and block", [n, block])
        _divides("block", block, n)
        radices = _primes(n // block) if radices is None else _whole("radices", radices)
        if prod(radices) != n // block or not radices:
            raise ValueError(
                f"radices {tuple(radices)} multiply to {prod(radices)}, but n / block = {n // block}. "
                f"Rule: their product is n / block; the finest choice is {_primes(n // block)}."
            )
        q, p = (block * radices[0], *radices[1:]), (*radices[:-1], block * radices[-1])
        if len(radices) == 1:
            q = p = (n,)
        return cls.from_radices(q, p, [block] * (len(radices) - 1))

    @classmethod
    def kronecker(cls, shapes: Sequence[tuple[int, int]]) -> Chain:
        """The smallest chain that contains every Kronecker product A_1 (x) ... (x) A_k of matrices of these shapes.

        >>> from flatwing import Chain
        >>> print(Chain.kronecker([(2, 3), (4, 5)]))
        (1,2,3,4)(3,4,5,1)
        """
        try:
            rows, columns = zip(*((m, n) for m, n in shapes), strict=True)
        except (TypeError, ValueError):
            raise ValueError(
                f"kronecker needs the shapes of its matrices, got {shapes!r}. Write [(2, 3), (4, 5)]."
            ) from None
        return cls.from_radices(rows, columns, [1] * (len(rows) - 1))

    @classmethod
    def deformable(cls, factors: Sequence[tuple[int, int, int, int, int]]) -> Chain:
        """Deformable butterfly: factor (p, q, r, s, t) is p x q, block-diagonal, with r x s blocks of t x t diagonals.

        Raises `ValueError` unless p = k r t and q = k s t with one whole k. Source: Lin et al. 2021 (DeBut).

        >>> from flatwing import Chain
        >>> print(Chain.deformable([(6, 8, 3, 4, 2), (8, 8, 4, 4, 1)]))
        (1,3,4,2)(2,4,4,1)
        """
        patterns = []
        for factor in factors:
            if len(factor) != 5:
                raise ValueError(f"deformable factor {factor!r}: rule five whole numbers (p, q, r, s, t).")
            p, q, r, s, t = _whole("p, q, r, s and t", factor)
            k = p // (r * t)
            if k < 1 or k * r * t != p or k * s * t != q:
                raise ValueError(
                    f"deformable factor {(p, q, r, s, t)}: rule p = k r t and q = k s t with a whole k, "
                    f"but p / (r t) = {p}/{r * t} and q / (s t) = {q}/{s * t}."
                )
            patterns.append(Pattern(k, r, s, t))
        return _chain(patterns)

    @classmethod
    def dense(cls, m: int, n: int) -> Chain:
        """One dense factor: no structure at all, the honest baseline.

        >>> from flatwing import Chain
        >>> print(Chain.dense(3, 5))
        (1,3,5,1)
        """
        m, n = _whole("m and n", [m, n])
        return _chain([Pattern(1, m, n, 1)])

    @staticmethod
    def search(m: int, n: int, budget: int | float, max_factors: int | None = None) -> Iterator[Chain]:
        """Every non-redundant chainable chain of an m x n matrix within a parameter budget, cheapest first; lazy.

        `budget` is a number of parameters if it is an integer, else a share of m*n. Costs time and memory in proportion
        to what is taken from the iterator. Raises `ValueError` for a budget that is not positive.

        >>> from flatwing import Chain
        >>> [str(c) for c in Chain.search(4, 4, budget=8)]
        ['(1,1,1,4)', '(2,1,1,2)', '(4,1,1,1)', '(1,4,1,1)(1,1,4,1)', '(1,2,2,2)', ...]
        """
        from .search import search_chains

        m, n = _whole("m and n", [m, n])
        return search_chains(m, n, budget, max_factors)


def _chain(patterns: object) -> Chain:
    from .chain import Chain  # Chain inherits from this module's class

    return Chain(patterns)  # type: ignore[arg-type]


def _whole(name: str, values: Sequence[int]) -> list[int]:
    try:
        values = [index(v) for v in values]
    except TypeError:
        raise TypeError(f"{name} must be whole numbers, got {values!r}.") from None
    if any(v < 1 for v in values):
        raise ValueError(f"{name} must be >= 1, got {values!r}.")
    return list(values)


def _divides(name: str, value: int, *sizes: int) -> None:
    common = gcd(*sizes)
    if common % value:
        raise ValueError(
            f"{name}={value} does not divide {' and '.join(map(str, sizes))}. "
            f"Rule: it divides every size; the nearest good value is {nearest_divisor(common, value)}."
        )


def _primes(n: int) -> tuple[int, ...]:
    """Prime factors of n in ascending order; (1,) for n = 1."""
    if n > LARGEST:
        raise ValueError(f"n={n} is larger than any matrix. Rule: n <= {LARGEST}.")
    factors, divisor, rest = [], 2, n
    while divisor * divisor <= rest:
        while rest % divisor == 0:
            factors.append(divisor)
            rest //= divisor
        divisor += 1
    return tuple(factors) + ((rest,) if rest > 1 or not factors else ())
