"""Adam-mini: shapes of its state, Adam where every part is one weight, by hand elsewhere, and the same over shards."""

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from distributed import run_ranks
from flatwing.optim.adam_mini import AdamMini, adam_mini_direction
from flatwing.optim.block_rows import BlockRows
from flatwing.optim.blocks import classify_blocks
from flatwing.optim.blockwise import blockwise_lr
from flatwing.optim.groups import weight_decay_groups
from flatwing.optim.partition import Partition, mean_squares, partition_of
from flatwing.train import ByteLM

TINY = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
GPT = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 4}


def stepped(model: nn.Module, **settings: Any) -> AdamMini:
    optimizer = AdamMini(model, **settings)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    return optimizer


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    optimizer = stepped(model)
    return {name: tuple(optimizer.state[p]["exp_avg_sq"].shape) for name, p in model.named_parameters()}


def test_shapes_of_llama() -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**TINY, num_key_value_heads=2))
    found = {name.removeprefix("model.layers.0."): shape for name, shape in shapes(model).items()}
    assert found == {
        "model.embed_tokens.weight": (40, 1),
        "self_attn.q_proj.weight": (4, 1),
        "self_attn.k_proj.weight": (2, 1),  # grouped queries: two heads of keys
        "self_attn.v_proj.weight": (8, 1),
        "self_attn.o_proj.weight": (16, 1),
        "mlp.gate_proj.weight": (24, 1),
        "mlp.up_proj.weight": (24, 1),
        "mlp.down_proj.weight": (16, 1),
        "input_layernorm.weight": (),
        "post_attention_layernorm.weight": (),
        "model.norm.weight": (),
        "lm_head.weight": (40, 1),
    }


def test_shapes_of_fused_transposed_and_stacked_tensors() -> None:
    gpt = shapes(hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)))
    assert gpt["transformer.h.0.attn.c_attn.weight"] == (1, 4 + 4 + 16)  # stored as (in, out)
    assert gpt["transformer.h.0.mlp.c_fc.weight"] == (1, 64)
    assert gpt["transformer.h.0.attn.c_attn.bias"] == ()
    mixtral = shapes(hf.MixtralForCausalLM(hf.MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=2)))
    assert mixtral["model.layers.0.mlp.experts.gate_up_proj"] == (2, 48, 1)
    assert mixtral["model.layers.0.mlp.gate.weight"] == ()
    vit = shapes(hf.ViTForImageClassification(hf.ViTConfig(
        image_size=8, patch_size=4, **{k: v for k, v in TINY.items() if k != "vocab_size"})))  # fmt: skip
    assert vit["vit.embeddings.position_embeddings"] == (1, 5, 1)
    assert vit["vit.embeddings.patch_embeddings.projection.weight"] == (16, 1, 1, 1)


def test_every_state_has_the_shape_that_the_partition_says() -> None:
    for model in (nn.TransformerEncoderLayer(16, 4, 24), ByteLM(width=16, depth=1, heads=2), nn.Conv2d(2, 3, 3)):
        optimizer = stepped(model)
        for p, partition in optimizer.partitions.items():
            assert tuple(optimizer.state[p]["exp_avg_sq"].shape) == partition.state_shape
            assert optimizer.state[p]["exp_avg_sq"].numel() == max(1, partition.count)


def test_means_over_heads_and_rows_by_hand() -> None:
    model = nn.MultiheadAttention(4, 2)
    entry = next(e for e in classify_blocks(model) if e.name == "in_proj_weight")
    g = torch.randn(12, 4)
    (mean,) = mean_squares([(g, partition_of(entry))])
    expected = [g[0:2], g[2:4], g[4:6], g[6:8], g[8], g[9], g[10], g[11]]
    torch.testing.assert_close(mean, torch.stack([part.square().mean() for part in expected])[:, None])


def test_first_step_by_hand() -> None:
    """After one step m^ = g and v^ = mean g^2, so a row moves by lr g / rms(g of the row); decay comes before."""
    model = nn.Linear(5, 3, bias=False)
    before = model.weight.detach().clone()
    stepped(model, lr=0.1, eps=0.0, weight_decay=0.5)
    g = model.weight.grad
    expected = before * (1 - 0.1 * 0.5) - 0.1 * g / g.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(model.weight.detach(), expected)


def test_it_is_adamw_where_every_part_is_one_weight() -> None:
    first = nn.Sequential(nn.Linear(1, 7), nn.LayerNorm(1))  # rows of length 1, vectors of length 1
    first[0].bias = None
    second = copy.deepcopy(first)
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizers = [AdamMini(first, **settings), torch.optim.AdamW(second.parameters(), **settings)]
    for step in range(20):
        for model, optimizer in zip((first, second), optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_direction_formula() -> None:
    m, v = torch.tensor([[0.3, -0.6]]), torch.tensor([[0.04]])
    expected = (m / (1 - 0.9**3)) / ((v / (1 - 0.99**3)).sqrt() + 0.1)
    torch.testing.assert_close(adam_mini_direction(m, v, 3, (0.9, 0.99), 0.1), expected)


def test_memory_is_half_of_adams() -> None:
    model = ByteLM(width=64, depth=2)
    state = stepped(model).state.values()
    numbers = sum(entry["exp_avg"].numel() + entry["exp_avg_sq"].numel() for entry in state)
    assert numbers < 1.02 * sum(p.numel() for p in model.parameters())


def test_groups_with_their_own_settings() -> None:
    model = ByteLM(width=16, depth=1, heads=2)
    optimizer = AdamMini(weight_decay_groups(model, 0.1), lr=1e-3, blocks=classify_blocks(model))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["param_names"][0] == "embed.weight"


def test_blocks_at_their_own_rates() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16)
    blocks = classify_blocks(model)
    groups = blockwise_lr(model, 1e-3, fused="rows")
    optimizer = BlockRows(AdamMini(groups, eps=0.0, weight_decay=0.0, blocks=blocks), blocks)
    before = model.self_attn.in_proj_weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = (before - model.self_attn.in_proj_weight.detach())[:, 0]
    torch.testing.assert_close(moved, torch.tensor([8e-3] * 16 + [4e-3] * 8), rtol=1e-3, atol=0)


def test_half_precision_keeps_the_second_moment_in_float32_through_a_checkpoint() -> None:
    model = nn.Linear(8, 4).to(torch.bfloat16)
    optimizer = stepped(model)
    saved = copy.deepcopy(optimizer.state_dict())
    other = AdamMini(model)
    other.load_state_dict(saved)
    for p in model.parameters():
        assert other.state[p]["exp_avg"].dtype == torch.bfloat16
        assert other.state[p]["exp_avg_sq"].dtype == torch.float32
        assert torch.equal(other.state[p]["exp_avg_sq"], optimizer.state[p]["exp_avg_sq"])


def test_float16_gradients_do_not_overflow() -> None:
    model = nn.Linear(4, 2, bias=False).half()
    optimizer = AdamMini(model, lr=0.5, weight_decay=0.0)
    before = model.weight.detach().clone()
    model.weight.grad = torch.full_like(model.weight, 3e4)  # its square is no float16
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before - 0.5, rtol=0, atol=2e-3)


def test_pickle_and_copy_go_on() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16)
    optimizer = stepped(model)
    copied, twin = pickle.loads(pickle.dumps((optimizer, model)))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    copied.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_refusals() -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=r"blocks is None\. Rule: heads and rows must be known\. Pass the model"):
        AdamMini(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"a parameter of shape \(3, 3\) is in no block"):
        AdamMini([nn.Parameter(torch.zeros(3, 3))], blocks=classify_blocks(model))
    for name, value in [("lr", -1.0), ("eps", float("nan")), ("weight_decay", float("inf"))]:
        with pytest.raises(ValueError, match=rf"{name} is {value}\. Rule: a number, at least 0"):
            AdamMini(model, **{name: value})
    with pytest.raises(ValueError, match=r"betas is \(0\.9, 1\.0\)\. Rule: two numbers in \[0, 1\)"):
        AdamMini(model, betas=(0.9, 1.0))
    spectrum = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(2, dtype=torch.complex64))})
    with pytest.raises(ValueError, match=r"bias is complex\. Rule: real"):
        AdamMini(spectrum)
    with pytest.raises(ValueError, match=r"bias is complex\. Rule: real"):
        AdamMini(spectrum.parameters(), blocks=classify_blocks(spectrum))
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = AdamMini(table)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"the gradient of weight has layout torch\.sparse_coo\. Rule: dense"):
        optimizer.step()


def test_a_state_of_other_heads_is_refused() -> None:
    def attention(heads: int) -> AdamMini:
        return stepped(nn.MultiheadAttention(8, heads))

    with pytest.raises(ValueError, match=r"in_proj_weight has shape \(12, 1\) in the state and \(16, 1\) here"):
        attention(4).load_state_dict(attention(2).state_dict())
    same = attention(2)
    same.load_state_dict(attention(2).state_dict())


class Net(nn.Module):
    """Heads, fused rows, plain rows, a table, vectors; sizes that 2 ranks and 3 do not divide."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Embedding(7, 6)
        self.attention = nn.MultiheadAttention(6, 3, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.up, self.head = nn.Linear(6, 5), nn.Linear(5, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.head(torch.relu(self.up(x)))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, steps: int = 4) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()


TOKENS = torch.arange(12 * 4).reshape(12, 4) * 5 % 7


def one_process(steps: int = 4) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    model = Net()
    optimizer = AdamMini(model, lr=0.01)
    train(model, optimizer, TOKENS, steps)
    return [p.detach() for p in model.parameters()], [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]


def fsdp_rank(rank: int, world: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    model = Net()
    fully_shard(model)
    optimizer = AdamMini(model, lr=0.01)
    mine = TOKENS.chunk(world)[rank]
    train(model, optimizer, mine, 2)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    optimizer = AdamMini(model, lr=0.01)
    set_optimizer_state_dict(model, optimizer, saved)
    train(model, optimizer, mine, 2)
    seconds = [optimizer.state[p]["exp_avg_sq"] for p in model.parameters()]
    return (
        [p.full_tensor().detach() for p in model.parameters()],
        [s.full_tensor() if hasattr(s, "full_tensor") else s for s in seconds],
    )


def test_fsdp_is_one_process() -> None:
    whole, seconds = one_process()
    for ranks in run_ranks(fsdp_rank, 3):
        for p, q in zip(whole, ranks[0], strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
        for p, q in zip(seconds, ranks[1], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-9)


def column_rank(rank: int, world: int) -> tuple[list[torch.Tensor], list[str]]:
    """The same step with every matrix cut by columns, or held whole, on each rank."""
    mesh = init_device_mesh("cpu", (world,))
    results = []
    for by in (Shard(1), Replicate()):
        model = Net()
        gradients = [torch.randn_like(p) for p in model.parameters()]
        for name, p in list(model.named_parameters()):
            *path, leaf = name.split(".")
            placement = by if p.ndim == 2 else Replicate()
            cut = nn.Parameter(distribute_tensor(p.detach(), mesh, [placement]))
            setattr(model.get_submodule(".".join(path)), leaf, cut)
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = distribute_tensor(g, mesh, p.placements)
        AdamMini(model, lr=0.1).step()
        results += [p.full_tensor().detach() for p in model.parameters()]
    experts = distribute_tensor(torch.ones(2, 4, 6), mesh, [Shard(2)])
    strided = DTensor.from_local(torch.ones(2, 6), mesh, [_StridedShard(0, split_factor=2)], run_check=False)
    messages = []
    for gradient, keep in ((experts, (0, 1)), (strided, (0,))):
        partition = Partition("mlp.experts", tuple(gradient.shape), keep, None if keep[1:] else torch.arange(4))
        try:
            mean_squares([(gradient, partition)])
        except ValueError as error:
            messages.append(str(error))
    return results, messages


def test_shards_by_column_are_reduced() -> None:
    (first, messages), (second, _) = run_ranks(column_rank, 2)
    count = len(list(Net().parameters()))
    for p, q in zip(first[:count], first[count:], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
    assert messages[0].startswith(
        "mlp.experts of shape (2, 4, 6) is sharded inside its rows. Rule: along dimension 0 or 1"
    )
    assert messages[1].startswith("mlp.experts is placed as _StridedShard")
    assert len(messages) == 2


def test_named_parameters_have_a_number_per_row_and_no_heads() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    optimizer = AdamMini(layer.named_parameters(), lr=1e-3)
    layer(torch.ones(1, 3, 8)).square().mean().backward()
    optimizer.step()
    shapes = {name: tuple(optimizer.state[p]["exp_avg_sq"].shape) for name, p in layer.named_parameters()}
    assert shapes["self_attn.in_proj_weight"] == (24, 1)
    assert shapes["linear1.weight"] == (16, 1)
    assert shapes["linear1.bias"] == shapes["norm1.weight"] == ()
    assert optimizer.param_groups[0]["param_names"] == list(shapes)
