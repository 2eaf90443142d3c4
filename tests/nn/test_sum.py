"""SumLinear: what it refuses, and its monotone fit."""

import pytest
import torch
from torch import nn

from flatwing import StructuredLinear
from flatwing.nn import SumLinear
from flatwing.nn.sum import fit_sum
from strategies import as_user


def term(text: str = "butterfly(8)", **options: object) -> StructuredLinear:
    return StructuredLinear(text, **{"bias": False, **options})


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (lambda: [], "a sum needs at least one term"),
        (lambda: [term(bias=True)], "term 0 has a bias. Rule: terms have bias=False"),
        (lambda: [term(), term("butterfly(4)")], "term 1 is 4 x 4, term 0 is 8 x 8"),
        (lambda: [term(), term(dtype=torch.float64)], "term 1 is torch.float64, term 0 is torch.float32"),
        (lambda: [SumLinear(term())], "term 0 is a sum itself. Write its terms beside the others"),
    ],
)
def test_refuses_terms(terms, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SumLinear(*terms())


def test_refuses_other_layers_and_biases() -> None:
    with as_user(), pytest.raises(TypeError, match=r"term 0 is a Linear. Rule: structured layers"):
        SumLinear(nn.Linear(8, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bias has shape \(3,\). Rule: one number per output, \(8,\)"):
        SumLinear(term(), bias=torch.ones(3))


def test_fit_finds_low_rank_plus_diagonal() -> None:
    linear = nn.Linear(24, 24, dtype=torch.float64)
    low_rank = torch.randn(24, 2, dtype=torch.float64) @ torch.randn(2, 24, dtype=torch.float64)
    linear.weight.data = low_rank + torch.diag(5 * torch.randn(24, dtype=torch.float64))
    layer = SumLinear.from_linear(
        linear, ["low_rank(24, 24, 2)", "block_diagonal(24, 24, 24)"], rounds=400, tolerance=0.0
    )
    error = float((layer.dense() - linear.weight).detach().norm() / linear.weight.detach().norm())
    alone = StructuredLinear.from_linear(linear, "low_rank(24, 24, 3)")  # more parameters
    assert error < 1e-4
    assert float((alone.dense() - linear.weight).detach().norm() / linear.weight.detach().norm()) > 0.1
    assert torch.equal(layer.bias, linear.bias)


def test_more_rounds_are_never_worse() -> None:
    W = torch.randn(12, 12, dtype=torch.float64)
    chains = ["low_rank(12, 12, 2)", "monarch(12, 12, blocks=3)", "block_diagonal(12, 12, 4)"]
    errors = [float((W - sum(p.dense() for p in fit_sum(W, chains, k, 0.0))).norm()) for k in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_fit_refuses() -> None:
    with pytest.raises(ValueError, match=r"chains is 'butterfly\(8\)'. Rule: a list of at least one chain"):
        SumLinear.from_linear(nn.Linear(8, 8), "butterfly(8)")
    with pytest.raises(ValueError, match="rounds is 0"):
        SumLinear.from_linear(nn.Linear(8, 8), ["butterfly(8)"], rounds=0)
