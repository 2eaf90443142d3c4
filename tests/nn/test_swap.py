"""compress_ and densify_ on whole models: what changes, what stays, and nothing when something fails."""

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

import flatwing
from flatwing import Chain, StructuredLinear, compress_, densify_
from flatwing.nn import BlastLinear, StructuredAdapter, SumLinear


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16, bias=False))
        self.head = nn.Linear(16, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(x)))


TOKENS = torch.arange(20).reshape(2, 10)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[k], v) for k, v in before.items())


def test_the_public_names() -> None:
    assert flatwing.nn.compress_ is flatwing.compress_ is compress_
    assert flatwing.nn.densify_ is flatwing.densify_ is densify_


def test_report_tells_what_was_done() -> None:
    model = Net()
    report = compress_(model, "low_rank(rank=4)")
    assert report.replaced == ("body.0", "body.2")
    assert isinstance(model.body[0], StructuredLinear)
    assert {row.name: row.action for row in report.rows} == {
        "embed": "skipped",
        "body.0": "replaced",
        "body.2": "replaced",
        "head": "skipped",
    }
    rows = {row.name: row for row in report.rows}
    assert rows["head"].reason == "a head makes the model's outputs; heads=True replaces it too"
    assert "an embedding is a table" in rows["embed"].reason
    assert (rows["body.0"].parameters_before, rows["body.0"].parameters_after) == (512, 192)
    assert rows["body.0"].structure == str(Chain.low_rank(32, 16, 4))
    assert 0 < rows["body.0"].lower_bound <= rows["body.0"].error < 1
    assert report.parameters_before == 320 + 512 + 512 + 320
    assert report.parameters_after == 320 + 192 + 192 + 320
    data = json.loads(json.dumps(report.to_dict()))
    assert [layer["name"] for layer in data["layers"]] == list(rows)
    assert data["replaced"] == 2
    text = str(report)
    assert all(row.name in text for row in report.rows)
    assert "2 of 4 layers replaced: 384 parameters instead of 1024 (37.5%)" in text


@pytest.mark.parametrize(
    "structure",
    [0.5, "monarch(blocks=4)", "blast(blocks=4, rank=4)", "low_rank(rank=2) + block_diagonal(blocks=8)"],
    ids=str,
)
def test_dense_again_is_the_same_function(structure: float | str) -> None:
    model = Net()
    compress_(model, structure, heads=True)
    structured = model(TOKENS)
    names = densify_(model)
    assert names == ["body.0", "body.2", "head"]
    assert {type(m) for m in model.body} == {nn.Linear, nn.ReLU}
    assert torch.allclose(model(TOKENS), structured, atol=1e-5)
    assert densify_(model) == []


@pytest.mark.parametrize("share", [1.0, 1])
def test_the_whole_budget_changes_nothing_but_rounding(share: float) -> None:
    model = Net()
    before, y = state(model), model(TOKENS)
    report = compress_(model, share, heads=True)
    assert report.replaced == ()
    assert {row.action for row in report.rows} == {"kept", "skipped"}
    assert same(model, before)
    model.body[0].weight.data = torch.outer(torch.randn(32), torch.randn(16))  # exactly of rank one
    y = model(TOKENS)
    assert compress_(model, share).replaced == ("body.0",)
    assert torch.allclose(model(TOKENS), y, atol=1e-5)


def test_dry_run_reports_the_same_and_changes_nothing() -> None:
    model = Net()
    before = state(model)
    dry = compress_(model, "monarch(blocks=4)", dry_run=True)
    assert same(model, before)
    wet = compress_(model, "monarch(blocks=4)")
    assert (dry.rows, dry.dry_run, wet.dry_run) == (wet.rows, True, False)
    assert "would be replaced" in str(dry)


def test_failure_leaves_the_model_as_it_was() -> None:
    model = Net()
    with torch.no_grad():
        model.body[2].weight[3, 4] = float("nan")
    before = {k: id(v) for k, v in model.named_modules()}
    with pytest.raises(ValueError, match=r"layer 'body.2': .* NaN or Inf, the first is nan at \(3, 4\)"):
        compress_(model, "low_rank(rank=2)")
    assert {k: id(v) for k, v in model.named_modules()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"where": "boddy*"}, r"where='boddy\*' matches none of the 4 linear layers. The nearest names: body"),
        ({"where": ["body.*", "tail"]}, "where='tail' matches none"),
        ({"skip": "haed"}, "skip='haed' matches none.*head"),
        ({"structure": Chain.butterfly(8)}, r"fits none of the layers: it is 32 x 16, the chain is 8 x 8"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    model = Net()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        compress_(model, **{"structure": 0.5, **arguments})
    assert same(model, before)


def test_refuses_models_that_are_no_models_of_layers() -> None:
    with pytest.raises(ValueError, match="this ReLU has no linear layers"):
        compress_(nn.ReLU(), 0.5)
    with pytest.raises(ValueError, match=r"the model itself is a linear layer. Use StructuredLinear.from_linear"):
        compress_(nn.Linear(8, 8), 0.5)
    with pytest.raises(ValueError, match="the model itself is the structured layer"):
        densify_(StructuredLinear("butterfly(8)"))


def test_where_and_skip() -> None:
    model = Net()
    report = compress_(model, "low_rank(rank=2)", where=["body.*", "head"], skip="body.2", heads=True)
    assert report.replaced == ("body.0", "head")
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["embed"] == "not named by where"
    assert reasons["body.2"] == "named by skip"


def test_a_chain_replaces_the_layers_of_its_size() -> None:
    model = Net()
    assert compress_(model, Chain.low_rank(16, 32, 2)).replaced == ("body.2",)


def test_small_layers_are_kept() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(16, 16))
    report = compress_(model, "low_rank(rank=1)")
    assert report.replaced == ("1",)
    assert (report.rows[0].action, report.rows[0].reason) == ("kept", "4 parameters in the chain are no fewer than 4")


def test_frozen_stays_frozen_and_biases_stay_themselves() -> None:
    model = Net().eval()
    model.body[0].weight.requires_grad_(False)
    bias = model.body[0].bias
    compress_(model, "low_rank(rank=2)", where="body.*")
    assert [p.requires_grad for p in model.body[0].factors] == [False, False]
    assert [p.requires_grad for p in model.body[2].factors] == [True, True]
    assert model.body[0].bias is bias
    assert bias.requires_grad
    assert not model.body[0].training
    densify_(model)
    assert model.body[0].bias is bias
    assert not model.body[0].weight.requires_grad
    assert model.body[2].weight.requires_grad


def test_shared_modules_stay_shared() -> None:
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = compress_(model, "low_rank(rank=2)", where="2")
    assert report.replaced == ("0",)
    assert model[0] is model[2]
    assert isinstance(model[0], StructuredLinear)
    assert densify_(model) == ["0"]
    assert model[0] is model[2]


@pytest.mark.parametrize(
    "structure", ["monarch(blocks=4)", "blast(blocks=4, rank=2)", "low_rank(rank=1) + monarch(blocks=4)"]
)
def test_tied_weights_stay_tied(structure: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    biases = [layer.bias for layer in model]
    report = compress_(model, structure)
    assert report.replaced == ("0", "1", "2")
    assert [row.parameters_before for row in report.rows] == [256, 256, 0]
    a, b = ([p for k, p in model[i].named_parameters() if k != "bias"] for i in (0, 2))
    assert all(p is q for p, q in zip(a, b, strict=True))
    assert [layer.bias for layer in model] == biases
    x = torch.randn(3, 16)
    y = model(x)
    densify_(model)
    assert model[2].weight is model[0].weight
    assert model[1].weight is not model[0].weight
    assert [layer.bias for layer in model] == biases
    assert torch.allclose(model(x), y, atol=1e-5)


def test_tied_layers_of_which_one_stays_stay_both() -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 16), "head": nn.Linear(16, 16), "c": nn.Linear(16, 16)})
    model["head"].weight = model["a"].weight
    report = compress_(model, "low_rank(rank=2)")
    assert report.replaced == ("c",)
    assert report.rows[0].reason == "its weight is also head.weight, which stays"
    assert compress_(model, "low_rank(rank=2)", heads=True).replaced == ("a", "head")


def test_attention_and_encoder_layers_give_the_same_outputs_on_both_paths() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    report = compress_(model, "low_rank(rank=4)")
    assert report.replaced == ("linear1", "linear2")
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        fast = model(x)
    slow = model(x.requires_grad_())
    densify_(model)
    assert torch.allclose(fast, slow, atol=1e-5)
    assert torch.allclose(model(x), slow, atol=1e-5)


def test_transformers_models() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=30, n_positions=12, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(10)[None]
    original = model(ids).logits
    assert compress_(model, 1.0).replaced == ()
    report = compress_(
        model, lambda name, linear: Chain.low_rank(*linear.weight.shape, rank=8) if "c_fc" in name else None
    )
    assert report.replaced == ("transformer.h.0.mlp.c_fc",)
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["lm_head"] == "its weight is also transformer.wte.weight, which is not a linear layer"
    logits = model(ids).logits
    assert 0 < float((logits - original).detach().abs().max()) < 1
    densify_(model)
    assert torch.allclose(model(ids).logits, logits, atol=1e-5)


def test_a_function_gives_layers_with_biases_of_their_own() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    layer = BlastLinear(16, 16, blocks=2, rank=2)
    bias = layer.bias
    compress_(model, lambda name, linear: layer)
    assert model[0] is layer
    assert layer.bias is bias


def test_adapters_are_merged() -> None:
    model = nn.Sequential(StructuredAdapter(nn.Linear(8, 8), "butterfly(8)", mode="orthogonal"))
    nn.init.normal_(model[0].skew[0])
    x = torch.randn(3, 8)
    y = model(x)
    assert densify_(model) == ["0"]
    assert type(model[0]) is nn.Linear
    assert torch.allclose(model(x), y, atol=1e-5)


def test_terms_of_a_sum_are_not_made_dense_alone() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    compress_(model, "low_rank(rank=2) + block_diagonal(blocks=16)")
    assert isinstance(model[0], SumLinear)
    assert densify_(model) == ["0"]


def test_half_precision_and_optimizers_go_on() -> None:
    model = Net().bfloat16()
    report = compress_(model, "low_rank(rank=8)")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(row.lower_bound <= row.error + 1e-3 for row in report.rows if row.action == "replaced")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(TOKENS).float().square().mean().backward()
    optimizer.step()
