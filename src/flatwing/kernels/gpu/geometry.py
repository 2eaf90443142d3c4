"""Which index of two neighbouring factors is block, rank, group, input or output of the fused kernel, as strides."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

from ...structure import Pattern


@final
@dataclass(frozen=True, slots=True)
class Geometry:
    """How the fused kernel sees a pair of factors: sizes, how the middle index u is read, and steps.

    Steps of x and y count features. Steps of the two factors are (blocks, rows, columns), to be multiplied by the
    strides of the tensor that holds the values.
    """

    depth: int
    outer: int
    inputs: int
    middle: int
    groups: int
    outputs: int
    block: tuple[int, int]
    """Divisor and modulus by which u gives the block of x."""
    t: tuple[int, int]
    """Divisor and modulus by which u gives the index within the rank."""
    x: tuple[int, int, int, int]
    """Steps of i, k, block, p."""
    first: tuple[tuple[int, int, int], ...]
    """Steps of i, k, block, t, g, p in the factor that is applied first."""
    second: tuple[tuple[int, int, int], ...]
    """Steps of i, k, g, s, u in the factor that is applied last."""
    y: tuple[int, int, int, int]
    """Steps of i, k, g, s."""


@lru_cache(maxsize=1024)
def geometry(left: Pattern, right: Pattern) -> Geometry | None:
    """How the product left * right (right is applied first) is fused; None unless it or its transpose is chainable.

    With e = a'/a, f = d/d' and r = ac/a', the middle index is (i, u < e, t < r, v < f, k) with i < a and k < d'. Block
    (i, u, k) of `right` makes all (t, v), block (i, v, k) of `left` takes all (u, t): per (i, k) a batch of e small
    matrices, a transposition of (u, t) against v, and a batch of f. Transposed, u and v change roles.

    >>> from flatwing import Pattern
    >>> g = geometry(Pattern(1, 8, 4, 16), Pattern(4, 16, 32, 1))
    >>> g.inputs, g.middle, g.groups, g.outputs
    (32, 4, 16, 8)
    """
    forward = _chainable(left, right)
    if not forward and not _chainable(right.T, left.T):
        return None
    outer, inner = (left, right) if forward else (right.T, left.T)  # the chainable pair, whichever is applied
    a, b, _, d = outer
    a2, _, c, d2 = inner
    e, f, r = a2 // a, d // d2, outer.c * a // a2
    wide = (e * d2, 0, 0), (1, 0, 0)  # steps of i and k in the values of `inner`
    deep = (d, 0, 0), (1, 0, 0)  # and of `outer`
    features_in, features_out = (e * c * d2, 1), (b * d, 1)
    if forward:
        return Geometry(
            depth=d2,
            outer=a * d2,
            inputs=c,
            middle=e * r,
            groups=f,
            outputs=b,
            block=(r, e),
            t=(1, r),
            x=(*features_in, c * d2, d2),
            first=(*wide, (d2, 0, 0), (0, f, 0), (0, 1, 0), (0, 0, 1)),
            second=(*deep, (d2, 0, 0), (0, 1, 0), (0, 0, 1)),
            y=(*features_out, d2, d),
        )
    # applied first is outer.T, whose values are (blocks, c, b): its rows are the columns of `outer`
    return Geometry(
        depth=d2,
        outer=a * d2,
        inputs=b,
        middle=r * f,
        groups=e,
        outputs=c,
        block=(1, f),
        t=(f, r),
        x=(*features_out, d2, d),
        first=(*deep, (d2, 0, 0), (0, 1, 0), (0, r, 0), (0, 0, 1)),
        second=(*wide, (d2, 0, 0), (0, 1, 0), (0, 0, 1)),
        y=(*features_in, c * d2, d2),
    )


def _chainable(left: Pattern, right: Pattern) -> bool:
    return (
        left.shape[1] == right.shape[0]
        and right.a % left.a == 0
        and left.d % right.d == 0
        and left.a * left.c % right.a == 0
    )
