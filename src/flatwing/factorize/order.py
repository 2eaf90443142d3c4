"""Split orders: in which order a chain of factors is cut, and what is proved for that order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from operator import index
from typing import NamedTuple

ORDERS = ("best", "l2r", "r2l", "balanced")


def split_order(order: str | Sequence[int], factors: int) -> tuple[int, ...]:
    """The permutation of the splits 1 ... factors-1 that a name stands for, or the permutation itself, checked.

    Split s cuts between the factors s and s+1 (counted from 1). Raises `ValueError` for anything else.

    >>> split_order("l2r", 4), split_order("r2l", 4), split_order("balanced", 6)
    ((1, 2, 3), (3, 2, 1), (3, 1, 2, 4, 5))
    """
    splits = range(1, factors)
    if isinstance(order, str):
        if order == "l2r":
            return tuple(splits)
        if order == "r2l":
            return tuple(reversed(splits))
        if order == "balanced":
            return tuple(_balanced(1, factors))
        raise ValueError(
            f"unknown order {order!r}. Rule: {', '.join(map(repr, ORDERS))} or a permutation of the splits "
            f"such as {tuple(splits)}."
        )
    try:
        given = tuple(index(s) for s in order)
    except TypeError:  # not a sequence, or not of whole numbers
        given = None
    if given is None or sorted(given) != list(splits):
        if not splits:
            raise ValueError(f"order={order!r}, but the chain has one factor and no splits. Leave order out.")
        raise ValueError(
            f"order {order!r} is not a permutation of the splits 1 to {factors - 1}. "
            f"Rule: each split once; the left-to-right order is {tuple(splits)}."
        )
    return given


def _balanced(first: int, last: int) -> Iterator[int]:
    if first < last:
        middle = (first + last - 1) // 2
        yield middle
        yield from _balanced(first, middle)
        yield from _balanced(middle + 1, last)


class Move(NamedTuple):
    """One step of the hierarchical algorithm, at the border s of the factors lo ... s-1 and s ... hi-1.

    A cut makes two nodes of one; other moves carry the weight from one of two neighbouring nodes to the other.
    `weight` says which side carries it afterwards: "right", "left" or "both".
    """

    cut: bool
    nodes: tuple[int, int, int]
    weight: str


def schedule(factors: int, order: Sequence[int], orthonormalize: bool) -> Iterator[Move]:
    """The cuts in this order, each after the moves of the weight that it needs.

    With `orthonormalize`, the nodes left of the one being cut have orthonormal block columns and those to the right
    orthonormal block rows. Each cut leaves the weight on the side of the next cut: orders that peel ends move nothing.

    >>> [(move.cut, move.nodes, move.weight) for move in schedule(3, (1, 2), True)]
    [(True, (0, 1, 3), 'right'), (True, (1, 2, 3), 'right')]
    """
    nodes = [(0, factors)]
    centre = 0  # the node that carries the weight; all others are orthonormal towards it
    for step, s in enumerate(order):
        target = next(i for i, (lo, hi) in enumerate(nodes) if lo < s < hi)
        while orthonormalize and centre != target:
            i = centre if centre < target else centre - 1  # the pair (i, i + 1) that the weight crosses
            yield Move(False, (*nodes[i], nodes[i + 1][1]), "right" if centre < target else "left")
            centre += 1 if centre < target else -1
        lo, hi = nodes[target]
        rightwards = step + 1 == len(order) or order[step + 1] > s
        yield Move(True, (lo, s, hi), ("right" if rightwards else "left") if orthonormalize else "both")
        nodes[target : target + 1] = [(lo, s), (s, hi)]
        centre = target + rightwards


def peels_ends(order: Sequence[int]) -> bool:
    """Whether each split cuts one leaf off the single unfinished node, as left-to-right and right-to-left do.

    >>> peels_ends((1, 3, 2)), peels_ends((2, 1, 3))
    (True, False)
    """
    left = sorted(order)
    for s in order:
        if s not in (left[0], left[-1]):
            return False
        left.remove(s)
    return True


def optimality_factor(order: Sequence[int], orthonormalize: bool) -> tuple[float, str]:
    """The factor by which the error may exceed the best possible one, and the theorem that says so.

    `order` holds the splits that restrict something. Source: section 7 of Zheng et al.; the bounds used here are the
    ones proved from the monotonicity of the tails (sqrt(L-1) for end-peeling orders, L-1 for all others).
    """
    splits = len(order)
    if splits <= 1:
        return 1.0, "exact optimum: at most one split restricts anything, and its truncated SVD is optimal"
    if not orthonormalize:
        return float("inf"), "none: without orthonormalization no bound holds for more than one split"
    if peels_ends(order):
        return sqrt(splits), "end-peeling order: error <= sqrt(L-1) * best"
    return float(splits), "any order: error <= (L-1) * best"
