import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from flatwing.optim import SAM, GradPower, Late, late
from flatwing.optim.late import learning_rates
from flatwing.train.schedule import factor
from scripts import benchmark

SCRIPT = benchmark("late_sam")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1 / 3, 0.5, 1.0])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_what_is_left_is_at_most_the_share_and_one_more_step_is_too_many(schedule: str, share: float) -> None:
    lrs = [0.3 * factor(schedule, step, 240, warmup=10) for step in range(240)]
    start = late(lrs, share=share)
    budget = share * math.fsum(lrs)
    assert math.fsum(lrs[start:]) <= budget + 1e-9
    assert start == 0 or math.fsum(lrs[start - 1 :]) > budget * (1 + 1e-12)
    assert late(lambda step: factor(schedule, step, 240, warmup=10), 240, share=share) == start


def test_the_ends() -> None:
    assert late([0.1] * 10, share=0.0) == 10
    assert late([0.1] * 10, share=1.0) == 0
    assert late([0.1] * 3800, share=0.25) == 2850
    assert late([0.1, 0.0, 0.0], share=0.0) == 1  # steps of size 0 cost nothing


def scheduled(make: Callable[[Any], Any]) -> tuple[torch.optim.Optimizer, Any]:
    groups = [{"params": [torch.zeros(3)], "lr": 0.2}, {"params": [torch.zeros(1)], "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    return optimizer, make(optimizer)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.CosineAnnealingLR(o, 40),
        lambda o: lr_scheduler.StepLR(o, 10, 0.3),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=50),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.ExponentialLR(o, 0.9)], [5]
        ),
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.9)]
        ),
    ],
)
def test_schedulers_are_run_on_a_copy(make: Callable[[Any], Any]) -> None:
    optimizer, scheduler = scheduled(make)
    groups, state = copy.deepcopy(optimizer.param_groups), copy.deepcopy(scheduler.state_dict())
    rates = learning_rates(scheduler, 40)
    assert str(optimizer.param_groups) == str(groups)
    assert str(scheduler.state_dict()) == str(state)
    real = []
    for _ in range(40):
        real.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == real
    assert len(set(real)) > 1
    assert late(scheduled(make)[1], 40) == late(real)


def test_the_first_group_that_learns_counts() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.0}, {"params": [torch.zeros(1)], "lr": 1.0}])
    assert learning_rates(lr_scheduler.ExponentialLR(optimizer, 0.5), 3) == [1.0, 0.5, 0.25]


def test_clear_words_for_what_cannot_be() -> None:
    optimizer, scheduler = scheduled(lambda o: lr_scheduler.StepLR(o, 10))
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"share is .* from 0.0 to 1.0"):
            late([0.1], share=share)
    for rates in ([0.1, -0.1], [0.1, math.nan], [0.0, 0.0], []):
        with pytest.raises(ValueError, match="learning rates sum to"):
            late(rates)
    with pytest.raises(ValueError, match="steps is missing"):
        late(lambda step: 1.0)
    with pytest.raises(ValueError, match="2 rates for 3 steps"):
        late([0.1, 0.1], 3)
    with pytest.raises(ValueError, match="steps is 0"):
        late(scheduler, 0)
    with pytest.raises(ValueError, match="ReduceLROnPlateau depends"):
        late(lr_scheduler.ReduceLROnPlateau(optimizer), 5)
    with pytest.raises(ValueError, match=r"got a SGD.*late\(SAM"):
        late(optimizer, [0.1])
    with pytest.raises(ValueError, match="there is no schedule"):
        late(SAM(optimizer))
    with pytest.raises(ValueError, match="start is -1"):
        Late(SAM(optimizer), -1)
    optimizer.step()
    scheduler.step()
    with pytest.raises(ValueError, match="the scheduler is at step 1"):
        late(scheduler, 10)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def drive(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> int:
    calls = 0
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(24, 6, generator=generator), torch.randint(3, (24,), generator=generator)

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        assert optimizer.step(closure) > 0
    return calls


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_first_the_base_then_the_method_with_its_momentum() -> None:
    model, other = network(), network()
    optimizer = late(SAM(sgd(model), rho=0.3), [0.1] * 12, share=0.25)
    plain = sgd(other)
    assert drive(model, optimizer, range(9)) == drive(other, plain, range(9)) == 9
    assert equal(model, other)
    assert optimizer.on
    assert drive(model, optimizer, range(9, 12)) == 6
    drive(other, SAM(plain, rho=0.3), range(9, 12))
    assert equal(model, other)


@pytest.mark.parametrize("stop", [3, 9, 11])
def test_resumed_is_uninterrupted(stop: int) -> None:
    whole, half, resumed = network(), network(), network()
    drive(whole, late(SAM(sgd(whole), rho=0.3), [0.1] * 12), range(12))
    first = late(SAM(sgd(half), rho=0.3), [0.1] * 12)
    drive(half, first, range(stop))
    resumed.load_state_dict(half.state_dict())
    second = Late(SAM(sgd(resumed)), start=0)  # the state knows better
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    drive(resumed, second, range(stop, 12))
    assert equal(whole, resumed)
    assert not equal(whole, half)


def test_any_method_can_be_late() -> None:
    model, other = network(), network()
    drive(model, late(GradPower(sgd(model), 1.5), lambda step: 1.0, 8, share=0.5), range(8))
    plain = sgd(other)
    drive(other, plain, range(4))
    drive(other, GradPower(plain, 1.5), range(4, 8))
    assert equal(model, other)


def test_a_closure_is_asked_for_before_it_is_needed() -> None:
    with pytest.raises(ValueError, match=r"SAM will need a closure.*perturbed"):
        late(SAM(sgd(network())), [0.1] * 12).step()
    late(GradPower(sgd(network())), [0.1] * 12).step()


def test_a_skipped_step_does_not_count() -> None:
    model = network()
    optimizer = late(SAM(sgd(model)), [0.1] * 4, share=0.5)
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step(lambda: None)
    assert optimizer.param_groups[0]["late_step"] == 0
    assert drive(model, optimizer, range(2)) == 2
    assert optimizer.on


def test_late_sam_is_as_flat_as_sam_on_digits() -> None:
    """The claim of the benchmark, on one seed of its small setting."""
    sharp, flat, full = (SCRIPT.train_digits(s, 0, SCRIPT.SETTINGS["small"]) for s in (0.0, 0.3, 1.0))
    assert flat.gradients <= 0.65 * full.gradients
    assert flat.sharpness < 1.3 * full.sharpness
    assert full.sharpness < sharp.sharpness / 3


def test_the_eigenvalue_is_that_of_the_whole_hessian() -> None:
    model = network()
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = [part.view_as(p) for part, p in zip(flat.split([p.numel() for p in values]), values, strict=True)]
        outputs = torch.func.functional_call(model, dict(zip(names, parts, strict=True)), x)
        return F.cross_entropy(outputs, y)

    flat = torch.cat([p.detach().flatten() for p in values])
    hessian = torch.autograd.functional.hessian(loss, flat)
    top = torch.linalg.eigvalsh(hessian)[-1].item()
    assert SCRIPT.sharpness(model, x, y) == pytest.approx(top, rel=1e-3)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_vectors_of_rates_are_rates(kind: Callable[[Any], Any]) -> None:
    rates = [0.1] * 50 + [0.01] * 50
    assert late(kind(rates)) == late(rates) == 42
    with pytest.raises(ValueError, match=r"shape \(1, 100\)"):
        late(kind([rates]))
