"""What counts as a whole number."""

import numpy as np
import pytest
import torch

from flatwing.structure.limits import require_whole


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), torch.tensor(3)], ids=lambda value: type(value).__name__
)
def test_integers_of_all_kinds(value: object) -> None:
    found = require_whole("k", value)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize(
    "value", [2.0, np.float32(2), True, None, "2", [2], float("nan"), torch.tensor([1, 2])], ids=str
)
def test_others_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"k is .*\. Rule: a whole number, at least 1\. Take 7\."):
        require_whole("k", value, good=7)


def test_the_least_is_included() -> None:
    assert require_whole("seed", 0, least=0) == 0
    with pytest.raises(ValueError, match=r"seed is -1\. Rule: a whole number, at least 0\. Take 0\."):
        require_whole("seed", -1, least=0)
