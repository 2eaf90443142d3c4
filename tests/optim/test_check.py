"""What is refused, and in which words: numbers, rules, and methods inside of methods."""

import copy
import pickle
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, AdamW

from distributed import run_python
from flatwing.optim import ASAM, IRE, LITE, SAM, GradPower, Late, LITEAdam, Shell, late
from flatwing.optim.check import parameters_of, require_rate, require_rules


def weight() -> nn.Parameter:
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.full((3,), 0.5)
    return w


def test_rates_are_numbers_or_tensors_of_one() -> None:
    for good in (0, 0.1, torch.tensor(0.1), torch.tensor([0.1])):
        require_rate(good)
    for bad in ("x", None, -1.0, torch.nan, torch.tensor(-1.0), torch.ones(2), torch.tensor(1j)):
        with pytest.raises(ValueError, match=r"(?s)lr is .* Rule: a number, at least 0"):
            require_rate(bad)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        (None, "params is a NoneType. Rule: tensors"),
        (torch.ones(2), "params is a Tensor. Rule: tensors"),
        ("weight", "params is a str. Rule"),
        ({"params": []}, "params is a dict. Rule"),
        ([None], r"params has the entry None. Rule.*Write model.parameters\(\)"),
        ([{"lr": 0.1}], r"params has the entry \{'lr': 0.1\}"),
        ([], "there is no parameter. Rule: at least one"),
    ],
)
def test_parameters_are_tensors_pairs_or_groups(params: Any, match: str) -> None:
    w = weight()
    for good in ([w], iter([w]), [("w", w)], [{"params": [w]}]):
        assert len(parameters_of(good)) == 1
    for use in (parameters_of, LITE):
        with pytest.raises(ValueError, match=match):
            use(params)


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ({"a": 1}, "rules is a dict. Rule: a list of pairs"),
        ("a", "rules is a str"),
        (3, "rules is a int"),
        (["weight"], "entry 'weight'"),
        ([("(", "x")], r"regex '\(' is wrong.*Write '\\\\\('"),
    ],
)
def test_rules_are_pairs_with_a_regex(rules: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        require_rules(rules, "[('a', 'other')]")


METHODS: dict[str, Any] = {
    "kappa": lambda: IRE(AdamW([weight()]), mask="gradient"),
    "gamma": lambda: IRE(AdamW([weight()]), mask="gradient"),
    "interval": lambda: IRE(AdamW([weight()]), mask="gradient"),
    "p": lambda: GradPower(SGD([weight()], 0.1)),
    "unit": lambda: GradPower(SGD([weight()], 0.1)),
    "rho": lambda: SAM(SGD([weight()], 0.1)),
    "eta": lambda: ASAM(SGD([weight()], 0.1)),
    "chi": lambda: LITEAdam(AdamW([weight()])),
    "late_start": lambda: Late(GradPower(SGD([weight()], 0.1)), 1),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, "a"])
@pytest.mark.parametrize("name", METHODS)
def test_a_bad_setting_put_into_a_group_later_is_refused_before_anything_moves(name: str, value: Any) -> None:
    optimizer = METHODS[name]()
    (w,) = optimizer.param_groups[0]["params"]
    before = w.detach().clone()
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"{name.removeprefix('late_')} is {value!r}"):
        optimizer.step(lambda: w.sum())
    assert torch.equal(w, before)


@pytest.mark.parametrize(
    ("name", "values"),
    [("gamma", (0.6, 0.2)), ("interval", (10, 3)), ("start", (0, 5)), ("mask", ("auto", "random")), ("ramp", (0, 4))],
)
def test_groups_of_ire_have_one_mask(name: str, values: Any) -> None:
    groups = [{"params": [weight()], name: value} for value in values]
    with pytest.raises(ValueError, match=rf"{name} is .* in the first group and .* in another\. Rule: equal in all"):
        IRE(AdamW(groups))
    optimizer = IRE(AdamW([{"params": [weight()]}, {"params": [weight()]}]), **{name: values[1]})
    optimizer.add_param_group({"params": [weight()]})
    assert optimizer.param_groups[2][name] == values[1]
    optimizer.param_groups[0][name] = values[0]
    with pytest.raises(ValueError, match="Rule: equal in all"):
        optimizer.step()


@pytest.mark.parametrize("outer", [IRE, GradPower, ASAM, lambda base: Shell([base]), lambda base: IRE(GradPower(base))])
@pytest.mark.parametrize(
    ("inner", "match"),
    [
        (
            lambda: SAM(SGD([weight()], 0.1)),
            r"SAM is inside \w+, and steps with a closure.*Write SAM\(\w+\(optimizer\)\)",
        ),
        (lambda: Late(SAM(SGD([weight()], 0.1)), 3), "SAM is inside"),
        (lambda: LBFGS([weight()]), r"LBFGS is inside .*such as torch\.optim\.AdamW"),
    ],
)
def test_what_needs_a_closure_goes_outermost(outer: Any, inner: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        outer(inner())


def test_orders_that_work() -> None:
    for optimizer in (
        SAM(late(GradPower(SGD([w := weight()], 0.1), p=2.0), [0.1] * 2, share=0.5)),
        late(SAM(GradPower(SGD([w := weight()], 0.1), p=2.0)), [0.1] * 2, share=0.5),
    ):
        (w,) = optimizer.param_groups[0]["params"]

        def closure(w: nn.Parameter = w, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (w**2).sum()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(4)]
        assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_steps_by_itself_though_a_scheduler_watched_the_original(duplicate: Any) -> None:
    w = weight()
    optimizer = GradPower(SGD([w], 0.1))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    twin_w, twin = duplicate((w, optimizer))
    twin_w.grad = torch.ones(3)
    before, twin_before = w.detach().clone(), twin_w.detach().clone()
    twin.step()
    assert torch.equal(w, before)
    assert not torch.equal(twin_w, twin_before)
    scheduler = torch.optim.lr_scheduler.StepLR(twin, 1)
    twin.step()
    scheduler.step()  # a warning, if the copy's steps were not noticed
    assert twin.param_groups[0]["lr"] == pytest.approx(0.01)


USER = """
import torch
from flatwing.optim import *
from flatwing.optim import BatchSizeSchedule, Late
base = lambda: torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
model = torch.nn.Linear(2, 2)
for make in (
    lambda: IRE(base(), kappa="3"), lambda: IRE(base(), gamma=None), lambda: IRE(base(), seed="x"),
    lambda: IRE(torch.optim.AdamW), lambda: GradPower(base(), p="a"), lambda: GradPower(base(), unit="a"),
    lambda: SAM(base(), rho="a"), lambda: ASAM(base(), eta="a"), lambda: Late(SAM(base()), 2.5),
    lambda: late([0.1] * 4, share="a"), lambda: late([0.1] * 4, "a"), lambda: blockwise_lr(model, "a"),
    lambda: classify_blocks(3), lambda: classify_blocks(model, [("(", "ffn")]),
    lambda: classify_blocks(model, {"weight": "ffn"}), lambda: classify_blocks(model, ["weight"]),
    lambda: classify_blocks(model, [("weight", 3)]), lambda: group_by_name(model, ["weight"]),
    lambda: group_by_name(model, [("(", {})]), lambda: group_by_name(3, [("", {})]),
    lambda: group_by_name(model, [("", 3)]), lambda: muon_groups(3), lambda: weight_decay_groups(model, "a"),
    lambda: BatchSizeSchedule([(0, 64.5)], 8), lambda: BatchSizeSchedule([(0, 8)], 2.5),
    lambda: BatchSizeSchedule([(0, 8)], 8, 9.5), lambda: BatchSizeSchedule([3], 8),
    lambda: AdamMini(model, lr="a"), lambda: AdamMini(model, betas=0.9), lambda: SAM(base(), model="net"),
    lambda: IRE(base(), boost_weight_decay="no"), lambda: AdamMini(model.parameters(), blocks=3),
    lambda: blockwise_lr(model, lr=0.1, weight_decay=0.1, decouple_wd="no"), lambda: AdamMini(3), lambda: AdamMini([]),
):
    try:
        make()
        print("accepted")
    except ValueError as error:
        print(error)
"""


def test_wrong_types_are_refused_by_name_without_checked_types() -> None:
    done = run_python(USER)
    lines = done.stdout.splitlines()
    assert len(lines) == USER.count("lambda: ") - 1
    assert all("Rule: " in line or "Known: " in line for line in lines), lines
    assert "a batch size is 64.5. Rule: a whole number, such as 64. Nearest good value: 64." in lines
    assert lines[0].startswith("kappa is '3'. Rule: a number, at least 0.0")
    assert lines[3].startswith("got the class AdamW. Rule: a torch.optim.Optimizer")


def test_everything_public_is_listed_and_starred() -> None:
    room = sys.modules["flatwing.optim"]
    public = {name for name, value in vars(room).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert public - {"TYPE_CHECKING", "Any"} <= set(room.__all__)
    assert "MaxMarginClassifier" in room.__all__
    assert set(room.__all__) <= set(dir(room))
    assert all(getattr(room, name) is not None for name in room.__all__)
