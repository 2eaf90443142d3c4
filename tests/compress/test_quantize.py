import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flatwing import Chain, StructuredLinear
from flatwing.compress.quantize import (
    dequantize_rows,
    fake_quantized,
    int8_bytes,
    quantizable,
    quantize_groups,
    quantize_rows,
    quantized_state,
    restore_state,
)
from flatwing.nn import BlastLinear


@given(st.integers(0, 1000), st.floats(1e-30, 1e30))
def test_the_error_of_an_entry_is_at_most_half_a_step(seed: int, size: float) -> None:
    W = size * torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values, scale = quantize_rows(W)
    error = (dequantize_rows(values, scale, torch.float64) - W).abs().amax(-1)
    assert bool((error <= 0.5001 * scale.double()).all())
    assert bool((values.abs().amax(-1) == 127).all()), "each row uses the whole range"


def test_rows_of_zeros_stay_zero() -> None:
    W = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    values, scale = quantize_rows(W)
    assert scale[0] == 0
    assert dequantize_rows(values, scale)[0].tolist() == [0.0, 0.0]
    assert quantize_groups(W).dense()[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_and_its_tensor_named(bad: float) -> None:
    W = torch.full((2, 8), bad)
    for quantize in (quantize_rows, quantize_groups):
        with pytest.raises(ValueError, match="16 entries that are NaN or Inf"):
            quantize(W)
    with pytest.raises(ValueError, match=r"layer\.weight: W has 16 entries"):
        quantized_state({"layer.weight": W}, ["layer.weight"])


def test_complex_and_huge_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="real numbers are quantized"):
        quantize_rows(torch.ones(1, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="beyond float32"):
        quantize_rows(torch.full((1, 2), 1e300, dtype=torch.float64))


def test_four_bits_lose_less_than_plain_rounding_and_take_about_half_a_byte() -> None:
    W = torch.randn(32, 128)
    W[:, 5] *= 8  # outliers: clipping the range is worth it
    groups = quantize_groups(W)
    low, high = (f(W.reshape(32, 2, 64), -1, keepdim=True) for f in (torch.amin, torch.amax))
    step = (high - low) / 15
    plain = (((W.reshape(32, 2, 64) - low) / step).round() * step + low).reshape(32, 128)
    assert (groups.dense() - W).norm() < 0.99 * (plain - W).norm()
    assert groups.bytes == 32 * 128 // 2 + 32 * 2 // 2 + 2 * 32 * 2
    assert int(groups.codes.max()) <= 15


@pytest.mark.parametrize(("n", "groups"), [(128, 2), (96, 2), (67, 1), (131, 1), (192, 3)])
def test_groups_have_the_divisor_next_to_64_columns(n: int, groups: int) -> None:
    assert quantize_groups(torch.randn(2, n)).scales.shape == (2, groups)


def test_state_goes_there_and_back_with_the_same_bytes_as_measured() -> None:
    model = nn.Sequential(
        nn.Linear(32, 16),
        StructuredLinear(Chain.monarch(16, 32, blocks=2)),
        BlastLinear(32, 16, blocks=2, rank=4),
    )
    keys = quantizable(model, ["0", "1", "2"])
    assert "0.bias" not in keys
    state, info = quantized_state(model.state_dict(), keys)
    assert set(info) == set(keys)
    for key in keys:
        tensor = model.state_dict()[key]
        parts = state[f"{key}.int8"], state[f"{key}.scale"]
        assert parts[1].shape == tensor.shape[:-1]
        assert sum(p.numel() * p.element_size() for p in parts) == int8_bytes(tensor.shape)
        assert key not in state
    restored = restore_state(state, info)
    assert set(restored) == set(model.state_dict())
    rounded = fake_quantized(copy.deepcopy(model), ["0", "1", "2"]).state_dict()
    assert all(torch.equal(restored[key], rounded[key]) for key in rounded)
    assert torch.equal(restored["0.bias"], model[0].bias)


def test_dtype_is_restored() -> None:
    state, info = quantized_state({"a": torch.randn(4, 64).bfloat16()}, ["a"])
    assert info == {"a": {"dtype": "bfloat16"}}
    assert restore_state(state, info)["a"].dtype == torch.bfloat16


def test_rows_so_short_that_scales_cost_more_are_left_alone() -> None:
    model = nn.ModuleList([nn.Linear(1, 8, bias=False), nn.Linear(2, 8, bias=False)])
    assert quantizable(model, ["0", "1"]) == ["1.weight"]
    assert quantizable(model.bfloat16(), ["0", "1"]) == []


def test_a_shared_weight_is_rounded_once_and_other_layers_are_untouched() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    before = copy.deepcopy(model)
    fake_quantized(model, ["0", "1"], bits=4)
    assert torch.equal(model[0].weight, quantize_groups(before[0].weight).dense())
    assert torch.equal(model[2].weight, before[2].weight)


def test_refusals_of_states() -> None:
    state, info = quantized_state({"a": torch.ones(2, 8)}, ["a"])
    with pytest.raises(ValueError, match="no 'b'"):
        quantized_state({"a": torch.ones(2, 8)}, ["b"])
    with pytest.raises(ValueError, match=re.escape("'a.scale' is the name of another tensor")):
        quantized_state({"a": torch.ones(2, 8), "a.scale": torch.ones(2)}, ["a"])
    with pytest.raises(ValueError, match=r"a\.int8' is missing"):
        restore_state({"a.scale": torch.ones(2)}, info)
    with pytest.raises(ValueError, match=r"with scales \(3,\)"):
        restore_state({**state, "a.scale": torch.ones(3)}, info)
    with pytest.raises(ValueError, match="with scales None"):
        restore_state({"a.int8": state["a.int8"]}, info)
    with pytest.raises(ValueError, match="dtype 'object'"):
        restore_state(state, {"a": {"dtype": "object"}})
    with pytest.raises(ValueError, match="bits is 3"):
        fake_quantized(nn.Linear(8, 8), [""], bits=3)
