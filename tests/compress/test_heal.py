import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flatwing import Chain
from flatwing.compress import heal
from flatwing.compress.batch import Batch
from flatwing.compress.divergence import divergence
from flatwing.compress.heal import _call, _round_into
from flatwing.nn import StructuredLinear, linear_layers, replace_module
from flatwing.train import ByteLM, DigitsMLP


def damaged(model: nn.Module) -> nn.Module:
    """A copy whose body has rank 2 only."""
    worse = copy.deepcopy(model)
    for name, info in linear_layers(worse).items():
        if info.skip is None and not info.is_head:
            chain = Chain.low_rank(info.out_features, info.in_features, 2)
            replace_module(worse, name, StructuredLinear.from_linear(info.as_linear(), chain))
    return worse


@pytest.fixture
def pair() -> tuple[nn.Module, nn.Module, list[Batch], list[Batch]]:
    original = ByteLM(width=16, depth=2, heads=2, context=12, vocab=32)
    data = torch.randint(32, (60, 12))
    return original, damaged(original), [Batch((part,)) for part in data[:48].split(20)], [Batch((data[48:],))]


def kl(original: nn.Module, model: nn.Module, batches: list[Batch]) -> float:
    with torch.no_grad():
        parts = [divergence(b.logits(original), b.logits(model), b, "lm") for b in batches]
    return float(torch.cat(parts).double().mean())


def block_error(original: nn.Module, model: nn.Module, batch: Batch) -> float:
    with torch.no_grad():
        (_, a), (_, b) = _call(original, batch, "blocks"), _call(model, batch, "blocks")
    return sum(float((x - y).square().mean() / x.square().mean()) for x, y in zip(a, b, strict=True))


def test_healing_brings_the_outputs_back(pair: tuple) -> None:
    original, model, batches, heldout = pair
    before, teacher = kl(original, model, heldout), copy.deepcopy(original.state_dict())
    tables = model.embed.weight.detach().clone()
    metrics = heal(model, original, batches, heldout, "lm", steps=30, lr=3e-3)
    after = kl(original, model, heldout)
    assert after < 0.9 * before
    assert metrics[0]["score"] == pytest.approx(before, rel=1e-5)
    assert min(m["score"] for m in metrics if "score" in m) == pytest.approx(after, rel=1e-5)
    assert torch.equal(model.embed.weight, tables), "tables are not trained"
    assert model.embed.weight.requires_grad
    assert all(torch.equal(tensor, teacher[key]) for key, tensor in original.state_dict().items())
    assert all(parameter.grad is None for parameter in original.parameters())


def test_healing_never_leaves_the_model_worse(pair: tuple) -> None:
    original, model, batches, heldout = pair
    before, start = kl(original, model, heldout), copy.deepcopy(model.state_dict())
    heal(model, original, batches, heldout, "lm", steps=6, lr=1.0)
    assert kl(original, model, heldout) == before
    assert all(torch.equal(tensor, start[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("match", ["outputs", "layers"])
def test_half_precision_heals_in_single(pair: tuple, dtype: torch.dtype, match: str) -> None:
    original, model, batches, heldout = pair
    original, half = original.to(dtype), copy.deepcopy(model).to(dtype)
    before = kl(original, half, heldout)
    heal(half, original, batches, heldout, "lm", steps=30, lr=3e-3, match=match)
    single = copy.deepcopy(model).to(dtype).float()
    heal(single, original, batches, heldout, "lm", steps=30, lr=3e-3, match=match)
    assert {p.dtype for p in half.parameters()} == {dtype}
    assert all(p.requires_grad for p in half.parameters())
    assert kl(original, half, heldout) < 0.95 * before
    for key, tensor in single.state_dict().items():
        assert torch.equal(half.state_dict()[key], tensor.to(dtype)), "the healed copy, rounded once"


def test_real_inputs_in_half_precision_heal_too() -> None:
    original = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)).bfloat16()
    model = damaged(original)
    batch = Batch((torch.randn(100, 6).bfloat16(),))
    with torch.no_grad():
        before = float(divergence(batch.logits(original), batch.logits(model), batch, "other").mean())
    heal(model, original, [batch], [batch], "other", steps=40, lr=1e-2)
    with torch.no_grad():
        after = float(divergence(batch.logits(original), batch.logits(model), batch, "other").mean())
    assert after < 0.9 * before


def test_what_rounding_makes_no_better_is_not_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).bfloat16()
    start, healed = copy.deepcopy(model.state_dict()), copy.deepcopy(model).float()
    with torch.no_grad():
        healed[0].weight += 1.0  # type: ignore[operator]
    scores = iter([0.5, 0.5, 0.5, float("nan"), 0.5, 0.4])
    for kept in (False, False, True):
        _round_into(model, healed, lambda _: next(scores))
        assert all(torch.equal(tensor, start[key]) for key, tensor in model.state_dict().items()) != kept
    assert model[0].weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_training_diverges_the_weights_are_as_they_were(pair: tuple, dtype: torch.dtype) -> None:
    original, model, batches, heldout = pair
    original, model = original.to(dtype), model.to(dtype)
    start = copy.deepcopy(model.state_dict())
    with pytest.raises(FloatingPointError, match=r"(loss|norm|score) is (nan|inf) at step"):
        heal(model, original, batches, heldout, "lm", steps=12, lr=1e30, optimizer="SGD")
    assert all(torch.equal(tensor, start[key]) for key, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_matching_layers_lowers_the_errors_of_the_blocks(pair: tuple) -> None:
    original, model, batches, heldout = pair
    errors = []
    for match in ("outputs", "layers"):
        own = copy.deepcopy(model)
        heal(own, original, batches, heldout, "lm", steps=30, lr=3e-3, match=match)
        errors.append(block_error(original, own, heldout[0]))
    assert errors[1] < 0.97 * errors[0]
    assert errors[1] < 0.9 * block_error(original, model, heldout[0])


def test_gradient_checkpointing_changes_no_number(pair: tuple) -> None:
    original, model, batches, heldout = pair
    runs = []
    for checkpointing in (False, True):
        own = copy.deepcopy(model)
        runs.append(
            heal(own, original, batches, heldout, "lm", steps=5, match="layers", gradient_checkpointing=checkpointing)
        )
        assert not any("forward" in vars(block) for block in own.blocks), "the blocks are as they were"
    for one, other in zip(*runs, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_gradient_checkpointing_runs_the_blocks_again(pair: tuple) -> None:
    original, model, batches, heldout = pair
    calls: list[int] = []
    model.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for checkpointing in (False, True):
        calls.clear()
        heal(model, original, batches, heldout, "lm", steps=4, gradient_checkpointing=checkpointing)
        counts.append(len(calls))
    assert counts[1] > counts[0] + 2


def test_an_interrupted_run_goes_on_bit_for_bit(pair: tuple, tmp_path: Path) -> None:
    original, model, batches, heldout = pair
    settings: dict[str, Any] = {"steps": 12, "lr": 3e-3, "seed": 5}
    whole = copy.deepcopy(model)
    wanted = heal(whole, original, batches, heldout, "lm", **settings)
    file, own = tmp_path / "heal.safetensors", copy.deepcopy(model)

    def stop(metric: dict) -> None:
        if metric["step"] == 7:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        heal(own, original, batches, heldout, "lm", checkpoint=file, progress=stop, **settings)
    seen: list[int] = []
    again = copy.deepcopy(model)
    found = heal(
        again, original, batches, heldout, "lm", checkpoint=file, progress=lambda m: seen.append(m["step"]), **settings
    )
    assert seen[0] > 1, "the first steps were not taken again"
    assert found == wanted
    assert all(torch.equal(tensor, whole.state_dict()[key]) for key, tensor in again.state_dict().items())


def test_the_seed_decides_the_rows(pair: tuple) -> None:
    original, model, batches, heldout = pair
    losses = [
        [m["loss"] for m in heal(copy.deepcopy(model), original, batches, heldout, "lm", steps=3, seed=seed)[1:]]
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_modes_and_gradients_are_as_before(pair: tuple) -> None:
    original, model, batches, heldout = pair
    model.train()
    original.train()
    model.blocks[0].eval()
    before = [m.training for m in model.modules()]
    for lr, error in ((1e-3, None), (float("inf"), ValueError)):
        if error is None:
            heal(model, original, batches, heldout, "lm", steps=2, lr=lr)
        else:
            with pytest.raises(error, match="lr is inf"):
                heal(model, original, batches, heldout, "lm", steps=2, lr=lr)
        assert [m.training for m in model.modules()] == before
        assert original.training
        assert model.embed.weight.requires_grad


def test_other_outputs_heal_too() -> None:
    original = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3))
    model = damaged(original)
    x = torch.randn(100, 6)
    batch = Batch((x,))
    metrics = heal(model, original, [batch], [batch], "other", steps=40, lr=1e-2)
    scores = [m["score"] for m in metrics if "score" in m]
    assert min(scores) < 0.9 * scores[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"match": "blocks"}, r"unknown match 'blocks'\. Rule: outputs or layers"),
        ({"optimizer": "AdamV"}, r"unknown optimizer 'AdamV', did you mean 'Adam'\?"),
        ({"precision": "fp64"}, r"unknown precision 'fp64'"),
        ({"match": "layers"}, r"match='layers' needs a network of equal blocks.* Take match='outputs'"),
    ],
)
def test_unknown_names_are_refused_before_any_work(more: dict, message: str) -> None:
    original = DigitsMLP(width=8)
    model = copy.deepcopy(original)
    batch = Batch((torch.rand(4, 64),))
    with pytest.raises(ValueError, match=message):
        heal(model, original, [batch], [batch], "classification", steps=2, **more)
    assert all(torch.equal(t, original.state_dict()[key]) for key, t in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
