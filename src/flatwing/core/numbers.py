"""Divisors, of which the pattern algebra is made."""

from __future__ import annotations

from functools import lru_cache
from math import isqrt


@lru_cache(maxsize=1024)
def divisors(n: int) -> tuple[int, ...]:
    """All divisors of n in ascending order.

    >>> divisors(12)
    (1, 2, 3, 4, 6, 12)
    """
    small = [k for k in range(1, isqrt(n) + 1) if n % k == 0]
    return tuple(small + [n // k for k in reversed(small) if k * k != n])


def nearest_divisor(n: int, k: int) -> int:
    """The divisor of n nearest to k, the smaller one on a tie.

    >>> nearest_divisor(12, 5)
    4
    """
    return min(divisors(n), key=lambda divisor: (abs(divisor - k), divisor))
