"""What a certificate says, in numbers, in words and as data."""

import json
from math import inf, nan, sqrt

import pytest
import torch

from flatwing.factorize.certificate import Certificate, rounding_level


def certificate(error: float, lower: float, exact: bool = False, guarantee: float = 1.0) -> Certificate:
    return Certificate(error, lower, guarantee, 2.0, "a theorem", exact)


@pytest.mark.parametrize(
    ("proof", "ratio"),
    [
        (certificate(0.3, 0.2), 1.5),
        (certificate(0.2, 0.2), 1.0),
        (certificate(0.2, 0.0), inf),
        (certificate(0.0, 0.0, exact=True), 1.0),
        (certificate(1e-15, 0.0, exact=True), 1.0),
    ],
)
def test_ratio(proof: Certificate, ratio: float) -> None:
    assert proof.ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("proof", "text"),
    [
        (certificate(3e-16, 0.0, exact=True), "this product is exact to rounding: relative error 3.0e-16"),
        (
            certificate(0.25, 0.25),
            "this product is the best any product of this shape can do: relative error 0.25, "
            "no product of this shape can be below 0.25",
        ),
        (
            certificate(0.3, 0.25),
            "this product is within 1.20x of the best any product of this shape can do: relative error 0.3, "
            "no product of this shape can be below 0.25",
        ),
        (
            certificate(0.3, 0.0),
            "relative error 0.3; how good the best product of this shape is, is not known",
        ),
    ],
    ids=["exact", "best", "within", "unknown"],
)
def test_sentence(proof: Certificate, text: str) -> None:
    assert str(proof) == text


@pytest.mark.parametrize("ratio", [1.001, 1.1, 1.2049, 1.205, 1.21000001, 2.999, 7.0])
def test_the_sentence_never_promises_too_much(ratio: float) -> None:
    proof = certificate(0.1 * ratio, 0.1)
    said = float(str(proof).split("within ")[1].split("x of")[0])
    assert proof.ratio <= said <= proof.ratio + 0.0101


def test_data_is_json() -> None:
    data = certificate(0.3, 0.0, guarantee=inf).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data == {
        "error": 0.3,
        "lower_bound": 0.0,
        "ratio": None,
        "guarantee": None,
        "factor": 2.0,
        "theorem": "a theorem",
        "exact": False,
        "summary": "relative error 0.3; how good the best product of this shape is, is not known",
    }
    assert certificate(0.3, 0.2, guarantee=nan).to_dict()["guarantee"] is None


def test_certificates_do_not_change() -> None:
    with pytest.raises(AttributeError, match="error"):
        certificate(0.3, 0.2).error = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_rounding_level(dtype: torch.dtype) -> None:
    """Above what a chain of exact factors leaves, below any error that a person would call one."""
    for factors in (1, 4, 9):
        level = rounding_level(dtype, factors)
        assert level == pytest.approx(64 * sqrt(factors) * torch.finfo(dtype).eps)
        assert level < (1e-13 if torch.finfo(dtype).bits == 64 else 1e-4)
