import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from typing_extensions import override

from flatwing.compress import walk as module
from flatwing.compress.batch import Batch, main_output
from flatwing.compress.trace import trace
from flatwing.compress.walk import Walk, find_trunk, record
from flatwing.nn import linear_layers
from flatwing.train import ByteLM, DigitsMLP, DigitsViT

LM, VIT = {"width": 8, "depth": 3, "heads": 2, "context": 12, "vocab": 32}, {"width": 8, "depth": 2, "heads": 2}


def tokens(rows: int = 3, length: int = 6, vocab: int = 32) -> torch.Tensor:
    return torch.randint(vocab, (rows, length))


def names_of(model: nn.Module) -> list[str]:
    return [name for name, info in linear_layers(model).items() if info.skip is None]


class Residual(nn.Module):
    """x + f(x), with more to pass on if wanted."""

    def __init__(self, width: int = 4, extra: bool = False) -> None:
        super().__init__()
        self.f, self.extra = nn.Linear(width, width), extra

    @override
    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> Any:
        y = x + self.f(x if memory is None else x + memory)
        return (y, y * 2) if self.extra else y


class Stack(nn.Module):
    """Layers in front of a trunk, the trunk, layers behind it; blocks pass one tensor on, or more, or other things."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.front = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(Residual(extra=kind == "two tensors") for _ in range(3))
        self.never = nn.Linear(4, 4)
        self.behind, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, memory = self.front(x), None
        for block in self.blocks:
            if self.kind == "two tensors":
                x, memory = block(x, memory)
                x = x + memory
            elif self.kind == "skips one" and block is self.blocks[1]:
                continue
            else:
                x = block(x)
                x = x * 2 if self.kind == "something between" else x
        return self.head(torch.relu(self.behind(x)))


@pytest.mark.parametrize(
    ("model", "inputs", "wanted"),
    [
        (ByteLM(**LM), tokens(), "blocks"),
        (DigitsViT(**VIT), torch.rand(3, 64), "blocks"),
        (DigitsMLP(width=8), torch.rand(3, 64), None),
        (Stack(), torch.rand(5, 3), "blocks"),
        (Stack("two tensors"), torch.rand(5, 3), None),
        (Stack("something between"), torch.rand(5, 3), None),
        (Stack("skips one"), torch.rand(5, 3), None),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), torch.rand(5, 3), None),
    ],
    ids=["byte-lm", "digits-vit", "digits-mlp", "plain", "two tensors", "something between", "skips one", "sequential"],
)
def test_the_trunk_is_found_by_running(model: nn.Module, inputs: torch.Tensor, wanted: str | None) -> None:
    assert find_trunk(model, names_of(model), Batch((inputs,))) == wanted


def llama(**more: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, **more,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def test_the_trunk_of_networks_of_transformers() -> None:
    one, other = llama(), bert()
    assert find_trunk(one, names_of(one), Batch((), {"input_ids": tokens(), "use_cache": False})) == "model.layers"
    mask = torch.ones(3, 6, dtype=torch.long)
    batch = Batch((), {"input_ids": tokens(), "attention_mask": mask})
    assert find_trunk(other, names_of(other), batch) == "bert.encoder.layer"


def test_segments_are_what_stands_before_the_trunk_its_blocks_and_what_stands_behind() -> None:
    model = Stack()
    walk = Walk(model, copy.deepcopy(model), names_of(model), [Batch((torch.rand(5, 3),))])
    assert walk.unused == ["never"]
    assert [(s.name, s.block, s.stages) for s in walk.segments] == [
        ("", None, (("front",),)),
        ("blocks.0", 0, (("blocks.0.f",),)),
        ("blocks.1", 1, (("blocks.1.f",),)),
        ("blocks.2", 2, (("blocks.2.f",),)),
        ("", None, (("behind",), ("head",))),
    ]


def test_layers_of_one_input_are_one_stage() -> None:
    model = ByteLM(**LM)
    walk = Walk(model, model, names_of(model), [Batch((tokens(),))])
    stages = [[[name.split(".")[-1] for name in stage] for stage in segment.stages] for segment in walk.segments]
    assert stages == [[["q", "k", "v"], ["o"], ["up"], ["down"]]] * 3 + [[["head"]]]


def test_blocks_without_layers_to_replace_are_walked_through() -> None:
    model = ByteLM(**LM)
    names = [name for name in names_of(model) if name.startswith("blocks.2.")]
    walk = Walk(model, model, names, [Batch((tokens(),))])
    assert [len(segment.stages) for segment in walk.segments] == [0, 0, 4]


def test_a_network_without_a_trunk_is_one_segment() -> None:
    model = DigitsMLP(width=8)
    walk = Walk(model, model, names_of(model), [Batch((torch.rand(3, 64),))])
    (segment,) = walk.segments
    assert segment.block is None
    assert segment.stages == (("layers.0",), ("layers.1",), ("head",))


def perturb(layer: nn.Module) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(0.7)


def check_inputs(original: nn.Module, batches: list[Batch]) -> int:
    """Swap layers on the way, as the fit does; inputs must be those of the whole networks at that moment."""
    compressed, names = copy.deepcopy(original), names_of(original)
    walk = Walk(original, compressed, names, batches)
    checked = 0
    for segment in walk:
        for stage in segment.stages:
            first, second = walk.moments(segment, stage, fitted=1)
            for found, part in ((first, batches[:1]), (second, batches[1:])):
                sums = []
                for model in (original, compressed):
                    layers = {name: model.get_submodule(name) for name in stage}
                    whole = [trace(layers, lambda m=model, b=b: b.call(m)) for b in part]
                    sums.append(whole)
                x = torch.cat([w[stage[0]].x(b.mask) for w, b in zip(sums[0], part, strict=True)]).double()
                h = torch.cat([w[stage[0]].x(b.mask) for w, b in zip(sums[1], part, strict=True)]).double()
                assert found.samples == len(x)
                torch.testing.assert_close(found.xh, x.mT @ h, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(found.hh, h.mT @ h, rtol=1e-4, atol=1e-4)
                for name in stage:
                    before = [w[name].residual(b.mask) for w, b in zip(sums[0], part, strict=True)]
                    after = [w[name].residual(b.mask) for w, b in zip(sums[1], part, strict=True)]
                    if any(r is None for r in before):
                        assert name not in found.dh
                        continue
                    d = torch.cat(
                        [r - s for r, s in zip(before, after, strict=True) if r is not None and s is not None]
                    )
                    torch.testing.assert_close(found.dh[name], d.double().mT @ h, rtol=1e-4, atol=1e-4)
                    checked += 1
            for name in stage:
                perturb(compressed.get_submodule(name))
    return checked


def test_states_are_those_of_the_whole_network_byte_lm() -> None:
    assert check_inputs(ByteLM(**LM), [Batch((tokens(),)), Batch((tokens(2),))]) == 2 * 3 * 2  # o and down of 3 blocks


def test_states_are_those_of_the_whole_network_without_a_trunk() -> None:
    assert check_inputs(DigitsMLP(width=8), [Batch((torch.rand(20, 64),)), Batch((torch.rand(10, 64),))]) == 0


def test_states_are_those_of_the_whole_network_around_a_trunk() -> None:
    assert check_inputs(Stack(), [Batch((torch.rand(20, 3),)), Batch((torch.rand(10, 3),))]) == 2 * 3


@pytest.mark.parametrize("cache", [{"use_cache": False}, {}], ids=["no cache", "cache"])
def test_states_are_those_of_the_whole_network_llama(cache: dict[str, bool]) -> None:
    batches = [Batch((), {"input_ids": tokens(rows), **cache}) for rows in (3, 2)]
    assert check_inputs(llama(), batches) == 2 * 2 * 2


def test_states_are_those_of_the_whole_network_bert_with_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])
    batches = [
        Batch((), {"input_ids": tokens(), "attention_mask": mask}, mask=mask.bool()),
        Batch((), {"input_ids": tokens(), "attention_mask": mask.flip(0)}, mask=mask.flip(0).bool()),
    ]
    assert check_inputs(bert(), batches) > 0


def test_what_is_seen_is_the_same_when_little_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 0)
    check_inputs(ByteLM(**LM), [Batch((tokens(),)), Batch((tokens(2),))])


def test_the_original_alone_has_nothing_to_anchor() -> None:
    """With the original as its own compressed network x = h, nothing is anchored; inputs() is moments()."""
    model = ByteLM(**LM)
    batches = [Batch((tokens(),)), Batch((tokens(2),))]
    walk = Walk(model, model, names_of(model), batches)
    for segment in walk:
        together = walk.inputs(segment)
        assert set(together) == set(segment.stages)
        for stage in segment.stages:
            moments, rest = walk.moments(segment, stage, fitted=2)
            assert torch.equal(moments.hh, moments.xh)
            assert not moments.dh
            assert rest.samples == 0
            torch.testing.assert_close(moments.hh, together[stage].hh, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [llama, lambda: gpt2()], ids=["llama", "gpt2"])
def test_recorded_calls_replay_without_a_cache(make: Callable[[], nn.Module]) -> None:
    model = make()
    names = names_of(model)
    batch = Batch((), {"input_ids": tokens()})
    trunk = find_trunk(model, names, batch)
    assert trunk is not None
    calls = record(model, trunk, batch)
    assert len(calls) == 2
    for block, (state, args, kwargs, output) in zip(model.get_submodule(trunk).children(), calls, strict=True):
        assert not any("Cache" in type(value).__name__ for value in (*args, *kwargs.values()))
        with torch.no_grad():
            torch.testing.assert_close(main_output(block(state, *args, **kwargs)), output)
            other = main_output(block(2 * state, *args, **kwargs))
            torch.testing.assert_close(main_output(block(2 * state, *args, **kwargs)), other)


def test_hooks_are_gone_after_a_failure() -> None:
    model = Stack()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        record(model, "blocks", Batch((torch.rand(5, 7),)))
    assert not any(block._forward_hooks for block in model.blocks)


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=32, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config).eval()


def test_layers_that_store_the_transpose_count_their_inputs() -> None:
    model = gpt2()
    batch = Batch((), {"input_ids": tokens(), "use_cache": False})
    names = [name for name in names_of(model) if "mlp" in name]
    walk = Walk(model, model, names, [batch])
    assert walk.trunk == "transformer.h"
    for segment in walk:
        for stage, moments in walk.inputs(segment).items():
            assert moments.hh.shape == ((8, 8) if "c_fc" in stage[0] else (32, 32))
