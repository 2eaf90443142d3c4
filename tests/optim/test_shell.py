import copy
import pickle
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import SGD, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR, StepLR

from distributed import run_python
from flatwing.optim import Shell, Wrapper
from flatwing.optim.shell import SEPARATOR, names_inside


class Counted(Wrapper):
    """A method that keeps something of each kind: a setting, a count in the groups, tensors of their own dtypes."""

    name = "counted"
    refuses_complex = True

    def __init__(self, base: Any, share: float = 0.25) -> None:
        super().__init__(base, {"share": share, "calls": 0})

    def update(self) -> None:
        self.base.step()
        for group in self.param_groups:
            group["calls"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.kept.setdefault(p, {"sum": torch.zeros(p.shape, dtype=torch.float64)})
                    kept["sum"] = kept["sum"] + p.grad.double()
                    kept["mask"] = p.grad > 0
                    p.add_(kept["sum"].to(p.dtype), alpha=-group["share"])


class Doubled(Counted):
    name = "doubled"


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)


def drive(optimizer: Optimizer, model: nn.Module, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(50 + step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape).to(p.dtype)
        optimizer.step()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def pair(model: nn.Module) -> list[Optimizer]:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return [Muon(matrices, lr=0.02), AdamW([p for p in model.parameters() if p.ndim != 2], lr=1e-3)]


def shell(model: nn.Module) -> Shell:
    return Shell(pair(model))


def wrapped(model: nn.Module) -> Wrapper:
    return Counted(AdamW(model.parameters(), lr=1e-2))


def wrapped_pair(model: nn.Module) -> Wrapper:
    return Counted(pair(model))


def twice(model: nn.Module) -> Wrapper:
    return Doubled(Counted(Shell(pair(model)), share=0.5))


MAKERS = [shell, wrapped, wrapped_pair, twice]
makers = pytest.mark.parametrize("make", MAKERS)


def test_shell_steps_as_its_members_would() -> None:
    ours, theirs = network(), network()
    drive(shell(ours), ours, 0, 4)
    members = pair(theirs)
    for step in range(4):
        drive(members[0], theirs, step, step + 1)
        members[1].step()
    assert same(weights(ours), weights(theirs))


@makers
def test_groups_are_the_members_own(make: Any) -> None:
    model = network()
    optimizer = make(model)
    inner = optimizer
    while isinstance(inner, Wrapper):
        inner = inner.base
    assert all(a is b for a, b in zip(optimizer.param_groups, inner.param_groups, strict=True))
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.param_groups[0]["weight_decay"] = 0.0
    assert inner.param_groups[0]["lr"] == 0.0
    drive(optimizer, model, 0, 1)
    assert set(optimizer.state) == set(model.parameters())
    assert len(optimizer.state) == 4
    assert all(p in optimizer.state and optimizer.state[p] for p in model.parameters())
    assert torch.zeros(1) not in optimizer.state


@makers
def test_schedulers_of_the_whole_and_of_a_member(make: Any) -> None:
    model = network()
    optimizer = make(model)
    begin = [group["lr"] for group in optimizer.param_groups]
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    drive(optimizer, model, 0, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * lr for lr in begin]
    assert [group["initial_lr"] for group in optimizer.param_groups] == begin


def test_scheduler_made_for_the_base_goes_on_working() -> None:
    model = network()
    base = SGD(model.parameters(), lr=1.0)
    scheduler = StepLR(base, 1, gamma=0.1)
    optimizer = Counted(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns when a scheduler steps before its optimizer
        drive(optimizer, model, 0, 1)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@makers
def test_grad_scaler_unscales_and_skips(make: Any) -> None:
    ours, theirs = network(), network()
    scaled, plain = make(ours), make(theirs)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=100)
    for step, factor in enumerate([1.0, torch.inf, 1.0]):
        torch.manual_seed(step)
        x = torch.randn(8, 4)
        before = weights(ours)
        for model, optimizer in ((ours, scaled), (theirs, plain)):
            optimizer.zero_grad()
            loss = model(x).square().mean() * factor
            (scaler.scale(loss) if optimizer is scaled else loss).backward()
        scaler.step(scaled)
        scaler.update()
        if factor == 1.0:
            plain.step()
        else:
            assert same(weights(ours), before)
    assert scaler.get_scale() == 512.0
    assert getattr(scaled, "skipped", 0) == 0  # the scaler saw it first
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@makers
def test_resumed_is_uninterrupted(make: Any, dtype: torch.dtype) -> None:
    whole, half = network(dtype), network(dtype)
    drive(make(whole), whole, 0, 7)
    first = make(half)
    drive(first, half, 0, 3)
    saved = copy.deepcopy(first.state_dict())
    second = make(half)
    second.load_state_dict(saved)
    drive(second, half, 3, 7)
    assert same(weights(whole), weights(half))


def test_what_is_kept_travels_with_its_own_dtype() -> None:
    model = network(torch.bfloat16)
    first = wrapped(model)
    drive(first, model, 0, 2)
    state = first.state_dict()
    names = [f"counted{SEPARATOR}sum", f"counted{SEPARATOR}mask"]
    assert [state["state"][0][name].dtype for name in names] == [torch.float64, torch.bool]
    second = wrapped(model)
    second.load_state_dict(state)
    for p in model.parameters():
        assert second.kept[p]["sum"].dtype == torch.float64
        assert torch.equal(second.kept[p]["sum"], first.kept[p]["sum"])
        assert second.kept[p]["sum"].data_ptr() != first.kept[p]["sum"].data_ptr()
        assert set(second.base.state[p]) == {"step", "exp_avg", "exp_avg_sq"}
    assert second.param_groups[0]["calls"] == 2


def test_state_of_a_bare_base_loads_and_the_method_begins_anew() -> None:
    model = network()
    base = AdamW(model.parameters(), lr=0.5)
    drive(base, model, 0, 2)
    optimizer = wrapped(model)
    drive(optimizer, model, 2, 3)
    optimizer.load_state_dict(base.state_dict())
    assert optimizer.kept == {}
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert (optimizer.param_groups[0]["share"], optimizer.param_groups[0]["calls"]) == (0.25, 0)
    p = model[0].weight
    assert torch.equal(optimizer.state[p]["exp_avg"], base.state[p]["exp_avg"])


@makers
def test_state_of_other_groups_is_refused_and_changes_nothing(make: Any) -> None:
    model = network()
    optimizer = make(model)
    drive(optimizer, model, 0, 2)
    before = copy.deepcopy(optimizer.state_dict())
    other = SGD(list(model.parameters())[:1], lr=0.1).state_dict()
    with pytest.raises(ValueError, match="the same groups"):
        optimizer.load_state_dict(other)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@makers
def test_copies_and_pickles_go_on_by_themselves(make: Any, duplicate: Any) -> None:
    model = network()
    optimizer = make(model)
    drive(optimizer, model, 0, 2)
    twin_model, twin = duplicate((model, optimizer))
    before = weights(model)
    drive(twin, twin_model, 2, 4)
    assert same(weights(model), before)
    drive(optimizer, model, 2, 4)
    assert same(weights(model), weights(twin_model))


@makers
def test_group_added_later_joins_in(make: Any) -> None:
    model, late = network(), nn.Linear(3, 3, bias=False)
    optimizer = make(model)
    drive(optimizer, model, 0, 1)
    optimizer.add_param_group({"params": late.parameters(), "lr": 0.5})
    assert optimizer.param_groups[-1]["lr"] == 0.5
    if isinstance(optimizer, Wrapper):
        assert optimizer.param_groups[-1]["share"] == optimizer.param_groups[0]["share"]
        assert optimizer.param_groups[-1]["calls"] == 0
    before = weights(late)
    late.weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert not same(weights(late), before)
    index = sum(len(group["params"]) for group in optimizer.param_groups) - 1
    assert index in optimizer.state_dict()["state"]


def test_settings_of_a_group_are_its_own() -> None:
    model = network()
    groups = [
        {"params": [p], "share": share} for p, share in zip(model.parameters(), (0.0, 1.0, 0.0, 1.0), strict=True)
    ]
    optimizer = Counted(SGD(groups, lr=0.0))
    before = weights(model)
    drive(optimizer, model, 0, 1)
    assert [torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)] == [
        True,
        False,
        True,
        False,
    ]


def test_a_parameter_belongs_to_one_member() -> None:
    model = network()
    members = [SGD(model.parameters(), lr=0.1), AdamW([model[0].weight])]
    with pytest.raises(ValueError, match="a parameter is in two optimizers"):
        Shell(members)
    both = Shell([SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)])
    with pytest.raises(ValueError, match="in another optimizer already"):
        both.add_param_group({"params": [model[0].weight]})
    assert len(both.param_groups) == 2


def test_at_least_one_member() -> None:
    with pytest.raises(ValueError, match="there is no optimizer"):
        Shell([])
    with pytest.raises(ValueError, match="there is no optimizer"):
        Counted([])


USER = """
import warnings, torch
from flatwing.optim import Shell, Wrapper
class Method(Wrapper):
    name = "method"
    def update(self): self.base.step()
try:
    Shell([torch.nn.Linear(2, 2)])
except ValueError as error:
    print(error)
p = torch.nn.Parameter(torch.zeros(1))
p.grad = torch.full((1,), torch.inf)
optimizer = Method(torch.optim.SGD([p], lr=1.0), {})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    optimizer.step()
print(caught[0].filename, caught[0].lineno)
"""


def test_as_users_see_it_without_checked_types() -> None:
    """The warning points at the line of their loop; what is no optimizer is refused by name."""
    done = run_python(USER)
    refused, place = done.stdout.splitlines()
    assert refused.startswith("got a Linear. Rule: a torch.optim.Optimizer")
    assert place.endswith(f"script.py {USER.splitlines().index('    optimizer.step()') + 1}")


def test_same_method_twice_is_refused_at_any_depth() -> None:
    model = network()
    once = Counted(SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="Counted is around another Counted"):
        Counted(once)
    with pytest.raises(ValueError, match="around another"):
        Counted(Doubled(once))
    with pytest.raises(ValueError, match="around another"):
        Counted([once, SGD([nn.Parameter(torch.zeros(2))], lr=0.1)])
    assert names_inside(Doubled(once)) == {"counted", "doubled"}


@pytest.mark.parametrize("make", [wrapped, wrapped_pair, twice])
def test_sparse_gradients_are_refused(make: Any) -> None:
    model = network()
    optimizer = make(model)
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p).to_sparse()
    with pytest.raises(ValueError, match=r"dense gradients.*sparse=False"):
        optimizer.step()
    assert same(weights(model), before)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize("make", [wrapped, wrapped_pair, twice])
def test_gradient_that_is_not_finite_touches_nothing_and_warns_once(make: Any, value: float) -> None:
    model = network()
    optimizer = make(model)
    drive(optimizer, model, 0, 2)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    model[2].bias.grad[1] = value
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    optimizer.step()  # a second warning would be an error here
    assert optimizer.skipped == 2
    assert same(weights(model), before)
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for index, entries in state["state"].items():
        assert all(torch.equal(entry, after["state"][index][key]) for key, entry in entries.items())
    drive(optimizer, model, 2, 3)
    assert not same(weights(model), before)


def test_complex_parameters_are_refused_where_there_is_no_rule() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="complex"):
        Counted(SGD([weight], lr=0.1))
    optimizer = Counted(SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(ValueError, match="complex"):
        optimizer.add_param_group({"params": [weight]})
    assert len(optimizer.param_groups) == 1


@makers
def test_closure_is_called_once_with_gradients_on(make: Any) -> None:
    model = network()
    optimizer = make(model)
    calls = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(3, 4)).square().mean()
        loss.backward()
        calls.append(torch.is_grad_enabled())
        return loss

    before = weights(model)
    loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() > 0
    assert not same(weights(model), before)


def test_empty_groups_and_no_gradients() -> None:
    model = network()
    optimizer = Counted(
        [SGD([{"params": []}, {"params": model[0].parameters()}], lr=0.1), AdamW(model[2].parameters())]
    )
    optimizer.step()  # no gradient at all
    assert optimizer.kept == {}
    drive(optimizer, model, 0, 2)
    twin = Counted([SGD([{"params": []}, {"params": model[0].parameters()}], lr=0.1), AdamW(model[2].parameters())])
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [len(group["params"]) for group in twin.param_groups] == [0, 2, 2]
    assert all(torch.equal(twin.kept[p]["sum"], optimizer.kept[p]["sum"]) for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_hooks_run_once_per_step() -> None:
    model = network()
    optimizer = wrapped_pair(model)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    drive(optimizer, model, 0, 1)
    assert seen == ["before", "after"]


@makers
def test_distributed_checkpoint_round_trip(make: Any) -> None:
    """torch's own way to save sharded optimizers: names of parameters for numbers, on one process here."""
    whole, half = network(), network()
    drive(make(whole), whole, 0, 6)
    first = make(half)
    drive(first, half, 0, 3)
    saved = copy.deepcopy(get_optimizer_state_dict(half, first))
    assert "0.weight" in saved["state"]
    second = make(half)
    set_optimizer_state_dict(half, second, saved)
    drive(second, half, 3, 6)
    assert same(weights(whole), weights(half))
