"""Which tensors of a checkpoint are compressed, by name and shape alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flatwing.compress.checkpoint import Checkpoint
from flatwing.compress.selection import Matrix, select


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], **config: str) -> Checkpoint:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint.open(folder)


def of(matrices: list[Matrix]) -> dict[str, str | None]:
    return {matrix.name: matrix.reason for matrix in matrices}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.layers.0.self_attn.q_proj", None),
        ("model.layers.0.mlp.gate_proj", None),
        ("encoder.layer.0.attention.output.dense", None),
        ("embeddings_project", None),
        ("model.embed_tokens", "an embedding"),
        ("bert.embeddings.word_embeddings", "an embedding"),
        ("transformer.wte", "an embedding"),
        ("wpe", "an embedding"),
        ("tok_emb", "an embedding"),
        ("shared", "an embedding"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "an embedding"),
        ("lm_head", "looks like a head"),
        ("classifier", "looks like a head"),
        ("bert.pooler.dense", "looks like a head"),
        ("heads.0", "looks like a head"),
        ("mlp.gate", "a router"),
        ("layernorm", "a norm"),
    ],
)
def test_names(tmp_path: Path, name: str, reason: str | None) -> None:
    found = of(select(checkpoint(tmp_path, {f"{name}.weight": torch.ones(32, 32), "x.weight": torch.ones(16, 16)})))
    assert found["x"] is None
    assert found[name] is None if reason is None else reason in str(found[name])


def test_what_is_no_matrix_of_a_layer(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.ones(16, 32),
        "small.weight": torch.ones(15, 64),
        "conv.weight": torch.ones(16, 16, 3),
        "norm.weight": torch.ones(32),
        "rnn.weight_hh_l0": torch.ones(32, 32),
        "packed.weight": torch.ones(32, 32, dtype=torch.int32),
        "eight.weight": torch.ones(32, 32).to(torch.float8_e4m3fn),
        "attn.in_proj_weight": torch.ones(96, 32),
        "attn.out_proj.weight": torch.ones(32, 32),
    }
    found = of(select(checkpoint(tmp_path, tensors)))
    assert found.keys() == {"a", "small", "packed", "eight", "attn.out_proj"}
    assert found["a"] is None
    assert "fewer than 16" in str(found["small"])
    assert "stored as int32" in str(found["packed"])
    assert "stored as float8_e4m3fn" in str(found["eight"])
    assert "MultiheadAttention reads its weight" in str(found["attn.out_proj"])


def test_heads_on_request(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, {"lm_head.weight": torch.ones(32, 32)})
    assert of(select(source, skip_heads=False)) == {"lm_head": None}


def test_where(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, {f"{n}.weight": torch.ones(32, 32) for n in ("a.up", "a.down", "b.up", "lm_head")})
    assert [m.name for m in select(source, "*.up") if m.reason is None] == ["a.up", "b.up"]
    assert [m.name for m in select(source, ["a.up", "*.down"]) if m.reason is None] == ["a.down", "a.up"]
    with pytest.raises(ValueError, match=r"where='\*\.upp' matches none of the 3 matrices.*'[ab]\.up'"):
        select(source, "*.upp")
    with pytest.raises(ValueError, match="where='lm_head' matches none"):
        select(source, "lm_head")


GPT = {
    "h.0.attn.c_attn.weight": torch.ones(32, 96),
    "h.0.attn.c_attn.bias": torch.ones(96),
    "h.0.attn.c_proj.weight": torch.ones(32, 32),
    "h.0.attn.c_proj.bias": torch.ones(32),
}


def test_stored_transposes_are_known_from_the_config(tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in GPT.items() if name.endswith("weight")}
    found = {m.name: m for m in select(checkpoint(tmp_path, weights, model_type="gpt2"))}
    assert found["h.0.attn.c_attn"].shape == (96, 32)
    assert all(m.transposed for m in found.values())
    assert not any(m.transposed for m in select(checkpoint(tmp_path, weights, model_type="llama")))


def test_stored_transposes_are_known_from_a_bias(tmp_path: Path) -> None:
    save_file(GPT, tmp_path / "gpt.safetensors")
    found = {m.name: m for m in select(Checkpoint.open(tmp_path / "gpt.safetensors"))}
    assert found["h.0.attn.c_attn"].transposed
    assert found["h.0.attn.c_proj"].transposed, "square, but the other one proves what the model is"
    assert found["h.0.attn.c_attn"].shape == (96, 32)
    straight = {"h.0.attn.c_attn.weight": torch.ones(96, 32), "h.0.attn.c_attn.bias": torch.ones(96)}
    save_file(straight, tmp_path / "straight.safetensors")
    assert not any(m.transposed for m in select(Checkpoint.open(tmp_path / "straight.safetensors")))
