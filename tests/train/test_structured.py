"""Structured layers to train from scratch: new values, the same places, and they come back from a file."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from flatwing.data import open_data
from flatwing.nn import StructuredLayer, StructuredLinear, SumLinear
from flatwing.train import MODELS, build_model, fit, load_model, save_model, structured, twin
from flatwing.train.storage import load_tensors, save_tensors
from flatwing.train.structured import chain_within, layers_of, put_layers

WIDE = {"digits-mlp": {"width": 64}, "mlp": {"width": 64}}
STRUCTURES = [
    "monarch(blocks=4)",
    "low_rank(rank=3)",
    "blast(blocks=2, rank=3)",
    "low_rank(rank=2) + block_diagonal(blocks=4)",
]
HAVE_LAYERS = [name for name in MODELS if name != "linear"]  # which is a head alone


def example_input(name: str) -> torch.Tensor:
    return torch.randint(20, (3, 12)) if MODELS[name].task == "lm" else torch.rand(3, 64)


@pytest.mark.parametrize("name", HAVE_LAYERS)
def test_every_architecture_can_have_structured_layers(name: str, tmp_path: Path) -> None:
    model = build_model(name, {"budget": 0.5} | WIDE.get(name, {}))
    dense = build_model(name, WIDE.get(name, {}))
    layers = [module for module in model.modules() if isinstance(module, StructuredLinear)]
    assert layers
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.parameters())
    model(x := example_input(name)).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    save_model(tmp_path / "a.safetensors", model)
    again = load_model(tmp_path / "a.safetensors")
    assert torch.equal(model(x), again(x))
    assert again.config() == model.config() == dense.config()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_comes_back(structure: str, tmp_path: Path) -> None:
    model = build_model("digits-mlp", {"width": 64, "structure": structure})
    save_model(tmp_path / "a.safetensors", model, {"seed": 3})
    again = load_model(tmp_path / "a.safetensors", {"seed": 3})
    x = torch.rand(5, 64)
    assert torch.equal(model(x), again(x))
    assert layers_of(again) == layers_of(model) == json.loads(json.dumps(layers_of(model)))
    assert (
        [type(m) for m in again.modules()]
        == [type(m) for m in model.modules()]
        == [type(m) for m in twin(model).modules()]
    )


def test_terms_of_a_sum_are_no_layers_of_their_own() -> None:
    model = build_model("digits-mlp", {"width": 64, "structure": STRUCTURES[-1]})
    assert isinstance(model.get_submodule("layers.0"), SumLinear)
    assert list(layers_of(model)) == ["layers.0", "layers.1"]


def test_values_are_new_and_as_large_as_those_of_a_new_layer() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256))
    nn.init.constant_(model[0].weight, 7.0)  # type: ignore[arg-type]
    before = model[1].weight.clone()
    report = structured(model, budget=0.25)
    assert report.replaced == ("0", "1")
    assert all(row.error is None and row.lower_bound is None for row in report.rows)
    x, layer = torch.randn(500, 256), nn.Linear(256, 256)
    for new in model:
        assert 0.8 < (new(x).std() / layer(x).std()).item() < 1.25
    first, second = (layer.get_submodule("factors") for layer in model)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))
    cosine = nn.functional.cosine_similarity(model[1].dense().flatten(), before.flatten(), dim=0)  # type: ignore[operator]
    assert abs(cosine.item()) < 0.05  # a fit of rank 4 to a random matrix has 0.5


def test_seed_decides_the_values() -> None:
    def make(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return build_model("digits-mlp", {"width": 32, "structure": "monarch(blocks=4)"})(torch.ones(1, 64))

    assert torch.equal(make(1), make(1))
    assert not torch.equal(make(1), make(2))


def test_heads_stay_unless_asked() -> None:
    model = build_model("llama", {"width": 32, "depth": 1, "heads": 2})
    report = structured(model, budget=0.5)
    assert "lm_head" not in report.replaced
    assert "lm_head" in structured(model, budget=0.5, where="lm_head", heads=True).replaced
    model = build_model("llama", {"width": 32, "depth": 1, "heads": 2, "tied": True})
    structured(model, budget=0.5)
    assert model.get_parameter("lm_head.weight") is model.get_parameter("embed_tokens.weight")


def test_a_structured_model_learns() -> None:
    data = open_data("digits")
    model = build_model("digits-mlp", {"width": 64, "budget": 0.25})
    fit(model, data.batches(64), steps=150, lr=5e-3)
    x, y = next(data.evaluation("test", 10**6))
    assert (model(x).argmax(1) == y).float().mean() > 0.9


@pytest.mark.parametrize(("m", "n"), [(64, 64), (64, 172), (172, 64), (128, 512), (7, 11), (1, 5), (96, 36)])
@pytest.mark.parametrize("budget", [0.02, 0.1, 0.25, 0.5, 0.9])
def test_chain_fills_its_budget(m: int, n: int, budget: float) -> None:
    chain = chain_within(m, n, budget)
    if chain is None:
        assert m + n > budget * m * n  # not even rank one fits
        return
    assert chain.shape == (m, n)
    assert chain.nnz <= budget * m * n
    assert (
        2 * chain.nnz > budget * m * n or chain.nnz + m + n > budget * m * n or chain.nnz >= min(m, n) * max(m, n) / 2
    )


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    model = build_model("digits-mlp", {"width": 16})
    with pytest.raises(ValueError, match=r"structure is None and budget is None. Rule: one of them"):
        structured(model)
    with pytest.raises(ValueError, match="Rule: one of them"):
        structured(model, "monarch(blocks=4)", budget=0.5)
    for budget in (0, 1, -0.5, 2, True):
        with pytest.raises(ValueError, match=f"budget is {budget!r}. Rule: a number, above 0 and below 1"):
            structured(model, budget=budget)
    with pytest.raises(ValueError, match=r"unknown.* 'monarc', did you mean 'monarch'"):
        build_model("digits-mlp", {"structure": "monarc(blocks=4)"})
    with pytest.raises(ValueError, match="fits none of the layers"):
        structured(model, "monarch(6, 6, blocks=2)")
    assert not any(isinstance(m, StructuredLayer) for m in model.modules())


def test_descriptions_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = build_model("digits-mlp", {"width": 16, "depth": 1, "structure": "low_rank(rank=2)"})
    layers = layers_of(model)
    small = build_model("digits-mlp", {"width": 8, "depth": 1})
    with pytest.raises(ValueError, match=r"layer 'layers.0' is 16 x 64, the model has one of size \(8, 64\)"):
        put_layers(small, layers)
    with pytest.raises(ValueError, match=r"the model has no module 'layers.7'"):
        put_layers(small, {"layers.7": layers["layers.0"]})
    save_model(path := tmp_path / "a.safetensors", model)
    tensors, notes = load_tensors(path, "flatwing.weights.1")
    for wrong in ([1], {"layers.0": {"kind": "chain"}}, {"layers.0": 3}):
        save_tensors(path, tensors, notes | {"layers": wrong}, "flatwing.weights.1")
        with pytest.raises(ValueError, match="holds no built-in model"):
            load_model(path)
