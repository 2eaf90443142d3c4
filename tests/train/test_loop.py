"""The loop: same seed, same bytes; scored where asked; refuses before it works; names the step that went wrong."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatwing.train import Callback, DigitsMLP, Training, fit

X = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
Y = (X @ torch.randn(64, 10, generator=torch.Generator().manual_seed(2))).argmax(1)


def batches(step: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randint(40, (8,), generator=generator)
    return X[rows], Y[rows]


def mlp() -> DigitsMLP:
    torch.manual_seed(3)
    return DigitsMLP(width=8, depth=1)


def noisy() -> nn.Module:
    """A model that draws random numbers itself."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))


def bytes_of(model: nn.Module) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def test_one_step_of_sgd_is_the_formula() -> None:
    model, by_hand = mlp(), mlp()
    (metric,) = fit(model, lambda step, g: (X, Y), steps=1, lr=0.1, optimizer="SGD", clip=None)
    loss = F.cross_entropy(by_hand(X), Y)
    loss.backward()
    for p in by_hand.parameters():
        p.data -= 0.1 * p.grad
    torch.testing.assert_close(list(model.parameters()), list(by_hand.parameters()))
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in by_hand.parameters()))
    assert metric == {"step": 1, "loss": pytest.approx(loss.item()), "lr": 0.1, "norm": pytest.approx(norm)}


def test_loss_falls_and_every_step_is_recorded() -> None:
    metrics = fit(mlp(), batches, steps=100, lr=1e-2)
    assert [m["step"] for m in metrics] == list(range(1, 101))
    assert sum(m["loss"] for m in metrics[-10:]) < 0.5 * sum(m["loss"] for m in metrics[:10])


@pytest.mark.parametrize("make", [mlp, noisy])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_seed_same_bytes(make: Callable[[], nn.Module], precision: str) -> None:
    def trained(seed: int, disturb: int) -> bytes:
        model = make()
        torch.manual_seed(disturb)  # the global generator has no say
        fit(model, batches, steps=5, lr=1e-2, seed=seed, precision=precision)
        return bytes_of(model)

    assert trained(0, 1) == trained(0, 2)
    assert trained(0, 1) != trained(1, 1)


def test_global_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    fit(noisy_model := noisy(), batches, steps=0, lr=1e-2)
    torch.set_rng_state(before)
    fit(noisy_model, batches, steps=3, lr=1e-2)
    assert torch.equal(torch.get_rng_state(), before)


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    seen = []

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        logits = model(batch[0])
        seen.append(logits.dtype)
        return F.cross_entropy(logits.float(), batch[1])

    model = mlp()
    fit(model, batches, steps=1, lr=1e-2, loss=loss, precision="bf16")
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_own_loss_trains_what_is_not_frozen() -> None:
    model = mlp()
    frozen = model.head.requires_grad_(False).weight.clone()
    hidden = model.layers[0].weight.clone()
    fit(model, lambda step, g: X, steps=3, lr=1e-2, loss=lambda m, x: m(x).square().mean())
    assert torch.equal(model.head.weight, frozen)
    assert not torch.equal(model.layers[0].weight, hidden)
    assert all(p.grad is None for p in model.parameters())


def test_gradient_is_cut_to_the_clip() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    nine = torch.full((1, 1), 9.0)
    metrics = fit(model, lambda s, g: nine, steps=1, lr=1.0, clip=0.5, optimizer="SGD", loss=lambda m, x: m(x).sum())
    assert metrics[0]["norm"] == 9
    assert model.weight.item() == pytest.approx(0.5)


def test_learning_rate_follows_warmup_and_schedule() -> None:
    metrics = fit(mlp(), batches, steps=4, lr=0.1, warmup=2, schedule="linear", optimizer="SGD")
    assert [m["lr"] for m in metrics] == pytest.approx([0.05, 0.075, 0.05, 0.025])


def test_scores_before_on_the_way_and_after() -> None:
    modes, calls = [], iter(range(10))

    def evaluate(model: nn.Module) -> float:
        modes.append((model.training, torch.is_grad_enabled()))
        return float(next(calls))

    model, seen = mlp(), []
    metrics = fit(model, batches, steps=5, lr=1e-2, evaluate=evaluate, every=2, progress=seen.append)
    assert {m["step"]: m["score"] for m in metrics if "score" in m} == {0: 0, 2: 1, 4: 2, 5: 3}
    assert modes == [(False, False)] * 4
    assert model.training
    assert seen == metrics


@pytest.mark.parametrize("best", [0, 1, 2])
def test_best_weights_are_kept_also_the_first(best: int) -> None:
    model, seen = mlp(), []

    def evaluate(model: nn.Module) -> float:
        seen.append(bytes_of(model))
        return 0.0 if len(seen) - 1 == best else 1.0

    fit(model, batches, steps=3, lr=1e-2, evaluate=evaluate, every=1, keep="best")
    assert len(set(seen)) == 4
    assert bytes_of(model) == seen[best]


def test_steps_zero_changes_nothing() -> None:
    model = mlp()
    before = bytes_of(model)
    assert fit(model, batches, steps=0, lr=1e-2) == []
    assert bytes_of(model) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_names_the_step_and_leaves_the_weights(bad: float) -> None:
    model, states = mlp(), []

    def loss(model: nn.Module, batch: int) -> torch.Tensor:
        states.append(bytes_of(model))
        return model(X).mean() * (bad if batch == 2 else 1.0)

    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf|-inf) at step 3. Rule: finite"):
        fit(model, lambda step, g: step, steps=5, lr=1e-2, loss=loss)
    assert bytes_of(model) == states[-1]


def test_gradient_that_is_not_finite_names_the_step() -> None:
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x).sum().mul(0).sqrt()  # 0 with infinite slope

    with pytest.raises(FloatingPointError, match="norm is nan at step 1"):
        fit(mlp(), lambda step, g: X, steps=2, lr=1e-2, loss=loss)


def test_score_that_is_not_finite_names_the_step() -> None:
    with pytest.raises(FloatingPointError, match="score is nan at step 0"):
        fit(mlp(), batches, steps=2, lr=1e-2, evaluate=lambda m: math.nan)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"steps": -1}, "steps is -1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"warmup": -1}, "warmup is -1"),
        ({"every": -1}, "every is -1"),
        ({"clip": 0.0}, "clip is 0"),
        ({"clip": math.nan}, "clip is nan"),
        ({"precision": "fp8"}, "unknown precision 'fp8'. Known: fp32, bf16, fp16"),
        ({"floor": 2.0}, "floor is 2.0. Rule: a number from 0 to 1"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"save_every": -1}, "save_every is -1"),
        ({"parallel": "dpp"}, "unknown parallel 'dpp'"),
        ({"parallel": "ddp"}, "there is no process group. Rule: start with torchrun"),
        ({"keep": "all"}, "unknown keep 'all'"),
        ({"keep": "best"}, "nothing scores the model"),
        ({"schedule": "linaer"}, "unknown schedule 'linaer', did you mean 'linear'"),
        ({"optimizer": "Lion"}, "unknown optimizer 'Lion'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(argument: dict[str, object], message: str) -> None:
    def never(step: int, generator: torch.Generator) -> None:
        pytest.fail("a batch was drawn")

    with pytest.raises(ValueError, match=message):
        fit(mlp(), never, **({"steps": 1, "lr": 0.1} | argument))


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_micro_batches_add_up_to_the_batch(micro: int) -> None:
    whole, parts, seen = mlp(), mlp(), []

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        seen.append(len(batch[1]))
        return F.cross_entropy(model(batch[0]), batch[1])

    expected = fit(whole, batches, steps=5, lr=1e-2)
    metrics = fit(parts, batches, steps=5, lr=1e-2, loss=loss, micro_batch=micro)
    assert seen == {1: [1] * 8, 3: [3, 3, 2], 8: [8]}[micro] * 5
    torch.testing.assert_close(list(parts.parameters()), list(whole.parameters()), rtol=0, atol=1e-5)
    assert all(mine == pytest.approx(other, rel=1e-4) for mine, other in zip(metrics, expected, strict=True))


def test_fetch_turns_the_numbers_of_a_micro_batch_into_samples() -> None:
    drawn, fetched, by_hand = mlp(), mlp(), []

    def fetch(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        by_hand.append(len(rows))
        return X[rows], Y[rows]

    expected = fit(drawn, batches, steps=3, lr=1e-2, micro_batch=4)
    numbers = fit(
        fetched, lambda s, g: torch.randint(40, (8,), generator=g), fetch=fetch, steps=3, lr=1e-2, micro_batch=4
    )
    assert numbers == expected
    assert by_hand == [4, 4] * 3


def test_fp16_computes_in_half_precision_and_skips_steps_that_overflow() -> None:
    seen, weights = [], []

    def loss(model: nn.Module, batch: int) -> torch.Tensor:
        logits = model(X)
        seen.append(logits.dtype)
        weights.append(bytes_of(model))
        # times the first loss scale, 65536, the gradient of step 3 is above what float32 holds
        return F.cross_entropy(logits.float(), Y) * (1e36 if batch == 2 else 1.0)

    model = mlp()
    metrics = fit(model, lambda step, g: step, steps=5, lr=1e-2, loss=loss, precision="fp16")
    assert set(seen) == {torch.float16}
    assert [m.get("skipped") for m in metrics] == [None, None, 1, None, None]
    assert "norm" not in metrics[2]
    assert weights[3] == weights[2]
    assert len(set(weights)) == 4
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_fp16_that_overflows_at_every_scale_is_an_error() -> None:
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x).sum().mul(0).sqrt()  # 0 with infinite slope

    with pytest.raises(FloatingPointError, match="norm is nan at step 17"):
        fit(mlp(), lambda step, g: X, steps=30, lr=1e-2, loss=loss, precision="fp16")


def test_groups_fall_from_their_own_rates_to_a_common_floor() -> None:
    rates = []

    class Spy(Callback):
        def on_metric(self, training: Training, metric: dict[str, float]) -> None:
            rates.append([group["lr"] for group in training.optimizer.param_groups])

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        first, *rest = model.parameters()
        return torch.optim.SGD([{"params": [first], "lr": 0.4}, {"params": rest}], lr=0.1)

    metrics = fit(mlp(), batches, steps=4, lr=0.1, floor=0.5, schedule="linear", optimizer=optimizer, callbacks=[Spy()])
    assert [rate for _, rate in rates] == pytest.approx([0.1, 0.0875, 0.075, 0.0625])
    assert [rate for rate, _ in rates] == pytest.approx([0.4, 0.3125, 0.225, 0.1375])  # to 0.05 as the others
    assert [metric["lr"] for metric in metrics] == pytest.approx([rate for _, rate in rates])
