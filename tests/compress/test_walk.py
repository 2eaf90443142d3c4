import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from typing_extensions import override

from flatwing.compress import walk as module
from flatwing.compress.batch import Batch, main_output
from flatwing.compress.candidates import candidate
from flatwing.compress.layerwise import LayerResult, fit_layers
from flatwing.compress.plan import LayerPlan
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


def squeezed(original: nn.Module, batches: list[Batch], fitted: int = 1) -> tuple[nn.Module, list[LayerResult]]:
    """All layers but the head at half of their size, fitted one after the other; the original must stay as it is."""
    before = {key: tensor.clone() for key, tensor in original.state_dict().items()}
    layers = {name: info for name, info in linear_layers(original).items() if info.skip is None and not info.is_head}
    plans = []
    for name, info in layers.items():
        m, n = info.out_features, info.in_features
        chosen = candidate("low_rank", m, n).within(max(0.6 * m * n, float(m + n)))
        assert chosen is not None
        plans.append(LayerPlan(name, (m, n), chosen, chosen.parameters, 0.0, 0.0, 0.0, 0.0))
    compressed = copy.deepcopy(original)
    results = fit_layers(original, compressed, layers, plans, batches, fitted)
    assert all(torch.equal(tensor, before[key]) for key, tensor in original.state_dict().items())
    return compressed, results


class Branches(nn.Module):
    """Three residual branches, each added in place if wanted, also to the tensor that came in."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))
        self.in_place = in_place

    @override
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        for layer in (self.a, self.b, self.c):
            if self.in_place:
                h += torch.relu(layer(h))
            else:
                h = h + torch.relu(layer(h))
        return h


def test_residuals_in_place_are_fitted_as_others_are() -> None:
    plain = Branches(in_place=False)
    in_place = Branches(in_place=True)
    in_place.load_state_dict(plain.state_dict())
    batches = [Batch((torch.randn(100, 16),)) for _ in range(3)]
    before = [batch.inputs.clone() for batch in batches]
    walk = Walk(in_place, in_place, ["a", "b", "c"], batches)
    assert walk.segments[0].stages == (("a",), ("b",), ("c",))
    (one, first), (other, second) = (squeezed(model, batches, fitted=2) for model in (plain, in_place))
    assert first == second
    assert all(torch.equal(batch.inputs, x) for batch, x in zip(batches, before, strict=True))
    for key, tensor in one.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor)


class InPlaceBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += self.f(x)
        x += self.g(torch.relu(x))
        return x


def test_states_are_those_of_the_whole_network_with_blocks_that_write_over_them() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(InPlaceBlock() for _ in range(3))

        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 1.0
            for block in self.blocks:
                x = block(x)
            return x

    model, batches = Model(), [Batch((torch.rand(20, 4),)), Batch((torch.rand(10, 4),))]
    assert find_trunk(model, names_of(model), batches[0]) == "blocks"
    assert check_inputs(model, batches) == 2 * 3 * 2


class Experts(nn.Module):
    """A router sends each row to one of the experts, which are not called without rows."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        self.front, self.router = nn.Linear(8, 8), nn.Linear(8, count)
        self.e = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.front(x)
        choice, y = self.router(x).argmax(-1), torch.zeros_like(x)
        for k, expert in enumerate(self.e):
            rows = choice == k
            if rows.any():
                y[rows] = expert(x[rows])
        return x + y


def test_experts_are_fitted() -> None:
    model = Experts()
    batches = [Batch((torch.randn(rows, 8),)) for rows in (200, 1, 200, 2, 100)]
    compressed, results = squeezed(model, batches, fitted=4)
    assert {r.name for r in results} == {"front", "router", *(f"e.{k}" for k in range(4))}
    assert all(0 < r.error < 1 for r in results)
    assert bool(torch.isfinite(batches[0].logits(compressed)).all())


def test_an_expert_that_only_held_out_data_call_is_fitted_to_its_weight() -> None:
    model, x = Experts(2), torch.randn(50, 8)
    choice = model.router(model.front(x)).argmax(-1)
    _, results = squeezed(model, [Batch((x[choice == 0],)), Batch((x[choice == 1],))])
    assert [r.samples > 0 for r in results if r.name == "e.0"] == [True]
    last = next(r for r in results if r.name == "e.1")
    assert 0 < last.error < 1


def test_rows_that_another_expert_got_are_not_taken_for_the_same() -> None:
    """Both networks give each expert half of the rows, but other ones: x = h, and nothing to correct."""
    model, x = Experts(2), torch.randn(6, 8)
    with torch.no_grad():
        for parameters, value in ((model.front.weight, torch.eye(8)), (model.router.weight, torch.zeros(2, 8))):
            parameters.copy_(value)
        model.front.bias.zero_()
        model.router.bias.zero_()
        model.router.weight[:, 0] = torch.tensor([1.0, -1.0])
        x[:, 0] = torch.tensor([1.0, 1, 1, -1, -1, -1])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.router.weight.neg_()
    walk = Walk(model, other, ["e.0"], [Batch((x,))])
    for segment in walk:
        moments, _ = walk.moments(segment, ("e.0",), fitted=1)
        assert moments.samples == 3
        assert torch.equal(moments.x, moments.h)
        assert torch.equal(moments.xh, moments.hh)
        torch.testing.assert_close(moments.h, x[3:].double().sum(0))


class Sometimes(nn.Module):
    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.b(self.a(x)) if len(x) > 3 else x
        return self.c(h)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))


def test_layers_that_some_batches_do_not_call_stand_where_they_run() -> None:
    model = Sometimes()
    batches = [Batch((torch.randn(rows, 4),)) for rows in (2, 9, 3, 9)]
    walk = Walk(model, model, ["c", "b", "a"], batches)
    assert walk.segments[0].stages == (("a",), ("b",), ("c",))
    found = walk.inputs(walk.segments[0])
    assert [moments.samples for moments in found.values()] == [18, 18, 23]
    _, results = squeezed(model, batches, fitted=3)
    assert [r.samples for r in results] == [9, 9, 14]


def test_a_trunk_of_which_some_batch_skips_blocks_is_walked_as_a_whole() -> None:
    class Early(Stack):
        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kind = "skips one" if len(x) < 4 else "plain"
            return super().forward(x)

    model, batches = Early(), [Batch((torch.rand(rows, 3),)) for rows in (9, 3)]
    walk = Walk(model, model, names_of(model), batches)
    assert walk.trunk is None
    assert len(squeezed(model, batches)[1]) == 5


class Memory(nn.Module):
    """Every block reads a state that a layer in front of all blocks made."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

        @override
        def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
            return x + torch.tanh(self.q(x)) * self.k(memory)

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = self.front(x)
        for block in self.blocks:
            x = block(x, memory)
        return x


def test_layers_of_several_blocks_may_read_one_tensor_which_is_that_of_their_own_network() -> None:
    model, batches = Memory(), [Batch((torch.randn(20, 8),)), Batch((torch.randn(10, 8),))]
    walk = Walk(model, model, names_of(model), batches)
    assert [s.stages for s in walk.segments[1:]] == [((f"blocks.{k}.q",), (f"blocks.{k}.k",)) for k in range(3)]
    check_inputs(model, batches)
    squeezed(model, batches)


def test_states_are_those_of_the_whole_network_t5() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    batches = [Batch((), {"input_ids": tokens(rows), "decoder_input_ids": tokens(rows, 5)}) for rows in (20, 10)]
    assert Walk(model, model, names_of(model), batches).trunk == "decoder.block"
    assert check_inputs(model, batches) > 0
    compressed, results = squeezed(model, batches)
    assert sum("EncDecAttention" in r.name for r in results) == 12
    assert bool(torch.isfinite(batches[0].logits(compressed)).all())


def test_what_was_kept_of_one_segment_is_not_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and behind the trunk the whole network runs; a first segment that fits, blocks that do not."""
    model, batches = Stack(), [Batch((torch.rand(5, 3),))]
    monkeypatch.setattr(module, "KEPT", 5 * 3 * 4)
    walk = Walk(model, copy.deepcopy(model), ["front", *(f"blocks.{k}.f" for k in range(3)), "head"], batches)
    for segment in walk:
        for stage in segment.stages:
            assert walk.moments(segment, stage, fitted=1)[0].samples == 5


def test_a_layer_of_zeros_with_a_bias_leaves_constant_inputs_behind() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))
    with torch.no_grad():
        model[2].weight.zero_()
    _, results = squeezed(model, [Batch((torch.randn(500, 16),)) for _ in range(3)], fitted=2)
    assert [r.name for r in results] == ["0", "2", "4"]
    assert all(r.error == r.error for r in results)


def test_buffers_and_inference_weights_of_the_original_stay() -> None:
    class Counting(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x) + self.calls

    batches = [Batch((torch.rand(20, 3),)), Batch((torch.rand(10, 3),))]
    model = Counting()
    compressed, _ = squeezed(model, batches)
    assert float(model.calls) == float(compressed.calls) == 0
    with torch.inference_mode():
        model = Counting()
    squeezed(model, batches)
