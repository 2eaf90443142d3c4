import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from flatwing.compress.batch import Batch
from flatwing.compress.candidates import Candidate, candidate
from flatwing.compress.divergence import divergence
from flatwing.compress.layerwise import TRUST, LayerResult, fit_layers
from flatwing.compress.plan import LayerPlan
from flatwing.data import digit_images
from flatwing.nn import BlastLinear, LinearInfo, StructuredLinear, linear_layers
from flatwing.train import ByteLM, DigitsMLP, DigitsViT
from searching import trained_on_digits


def body(model: nn.Module) -> dict[str, LinearInfo]:
    return {name: info for name, info in linear_layers(model).items() if info.skip is None and not info.is_head}


def plans_of(model: nn.Module, structure: str | None, share: float = 0.4) -> list[LayerPlan]:
    plans = []
    for name, info in body(model).items():
        m, n = info.out_features, info.in_features
        chosen = None if structure is None else candidate(structure, m, n).within(share * m * n)
        parameters = m * n if chosen is None else chosen.parameters
        plans.append(LayerPlan(name, (m, n), chosen, parameters, 0.0, 0.0, 0.0, 0.0))
    return plans


def language_model() -> tuple[nn.Module, list[Batch]]:
    model = ByteLM(width=8, depth=2, heads=2, context=12, vocab=32).eval()
    return model, [Batch((torch.randint(32, (6, 12)),)) for _ in range(3)]


def run(model: nn.Module, plans: list[LayerPlan], batches: list[Batch], **more: Any) -> tuple[nn.Module, list]:
    compressed = copy.deepcopy(model)
    results = fit_layers(model, compressed, body(model), plans, batches, more.pop("fitted", 2), **more)
    return compressed, results


def test_nothing_to_replace_changes_nothing_but_rounding() -> None:
    model, batches = language_model()
    compressed, results = run(model, plans_of(model, None), batches)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(compressed.state_dict()[key], tensor, rtol=1e-5, atol=1e-6)
    assert {r.structure for r in results} == {"dense"}
    assert all(r.lower_bound == 0 for r in results)
    for r in results:  # which are those of rounding
        assert max(r.error, r.heldout_error, r.unweighted_error) < 1e-6
    assert [r.parameters for r in results] == [r.dense_parameters for r in results]


def test_layers_are_replaced_in_place_and_their_results_are_measured() -> None:
    model, batches = language_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    said: list[tuple[str, int, int]] = []
    compressed, results = run(
        model, plans_of(model, "low_rank", 0.6), batches, progress=lambda *words: said.append(words)
    )
    assert [r.name for r in results] == [
        f"blocks.{k}.{name}" for k in range(2) for name in ("q", "k", "v", "o", "up", "down")
    ]
    assert [s[1:] for s in said] == [(i + 1, 12) for i in range(12)]
    for result in results:
        layer = compressed.get_submodule(result.name)
        assert isinstance(layer, StructuredLinear)
        assert layer.nnz == result.parameters < result.dense_parameters
        assert 0 <= result.lower_bound <= result.error < 1
        assert result.heldout_error > 0
        assert result.trust in TRUST
        assert result.samples == 2 * 6 * 12
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), "the original stays as it was"


def test_the_first_layer_is_the_whitened_fit_of_its_weight() -> None:
    """Nothing in front of it changed; so its error is that of Eckart-Young in the norm of its inputs."""
    model, batches = language_model()
    model.blocks[0].norm1 = nn.Identity()  # type: ignore[union-attr]
    _, results = run(model, plans_of(model, "low_rank", 0.5), batches)
    x = torch.cat([model.embed(b.args[0]) for b in batches[:2]]).detach().reshape(-1, 8).double()  # type: ignore[operator]
    C = x.mT @ x / len(x)
    C += 1e-3 * C.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    W = model.get_submodule("blocks.0.q").weight.detach().double()  # type: ignore[union-attr]
    values = torch.linalg.svdvals(W @ torch.linalg.cholesky(C))
    rank = results[0].parameters // 16
    assert results[0].error == pytest.approx(float(values[rank:].norm() / values.norm()), rel=1e-4)
    assert results[0].trust == 1.0


class Biased(nn.Module):
    """Two layers with a bias, and inputs whose mean is far from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 12), nn.Linear(12, 12)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(F.gelu(self.one(x)) + 3)


def test_mean_outputs_are_right_after_each_layer() -> None:
    model = Biased()
    batches = [Batch((torch.randn(200, 12) + 1,)) for _ in range(2)]
    compressed, _ = run(model, plans_of(model, "low_rank", 0.5), batches, fitted=2)
    outputs = [torch.cat([b.logits(m) for b in batches]).mean(0) for m in (model, compressed)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-3)


def test_without_held_out_data_there_is_no_held_out_error() -> None:
    model, batches = language_model()
    _, results = run(model, plans_of(model, "low_rank", 0.6), batches, fitted=3)
    assert all(r.heldout_error != r.heldout_error for r in results)
    assert all(r.trust == 1.0 for r in results)


@pytest.mark.parametrize("structure", ["monarch_2x2", "blast_4"])
def test_the_same_run_gives_the_same_bytes(structure: str) -> None:
    model, batches = language_model()
    plans = plans_of(model, structure, 0.8)[:6]
    (one, first), (other, second) = (run(model, plans, batches, seed=3) for _ in range(2))
    assert first == second
    for key, tensor in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor)
    wanted = BlastLinear if structure == "blast_4" else StructuredLinear
    assert isinstance(one.get_submodule("blocks.0.q"), wanted)


class Memory:
    """A store that forgets nothing and may fail after some layers."""

    def __init__(self, limit: int = 1000) -> None:
        self.kept: dict[str, tuple[nn.Module, LayerResult]] = {}
        self.limit, self.loaded = limit, 0

    def load(self, name: str, like: nn.Module) -> tuple[nn.Module, LayerResult] | None:
        self.loaded += name in self.kept
        return copy.deepcopy(self.kept.get(name))

    def save(self, name: str, layer: nn.Module, result: LayerResult) -> None:
        if len(self.kept) == self.limit:
            raise OSError("the disk is full")
        self.kept[name] = copy.deepcopy((layer, result))


@pytest.mark.parametrize(("limit", "anchored"), [(1, True), (4, True), (7, True), (4, False)])
def test_an_interrupted_run_goes_on_to_the_same_result(limit: int, anchored: bool) -> None:
    model, batches = language_model()
    plans = plans_of(model, "low_rank", 0.6)
    plans[3] = LayerPlan(plans[3].name, (8, 8), None, 64, 0.0, 0.0, 0.0, 0.0)
    whole, wanted = run(model, plans, batches, anchored=anchored)
    store = Memory(limit)
    with pytest.raises(OSError, match="the disk is full"):
        run(model, plans, batches, store=store, anchored=anchored)
    assert len(store.kept) == limit
    store.limit, store.loaded = 1000, 0
    again, results = run(model, plans, batches, store=store, anchored=anchored)
    assert results == wanted
    assert store.loaded == limit
    for key, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


def test_frozen_weights_and_modes_stay_as_they_were() -> None:
    model, batches = language_model()
    model.get_submodule("blocks.0.q").requires_grad_(False)
    compressed, _ = run(model, plans_of(model, "low_rank", 0.6), batches)
    assert not any(p.requires_grad for p in compressed.get_submodule("blocks.0.q").parameters())
    assert all(p.requires_grad for p in compressed.get_submodule("blocks.0.k").parameters())
    assert not any(m.training for m in compressed.modules())


def matrix(layer: nn.Module) -> torch.Tensor:
    layer = copy.deepcopy(layer).double()
    return (layer.weight if isinstance(layer, nn.Linear) else layer.dense()).detach()  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_unweighted_error_is_against_the_matrix_of_the_user(dtype: torch.dtype) -> None:
    """Also for a layer that is kept dense, which takes up the errors before it."""
    model = Biased().to(dtype)
    batches = [Batch((torch.randn(400, 12).to(dtype) + 1,)) for _ in range(3)]
    one = LayerPlan("one", (12, 12), Candidate("low_rank", (12, 12), (1, 1), 2), 48, 0.0, 0.0, 0.0, 0.0)
    for chosen, least in ((None, 0.01), (Candidate("low_rank", (12, 12), (1, 1), 5), 0.1)):
        plans = [one, LayerPlan("two", (12, 12), chosen, 144, 0.0, 0.0, 0.0, 0.0)]
        compressed, results = run(model, plans, batches)
        for result in results:
            W, kept = matrix(model.get_submodule(result.name)), matrix(compressed.get_submodule(result.name))
            assert result.unweighted_error == pytest.approx(float((W - kept).norm() / W.norm()), rel=1e-9)
        assert results[1].unweighted_error > least


def test_errors_are_those_after_rounding_to_the_dtype() -> None:
    """Of nearly full rank, so that bfloat16 adds much to what is lost."""
    model = nn.Sequential(nn.Linear(12, 12, bias=False)).bfloat16()
    x = torch.randn(600, 12).bfloat16()
    plans = [LayerPlan("0", (12, 12), Candidate("low_rank", (12, 12), (1, 1), 11), 264, 0.0, 0.0, 0.0, 0.0)]
    compressed = copy.deepcopy(model)
    (result,) = fit_layers(model, compressed, linear_layers(model), plans, [Batch((x,))] * 2, 1)
    x = x.double()
    C = x.mT @ x / len(x)
    C += 1e-3 * C.diagonal().mean() * torch.eye(12)
    L, W = torch.linalg.cholesky(C), matrix(model[0])
    error = float(((W - matrix(compressed[0])) @ L).norm() / (W @ L).norm())
    assert error > 1.001 * float(torch.linalg.svdvals(W @ L)[11] / (W @ L).norm())
    assert result.error == pytest.approx(error, rel=1e-4)
    assert result.heldout_error == pytest.approx(error, rel=1e-4)
    assert result.lower_bound < result.error


def test_both_errors_are_in_one_norm() -> None:
    """Held-out data that are the fitted ones give the same error, though samples fill only a part of the space."""
    model = nn.Sequential(nn.Linear(12, 12))
    x = torch.randn(40, 3) @ torch.randn(3, 12)
    plans = [LayerPlan("0", (12, 12), Candidate("low_rank", (12, 12), (1, 1), 2), 48, 0.0, 0.0, 0.0, 0.0)]
    (result,) = fit_layers(model, copy.deepcopy(model), linear_layers(model), plans, [Batch((x,))] * 2, 1)
    assert result.heldout_error == pytest.approx(result.error, rel=1e-6)


def test_layers_keep_their_dtype() -> None:
    model, batches = language_model()
    compressed, _ = run(model.bfloat16(), plans_of(model, "low_rank", 0.6), batches)
    assert {p.dtype for p in compressed.parameters()} == {torch.bfloat16}
    assert bool(torch.isfinite(batches[0].logits(compressed)).all())


def test_layers_that_are_not_called_or_not_planned_stay() -> None:
    model = Biased()
    model.never = nn.Linear(12, 12)
    batches = [Batch((torch.randn(50, 12),))] * 2
    plans = [p for p in plans_of(model, "low_rank", 0.5) if p.name != "two"]
    compressed, results = run(model, plans, batches, fitted=1)
    assert [r.name for r in results] == ["one"]
    assert type(compressed.two) is nn.Linear
    assert type(compressed.never) is nn.Linear


@pytest.mark.parametrize(
    ("model", "steps", "share"),
    [(DigitsMLP(width=48, depth=3), 150, 0.2), (DigitsViT(width=16, depth=3, heads=2), 80, 0.4)],
    ids=["mlp", "vit"],
)
def test_anchoring_loses_less_on_data_that_were_not_fitted(model: nn.Module, steps: int, share: float) -> None:
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    trained_on_digits(model, steps)
    x, xt = digit_images("train")[0], digit_images("test")[0]
    batches = [Batch((part,)) for part in x[:1000].split(250)]
    plans = plans_of(model, "low_rank", share)
    test, losses = Batch((xt,)), []
    for anchored in (True, False):
        compressed, _ = run(model, plans, batches, anchored=anchored, fitted=3)
        with torch.no_grad():
            losses.append(float(divergence(test.logits(model), test.logits(compressed), test, "classification").mean()))
    assert losses[0] < 0.9 * losses[1]


def test_a_dense_layer_takes_up_the_errors_before_it() -> None:
    """The first layer is cut to rank 2, the second one stays dense and makes up for what it can."""
    model = Biased()
    batches = [Batch((torch.randn(400, 12) + 1,)) for _ in range(3)]
    plans = [
        LayerPlan("one", (12, 12), Candidate("low_rank", (12, 12), (1, 1), 2), 48, 0.0, 0.0, 0.0, 0.0),
        LayerPlan("two", (12, 12), None, 144, 0.0, 0.0, 0.0, 0.0),
    ]
    errors = []
    for anchored in (True, False):
        compressed, _ = run(model, plans, batches, anchored=anchored)
        errors.append(float((batches[2].logits(model) - batches[2].logits(compressed)).detach().square().mean()))
        assert type(compressed.two) is nn.Linear
    assert errors[0] < 0.98 * errors[1]
