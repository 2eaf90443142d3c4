"""The contract of every registered layer: it is its dense matrix, and it lives where `nn.Linear` lives."""

import copy
import io
import json
import pickle

import pytest
import torch
from torch import nn

from flatwing import Chain, StructuredLinear
from flatwing.nn import LAYERS, BlastLinear, SumLinear, layer_from_config
from layers import CONFIGURATIONS, EVERY, make
from strategies import as_user

TOLERANCE = {
    torch.float32: 1e-5,
    torch.float64: 1e-12,
    torch.complex64: 1e-5,
    torch.complex128: 1e-12,
    torch.bfloat16: 4e-2,
    torch.float16: 5e-3,
}
every_layer = pytest.mark.parametrize(("kind", "name"), EVERY, ids=[f"{kind}: {name}" for kind, name in EVERY])


def test_every_registered_kind_is_tested() -> None:
    assert set(CONFIGURATIONS) == set(LAYERS)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [3, 20])  # few and many, which are multiplied in different ways
@every_layer
def test_values_and_gradients_are_those_of_the_dense_matrix(
    kind: str, name: str, rows: int, dtype: torch.dtype
) -> None:
    layer = make(kind, name, dtype)
    x = torch.randn(2, rows, layer.in_features, dtype=dtype, requires_grad=True)
    y = layer(x)
    assert y.dtype == dtype
    reference = copy.deepcopy(layer)
    for p in reference.parameters():
        p.data = p.data.to(wide(dtype))
    x_wide = x.detach().to(wide(dtype)).requires_grad_()
    y_wide = x_wide @ reference.dense().mT + (0 if reference.bias is None else reference.bias)
    close = {"atol": TOLERANCE[dtype] * max(1.0, float(y_wide.detach().abs().max())), "rtol": 0.0}
    assert torch.allclose(y.to(wide(dtype)), y_wide, **close)
    assert layer.dense().dtype == dtype
    assert layer.nnz == sum(p.numel() for name, p in layer.named_parameters() if name != "bias")
    weight = torch.randn_like(y_wide).to(dtype)
    (y * weight).sum().abs().backward()
    (y_wide * weight.to(wide(dtype))).sum().abs().backward()
    pairs = [(x, x_wide), *zip(layer.parameters(), reference.parameters(), strict=True)]
    for narrow, exact in pairs:
        assert narrow.grad is not None
        assert exact.grad is not None
        scale = max(1.0, float(exact.grad.abs().max()))
        assert torch.allclose(narrow.grad.to(wide(dtype)), exact.grad, atol=3 * TOLERANCE[dtype] * scale, rtol=0.0)


@every_layer
def test_second_derivatives_exist(kind: str, name: str) -> None:
    layer = make(kind, name, torch.float64)
    x = torch.randn(2, layer.in_features, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,)) if kind == "blast" else torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("lead", [(), (1,), (0,), (0, 3), (3, 0), (2, 3, 4)], ids=str)
@every_layer
def test_any_leading_shape_gives_a_contiguous_output(kind: str, name: str, lead: tuple[int, ...]) -> None:
    layer = make(kind, name)
    x = torch.randn(*lead, layer.in_features)
    y = layer(x)
    assert y.shape == (*lead, layer.out_features)
    assert y.is_contiguous()
    assert torch.allclose(y, nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)


@every_layer
def test_inputs_that_are_not_contiguous(kind: str, name: str) -> None:
    layer = make(kind, name)
    x = torch.randn(layer.in_features, 6, 2).permute(2, 1, 0)[:, ::2]
    assert not x.is_contiguous()
    assert torch.allclose(layer(x), layer(x.contiguous()), atol=1e-6)


@every_layer
def test_refusals_are_of_the_kind_of_linear(kind: str, name: str) -> None:
    layer = make(kind, name)
    for x in (torch.ones(2, layer.in_features + 1), torch.ones(())):
        with as_user(), pytest.raises(RuntimeError, match=f"in_features={layer.in_features}"):
            layer(x)
    with pytest.raises(RuntimeError, match=r"x is torch.float64, this layer is torch.float32. Rule: one dtype"):
        layer(torch.ones(2, layer.in_features, dtype=torch.float64))


@every_layer
def test_state_goes_round(kind: str, name: str) -> None:
    layer, other = make(kind, name), make(kind, name)
    x = torch.randn(3, layer.in_features)
    assert layer.in_features == 1 or not torch.equal(layer(x), other(x))
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize(
    ("kind", "name", "keys"),
    [
        ("chain", "monarch", ["bias", "factors.0", "factors.1"]),
        ("chain", "permuted", ["bias", "perm_in", "perm_out", "factors.0", "factors.1", "factors.2"]),
        ("blast", "tall", ["left", "coupling", "right", "bias"]),
        ("sum", "low rank + diagonal", ["bias", "terms.0.factors.0", "terms.0.factors.1", "terms.1.factors.0"]),
    ],
)
def test_keys_of_the_state_are_stable(kind: str, name: str, keys: list[str]) -> None:
    assert sorted(make(kind, name).state_dict()) == sorted(keys)


@every_layer
def test_configuration_goes_round_as_json(kind: str, name: str) -> None:
    layer = make(kind, name, torch.float64)
    config = json.loads(json.dumps(layer.config()))
    assert config["kind"] == kind
    assert config["bias"] == (layer.bias is not None)
    empty = layer_from_config(config, device="meta")
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    again = layer_from_config(config, dtype=torch.float64)
    again.load_state_dict(layer.state_dict())
    assert type(again) is type(layer)
    assert repr(again) == repr(layer)
    assert torch.equal(again.dense(), layer.dense())


@every_layer
def test_repr_rebuilds(kind: str, name: str) -> None:
    layer = make(kind, name)
    scope = {"StructuredLinear": StructuredLinear, "Chain": Chain, "BlastLinear": BlastLinear, "SumLinear": SumLinear}
    again = eval(repr(layer), scope)
    assert again.config() == layer.config()
    again.load_state_dict(layer.state_dict())


@every_layer
def test_copies_are_equal_and_independent(kind: str, name: str) -> None:
    layer = make(kind, name)
    x = torch.randn(3, layer.in_features)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(layer(x), twin(x))
        before = layer(x).detach()
        with torch.no_grad():
            for p in twin.parameters():
                p.add_(1)
        assert torch.equal(layer(x), before)
        assert not torch.equal(twin(x), before)


@every_layer
def test_autocast_gives_what_linear_gives(kind: str, name: str) -> None:
    layer = make(kind, name)
    x = torch.randn(4, layer.in_features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == nn.Linear(layer.in_features, layer.out_features)(x).dtype == torch.bfloat16
    assert torch.allclose(y.float(), layer(x), atol=6e-2)
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


@every_layer
def test_dense_layer_is_the_same_function(kind: str, name: str) -> None:
    layer = make(kind, name).eval()
    first = next(p for key, p in layer.named_parameters() if key != "bias")
    first.requires_grad_(False)
    linear = layer.to_linear()
    x = torch.randn(5, layer.in_features)
    assert type(linear) is nn.Linear
    assert (linear.bias is None) == (layer.bias is None)
    assert not linear.training
    assert linear.weight.requires_grad == any(p.requires_grad for k, p in layer.named_parameters() if k != "bias")
    assert torch.allclose(linear(x), layer(x), atol=1e-5)
    if layer.bias is not None:
        assert linear.bias.data_ptr() != layer.bias.data_ptr()


@every_layer
def test_weight_is_the_dense_matrix(kind: str, name: str) -> None:
    layer = make(kind, name, torch.float64)
    assert layer.weight.dtype == layer.dtype == torch.float64
    assert torch.equal(layer.weight, layer.dense())


@pytest.mark.parametrize(("kind", "name"), [("chain", "monarch"), ("blast", "tall"), ("sum", "with blast")])
def test_new_values_have_the_variance_of_linear(kind: str, name: str) -> None:
    layer = make(kind, name, torch.float64)
    x = torch.randn(400, layer.in_features, dtype=torch.float64)
    structured, dense, linear = [], [], nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
    for _ in range(60):
        layer.reset_parameters()
        linear.reset_parameters()
        structured.append(layer(x).var(correction=0).detach())
        dense.append(linear(x).var(correction=0).detach())
    assert torch.stack(structured).mean() == pytest.approx(float(torch.stack(dense).mean()), rel=0.15)


@pytest.mark.parametrize(("kind", "name"), [("chain", "monarch"), ("chain", "permuted"), ("blast", "tall")])
def test_meta_device_and_moves(kind: str, name: str) -> None:
    layer = make(kind, name)
    empty = copy.deepcopy(layer).to("meta")
    assert empty(torch.empty(3, layer.in_features, device="meta")).shape == (3, layer.out_features)
    half = copy.deepcopy(layer).to(torch.bfloat16)
    assert half.to_linear().weight.dtype == torch.bfloat16
    exact = copy.deepcopy(half).double().dense().bfloat16()  # rounded once, not after each factor
    assert (half.to_linear().weight == exact).float().mean() > 0.95
