"""Names of orders, which of them peel ends, and the factor that is proved for each."""

from itertools import permutations, product
from math import inf, sqrt

import numpy as np
import pytest
import torch

from flatwing.factorize.order import optimality_factor, peels_ends, split_order
from strategies import as_user


@pytest.mark.parametrize(
    ("order", "factors", "expected"),
    [
        ("l2r", 1, ()),
        ("r2l", 2, (1,)),
        ("l2r", 5, (1, 2, 3, 4)),
        ("r2l", 5, (4, 3, 2, 1)),
        ("balanced", 2, (1,)),
        ("balanced", 4, (2, 1, 3)),
        ("balanced", 6, (3, 1, 2, 4, 5)),
        ("balanced", 8, (4, 2, 1, 3, 6, 5, 7)),
        ((3, 1, 2), 4, (3, 1, 2)),
        ([2, 1], 3, (2, 1)),
        ((), 1, ()),
    ],
)
def test_orders(order: str | tuple[int, ...], factors: int, expected: tuple[int, ...]) -> None:
    assert split_order(order, factors) == expected


def test_orders_of_numpy_and_torch_become_plain_numbers() -> None:
    with as_user():
        for order in (np.array([2, 1, 3]), torch.tensor([2, 1, 3])):
            found = split_order(order, 4)
            assert found == (2, 1, 3)
            assert all(type(s) is int for s in found)


@pytest.mark.parametrize("factors", range(1, 10))
def test_every_named_order_is_a_permutation(factors: int) -> None:
    for name in ("l2r", "r2l", "balanced"):
        assert sorted(split_order(name, factors)) == list(range(1, factors))


@pytest.mark.parametrize("order", ["left", "L2R", "", "best"])
def test_unknown_names(order: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown order '{order}'. Rule: .*'balanced'.* such as \(1, 2, 3\)"):
        split_order(order, 4)


@pytest.mark.parametrize(
    "order",
    [(1, 2), (1, 2, 2), (0, 1, 2), (1, 2, 3, 4), (), (1.5, 2, 3), (2, 3, 4), 3, None, ("l2r",), ("a", 1)],
    ids=repr,
)
def test_what_is_not_a_permutation(order: object) -> None:
    with (
        as_user(),
        pytest.raises(ValueError, match=r"order .* is not a permutation of the splits 1 to 3.*\(1, 2, 3\)"),
    ):
        split_order(order, 4)


@pytest.mark.parametrize("splits", range(1, 7))
def test_orders_that_peel_ends(splits: int) -> None:
    """Those that are made by taking splits from the two ends: 2^(splits - 1) of them."""
    peeled = set()
    for choices in product([0, -1], repeat=splits):
        left = list(range(1, splits + 1))
        peeled.add(tuple(left.pop(end) for end in choices))
    assert {order for order in permutations(range(1, splits + 1)) if peels_ends(order)} == peeled
    assert len(peeled) == 2 ** (splits - 1)


@pytest.mark.parametrize(
    ("order", "peels"),
    [((), True), ((3,), True), ((2, 4, 7), True), ((7, 4, 2), True), ((2, 7, 4), True), ((4, 2, 7), False)],
)
def test_an_order_without_the_redundant_splits(order: tuple[int, ...], peels: bool) -> None:
    """They are left out before an order is judged, so the numbers may have gaps."""
    assert peels_ends(order) == peels


@pytest.mark.parametrize(
    ("order", "orthonormalize", "factor", "theorem"),
    [
        ((), True, 1.0, "exact optimum"),
        ((1,), True, 1.0, "exact optimum"),
        ((1,), False, 1.0, "exact optimum"),
        ((1, 2, 3, 4), True, 2.0, "end-peeling"),
        ((1, 3, 2), True, sqrt(3), "end-peeling"),
        ((2, 1, 3), True, 3.0, "any order"),
        ((1, 2), False, inf, "none"),
    ],
)
def test_what_is_proved(order: tuple[int, ...], orthonormalize: bool, factor: float, theorem: str) -> None:
    found, text = optimality_factor(order, orthonormalize)
    assert found == pytest.approx(factor)
    assert text.startswith(theorem)
