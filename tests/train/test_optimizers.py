"""Every optimizer of torch by its name; what the loop cannot drive is refused with the reason."""

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from flatwing.optim import IRE, LITE, PRGD, AdamMini, BlockRows, GradPower, Shell
from flatwing.train import OPTIMIZERS, ByteLM, DigitsMLP, build_model
from flatwing.train.optimizers import REFUSED, make_optimizer


def small() -> ByteLM:
    return ByteLM(width=8, depth=1, heads=2, mlp=1, context=4, vocab=5)


def unchecked(function: Any) -> Any:
    """The function as users call it: the tests' check of annotations comes before its own."""
    return inspect.unwrap(function)


def homogeneous() -> nn.Module:
    """What PRGD takes, of tokens as well."""
    return nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 5, bias=False))


def names_of(model: nn.Module, optimizer: torch.optim.Optimizer, group: int | None = None) -> set[str]:
    groups = optimizer.param_groups if group is None else [optimizer.param_groups[group]]
    ids = {id(p) for g in groups for p in g["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - set(REFUSED)))
def test_each_optimizer_takes_each_parameter_once_and_lowers_the_loss(name: str) -> None:
    model, tokens = homogeneous() if name == "PRGD" else small(), torch.randint(5, (8, 4))
    optimizer = make_optimizer(model, name, lr=1e-3)
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_muon_takes_the_maps_and_leaves_tables_and_vectors() -> None:
    model = small()
    muon, rest = make_optimizer(model, "Muon", lr=1e-3).members
    assert names_of(model, muon) == {f"blocks.0.{name}.weight" for name in ("q", "k", "v", "o", "up", "down")}
    assert {"embed.weight", "head.weight", "norm.weight"} < names_of(model, rest)
    assert muon.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"


def test_muon_without_maps_is_adamw() -> None:
    assert type(make_optimizer(nn.LayerNorm(4), "Muon", 1e-3)) is torch.optim.AdamW


def test_weight_decay_falls_on_matrices_only() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = make_optimizer(model, "AdamW", 1e-3, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert names_of(model, optimizer, 0) == {"0.weight"}


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model, "SGD", 0.1)
    assert names_of(model, optimizer) == {"1.weight", "1.bias"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires grad"):
        make_optimizer(model, "SGD", 0.1)


def test_options_reach_the_optimizer() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), "SGD", 0.1, options={"momentum": 0.5})
    assert {group["momentum"] for group in optimizer.param_groups} == {0.5}
    with pytest.raises(ValueError, match=r"SGD has no option 'betas'. Known: momentum"):
        make_optimizer(nn.Linear(2, 2), "SGD", 0.1, options={"betas": (0.9, 0.95)})
    with pytest.raises(ValueError, match="SGD has no option 'lr'"):
        make_optimizer(nn.Linear(2, 2), "SGD", 0.1, options={"lr": 1.0})


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_what_the_loop_cannot_drive_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{reason}"):
        make_optimizer(nn.Linear(2, 2), name, 0.1)


def test_unknown_name_and_missing_decay_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'Adan', did you mean 'Adam'"):
        make_optimizer(nn.Linear(2, 2), "Adan", 0.1)
    with pytest.raises(ValueError, match=r"Rprop has no weight decay, got 0\.1"):
        make_optimizer(nn.Linear(2, 2), "Rprop", 0.1, weight_decay=0.1)


def test_learning_rates_by_block_reach_the_groups() -> None:
    ratios = {"emb": 3.0, "qk": 4.0, "vo": 2.0, "ffn": 2.5, "norm": 1.0, "head": 0.5}
    optimizer = make_optimizer(small(), "AdamW", 0.1, 0.2, blockwise={"ratios": ratios, "decouple_wd": True})
    rates = {group["block"]: group["lr"] / 0.1 for group in optimizer.param_groups}
    assert rates == pytest.approx(ratios)
    assert all(group["lr"] * group["weight_decay"] == pytest.approx(0.02) for group in optimizer.param_groups)
    muon, rest = make_optimizer(small(), "Muon", 0.1, blockwise={"ratios": ratios}).members  # type: ignore[attr-defined]
    assert [group["lr"] for group in muon.param_groups] == [0.1]
    assert {group["block"] for group in rest.param_groups} == {"emb", "norm", "head"}


def test_fused_rows_get_their_own_rates() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    optimizer = make_optimizer(layer, "AdamW", 0.1, blockwise={"ratios": "published", "fused": "rows"})
    assert type(optimizer) is BlockRows


def test_methods_go_around_in_their_order() -> None:
    methods = {"ire": {"kappa": 2.0}, "gradpower": {"p": 1.5}}
    optimizer = make_optimizer(small(), "Muon", 0.1, methods=methods)
    assert isinstance(optimizer, IRE)
    assert isinstance(optimizer.base, GradPower)
    assert type(optimizer.base.base) is Shell
    assert {(group["kappa"], group["p"]) for group in optimizer.param_groups} == {(2.0, 1.5)}


def test_lite_and_adam_mini_are_made_for_the_model() -> None:
    lite, rest = make_optimizer(small(), "LITE", 0.1, 0.2, {"chi": 3.0}).members  # type: ignore[attr-defined]
    assert (type(lite), type(rest)) == (LITE, torch.optim.AdamW)
    assert {group["chi"] for group in lite.param_groups} == {3.0}
    assert type(make_optimizer(small(), "AdamMini", 0.1)) is AdamMini


def test_prgd_finds_the_degree_of_a_model_of_ours_or_names_what_has_none() -> None:
    sizes = {"inputs": 16, "width": 16, "depth": 2, "classes": 3}
    for more, degree in (({}, 3), ({"budget": 0.5}, 5)):  # two structured layers of two factors, and the head
        optimizer = make_optimizer(build_model("relu-mlp", sizes | more), "PRGD", 0.1, options={"tol": 0.1})
        assert type(optimizer) is PRGD
        assert {(group["degree"], group["tol"], group["lr"]) for group in optimizer.param_groups} == {
            (degree, 0.1, 0.1)
        }
    for name, told in (
        ("digits-mlp", r"operation gelu \(gelu\) is not homogeneous"),
        ("cnn", r"layer norms\.0 \(GroupNorm\) is not homogeneous"),
        ("digits-vit", r"layer blocks\.0\.norm1 \(RMSNorm\) is not homogeneous"),
        ("byte-lm", r"layer blocks\.0\.norm1 \(RMSNorm\) is not homogeneous"),
        ("llama", r"layer layers\.0\.input_layernorm \(RMSNorm\) is not homogeneous"),
    ):
        with pytest.raises(ValueError, match=told):
            make_optimizer(build_model(name, {"width": 16}), "PRGD", 0.1)
    with pytest.raises(ValueError, match=r"PRGD has no weight decay, got 0\.1"):
        make_optimizer(build_model("linear", {}), "PRGD", 0.1, weight_decay=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": {"ier": {}}}, "unknown method 'ier', did you mean 'ire'"),
        ({"methods": {"gradpower": {"q": 1.0}}}, "unknown setting of gradpower 'q'"),
        ({"methods": {"ire": {"base": 1.0}}}, "unknown setting of ire 'base'"),
        ({"blockwise": {"ratio": {}}}, "unknown setting of blockwise 'ratio', did you mean 'ratios'"),
        ({"blockwise": {}, "name": "AdamMini"}, "AdamMini has no learning rates by block"),
        ({"blockwise": {}, "name": "PRGD"}, "PRGD has no learning rates by block"),
    ],
)
def test_unknown_methods_and_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(small(), **{"name": "AdamW", "lr": 0.1} | settings)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {"betas": 3}),
        ("AdamW", {"betas": [0.9]}),
        ("AdamW", {"betas": [0.9, 0.99, 0.999]}),
        ("AdamW", {"eps": "small"}),
        ("AdamW", {"betas": [0.9, 2.0]}),
        ("SGD", {"momentum": []}),
        ("Muon", {"ns_steps": "x"}),
        ("AdamMini", {"betas": 1}),
        ("LITE", {"momentum": "x"}),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"(?s){name} cannot work with {next(iter(options))}=.*Correct"):
        make_optimizer(DigitsMLP(width=4), name, 1e-3, options=options)


def test_options_that_work_are_tried_without_a_trace() -> None:
    model = DigitsMLP(width=4)
    before, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    for name, options in (("AdamW", {"betas": [0.9, 0.95]}), ("Muon", {"ns_steps": 3}), ("AdamMini", {"eps": 1e-6})):
        make_optimizer(model, name, 1e-3, options=options)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Muon", "AdamMini", "LITE"])
@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf"), True])
def test_rates_out_of_range_are_refused_alike_for_every_optimizer(name: str, lr: float) -> None:
    with pytest.raises(ValueError, match=rf"lr is {lr}\. Rule: a number, at least 0"):
        unchecked(make_optimizer)(DigitsMLP(width=4), name, lr)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decay": float("nan")}, "weight_decay is nan. Rule: a number, at least 0"),
        ({"options": {1: 2}}, r"options is \{1: 2\}. Rule: a dict with names as keys"),
        ({"methods": {"ire": {1: 2}}}, r"ire is \{1: 2\}. Rule: a dict"),
        ({"blockwise": {"ratios": 3}}, r"blockwise cannot work with \{'ratios': 3\}"),
    ],
)
def test_tables_of_a_wrong_kind_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unchecked(make_optimizer)(small(), "AdamW", 0.1, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, "AdamW", 0.1), "got a NoneType. Rule: the model itself"),
        ((nn.Linear(2, 2), ["AdamW"], 0.1), r"name is \['AdamW'\]. Rule: the name of an optimizer"),
        ((nn.Linear(2, 2), "AdamW", None), "lr is None. Rule: a number"),
        ((nn.Linear(2, 2), "SGD", "x"), "lr is 'x'. Rule: a number"),
        ((nn.Linear(2, 2), "SGD", 0.1, "x"), "weight_decay is 'x'. Rule: a number"),
        ((nn.Linear(2, 2), "SGD", 0.1, 0.0, [1]), r"options is \[1\]. Rule: a dict"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unchecked(make_optimizer)(*arguments)


def test_settings_of_a_method_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ire cannot work with \{'kappa': 'x'\}"):
        make_optimizer(DigitsMLP(width=4), "AdamW", 1e-3, methods={"ire": {"kappa": "x"}})
