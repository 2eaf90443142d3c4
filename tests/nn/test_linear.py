"""StructuredLinear beyond the contract: the product it shares, fits, initialization, compilation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flatwing import Chain, SparseProduct, StructuredLinear, factorize
from flatwing.kernels.native import FEW_ROWS
from strategies import as_user, chainable_chains


@settings(max_examples=40)
@given(chain=chainable_chains(max_size=60), k=st.sampled_from((1, FEW_ROWS, FEW_ROWS + 1)))
def test_rows_are_multiplied_as_the_product_multiplies_columns(chain: Chain, k: int) -> None:
    for flavour in (chain, chain.T):
        layer = StructuredLinear(flavour, bias=False, dtype=torch.float64)
        x = torch.randn(k, layer.in_features, dtype=torch.float64)
        direct = torch.autograd.grad(layer(x).square().sum(), list(layer.factors))
        y = (layer.product @ x.T).T
        assert torch.allclose(layer(x), y, atol=1e-12)
        through = torch.autograd.grad(y.square().sum(), list(layer.factors))
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(direct, through, strict=True))


def test_product_shares_the_parameters() -> None:
    layer = StructuredLinear(Chain.butterfly(8))
    assert all(a is b for a, b in zip(layer.product.factors, layer.factors, strict=True))


def test_layer_of_a_product_copies_it() -> None:
    P = SparseProduct(Chain.butterfly(4), [torch.randn(2, 2, 2)] * 2, [1, 0, 2, 3], [0, 2, 1, 3])
    bias = torch.randn(4)
    layer = StructuredLinear.from_product(P, bias)
    x = torch.randn(4)
    expected = P @ x + bias
    P.factors[0].zero_()
    bias.zero_()
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert all(p.requires_grad for p in layer.parameters())


def test_layer_of_a_product_refuses() -> None:
    batch = SparseProduct(Chain.dense(2, 2), [torch.ones(3, 1, 2, 2)])
    with pytest.raises(ValueError, match=r"the product has batch \(3,\). Rule: one matrix"):
        StructuredLinear.from_product(batch)
    single = SparseProduct(Chain.dense(2, 2), [torch.ones(1, 2, 2)])
    with pytest.raises(ValueError, match=r"bias has shape \(3,\). Rule: one number per output, \(2,\)"):
        StructuredLinear.from_product(single, torch.ones(3))


def test_fit_is_the_best_product_with_the_bias_of_the_layer() -> None:
    linear = nn.Linear(12, 8).eval()
    linear.weight.requires_grad_(False)
    chain = Chain.monarch(8, 12, blocks=4)
    layer = StructuredLinear.from_linear(linear, chain)
    expected = factorize(linear.weight, chain).product.dense()
    assert torch.allclose(layer.dense(), expected, atol=1e-6)
    assert torch.equal(layer.bias, linear.bias)
    assert layer.bias.data_ptr() != linear.bias.data_ptr()
    assert not layer.training
    assert [p.requires_grad for p in layer.factors] == [False, False]
    assert layer.bias.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_fit_keeps_the_dtype(dtype: torch.dtype) -> None:
    linear = nn.Linear(6, 6, dtype=dtype)
    layer = StructuredLinear.from_linear(linear, "low_rank(6, 6, rank=6)", order="l2r")
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert torch.allclose(layer.dense().double(), linear.weight.double(), atol=2e-2)


def test_fit_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match=r"A is 4 x 6.*Rule: equal sizes"):
        StructuredLinear.from_linear(nn.Linear(6, 4), Chain.butterfly(8))
    with as_user(), pytest.raises(TypeError, match=r"chain is a int. Rule: a Chain or its text"):
        StructuredLinear(8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"perm_in must hold each of 0..3 exactly once"):
        StructuredLinear("butterfly(4)", perm_in=[0, 0, 1, 2])


def test_a_dense_chain_begins_as_linear_does() -> None:
    torch.manual_seed(1)
    linear = nn.Linear(7, 5)
    torch.manual_seed(1)
    layer = StructuredLinear(Chain.dense(5, 7))
    assert torch.allclose(layer.dense(), linear.weight, atol=1e-6)
    assert torch.allclose(layer.bias, linear.bias, atol=1e-6)


def test_each_factor_begins_with_its_own_deviation() -> None:
    # two factors: b, c = 64, 8 and 4, 64; deviation ratio by the rule sqrt(1/c) min(1, sqrt(b/c))
    chain = Chain.from_radices((64, 1), (2, 64), (4,))
    layer = StructuredLinear(chain, dtype=torch.float64)
    left, right = (float(w.detach().std()) for w in layer.factors)
    assert [tuple(w.shape[1:]) for w in layer.factors] == [(64, 8), (4, 64)]
    assert left / right == pytest.approx((1 / 8) ** 0.5 / ((1 / 64) ** 0.5 * (4 / 64) ** 0.5), rel=0.1)


def test_complex_values_begin_with_the_variance_of_real_ones() -> None:
    layer = StructuredLinear(Chain.monarch(256, 256, blocks=16), bias=False, dtype=torch.complex128)
    x = torch.randn(300, 256, dtype=torch.complex128)  # E|x|^2 = 1
    assert float(layer(x).detach().abs().square().mean()) == pytest.approx(1 / 3, rel=0.15)


def test_learning_rates_cover_every_parameter_once() -> None:
    layer = StructuredLinear(Chain.from_radices((8, 1), (1, 4), (2,)))  # c = 2 and 4 of 4 inputs, two factors
    groups = layer.param_groups(lr=0.5)
    assert [g["lr"] for g in groups] == [0.5 * 4 / (2 * 2), 0.5 * 4 / (4 * 2), 0.5]
    assert [id(p) for g in groups for p in g["params"]] == [*map(id, layer.factors), id(layer.bias)]
    torch.optim.AdamW(groups)
    assert len(StructuredLinear(Chain.dense(2, 2), bias=False).param_groups(1.0)) == 1


def test_callers_that_use_view() -> None:
    layer = StructuredLinear(Chain.monarch(12, 12, blocks=4))
    assert layer(torch.randn(2, 5, 12)).view(2, 5, 3, 4).shape == (2, 5, 3, 4)


def test_training_reaches_a_target_of_the_same_structure() -> None:
    target = StructuredLinear(Chain.butterfly(8), dtype=torch.float64)
    layer = StructuredLinear(Chain.butterfly(8), dtype=torch.float64)
    optimizer = torch.optim.Adam(layer.param_groups(lr=0.02))
    x = torch.randn(64, 8, dtype=torch.float64)
    goal = target(x).detach()
    first = float((layer(x) - goal).square().mean().detach())
    for _ in range(400):
        optimizer.zero_grad()
        loss = (layer(x) - goal).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01 * first
