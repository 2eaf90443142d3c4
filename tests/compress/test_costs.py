import math

import pytest
import torch
from torch import nn

from flatwing.compress.batch import Batch
from flatwing.compress.candidates import STRUCTURES, Candidate, candidate
from flatwing.compress.costs import UNITS, calls_per_sample, empty_layer, factor_shapes, unit_cost
from flatwing.compress.quantize import fake_quantized, int8_bytes, quantizable
from flatwing.nn import linear_layers
from flatwing.train import ByteLM, DigitsMLP

CANDIDATES = [made for name in STRUCTURES if (made := candidate(name, 32, 64).within(900.0)) is not None]


@pytest.mark.parametrize("own", CANDIDATES, ids=str)
def test_a_layer_has_the_shapes_and_the_size_of_its_candidate(own: Candidate) -> None:
    layer = empty_layer(own)
    shapes = [tuple(p.shape) for name, p in layer.named_parameters() if name != "bias"]
    assert shapes == factor_shapes(own)
    assert sum(map(math.prod, shapes)) == own.parameters


@pytest.mark.parametrize("own", CANDIDATES, ids=str)
def test_bytes_are_those_of_the_file(own: Candidate) -> None:
    model = nn.Sequential(nn.Linear(64, 32, dtype=torch.bfloat16))
    layers = linear_layers(model)
    assert unit_cost("bytes", layers)("0", own) == 2 * own.parameters
    assert unit_cost("bytes", layers)("0", None) == 2 * 64 * 32
    made = nn.Sequential(empty_layer(own).bfloat16())
    keys = quantizable(fake_quantized(made, ["0"]), ["0"])
    factors = {key: p for key, p in made.named_parameters() if key != "0.bias"}
    total = sum(int8_bytes(p.shape) if key in keys else 2 * p.numel() for key, p in factors.items())
    assert unit_cost("bytes", layers, quantized=True)("0", own) == total
    assert unit_cost("bytes", layers, quantized=True)("0", None) == 32 * (64 + 4)


def test_arithmetic_counts_the_calls() -> None:
    model = ByteLM(width=16, depth=1, heads=2)
    layers = linear_layers(model)
    names = ["blocks.0.q", "blocks.0.up"]
    calls = calls_per_sample(model, names, Batch((torch.zeros(3, 7, dtype=torch.long),)))
    assert calls == {"blocks.0.q": 7.0, "blocks.0.up": 7.0}
    cost = unit_cost("flops", layers, calls=calls)
    own = Candidate("low_rank", (64, 16), (1, 1), 2)
    assert cost("blocks.0.up", None) == 2 * 7 * 64 * 16
    assert cost("blocks.0.up", own) == 2 * 7 * own.parameters


def test_a_layer_that_is_never_called_has_no_calls() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(self.used(x))

    calls = calls_per_sample(Half(), ["used", "idle"], Batch((torch.ones(5, 4),)))
    assert calls == {"used": 2.0, "idle": 0.0}


def test_latency_is_measured_once_per_shape() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    cost = unit_cost("latency", linear_layers(model), rows=2048)  # the checks of the tests take a millisecond per call
    own = Candidate("low_rank", (512, 512), (1, 1), 8)
    state = torch.get_rng_state()
    dense, small = cost("0", None), cost("0", own)
    assert 0 < small < dense
    assert (cost("1", None), cost("1", own)) == (dense, small)
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_and_refusal() -> None:
    layers = linear_layers(DigitsMLP(width=32))
    assert unit_cost("parameters", layers)("layers.0", None) == 32 * 64
    with pytest.raises(ValueError, match="unit of the budget is 'joules'"):
        unit_cost("joules", layers)
    assert UNITS == ("parameters", "bytes", "flops", "latency")
