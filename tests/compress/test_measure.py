import copy
import gc

import pytest
import torch
from torch import nn
from typing_extensions import override

from flatwing import Chain, StructuredLinear
from flatwing.compress.batch import Batch
from flatwing.compress.measure import (
    flops,
    linear_parameters,
    parameters,
    peak_memory,
    state_bytes,
)
from flatwing.compress.quantize import quantizable, quantized_state
from flatwing.nn import BlastLinear, StructuredLayer
from flatwing.train import ByteLM, DigitsMLP

STRUCTURED = [
    StructuredLinear(Chain.monarch(16, 32, blocks=2)),
    StructuredLinear(Chain.low_rank(16, 32, rank=2)),
    StructuredLinear(Chain.butterfly(32)),
    StructuredLinear(Chain.from_radices((8, 2, 2), (2, 2, 8), (3, 3))),
    BlastLinear(32, 16, blocks=2, rank=4),
]


class Tied(nn.Module):
    """An embedding that is also the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


def test_shared_numbers_count_once() -> None:
    assert parameters(Tied()) == 40
    assert state_bytes(Tied()) == 160
    assert linear_parameters(Tied(), ["embed", "head"]) == 40


def test_linear_parameters_are_those_of_the_factors() -> None:
    model = nn.Sequential(*copy.deepcopy(STRUCTURED), nn.Linear(16, 3))
    names = [str(i) for i in range(len(STRUCTURED))]
    assert linear_parameters(model, names) == sum(layer.nnz for layer in STRUCTURED)
    assert linear_parameters(model, ["5"]) == 48


def test_bytes_of_a_quantized_state() -> None:
    model = DigitsMLP(width=32)
    state, _ = quantized_state(model.state_dict(), quantizable(model, ["layers.0", "layers.1"]))
    saved = state_bytes(model) - state_bytes(state)
    assert saved == sum((3 * n - 4) * m for m, n in ((32, 64), (32, 32)))


@pytest.mark.parametrize("layer", STRUCTURED, ids=lambda layer: str(getattr(layer, "chain", "blast")))
def test_arithmetic_of_a_structured_layer_is_two_per_parameter(layer: StructuredLayer) -> None:
    for rows in (1, 7, 50):  # few rows are multiplied in another way than many
        x = torch.randn(4, rows, layer.in_features)
        assert flops(layer, Batch((x,))) == 2 * rows * layer.nnz
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_arithmetic_of_a_decoder_has_attention_in_it() -> None:
    model = ByteLM(width=32, depth=1, heads=2, context=16)
    linear, attention = 12 * 32 * 32 + 32 * 256, 2 * 16 * 32
    assert flops(model, Batch((torch.zeros(3, 16, dtype=torch.long),))) == 16 * 2 * (linear + attention)


def test_the_fused_encoder_layer_is_counted_and_the_switch_left_as_it_was() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    assert flops(layer, Batch((torch.randn(2, 5, 16),))) == 5 * 2 * (4 * 256 + 2 * 512 + 2 * 5 * 16)
    assert torch.backends.mha.get_fastpath_enabled()
    assert layer.training


def test_peak_memory_is_weights_and_what_lives_together() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1000))

        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(5):
                x = x * self.scale  # the one before is released when the next one is there
            kept = [x * self.scale for _ in range(3)]
            view = kept[0].reshape(10, 100).T
            view.add_(1)  # neither a view nor a change in place takes memory
            return view

    model, x = Steps(), torch.ones(1000)
    # weights, input, the last product and three kept ones
    assert peak_memory(model, Batch((x,))) == 4 * 1000 * (1 + 1 + 1 + 3)


def test_peak_memory_of_a_released_model_is_not_counted_again() -> None:
    model, batch = DigitsMLP(width=64), Batch((torch.rand(8, 64),))
    first = peak_memory(model, batch)
    gc.collect()
    assert peak_memory(model, batch) == first
    assert first > state_bytes(model)
