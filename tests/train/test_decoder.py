"""The decoder of the kind of LLaMA: transformers' own gives the same logits from the same weights."""

import pytest
import torch
from torch import nn

from flatwing.nn import linear_layers
from flatwing.optim import classify_blocks
from flatwing.train import Llama

SIZES = [
    {"kv_heads": 4, "hidden": 24, "tied": False},
    {"kv_heads": 2, "hidden": 40, "tied": False},
    {"kv_heads": 1, "hidden": 24, "tied": True},
]


@pytest.mark.parametrize("sizes", SIZES)
def test_transformers_gives_the_same_logits(sizes: dict[str, int]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = Llama(vocab=30, width=16, depth=2, heads=4, context=20, **sizes)
    for p in ours.parameters():
        nn.init.normal_(p, std=0.5)
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=sizes["kv_heads"],
        intermediate_size=sizes["hidden"],
        max_position_embeddings=20,
        rms_norm_eps=1e-5,
        tie_word_embeddings=bool(sizes["tied"]),
        attention_bias=False,
    )
    theirs = LlamaForCausalLM(config).eval()
    state = {name if name.startswith("lm_head") else f"model.{name}": p for name, p in ours.state_dict().items()}
    theirs.load_state_dict(state)
    tokens = torch.randint(30, (3, 17))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_smallest_benchmark_model_has_the_published_count() -> None:
    model = Llama(vocab=128, width=64, depth=2, heads=4, hidden=172, context=64)
    assert sum(p.numel() for p in model.parameters()) == 115_520
    assert Llama(vocab=128, width=64, depth=2, heads=4, context=64).config() == model.config()


def test_blocks_are_told_by_name() -> None:
    model = Llama(vocab=128, width=64, depth=2, heads=4, kv_heads=2)
    counts = classify_blocks(model).counts
    assert counts == {
        "emb": 128 * 64,
        "head": 128 * 64,
        "norm": 5 * 64,
        "qk": 2 * (64 * 64 + 32 * 64),
        "vo": 2 * (64 * 64 + 32 * 64),
        "ffn": 2 * 3 * 64 * 172,
        "other": 0,
    }


def test_tied_head_is_the_embedding() -> None:
    model = Llama(vocab=20, width=16, depth=1, heads=2, tied=True)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert "embed_tokens.weight" in linear_layers(model)["lm_head"].tied_to
    assert len(list(model.parameters())) == len(list(Llama(vocab=20, width=16, depth=1, heads=2).parameters())) - 1


def test_positions_count_by_their_distance() -> None:
    model = Llama(vocab=20, width=16, depth=1, heads=2, context=12)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    a, b = torch.tensor([[1, 2, 2, 3]]), torch.tensor([[2, 1, 2, 3]])
    assert not torch.allclose(model(a)[:, -1], model(b)[:, -1], atol=1e-3)


def test_initial_loss_is_that_of_a_guess() -> None:
    model = Llama(vocab=128, width=64, depth=4, heads=4)
    logits = model(torch.randint(128, (4, 30)))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(128, (120,)))
    assert abs(loss.item() - 4.852) < 0.05  # log 128
    residual = model.layers[0].mlp.down_proj.weight.std()  # type: ignore[union-attr]
    assert abs(residual.item() - 0.02 / 8**0.5) < 5e-4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 15, "heads": 4}, "heads is 4 for width 15"),
        ({"width": 12, "heads": 4}, "heads is 4 for width 12. Rule: .*even number of times"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads is 3 for 4 heads. Rule: it divides them"),
        ({"hidden": 0}, "hidden is 0. Rule: a whole number"),
        ({"kv_heads": 0}, "kv_heads is 0. Rule: a whole number"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Llama(**sizes)


def test_gradients_flow_in_half_precision() -> None:
    model = Llama(vocab=20, width=16, depth=1, heads=4, kv_heads=2)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randint(20, (2, 9))).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
