"""What counts as a whole number and as a number, and in which words others are refused."""

import re
from fractions import Fraction
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch

from flatwing.core import require_number, require_whole


@pytest.mark.parametrize(
    "value",
    [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)],
    ids=lambda value: f"{type(value).__module__}.{type(value).__name__}",
)
def test_integers_of_all_kinds(value: object) -> None:
    found = require_whole("k", value)
    assert found == 3
    assert type(found) is int


NO_WHOLE = [
    *(2.0, np.float32(2), True, np.True_, None, "2", [2], 2j, nan, inf, -inf, Fraction(2), np.array([2])),
    *(torch.tensor([1, 2]), torch.tensor([2]), torch.tensor(2.0), torch.tensor(True), torch.tensor(2, device="meta")),
]


@pytest.mark.parametrize("value", NO_WHOLE, ids=str)
def test_others_are_refused(value: object) -> None:
    told = (
        rf"^k is {re.escape(repr(value))}\. Rule: a whole number, at least 1, such as 7\. Nearest good value: [27]\.$"
    )
    with pytest.raises(ValueError, match=told):
        require_whole("k", value, good=7)


@pytest.mark.parametrize(
    ("value", "bounds", "rule", "near"),
    [
        (0, (), ", at least 1", 1),
        (-1, (0,), ", at least 0", 0),
        (10**40, (1, 9), " from 1 to 9", 9),
        (2.5, (-inf,), "", 2),
        (None, (-inf,), "", 0),
        (None, (3,), ", at least 3", 3),
    ],
)
def test_whole_numbers_are_told_the_nearest(value: Any, bounds: tuple[Any, ...], rule: str, near: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^k is {value}\. Rule: a whole number{rule}\. Nearest good value: {near}\.$"
    ):
        require_whole("k", value, *bounds)
    if bounds != (-inf,):
        assert require_whole("k", near, *bounds) == near  # the ends are good, and so is what is advised


def test_advice_is_the_last_word() -> None:
    with pytest.raises(ValueError, match=r"Nearest good value: 1\. Write seeds=1\.$"):
        require_whole("seeds", 0, advice="Write seeds=1.")
    with pytest.raises(ValueError, match=r"Nearest good value: 0\.1\. Fit it\.$"):
        require_number("s", -1, above=0, good=0.1, advice="Fit it.")


@pytest.mark.parametrize("value", [0, 0.5, 1.0, Fraction(1, 2), np.float32(0.5), np.int64(1)], ids=str)
def test_numbers_of_all_kinds_with_both_ends(value: Any) -> None:
    found = require_number("x", value, 0.0, 1.0, good=0.5)
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize(
    "value", [nan, inf, -inf, True, "3", None, 1j, [3], 10**400, torch.tensor(3.0), np.array(3.0)], ids=str
)
def test_what_is_no_number_is_refused(value: Any) -> None:
    told = rf"^x is {re.escape(repr(value))}\. Rule: a number, such as 3\. Nearest good value: 3\.$"
    with pytest.raises(ValueError, match=told):
        require_number("x", value, good=3)


@pytest.mark.parametrize(
    ("value", "limits", "rule", "near"),
    [
        (-1, {"least": 0, "most": 5}, " from 0 to 5", 0),
        (9.0, {"least": 0, "most": 5}, " from 0 to 5", 5),
        (-2, {"least": 0}, ", at least 0", 0),
        (7, {"most": 5}, ", at most 5", 5),
        (0, {"above": 0}, ", above 0", 3),
        (9, {"above": 0, "most": 5}, ", above 0 and at most 5", 5),
        (5, {"least": 0, "below": 5}, ", at least 0 and below 5", 3),
        (-1, {"least": 0, "below": 5}, ", at least 0 and below 5", 0),
        (0, {"above": 0, "below": 5}, ", above 0 and below 5", 3),
    ],
)
def test_numbers_out_of_range_are_told_the_nearest(value: Any, limits: dict[str, Any], rule: str, near: int) -> None:
    told = rf"^x is {value}\. Rule: a number{rule}, such as 3\. Nearest good value: {near}\.$"
    with pytest.raises(ValueError, match=told):
        require_number("x", value, good=3, **limits)
    assert require_number("x", near, good=3, **limits) == near
