"""Groups hold each trainable parameter once, say what they hold, and refuse what does not fit."""

import pytest
import torch
import transformers as hf
from torch import nn

from flatwing.optim.groups import Groups, group_by_name, muon_groups, weight_decay_groups
from flatwing.optim.shell import Shell
from flatwing.train import ByteLM

GQA = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}


def lm() -> ByteLM:
    return ByteLM(width=16, depth=1, heads=2, vocab=40)


def covers(model: nn.Module, *several: Groups) -> bool:
    names = [name for groups in several for group in groups for name in group["param_names"]]
    params = [p for groups in several for group in groups for p in group["params"]]
    named = dict(model.named_parameters())
    assert all(named[name] is p for name, p in zip(names, params, strict=True))
    return sorted(names) == sorted(name for name, p in named.items() if p.requires_grad)


def test_first_match_wins() -> None:
    model = lm()
    groups = group_by_name(model, [("norm", {"lr": 1.0}), (r"blocks\.0", {"lr": 2.0}), ("", {})])
    assert covers(model, groups)
    assert groups[0]["param_names"] == ["blocks.0.norm1.weight", "blocks.0.norm2.weight", "norm.weight"]
    assert groups[2]["param_names"] == ["embed.weight", "head.weight"]
    optimizer = torch.optim.AdamW(groups, lr=3.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0, 3.0]
    assert optimizer.state_dict()["param_groups"][2]["param_names"] == ["embed.weight", "head.weight"]


def test_names_are_those_without_wrappers() -> None:
    groups = group_by_name(nn.DataParallel(lm()), [("^embed", {}), ("^(blocks|norm|head)", {})])
    assert groups[0]["param_names"] == ["embed.weight"]


def test_a_tied_parameter_answers_to_each_name_and_is_there_once() -> None:
    model = lm()
    model.head.weight = model.embed.weight
    head, rest = group_by_name(model, [("head", {}), ("", {})])
    assert head["param_names"] == ["embed.weight"]
    assert "embed.weight" not in rest["param_names"]


def test_frozen_parameters_are_in_no_group() -> None:
    model = lm()
    model.embed.requires_grad_(False)
    first, rest = group_by_name(model, [("embed", {"lr": 1.0}), ("", {})])
    assert first["params"] == []
    assert covers(model, Groups([first, rest]))
    assert covers(model, weight_decay_groups(model, 0.1))
    assert covers(model, *muon_groups(model))


def test_group_by_name_refuses() -> None:
    with pytest.raises(ValueError, match=r"rule 'embd' matched no parameter.*Names look like embed\.weight"):
        group_by_name(lm(), [("embd", {}), ("", {})])
    with pytest.raises(ValueError, match=r"parameter 'blocks\.0\.norm1\.weight' of shape \(16,\) matches no rule"):
        group_by_name(lm(), [("embed", {})])
    with pytest.raises(ValueError, match=r"rule 'norm' matched no parameter"):  # the first one took it
        group_by_name(lm(), [("", {}), ("norm", {})])
    with pytest.raises(ValueError, match=r"rule '' sets 'params'"):
        group_by_name(lm(), [("", {"params": []})])


def test_weight_decay_falls_on_matrices() -> None:
    model = hf.GptOssForCausalLM(
        hf.GptOssConfig(**GQA, num_key_value_heads=2, num_local_experts=2, head_dim=4)
    )  # experts with biases of two dimensions
    decay, rest = weight_decay_groups(model, 0.1)
    assert covers(model, Groups([decay, rest]))
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert {name.rsplit(".", 1)[-1] for name in decay["param_names"]} == {"weight", "gate_up_proj", "down_proj"}
    assert all(p.ndim >= 2 for p in decay["params"])
    assert "model.layers.0.mlp.experts.down_proj_bias" in rest["param_names"]
    assert "model.norm.weight" in rest["param_names"]
    assert "model.embed_tokens.weight" in decay["param_names"]
    _, without = weight_decay_groups(model, 0.1, embeddings=False)
    assert set(without["param_names"]) - set(rest["param_names"]) == {"model.embed_tokens.weight"}


def test_norms_over_several_dimensions_do_not_decay() -> None:
    decay, rest = weight_decay_groups(nn.Sequential(nn.LayerNorm((2, 3)), nn.Conv2d(1, 2, 3)), 0.1)
    assert rest["param_names"] == ["0.weight", "0.bias", "1.bias"]
    assert decay["param_names"] == ["1.weight"]


def test_vectors_of_any_rank_do_not_decay() -> None:
    model = nn.ParameterDict({"token": nn.Parameter(torch.zeros(1, 1, 6)), "table": nn.Parameter(torch.zeros(2, 6))})
    decay, rest = weight_decay_groups(model, 0.1)
    assert (decay["param_names"], rest["param_names"]) == (["table"], ["token"])


def test_muon_takes_hidden_matrices() -> None:
    model = hf.MixtralForCausalLM(hf.MixtralConfig(**GQA, num_key_value_heads=2, num_local_experts=2))
    matrices, rest = muon_groups(model, weight_decay=0.1)
    assert covers(model, matrices, rest)
    assert [name.split(".")[-2] for name in matrices[0]["param_names"]] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert {g["weight_decay"]: len(g["params"]) for g in rest} == {0.1: 5, 0.0: 3}  # router, experts, tables; norms
    both = Shell([torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=1e-3)])
    model(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    before = [p.detach().clone() for p in model.parameters()]
    both.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_muon_groups_without_decay_leave_it_to_the_optimizer() -> None:
    matrices, rest = muon_groups(lm())
    assert set(matrices[0]) == set(rest[0]) == {"params", "param_names"}
    assert rest[0]["param_names"] == [
        "embed.weight", "blocks.0.norm1.weight", "blocks.0.norm2.weight", "norm.weight", "head.weight",
    ]  # fmt: skip
    _, tables = muon_groups(lm(), rules=[(r"q\.weight", "other")])
    assert "blocks.0.q.weight" in tables[0]["param_names"]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"weight_decay is -0\.1\. Rule: a number, at least 0"):
        weight_decay_groups(lm(), -0.1)
    with pytest.raises(ValueError, match=r"weight_decay is nan"):
        muon_groups(lm(), weight_decay=float("nan"))
    with pytest.raises(ValueError, match=r"Embedding has no hidden matrix"):
        muon_groups(nn.Embedding(3, 2))
    with pytest.raises(ValueError, match=r"Linear has no parameter that requires grad"):
        weight_decay_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)


def test_table() -> None:
    table = str(group_by_name(lm(), [("norm", {"lr": 0.5}), ("", {})]))
    assert "3            48  lr=0.5: blocks.0.norm1.weight, blocks.0.norm2.weight, ..." in table
    assert "as the optimizer: embed.weight" in table
