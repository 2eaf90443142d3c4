"""Blockwise learning rates: exact ratios, one floor, rows of fused tensors, what measured ratios rest on."""

import copy
import math
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.distributed.fsdp import fully_shard

from distributed import run_ranks
from flatwing.data.corpus import python_sources, windows
from flatwing.optim import muon_groups
from flatwing.optim.block_rows import BlockRows
from flatwing.optim.block_schedule import blockwise_factor, blockwise_schedule
from flatwing.optim.blocks import classify_blocks
from flatwing.optim.blockwise import PUBLISHED, blockwise_lr
from flatwing.optim.sharpness import block_sharpness, ratios_of
from flatwing.train import ByteLM

ONES = dict.fromkeys(PUBLISHED, 1.0)
GPT = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 4}


def lm() -> ByteLM:
    torch.manual_seed(1)
    return ByteLM(width=16, depth=1, heads=2, vocab=40)


def gpt2() -> nn.Module:
    torch.manual_seed(2)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**GPT, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, times: int = 1) -> None:
    for k in range(times):
        generator = torch.Generator().manual_seed(k)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_groups_cover_the_model_with_exact_ratios() -> None:
    model = lm()
    groups = blockwise_lr(model, 1e-3, weight_decay=0.1)
    assert {g["block"]: (g["ratio"], g["lr"]) for g in groups} == {
        block: (PUBLISHED[block], PUBLISHED[block] * 1e-3) for block in ("emb", "qk", "vo", "ffn", "norm", "head")
    }
    assert {g["weight_decay"] for g in groups} == {0.1}
    params = [p for g in groups for p in g["params"]]
    assert len(params) == len(set(params)) == len(list(model.parameters()))
    for group in groups:
        assert [dict(model.named_parameters())[name] for name in group["param_names"]] == group["params"]


def test_published_ratios_are_those_of_the_paper() -> None:
    assert PUBLISHED == {"emb": 10, "qk": 8, "ffn": 6, "vo": 4, "norm": 1, "head": 1, "other": 1}


def test_ratios_of_one_are_one_group_bit_for_bit() -> None:
    for make in (torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam):
        bare, split = gpt2(), gpt2()
        step(bare, make(bare.parameters(), lr=1e-2), 3)
        step(split, BlockRows(make(blockwise_lr(split, 1e-2, ONES)), split), 3)
        assert all(torch.equal(p, q) for p, q in zip(bare.parameters(), split.parameters(), strict=True))


def test_decoupled_weight_decay_is_the_same_in_every_block() -> None:
    groups = blockwise_lr(lm(), 1e-3, weight_decay=0.1, decouple_wd=True)
    assert [g["lr"] * g["weight_decay"] for g in groups] == pytest.approx([1e-4] * len(groups), rel=1e-12)
    with pytest.raises(ValueError, match=r"decouple_wd needs weight_decay"):
        blockwise_lr(lm(), 1e-3, decouple_wd=True)


def test_what_muon_leaves_over() -> None:
    model = lm()
    _, rest = muon_groups(model)
    groups = blockwise_lr(model, 1e-3, params=rest[0]["params"])
    assert {g["block"] for g in groups} == {"emb", "norm", "head"}
    assert sum(len(g["params"]) for g in groups) == len(rest[0]["params"])
    with pytest.raises(ValueError, match=r"params has one of shape \(2,\) that is not in the model"):
        blockwise_lr(model, 1e-3, params=[nn.Parameter(torch.zeros(2))])


def test_fused_tensors_are_refused_unless_told_how() -> None:
    with pytest.raises(ValueError, match=r"c_attn.weight holds rows of qk \(ratio 8\), vo \(ratio 4\).*fused='rows'"):
        blockwise_lr(gpt2(), 1e-3)
    (small,) = [g for g in blockwise_lr(gpt2(), 1e-3, fused="min") if g["block"] == "qk+vo"]
    assert (small["ratio"], small["lr"]) == (4.0, 4e-3)
    assert "row_blocks" not in small
    (rows,) = [g for g in blockwise_lr(gpt2(), 1e-3, fused="rows") if g["block"] == "qk+vo"]
    assert (rows["lr"], rows["row_blocks"], rows["row_ratios"], rows["row_scales"]) == (
        8e-3, ("qk", "vo"), (8.0, 4.0), (1.0, 0.5),
    )  # fmt: skip
    same = blockwise_lr(gpt2(), 1e-3, {**PUBLISHED, "vo": 8.0})
    assert next(g for g in same if g["block"] == "qk+vo")["ratio"] == 8.0
    with pytest.raises(ValueError, match=r"rows cannot decay at rates of their own\. Write fused='min'"):
        blockwise_lr(gpt2(), 1e-3, weight_decay=0.1, decouple_wd=True, fused="rows")


def test_rows_of_a_fused_tensor_are_trained_as_if_it_were_split() -> None:
    """AdamW works entry by entry, so GPT-2 with rows at two rates equals two optimizers on the rows' copies."""
    model = gpt2()
    optimizer = BlockRows(torch.optim.AdamW(blockwise_lr(model, 1e-3, weight_decay=0.1, fused="rows")), model)
    weight = model.transformer.h[0].attn.c_attn.weight
    halves = [nn.Parameter(weight[:, :32].detach().clone()), nn.Parameter(weight[:, 32:].detach().clone())]
    split = torch.optim.AdamW(
        [{"params": halves[:1], "lr": 8e-3}, {"params": halves[1:], "lr": 4e-3}], weight_decay=0.1
    )
    for k in range(5):
        step(model, optimizer)
        halves[0].grad, halves[1].grad = weight.grad[:, :32], weight.grad[:, 32:]
        split.step()
        assert torch.equal(weight[:, :32], halves[0]), k  # scale 1: untouched
        torch.testing.assert_close(weight[:, 32:], halves[1], rtol=1e-6, atol=1e-7)


def test_rows_that_do_not_fit_the_model_are_refused() -> None:
    groups = blockwise_lr(gpt2(), 1e-3, fused="rows")
    with pytest.raises(ValueError, match=r"row_blocks \('qk', 'vo'\) for a tensor of shape \(16, 48\) .* no bl"):
        BlockRows(torch.optim.AdamW(groups), lm())


def test_schedule_has_exact_peaks_and_one_floor() -> None:
    for shape in ("cosine", "wsd"):
        model = lm()
        optimizer = torch.optim.AdamW(blockwise_lr(model, 1e-3))
        schedule = blockwise_schedule(optimizer, 40, warmup=5, shape=shape)
        rates = []
        for _ in range(40):
            rates.append([group["lr"] for group in optimizer.param_groups])
            step(model, optimizer)
            schedule.step()
        ratios = [group["ratio"] for group in optimizer.param_groups]
        assert [max(column) for column in zip(*rates, strict=True)] == [r * 1e-3 for r in ratios]
        assert rates[4] == rates[5] == [r * 1e-3 for r in ratios]
        assert rates[0] == pytest.approx([r * 2e-4 for r in ratios], rel=1e-12)
        assert rates[-1] == pytest.approx([5e-5] * len(ratios), rel=1e-12)
        for column in zip(*rates[5:], strict=True):
            assert list(column) == sorted(column, reverse=True)


def test_factor_by_hand() -> None:
    # ratio 10 falls from 1 to 0.05 / 10; half way down the cosine it is half way between
    assert blockwise_factor(50, 10.0, 101) == pytest.approx((1 + 0.005) / 2)
    assert blockwise_factor(75, 1.0, 101) == pytest.approx(0.05 + 0.95 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert [blockwise_factor(k, 1.0, 300, shape="wsd") for k in (100, 200)] == [1.0, 1.0]
    assert blockwise_factor(249, 1.0, 300, shape="wsd") == pytest.approx(0.05 + 0.95 * 50 / 99)
    assert blockwise_factor(999, 2.0, 100) == 0.025
    assert blockwise_factor(99, 0.01, 100) == 1.0  # a floor above the peak is the peak


def test_schedule_moves_rows_to_the_common_floor_and_resumes() -> None:
    model = gpt2()
    optimizer = BlockRows(torch.optim.AdamW(blockwise_lr(model, 1e-3, fused="rows")), model)
    schedule = blockwise_schedule(optimizer, 10, warmup=2)
    group = next(g for g in optimizer.param_groups if g["block"] == "qk+vo")
    seen = []
    for k in range(10):
        seen.append([group["lr"] * scale for scale in group["row_scales"]])
        expected = [r * 1e-3 * blockwise_factor(k, r, 10, warmup=2) for r in (8.0, 4.0)]
        assert seen[-1] == pytest.approx(expected, rel=1e-12)
        step(model, optimizer)
        schedule.step()
        if k == 4:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    assert seen[-1] == pytest.approx([5e-5, 5e-5], rel=1e-9)

    other = gpt2()
    resumed = BlockRows(torch.optim.AdamW(blockwise_lr(other, 1e-3, fused="rows")), other)
    again = blockwise_schedule(resumed, 10, warmup=2)
    for what, state in zip((other, resumed, again), saved, strict=True):
        what.load_state_dict(state)
    for _ in range(5, 10):
        step(other, resumed)
        again.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_schedules_of_torch_keep_the_ratios() -> None:
    optimizer = torch.optim.AdamW(blockwise_lr(lm(), 1e-3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(4):
        optimizer.step()
        schedule.step()
    rates = [group["lr"] / group["ratio"] for group in optimizer.param_groups]
    assert rates == pytest.approx([rates[0]] * len(rates), rel=1e-12)


def test_schedule_refuses() -> None:
    optimizer = torch.optim.AdamW(blockwise_lr(lm(), 1e-3))
    with pytest.raises(ValueError, match=r"warmup is 10 of 10 steps\. Rule: 0 <= warmup < steps"):
        blockwise_schedule(optimizer, 10, warmup=10)
    with pytest.raises(ValueError, match=r"floor is 2\.0\. Rule: a number from 0 to 1"):
        blockwise_schedule(optimizer, 10, floor=2.0)
    with pytest.raises(ValueError, match=r"shape is 'line'\. Known: 'cosine', 'wsd'"):
        blockwise_schedule(optimizer, 10, shape="line")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, r"lr is -1\.0\. Rule: a number, at least 0"),
        ({"weight_decay": float("nan")}, r"weight_decay is nan"),
        ({"ratios": "papers"}, r"ratios is 'papers'\. Rule: 'published', 'measured', or a mapping"),
        ({"ratios": "measured"}, r"needs a batch\. Pass forward=lambda"),
        ({"ratios": {**ONES, "attention": 1.0}}, r"ratios has the block 'attention'\. Known: emb, qk"),
        ({"ratios": {**ONES, "ffn": 0.0}}, r"the ratio of ffn is 0\.0\. Rule: a number, above 0.*Or freeze the block"),
        ({"ratios": {"emb": 2.0}}, r"ratios has no head, norm, qk, vo, ffn\. Rule: every block.*head\.weight"),
        ({"fused": "max"}, r"fused is 'max'\. Known: 'refuse', 'min', 'rows'"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blockwise_lr(lm(), **{"lr": 1e-3, **settings})


def test_sharpness_is_the_gauss_newton_diagonal() -> None:
    """Softmax regression: the diagonal is x_j^2 p_k (1 - p_k), averaged over the batch; its mean is known exactly."""
    model, x = nn.Linear(3, 4, bias=False), torch.randn(6, 3)
    p = model(x).softmax(-1).detach()
    exact = (x.square()[:, None, :] * (p * (1 - p))[:, :, None]).mean(0).mean().item()
    found = block_sharpness(model, lambda: model(x), draws=400)
    assert found.error["ffn"] is not None
    assert abs(found.mean["ffn"] - exact) < 4 * found.error["ffn"]
    assert 0 < found.error["ffn"] < 0.1 * exact
    assert found.draws == 400
    assert block_sharpness(model, lambda: model(x), draws=1).error == {"ffn": None}


def test_rows_of_a_fused_tensor_are_counted_in_their_blocks() -> None:
    model, tokens = gpt2(), torch.arange(16)[None] % 40
    found = block_sharpness(model, lambda: model(tokens).logits, draws=2, seed=3).mean
    from flatwing.optim.curvature import sampled_diagonal

    totals = dict.fromkeys(("qk", "vo"), 0.0)
    for k in range(2):
        names = [name for name, _ in model.named_parameters()]
        diagonal = dict(zip(names, sampled_diagonal(lambda: model(tokens).logits, model.parameters(), seed=3, step=k),
                            strict=True))  # fmt: skip
        attention = "transformer.h.0.attn."
        weight, bias = diagonal[f"{attention}c_attn.weight"], diagonal[f"{attention}c_attn.bias"]
        rest = diagonal[f"{attention}c_proj.weight"].sum() + diagonal[f"{attention}c_proj.bias"].sum()
        totals["qk"] += (weight[:, :32].sum() + bias[:32].sum()).item() / 2 / 544
        totals["vo"] += (weight[:, 32:].sum() + bias[32:].sum() + rest).item() / 2 / 544
    assert found["qk"] == pytest.approx(totals["qk"], rel=1e-5)
    assert found["vo"] == pytest.approx(totals["vo"], rel=1e-5)


def test_measured_ratios_are_those_of_the_sharpness() -> None:
    model, tokens = lm(), torch.arange(32).reshape(2, 16) % 40

    def forward() -> torch.Tensor:
        return model(tokens)

    expected = ratios_of(block_sharpness(model, forward).mean)
    groups = blockwise_lr(model, 1e-3, "measured", forward=forward)
    assert {g["block"]: g["ratio"] for g in groups} == expected
    assert min(expected.values()) == 1.0


def test_rule_of_the_ratios() -> None:
    assert ratios_of({"a": 4.0, "b": 1.0, "c": 1e-9}) == {"a": 1.0, "b": 2.0, "c": 10.0}
    assert ratios_of({"a": 4.0, "b": 1.0}, exponent=1.0, cap=3.0) == {"a": 1.0, "b": 3.0}
    printed = {"emb": 8.5e-7, "qk": 1.5e-6, "ffn": 2.9e-6, "vo": 5.5e-6, "norm": 3.1e-5}
    assert {block: round(r, 1) for block, r in ratios_of(printed).items()} == {
        "emb": 6.0, "qk": 4.5, "ffn": 3.3, "vo": 2.4, "norm": 1.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"sharpness is 0 in all blocks"):
        ratios_of({"a": 0.0})
    with pytest.raises(ValueError, match=r"sharpness of a is nan\. Rule: a number, at least 0"):
        ratios_of({"a": math.nan})
    with pytest.raises(ValueError, match=r"cap is 0\.5\. Rule: a number, at least 1"):
        ratios_of({"a": 1.0}, cap=0.5)
    with pytest.raises(ValueError, match=r"draws is 0"):
        block_sharpness(lm(), lambda: torch.zeros(1), draws=0)


def test_sharpness_prints_the_sharpest_block_first() -> None:
    model, tokens = lm(), torch.arange(32).reshape(2, 16) % 40
    table = str(found := block_sharpness(model, lambda: model(tokens), draws=2)).splitlines()
    assert "(2 label draws)" in table[0]
    assert table[1].split()[0] == max(found.mean, key=lambda block: found.mean[block])
    assert len(table) == 7


class Fused(nn.Module):
    """A fused projection whose 18 rows 4 ranks do not divide, and logits after it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embed = nn.Embedding(7, 6)
        # a bias of keys has no gradient but rounding, which Adam would make large
        self.attention = nn.MultiheadAttention(6, 3, bias=False, batch_first=True)
        self.head = nn.Linear(6, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return self.head(x + self.attention(x, x, x)[0])


TOKENS = torch.arange(8 * 5).reshape(8, 5) * 3 % 7


def trained(model: nn.Module, tokens: torch.Tensor, blocks: Any) -> None:
    optimizer = BlockRows(torch.optim.AdamW(blockwise_lr(model, 1e-2, fused="rows")), blocks)
    schedule = blockwise_schedule(optimizer, 6, warmup=1)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        schedule.step()


def fsdp_rank(rank: int, world: int) -> tuple[list[torch.Tensor], dict[str, float]]:
    model = Fused()
    fully_shard(model)
    mine = TOKENS.chunk(world)[rank]
    trained(model, mine, model)
    sharpness = block_sharpness(model, lambda: model(mine), draws=2)
    return [p.full_tensor().detach() for p in model.parameters()], sharpness.mean


def test_fsdp_is_one_process() -> None:
    model = Fused()
    trained(model, TOKENS, classify_blocks(model))
    ranks = run_ranks(fsdp_rank, 4)
    for found, sharpness in ranks:
        for p, q in zip(model.parameters(), found, strict=True):
            torch.testing.assert_close(p.detach(), q, rtol=0, atol=1e-5)
        assert sharpness == ranks[0][1]
        assert all(0 < value < math.inf for value in sharpness.values())


def test_blocks_of_a_language_model_differ_as_the_paper_says() -> None:
    """After a tenth of a run qk < ffn < vo and norms have sharpened; with 128 symbols the embedding is not flat."""
    config = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=128, num_key_value_heads=4, **config))
    text, generator = python_sources("train", limit_bytes=500_000).clamp(max=127), torch.Generator().manual_seed(0)
    probe = windows(text, 64, 16, generator)[:, :-1]

    def measure() -> dict[str, float]:
        return block_sharpness(model, lambda: model(probe).logits, draws=4).mean

    start = measure()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for k in range(100):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (k + 1) / 50)
        tokens = windows(text, 64, 16, generator)
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    end = measure()
    assert end["qk"] < end["ffn"] < end["vo"]
    assert end["norm"] > 4 * start["norm"]
    assert end["emb"] > end["ffn"]
    assert ratios_of(end)["qk"] > ratios_of(end)["ffn"] > ratios_of(end)["vo"]
