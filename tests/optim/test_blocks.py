"""Every parameter is in one block: of networks as others write them, wrapped, tied, fused, frozen."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from flatwing.nn import StructuredLinear
from flatwing.optim.blocks import BLOCKS, Blocks, classify_blocks
from flatwing.structure import Chain
from flatwing.train import MODELS, ByteLM

TINY = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
GQA = {**TINY, "num_key_value_heads": 2}
GPT = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 4}
IMAGE = {"image_size": 8, "patch_size": 4}
VIT = {k: v for k, v in TINY.items() if k != "vocab_size"} | IMAGE


class Timm(nn.Module):
    """The names and shapes of timm's vision transformer, which is not installed here."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 5, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 4)
        block, attn, mlp, scale = nn.Module(), nn.Module(), nn.Module(), nn.Module()
        attn.num_heads = heads
        attn.qkv, attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        mlp.fc1, mlp.fc2 = nn.Linear(width, 24), nn.Linear(24, width)
        scale.gamma = nn.Parameter(torch.ones(width))
        block.norm1, block.attn, block.ls1, block.norm2, block.mlp = (
            nn.LayerNorm(16),
            attn,
            scale,
            nn.LayerNorm(16),
            mlp,
        )
        self.blocks = nn.Sequential(block)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)


# what each block must hold, counted by hand from the shapes: width 16, 24 inside, 40 words, 4 heads of 4
EXPECTED = {
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)),
             {"emb": 56 * 16, "norm": 6 * 16, "qk": 2 * 272, "vo": 2 * 272, "ffn": 2 * 1024 + 80}),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GQA)),
              {"emb": 640, "head": 640, "norm": 48, "qk": 24 * 16, "vo": 24 * 16, "ffn": 3 * 384}),
    "mixtral": (lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GQA, num_local_experts=2)),
                {"emb": 640, "head": 640, "norm": 48, "qk": 384, "vo": 384, "ffn": 2 * 3 * 384, "other": 32}),
    "qwen3-moe": (lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**GQA, moe_intermediate_size=8, num_experts=2, num_experts_per_tok=1)),
        {"emb": 640, "head": 640, "norm": 56, "qk": 384, "vo": 384, "ffn": 2 * 3 * 128, "other": 32}),
    "bert": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**TINY, max_position_embeddings=16)),
             {"emb": 58 * 16, "head": 272 + 34, "norm": 6 * 16, "qk": 2 * 272, "vo": 2 * 272, "ffn": 2 * 384 + 40}),
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT)),
            {"emb": 16 + 80 + 784, "head": 34, "norm": 96, "qk": 544, "vo": 544, "ffn": 808}),
    "phi3": (lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GQA, pad_token_id=0)),
             {"emb": 640, "head": 640, "norm": 48, "qk": 384, "vo": 384, "ffn": 3 * 384}),
    "neox": (lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TINY)),
             {"emb": 640, "head": 640, "norm": 96, "qk": 544, "vo": 544, "ffn": 808}),
    "t5": (lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)),
        {"emb": 640, "norm": 7 * 16, "qk": 6 * 256, "vo": 6 * 256, "ffn": 4 * 384, "other": 256}),
    "encoder": (lambda: nn.TransformerEncoderLayer(16, 4, 24), {"norm": 64, "qk": 544, "vo": 544, "ffn": 808}),
    "attention": (lambda: nn.MultiheadAttention(16, 4, kdim=8, vdim=8, add_bias_kv=True),
                  {"qk": 256 + 128 + 32 + 16, "vo": 128 + 16 + 16 + 272}),
    "timm": (Timm, {"emb": 16 + 80 + 784, "head": 51, "norm": 96, "qk": 544, "vo": 544, "ffn": 808, "other": 16}),
    "byte-lm": (lambda: ByteLM(width=16, depth=2, heads=4, vocab=40),
                {"emb": 640, "head": 640, "norm": 80, "qk": 1024, "vo": 1024, "ffn": 4096}),
}  # fmt: skip


def parts(blocks: Blocks) -> dict[str, list[tuple[str, int, int, int | None]]]:
    return {e.name: [(p.block, p.start, p.stop, p.heads) for p in e.parts] for e in blocks}


@pytest.mark.parametrize("name", EXPECTED)
def test_counts(name: str) -> None:
    make, expected = EXPECTED[name]
    model = make()
    blocks = classify_blocks(model)
    assert blocks.counts == {block: expected.get(block, 0) for block in BLOCKS}
    assert [id(e.parameter) for e in blocks] == [id(p) for p in model.parameters()]  # total, once, in order
    for entry in blocks:
        bounds = [0, *(part.stop for part in entry.parts)]
        assert [part.start for part in entry.parts] == bounds[:-1]
        assert bounds[-1] == entry.parameter.shape[entry.dim]


@pytest.mark.parametrize("name", MODELS)
def test_our_models(name: str) -> None:
    model = MODELS[name]()
    blocks = classify_blocks(model)
    assert sum(blocks.counts.values()) == sum(p.numel() for p in model.parameters())
    assert all(isinstance(model.get_submodule(e.name.rsplit(".", 1)[0]), nn.Conv2d) for e in blocks["other"])
    assert blocks.counts["head"] == sum(p.numel() for key, p in model.named_parameters() if "head." in key)


def test_our_decoder_with_grouped_queries_and_tied_tables() -> None:
    blocks = classify_blocks(MODELS["llama"](width=16, depth=1, heads=4, kv_heads=2, tied=True))
    assert {p.heads for e in blocks["qk"] for p in e.parts} == {4, 2}
    assert [e.aliases for e in blocks["emb"]] == [("lm_head.weight",)]
    assert blocks["head"] == ()


def test_rows_of_fused_projections() -> None:
    def rows(name: str, key: str) -> list[tuple[str, int, int, int | None]]:
        return parts(classify_blocks(EXPECTED[name][0]()))[key]

    thirds = [("qk", 0, 16, 4), ("qk", 16, 32, 4), ("vo", 32, 48, None)]
    assert rows("gpt2", "transformer.h.0.attn.c_attn.weight") == thirds
    assert rows("gpt2", "transformer.h.0.attn.c_attn.bias") == thirds
    assert rows("encoder", "self_attn.in_proj_weight") == thirds
    assert rows("timm", "blocks.0.attn.qkv.weight") == thirds
    grouped = [("qk", 0, 16, 4), ("qk", 16, 24, 2), ("vo", 24, 32, None)]
    assert rows("phi3", "model.layers.0.self_attn.qkv_proj.weight") == grouped
    first = [("qk", 0, 4, 1), ("qk", 4, 8, 1), ("vo", 8, 12, None)]
    assert rows("neox", "gpt_neox.layers.0.attention.query_key_value.weight")[:3] == first
    assert rows("llama", "model.layers.0.self_attn.q_proj.weight") == [("qk", 0, 16, 4)]
    assert rows("llama", "model.layers.0.self_attn.k_proj.weight") == [("qk", 0, 8, 2)]
    assert rows("llama", "model.layers.0.self_attn.v_proj.weight") == [("vo", 0, 8, None)]


def test_rows_say_what_the_model_computes() -> None:
    """The rows that are called queries and keys of GPT-2 and GPT-NeoX are those that move the attention weights."""
    for name, path in [
        ("gpt2", "transformer.h.0.attn.c_attn"),
        ("neox", "gpt_neox.layers.0.attention.query_key_value"),
    ]:
        model = EXPECTED[name][0]().eval()
        model.set_attn_implementation("eager")
        tokens = torch.arange(6)[None]
        entry = next(e for e in classify_blocks(model) if e.name == f"{path}.weight")
        with torch.no_grad():
            entry.parameter.normal_()
            before = model(tokens, output_attentions=True).attentions[0]
            moved = {}
            for block in entry.blocks:
                other = copy.deepcopy(model)
                weight = other.get_parameter(entry.name)
                for part in entry.parts:
                    if part.block == block:
                        weight.narrow(entry.dim, part.start, part.stop - part.start).mul_(1.5)
                moved[block] = not torch.equal(other(tokens, output_attentions=True).attentions[0], before)
        assert moved == {"qk": True, "vo": False}


def test_conv1d_stores_the_transpose() -> None:
    entry = next(e for e in classify_blocks(EXPECTED["gpt2"][0]()) if e.name.endswith("c_attn.weight"))
    assert entry.dim == 1
    assert entry.fused
    assert entry.count("qk") == 512
    assert entry.count("ffn") == 0
    with pytest.raises(ValueError, match=r"holds rows of qk, vo\. Rule: one block"):
        _ = entry.block


def test_tied_tables_are_one_embedding() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head, self.embed = nn.Linear(4, 6, bias=False), nn.Embedding(6, 4)
            self.lm_head.weight = self.embed.weight

    (entry,) = classify_blocks(HeadFirst())
    assert (entry.block, entry.name, entry.aliases) == ("emb", "embed.weight", ("lm_head.weight",))
    assert "tied: embed.weight is also lm_head.weight" in str(classify_blocks(HeadFirst()))


def test_wrappers_do_not_change_the_answer() -> None:
    model = ByteLM(width=16, depth=1, heads=2, vocab=40)
    bare = parts(classify_blocks(model))
    assert parts(classify_blocks(nn.DataParallel(model))) == bare
    assert parts(classify_blocks(torch.compile(model, backend="eager"))) == bare
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    assert parts(classify_blocks(model)) == bare


def test_a_module_called_module_keeps_its_name() -> None:
    model = nn.Module()
    model.module, model.head = nn.Linear(2, 2), nn.Linear(2, 2)
    assert [e.name for e in classify_blocks(model)] == ["module.weight", "module.bias", "head.weight", "head.bias"]


def test_structured_layers_are_in_the_block_of_their_place() -> None:
    model = ByteLM(width=16, depth=1, heads=2, vocab=40)
    model.blocks[0].q = StructuredLinear(Chain.butterfly(16))
    model.blocks[0].o = StructuredLinear(Chain.butterfly(16))
    model.blocks[0].up = StructuredLinear(Chain.monarch(64, 16, 4))
    found = {e.name: e.block for e in classify_blocks(model)}
    assert {name.split(".")[2]: block for name, block in found.items() if "factors" in name} == {
        "q": "qk", "o": "vo", "up": "ffn",
    }  # fmt: skip
    heads = {part.heads for e in classify_blocks(model)["qk"] if "q.factors" in e.name for part in e.parts}
    assert heads == {None}  # rows of a factor are not rows of the matrix


def test_frozen_parameters_are_in_no_block() -> None:
    model = ByteLM(width=16, depth=1, heads=2, vocab=40)
    model.embed.requires_grad_(False)
    blocks = classify_blocks(model)
    assert blocks["emb"] == ()
    assert blocks.frozen == 640
    assert "frozen" in str(blocks)
    assert not classify_blocks(model, [("embed", "emb")])["emb"]  # the rule matches: no error


def test_rules_come_first_and_in_order() -> None:
    model = ByteLM(width=16, depth=2, heads=2, vocab=40)
    found = {e.name: e for e in classify_blocks(model, [(r"\.0\.q\.", "other"), (r"\.q\.", "vo")])}
    assert found["blocks.0.q.weight"].block == "other"
    assert found["blocks.1.q.weight"].block == "vo"
    assert found["blocks.1.k.weight"].block == "qk"
    assert found["blocks.0.q.weight"].reason == r"rule '\\.0\\.q\\.'"


def test_rules_may_say_how_a_fused_projection_lies() -> None:
    model = nn.Module()
    model.num_heads = 2
    model.c_attn = nn.Linear(8, 24)
    built_in = parts(classify_blocks(model))["c_attn.weight"]
    assert built_in == [("qk", 0, 8, 2), ("qk", 8, 16, 2), ("vo", 16, 24, None)]
    mine = parts(classify_blocks(model, [("c_attn", "qkv-per-head")]))["c_attn.weight"]
    assert mine[:3] == [("qk", 0, 4, 1), ("qk", 4, 8, 1), ("vo", 8, 12, None)]


def test_refusals() -> None:
    model = ByteLM(width=16, depth=1, heads=2, vocab=40)
    with pytest.raises(ValueError, match=r"rule 'embd' matched no parameter.*Names look like embed.weight"):
        classify_blocks(model, [("embd", "emb")])
    with pytest.raises(ValueError, match=r"rule 'head' matched no parameter"):  # an earlier rule took it
        classify_blocks(model, [("ea", "head"), ("head", "head")])
    with pytest.raises(ValueError, match=r"unknown block 'embed'. Did you mean 'emb'\?"):
        classify_blocks(model, [("embed", "embed")])
    with pytest.raises(ValueError, match=r"unknown block 'mlp'"):
        _ = classify_blocks(model)["mlp"]
    model.mystery = nn.Parameter(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"mystery of shape \(3, 5\) in a ByteLM matches no rule.*rules=\[\('mystery'"):
        classify_blocks(model)
    assert classify_blocks(model, [("mystery", "ffn")]).counts["ffn"] == 2048 + 15
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet"):
        classify_blocks(nn.Sequential(nn.LazyLinear(3)))


def test_an_unknown_matrix_of_attention_is_refused() -> None:
    model = nn.Module()
    model.attn = nn.Module()
    model.attn.q_proj, model.attn.k_proj, model.attn.latent = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"attn.latent.weight .* matches no rule"):
        classify_blocks(model)


def test_fused_rows_that_cannot_be_told_apart_are_refused() -> None:
    model = nn.Module()
    model.attn = nn.Module()
    model.attn.qkv = nn.Linear(8, 20)
    with pytest.raises(ValueError, match=r"attn.qkv.weight of shape \(20, 8\) is a fused projection of unknown rows"):
        classify_blocks(model)
    model.attn.num_heads, model.attn.num_kv_heads = 8, 1
    assert parts(classify_blocks(model))["attn.qkv.weight"] == [
        ("qk", 0, 16, 8),
        ("qk", 16, 18, 1),
        ("vo", 18, 20, None),
    ]
    model.attn.num_heads, model.attn.num_kv_heads = 4, 4
    model.attn.qkv = StructuredLinear(Chain.monarch(24, 8, 4))
    with pytest.raises(
        ValueError, match=r"attn.qkv.factors.0 .* is a fused projection .*rules=\[\('attn\\\\.qkv', 'vo'\)"
    ):
        classify_blocks(model)


def test_report() -> None:
    table = str(classify_blocks(EXPECTED["gpt2"][0]()))
    assert "emb               896   21.3%  2: transformer.wte.weight, transformer.wpe.weight" in table
    assert "split by rows: transformer.h.0.attn.c_attn.weight into qk, vo" in table
    assert "head" not in table.splitlines()[1]
    assert str(classify_blocks(nn.Module())) == "block      parameters   share  tensors"
