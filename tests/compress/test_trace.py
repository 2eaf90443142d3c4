from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from flatwing.compress.trace import Seen, call_apart, evaluating, sources, trace


def layer(n: int = 3, m: int = 3) -> nn.Linear:
    return nn.Linear(n, m)


def in_place(x: torch.Tensor, f: nn.Module) -> torch.Tensor:
    own = x.clone()
    own += f(x)
    return own


FOUND: dict[str, Callable[[torch.Tensor, nn.Module], torch.Tensor]] = {
    "stream first": lambda x, f: x + f(x),
    "layer first": lambda x, f: f(x) + x,
    "in place on the stream": in_place,
    "in place on the output": lambda x, f: f(x).add_(x),
    "torch.add": lambda x, f: torch.add(x, f(x)),
    "through dropout that is off": lambda x, f: x + F.dropout(f(x), 0.5, training=False),
    "through a view": lambda x, f: x.reshape(2, 1, 2, 3) + f(x).reshape(2, 1, 2, 3),
    "through a transpose": lambda x, f: x.mT + f(x).mT,
    "through contiguous": lambda x, f: x + f(x).contiguous(),
}


@pytest.mark.parametrize("run", FOUND.values(), ids=FOUND)
def test_a_residual_stream_is_found(run: Callable[[torch.Tensor, nn.Module], torch.Tensor]) -> None:
    x, f = torch.randn(2, 2, 3), layer()
    seen = trace({"f": f}, lambda: run(x, f))["f"]
    assert torch.equal(seen.x(), x.reshape(-1, 3))
    assert seen.size == (1, 1)
    if "transpose" not in str(run):
        assert sorted(seen.residuals[0].reshape(-1).tolist()) == sorted(x.reshape(-1).tolist())


def test_an_addition_in_place_does_not_change_what_was_found() -> None:
    x, f = torch.randn(4, 3), layer()
    residual = trace({"f": f}, lambda: in_place(x, f))["f"].residual()
    assert residual is not None
    assert torch.equal(residual, x)


def test_inputs_that_are_written_over_later_are_kept_as_they_went_in() -> None:
    x, f, g = torch.randn(4, 3), layer(), layer()
    first = x.clone()

    def run() -> None:
        x.add_(torch.relu(f(x)))
        x.add_(torch.relu(g(x)))

    seen = trace({"f": f, "g": g}, run)
    second = first + torch.relu(f(first))
    assert torch.equal(seen["f"].x(), first)
    assert torch.equal(seen["g"].x(), second.detach())


def test_one_copy_serves_all_layers_of_one_input() -> None:
    x, f, g = torch.randn(4, 3), layer(), layer()
    seen = trace({"f": f, "g": g}, lambda: (f(x), g(x)))
    assert seen["f"].inputs[0] is seen["g"].inputs[0] is not x


def test_sources_tell_the_same_tensor_from_one_that_was_written_over() -> None:
    x, f, g, h = torch.randn(4, 3), layer(), layer(), layer()
    found = sources({"f": f, "g": g, "h": h, "never": layer()}, lambda: (f(x), g(x), x.add_(1), h(x), h(x)))
    assert list(found) == ["f", "g", "h"]
    assert found["f"] == found["g"] != found["h"][:1]
    assert len(found["h"]) == 2
    assert not f._forward_hooks


CHOSEN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mask": lambda x, rows: x[rows],
    "indices": lambda x, rows: x[rows.nonzero()[:, 0]],
    "index_select": lambda x, rows: x.index_select(0, rows.nonzero()[:, 0]),
    "gather": lambda x, rows: x.gather(0, rows.nonzero().expand(-1, x.shape[1])),
}


@pytest.mark.parametrize("choose", CHOSEN.values(), ids=CHOSEN)
def test_rows_are_the_same_if_they_were_chosen_alike(
    choose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    x, f = torch.randn(4, 3), layer()
    masks = [
        torch.tensor(rows) for rows in ([True, True, False, False], [True, False, True, False], [True] * 3 + [False])
    ]
    one, swapped, more = (trace({"f": f}, lambda rows=rows: f(choose(x, rows)))["f"] for rows in masks)
    again = trace({"f": f}, lambda: f(choose(2 * x, masks[0])))["f"]
    assert one.same_rows(again)
    assert not one.same_rows(swapped)
    assert not one.same_rows(more)


MISSED: dict[str, Callable[[torch.Tensor, nn.Module], torch.Tensor]] = {
    "nothing is added": lambda x, f: f(x) * 2,
    "a number is added": lambda x, f: f(x) + 1.0,
    "another shape is added": lambda x, f: f(x) + torch.ones(3),
    "it is broadcast": lambda x, f: f(x)[:, None] + torch.ones(4, 4, 3),
    "part of it is added": lambda x, f: f(x)[:2] + x[:2],
    "something is computed first": lambda x, f: F.gelu(f(x)) + x,
    "it is subtracted": lambda x, f: x - f(x),
}


@pytest.mark.parametrize("run", MISSED.values(), ids=MISSED)
def test_what_is_no_residual_stream_is_not_taken_for_one(
    run: Callable[[torch.Tensor, nn.Module], torch.Tensor],
) -> None:
    x, f = torch.randn(4, 3), layer()
    seen = trace({"f": f}, lambda: run(x, f))["f"]
    assert seen.size == (1, 0)
    assert seen.residual() is None


def test_an_output_that_is_used_otherwise_too_writes_to_no_stream() -> None:
    """What is added then depends on the output itself, so correcting the layer for it would correct twice."""
    x, f = torch.randn(4, 3), layer()

    def run() -> torch.Tensor:
        y = f(x)
        return y + F.gelu(y)

    assert trace({"f": f}, run)["f"].residual() is None


def test_a_layer_of_two_calls_needs_a_stream_in_both() -> None:
    x, f = torch.randn(4, 3), layer()
    both = trace({"f": f}, lambda: (x + f(x), 2 * x + f(2 * x)))["f"]
    residual = both.residual()
    assert residual is not None
    assert torch.equal(residual, torch.cat([x, 2 * x]))
    assert torch.equal(both.x(), torch.cat([x, 2 * x]))
    assert trace({"f": f}, lambda: (x + f(x), f(x) * 2))["f"].residual() is None


def test_layers_come_in_the_order_of_their_calls() -> None:
    a, b, c, x = layer(), layer(), layer(), torch.randn(2, 3)
    seen = trace({"a": a, "b": b, "never": c}, lambda: a(b(x)))
    assert list(seen) == ["b", "a"]


def test_keyword_inputs_are_seen() -> None:
    f, x = layer(), torch.randn(2, 3)
    assert torch.equal(trace({"f": f}, lambda: f(input=x))["f"].x(), x)


class Chain(nn.Module):
    """Two residual layers and one behind them, which counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = layer(), layer(), layer()
        self.last.register_forward_hook(lambda *_: self.calls.append(1))
        self.calls: list[int] = []

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.one(x)
        return self.last(x + self.two(x))


def test_with_an_earlier_trace_the_call_stops_when_it_has_seen_as_much() -> None:
    model, x = Chain(), torch.randn(4, 3)
    layers = {"one": model.one, "two": model.two}
    full = trace(layers, lambda: model(x))
    assert model.calls == [1]
    short = trace(layers, lambda: model(x), like=full)
    assert model.calls == [1]  # the last layer was not reached
    for name, seen in full.items():
        assert torch.equal(short[name].x(), seen.x())
        one, other = short[name].residual(), seen.residual()
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_hooks_are_gone_afterwards_whatever_happened() -> None:
    model, x = Chain(), torch.randn(4, 3)
    layers = {"one": model.one, "two": model.two}
    full = trace(layers, lambda: model(x))
    trace(layers, lambda: model(x), like=full)

    def fail() -> None:
        model(x)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        trace(layers, fail)
    assert not model.one._forward_hooks
    assert not model.two._forward_hooks
    assert torch.is_grad_enabled()


def test_nothing_is_kept_for_gradients() -> None:
    model, x = Chain(), torch.randn(4, 3, requires_grad=True)
    seen = trace({"one": model.one}, lambda: model(x))["one"]
    assert not any(t.requires_grad for t in (*seen.inputs, *seen.residuals))


def test_padding_is_left_out() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x, r = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    seen = Seen([x], [r])
    assert torch.equal(seen.x(mask), x[mask])
    residual = seen.residual(mask)
    assert residual is not None
    assert torch.equal(residual, r[mask])
    assert seen.x().shape == (6, 4)


def test_a_mask_of_another_shape_is_no_mask_of_this_layer() -> None:
    """A pooled state has one row per text, and none of them is padding."""
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert Seen([torch.ones(2, 4)]).x(mask).shape == (2, 4)


def test_evaluation_mode_ends_as_it_began() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()), nn.Dropout())
    model[1].eval()
    before = [m.training for m in model.modules()]
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == before
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), evaluating(model):
        torch.ones(2) @ torch.ones(3)
    assert [m.training for m in model.modules()] == before
    assert True in before
    assert False in before


class Restless(nn.Module):
    """Counts its calls in a buffer, replaces another one, writes over its input."""

    def __init__(self) -> None:
        super().__init__()
        self.f = layer()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("mean", torch.zeros(3))

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.mean = x.mean(0)
        x += self.f(x)
        return x


def test_a_call_apart_changes_nothing() -> None:
    model, x = Restless(), torch.randn(4, 3)
    buffers, before = dict(model.named_buffers()), x.clone()
    y = call_apart(model, (x,), {})
    assert torch.equal(y, (x + model.f(x)).detach())
    assert not y.requires_grad
    assert torch.equal(call_apart(model, (), {"x": x}), y)
    assert torch.equal(call_apart(model, (x,), {}, {"f.weight": torch.zeros(3, 3), "f.bias": torch.ones(3)}), x + 1)
    assert torch.equal(x, before)
    assert all(own is buffers[name] and not own.any() for name, own in model.named_buffers())
    assert model.training


def test_a_call_apart_of_weights_made_for_inference() -> None:
    with torch.inference_mode():
        model = Restless()
    assert call_apart(model, (torch.randn(4, 3),), {}, {"f.weight": torch.zeros(3, 3)}).shape == (4, 3)
