"""Hooks of the loop: they see what they are told, end runs that diverge or are interrupted, and add gradients."""

import math
import os
import signal
from typing import Any

import pytest
import torch
from torch import nn

from flatwing.optim import IRE, SAM, late
from flatwing.train import Callback, Training, fit
from flatwing.train.callbacks import DivergenceGuard, StopOnSignal
from flatwing.train.phases import MaskRefresh, SamPhase

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


def batches(step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(40, (8,), generator=generator)
    return X[rows], Y[rows]


def make(norm: bool = False) -> nn.Module:
    torch.manual_seed(3)
    middle = nn.BatchNorm1d(8) if norm else nn.Tanh()
    return nn.Sequential(nn.Linear(6, 8), middle, nn.Linear(8, 3))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


class Diary(Callback):
    def __init__(self) -> None:
        self.lines: list[Any] = []

    def on_start(self, training: Training) -> None:
        self.lines.append(("start", training.step, training.steps))

    def on_gradient(self, training: Training) -> None:
        assert all(p.grad is not None for p in training.model.parameters())
        self.lines.append(("gradient", training.step))

    def on_metric(self, training: Training, metric: dict[str, Any]) -> None:
        self.lines.append(("metric", training.step, metric["step"]))
        training.stop = training.step == 2

    def on_end(self, training: Training) -> None:
        self.lines.append(("end", training.step))


def test_hooks_are_called_in_order_and_may_stop() -> None:
    diary = Diary()
    metrics = fit(make(), batches, steps=5, lr=0.1, callbacks=[diary])
    assert [m["step"] for m in metrics] == [1, 2]
    middle = [("gradient", 0), ("metric", 1, 1), ("gradient", 1), ("metric", 2, 2)]
    assert diary.lines == [("start", 0, 5), *middle, ("end", 2)]


def test_end_is_called_after_an_error() -> None:
    diary = Diary()
    with pytest.raises(FloatingPointError, match="loss is nan"):
        fit(make(), batches, steps=5, lr=0.1, loss=lambda m, b: m(b[0]).sum() * math.nan, callbacks=[diary])
    assert diary.lines[-1] == ("end", 0)


def test_guard_ends_a_run_that_diverges_and_no_other() -> None:
    def loss(model: nn.Module, batch: int) -> torch.Tensor:
        return model(X).square().mean() * 0 + (1.0 if batch < 30 else 9.0)

    with pytest.raises(FloatingPointError, match=r"the loss is 3\.\d+ at step 33 after 1 before"):
        fit(make(), lambda step, g: step, steps=60, lr=0.1, loss=loss, callbacks=[DivergenceGuard(3.0)])
    fit(make(), lambda step, g: step, steps=60, lr=0.1, loss=loss, callbacks=[DivergenceGuard(10.0)])


def test_guard_remembers_the_losses_before_a_resume() -> None:
    guard = DivergenceGuard(3.0, after=1)
    training = Training(make(), make(), sgd(make()), [0.1] * 9, [{"step": k, "loss": 1.0} for k in (1, 2, 3)], 3)
    guard.on_start(training)
    with pytest.raises(FloatingPointError, match="at step 4 after 1 before"):
        guard.on_metric(training, {"step": 4, "loss": 100.0})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_after_the_step_and_handlers_are_restored(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def draw(step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        if step == 3:
            os.kill(os.getpid(), number)
        return batches(step, generator)

    with StopOnSignal() as stopper:
        metrics = fit(make(), draw, steps=9, lr=0.1, callbacks=[stopper])
    assert (len(metrics), stopper.caught) == (4, True)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_sam_phase_is_the_optimizer_sam_after_its_start(share: float) -> None:
    model, by_hand, steps = make(), make(), 10
    fit(
        model, batches, steps=steps, lr=0.1, schedule="constant", clip=None, optimizer=sgd, micro_batch=3,
        callbacks=[SamPhase(0.3, share=share)],
    )  # fmt: skip
    drawn: list[Any] = []
    fit(make(), lambda s, g: drawn.append(batches(s, g)) or drawn[-1], steps=steps, lr=0.0)
    optimizer = SAM(sgd(by_hand), rho=0.3)
    start = late([0.1] * steps, share=share)
    assert start == round(steps * (1 - share))
    for step, (x, y) in enumerate(drawn):

        def closure(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(by_hand(x), y)
            loss.backward()
            return loss

        if step >= start:
            optimizer.step(closure)
        else:
            closure()
            optimizer.base.step()
    torch.testing.assert_close(list(model.parameters()), list(by_hand.parameters()))


def test_sam_counts_a_batch_once_in_running_statistics() -> None:
    plain, climbed = make(norm=True), make(norm=True)
    fit(plain, batches, steps=1, lr=0.0)
    fit(climbed, batches, steps=1, lr=0.0, callbacks=[SamPhase(0.3)])
    torch.testing.assert_close(plain.state_dict(), climbed.state_dict(), rtol=0, atol=0)


def test_sam_works_with_loss_scaling() -> None:
    half, single = make(), make()
    for model, precision in ((half, "fp16"), (single, "fp32")):
        fit(model, batches, steps=5, lr=0.1, optimizer=sgd, precision=precision, callbacks=[SamPhase(0.3)])
    torch.testing.assert_close(list(half.parameters()), list(single.parameters()), rtol=0, atol=5e-3)


def test_mask_refresh_feeds_sampled_masks_and_only_when_due() -> None:
    seen: list[int] = []

    def optimizer(model: nn.Module) -> IRE:
        return IRE(sgd(model), kappa=2.0, interval=3, mask="sampled")

    class Count(Callback):
        def on_gradient(self, training: Training) -> None:
            seen.append(training.optimizer.param_groups[0]["ire_refreshed"])

    calls: list[int] = []
    model = make()
    model.register_forward_pre_hook(lambda m, x: calls.append(len(x[0])))
    fit(model, batches, steps=6, lr=0.1, optimizer=optimizer, micro_batch=4, callbacks=[MaskRefresh(), Count()])
    assert seen == [0, 0, 0, 3, 3, 3]
    assert calls == [4] * (6 * 2 + 2 * 2)  # two micro-batches per step, and again in two refreshes


def test_mask_refresh_leaves_other_optimizers_alone() -> None:
    plain, offered = make(), make()
    fit(plain, batches, steps=3, lr=0.1)
    fit(offered, batches, steps=3, lr=0.1, callbacks=[MaskRefresh()])
    torch.testing.assert_close(list(plain.parameters()), list(offered.parameters()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: SamPhase(-1.0), "rho is -1"),
        (lambda: SamPhase(0.1, share=2.0), "share is 2"),
        (lambda: DivergenceGuard(1.0), "factor is 1.0"),
    ],
)
def test_bad_settings_are_refused(make_it: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_it()
