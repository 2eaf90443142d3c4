"""What every registered method promises, whatever it computes; registering is being tested."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer

from flatwing.optim import METHODS, Method

BASES: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2),
    "Muon": lambda groups: torch.optim.Muon(groups, lr=1e-2),
}
PAIRS = [(name, base) for name, method in METHODS.items() for base in (BASES if method.wraps else ["AdamW"])]
pairs = pytest.mark.parametrize(("name", "base"), PAIRS)
each = pytest.mark.parametrize("name", METHODS)


def network() -> nn.Sequential:
    """Matrices and ReLU only, so that methods for matrices or for homogeneous networks can be driven, too."""
    torch.manual_seed(3)
    layers = [
        nn.Linear(6, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 3, bias=False),
    ]
    return nn.Sequential(*layers)


def batches(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        yield torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)


def build(name: str, base: str, model: nn.Module, **settings: Any) -> Optimizer:
    # without Adam's second moment there is nothing to make IRE's mask of, unless it is told what to take
    if name == "IRE" and base != "AdamW":
        settings.setdefault("mask", "gradient")
    return METHODS[name].make(model, BASES[base], **settings)


def drive(model: nn.Module, optimizer: Optimizer, data: Any, scale: float = 1.0) -> None:
    for x, y in data:

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = scale * F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(first: Any, second: Any) -> bool:
    """Equal bit for bit, through all containers."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return first == second


@each
def test_entry_says_what_a_user_needs_to_know(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    for text in (method.summary, method.paper, method.lr_unit):
        assert len(text) > 3
    assert method.passes > 0
    assert method.bytes >= 0


@pairs
def test_training_lowers_the_loss_and_moves_every_matrix(name: str, base: str) -> None:
    model = network()
    x, y = next(batches(1))
    before, loss = weights(model), F.cross_entropy(model(x), y)
    drive(model, build(name, base, model), [(x, y)] * 30)
    assert F.cross_entropy(model(x), y) < loss
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(("name", "base"), [(n, b) for n, b in PAIRS if METHODS[n].wraps])
def test_switched_off_it_is_the_base_bit_for_bit(name: str, base: str) -> None:
    method = METHODS[name]
    assert method.off
    bare, wrapped = network(), network()
    drive(bare, BASES[base](list(bare.parameters())), batches(5))
    state = torch.get_rng_state()
    drive(wrapped, build(name, base, wrapped, **method.off), batches(5))
    assert same(weights(bare), weights(wrapped))
    assert torch.equal(torch.get_rng_state(), state)


@pairs
def test_global_random_numbers_are_left_alone(name: str, base: str) -> None:
    model = network()
    optimizer = build(name, base, model)
    state = torch.get_rng_state()
    drive(model, optimizer, batches(3))
    assert torch.equal(torch.get_rng_state(), state)


@pairs
def test_resumed_is_uninterrupted(name: str, base: str) -> None:
    whole, data = network(), list(batches(14))
    optimizer = build(name, base, whole)
    drive(whole, optimizer, data)

    half = network()
    first = build(name, base, half)
    drive(half, first, data[:6])
    saved = copy.deepcopy(first.state_dict())
    resumed = network()
    resumed.load_state_dict(half.state_dict())
    second = build(name, base, resumed)
    second.load_state_dict(saved)
    assert same(second.state_dict(), saved)
    drive(resumed, second, data[6:])
    assert same(weights(whole), weights(resumed))
    assert same(optimizer.state_dict(), second.state_dict())


@pairs
def test_state_is_what_torch_saves_without_pickle(name: str, base: str) -> None:
    model = network()
    optimizer = build(name, base, model)
    drive(model, optimizer, batches(3))
    state = optimizer.state_dict()
    assert set(state) == {"state", "param_groups"}
    for entries in state["state"].values():
        for value in entries.values():
            assert isinstance(value, torch.Tensor | int | float | bool)
    for group in state["param_groups"]:
        for key, value in group.items():
            assert isinstance(value, int | float | bool | str | tuple | list | type(None)), key


@pairs
def test_memory_of_weights_is_kept(name: str, base: str) -> None:
    model = network()
    places = [p.data_ptr() for p in model.parameters()]
    drive(model, build(name, base, model), batches(3))
    assert [p.data_ptr() for p in model.parameters()] == places


@pairs
def test_schedulers_set_the_learning_rate(name: str, base: str) -> None:
    model = network()
    optimizer = build(name, base, model)
    begin = [group["lr"] for group in optimizer.param_groups]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    drive(model, optimizer, batches(1))
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0] * len(begin)
    stopped = weights(model)
    drive(model, optimizer, batches(1))
    assert same(weights(model), stopped)


@pairs
def test_frozen_and_unused_parameters_stay(name: str, base: str) -> None:
    model = network()
    model.add_module("unused", nn.Linear(4, 4, bias=False))
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    model[2].weight.requires_grad_(False)
    before = weights(model)
    drive(model, build(name, base, model), batches(4))
    changed = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert changed == [True, False, True, False]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pairs
def test_a_gradient_that_is_not_finite_touches_nothing(name: str, base: str, value: float) -> None:
    model = network()
    optimizer = build(name, base, model)
    drive(model, optimizer, batches(3))
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drive(model, optimizer, batches(2), scale=value)
    assert same(weights(model), before)
    assert same(optimizer.state_dict(), state)
    assert sum("not finite" in str(warning.message) for warning in caught) == 1
    drive(model, optimizer, batches(1))
    assert not same(weights(model), before)


@each
def test_sparse_gradients_are_refused(name: str) -> None:
    model = network()
    optimizer = build(name, "AdamW", model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p).to_sparse()
    with pytest.raises(ValueError, match="dense"):
        optimizer.step(lambda: torch.zeros(()))


@each
def test_complex_parameters_are_right_or_refused(name: str) -> None:
    weight = nn.Parameter(torch.eye(4, dtype=torch.complex64) * (1 + 1j))
    holder = nn.Module()
    holder.weight = weight
    if "complex" in METHODS[name].refuses:
        with pytest.raises(ValueError, match="complex"):
            METHODS[name].make(holder, BASES["SGD"])
        return
    optimizer = build(name, "SGD", holder)

    def loss() -> torch.Tensor:
        return (weight - 1j * torch.eye(4)).abs().square().sum()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    before = loss()
    for _ in range(5):
        optimizer.step(closure)
    assert loss() < before


@pairs
def test_accumulated_gradients_are_one_gradient(name: str, base: str) -> None:
    once, often = network(), network()
    data = list(batches(3))
    drive(once, build(name, base, once), data)
    optimizer = build(name, base, often)
    for x, y in data:

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            parts = [F.cross_entropy(often(a), b) / 4 for a, b in zip(x.chunk(4), y.chunk(4), strict=True)]
            for part in parts:
                part.backward()
            return torch.stack(parts).sum()

        optimizer.step(closure)
    for p, q in zip(once.parameters(), often.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=2e-2 if "Muon" in (base, name) or name == "LITE" else 1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.wraps])
def test_foreach_or_not_is_the_same(name: str) -> None:
    results = []
    for foreach in (False, True):
        model = network()
        optimizer = METHODS[name].make(model, lambda groups, f=foreach: torch.optim.AdamW(groups, lr=1e-2, foreach=f))
        drive(model, optimizer, batches(12))
        results.append(weights(model))
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.wraps])
def test_groups_keep_their_own_settings_and_may_be_empty(name: str) -> None:
    model = network()
    slow, fast = [model[0].weight], [model[2].weight, model[4].weight]
    groups = [{"params": slow, "lr": 0.0}, {"params": fast, "lr": 1e-2}, {"params": [], "lr": 1.0}]
    optimizer = METHODS[name].make(model, lambda _: torch.optim.AdamW(groups))
    before = weights(model)
    drive(model, optimizer, batches(3))
    assert [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)] == [False, True, True]
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.wraps])
def test_no_gradient_at_all_is_a_step_of_nothing(name: str) -> None:
    model = network()
    optimizer = build(name, "AdamW", model)
    before = weights(model)
    optimizer.step(lambda: torch.zeros(()))
    assert same(weights(model), before)


def test_methods_are_listed() -> None:
    from flatwing.optim import list_optimizers

    listed = list_optimizers()
    assert all(isinstance(method, Method) for method in listed)
    assert {"IRE", "GradPower", "SAM", "ASAM", "PRGD", "LITE", "AdamMini", "blockwise_lr"} <= {
        one.name for one in listed
    }
