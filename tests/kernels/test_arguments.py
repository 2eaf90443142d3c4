"""Checks that `explain` and `advise` share: what is not meant is refused by name."""

from typing import Any

import pytest
import torch

from flatwing import kernels
from flatwing.kernels.advise import advise
from flatwing.kernels.arguments import DTYPES, LARGEST, dtype_of, whole
from flatwing.structure import Chain
from strategies import as_user

CHAIN = Chain.butterfly(8)


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "16", None, LARGEST + 1])
def test_what_is_no_whole_number_is_refused_by_both(value: Any) -> None:
    with as_user(), pytest.raises(ValueError, match=rf"^rows is {value!r}\. Rule: a whole number from 1 to {LARGEST}"):
        whole("rows", value)
    with as_user(), pytest.raises(ValueError, match=rf"^batch is {value!r}\."):
        kernels.explain(CHAIN, batch=value)
    with as_user(), pytest.raises(ValueError, match=rf"^batch is {value!r}\."):
        advise(chain=CHAIN, batches=[value])


def test_dtypes_by_name_for_both() -> None:
    assert [dtype_of(str(dtype)) for dtype in DTYPES] == [dtype_of(dtype) for dtype in DTYPES] == list(DTYPES)
    assert kernels.explain(CHAIN, dtype="complex64").task.dtype == torch.complex64
    with as_user(), pytest.raises(TypeError, match=r"dtype is 32\. Rule: a dtype of torch or its name"):
        dtype_of(32)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown dtype 'float23', did you mean 'float32'"):
        kernels.explain(CHAIN, dtype="float23")
