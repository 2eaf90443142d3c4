"""BlastLinear: its formula, its sizes, its fit."""

import pytest
import torch
from torch import nn

from flatwing import StructuredLinear
from flatwing.kernels.native import FEW_ROWS
from flatwing.nn import BlastLinear
from strategies import as_user


def test_blocks_are_the_formula_of_the_paper() -> None:
    layer = BlastLinear(12, 20, blocks=(4, 3), rank=5, dtype=torch.float64)
    W = layer.dense().reshape(4, 5, 3, 4)
    for a in range(4):
        for b in range(3):
            block = layer.left[a] @ layer.coupling[a, b].diag() @ layer.right[b]
            assert torch.allclose(W[a, :, b], block, atol=1e-12)
    assert layer.nnz == 5 * (12 + 20 + 4 * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": (3, 3)}, r"A=3 does not divide out_features=20.*nearest good value is A=2"),
        ({"blocks": (4, 5)}, r"B=5 does not divide in_features=12.*nearest good value is B=4"),
        ({"blocks": 0}, "A is 0. Rule: a whole number, at least 1"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlastLinear(12, 20, **{"blocks": (4, 3), "rank": 2, **arguments})


def test_layer_of_factors() -> None:
    left, coupling, right = torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.randn(5, 4, 6)
    bias = torch.randn(6)
    layer = BlastLinear.from_factors(left, coupling, right, bias)
    assert torch.equal(layer.left, left)
    assert layer.bias is not None
    assert layer.bias.requires_grad
    left.zero_()
    assert float(layer.left.detach().abs().sum()) > 0
    with as_user(), pytest.raises(ValueError, match=r"do not fit. Rule: \(A, m/A, r\), \(A, B, r\) and \(B, r, n/B\)"):
        BlastLinear.from_factors(left, coupling[:1], right)
    with as_user(), pytest.raises(ValueError, match=r"bias has shape \(5,\). Rule: one number per output, \(6,\)"):
        BlastLinear.from_factors(left, coupling, right, bias[:5])


def test_fit_keeps_half_precision() -> None:
    layer = BlastLinear.from_linear(nn.Linear(8, 8, dtype=torch.bfloat16), blocks=2, rank=8)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}


def test_few_and_many_rows_are_one_function() -> None:
    layer = BlastLinear(12, 20, blocks=(4, 3), rank=5, dtype=torch.float64)
    x = torch.randn(FEW_ROWS + 1, 12, dtype=torch.float64)
    assert torch.allclose(layer(x)[:FEW_ROWS], layer(x[:FEW_ROWS]), atol=1e-12)


def test_fit_recovers_what_is_a_blast_matrix_and_beats_low_rank_of_equal_size() -> None:
    linear = nn.Linear(16, 16)
    truth = BlastLinear(16, 16, blocks=4, rank=3, bias=False)
    linear.weight.data = truth.dense().detach()
    linear.weight.requires_grad_(False)
    layer = BlastLinear.from_linear(linear, blocks=4, rank=3)
    low_rank = StructuredLinear.from_linear(linear, f"low_rank(16, 16, rank={layer.nnz // 32})")
    error, other = (float((k.dense() - linear.weight).detach().norm()) for k in (layer, low_rank))
    assert error < 0.5 * other
    assert torch.equal(layer.bias, linear.bias)
    assert [p.requires_grad for p in (layer.left, layer.coupling, layer.right)] == [False] * 3
    assert layer.bias.requires_grad
