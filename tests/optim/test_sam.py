import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatwing.optim import ASAM, SAM, GradPower, Wrapper, perturbed, sam_backward
from flatwing.optim.perturb import Reach, ascent, ascent_norm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(24, 6, generator=generator), torch.randint(3, (24,), generator=generator)


def loss_of(model: nn.Module, seed: int = 0) -> torch.Tensor:
    x, y = batch(seed)
    return F.cross_entropy(model(x), y)


def copies(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(model: nn.Module, values: list[torch.Tensor]) -> bool:
    return all(torch.equal(p, value) for p, value in zip(model.parameters(), values, strict=True))


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_inside_the_weights_stand_at_distance_rho_along_the_gradient_and_outside_where_they_were() -> None:
    model = network()
    model[0].bias.data[0] = -0.0  # its sign is a bit, too
    before, places = copies(model), [p.data_ptr() for p in model.parameters()]
    loss_of(model).backward()
    g = gradients(model)
    norm = torch.cat([each.flatten() for each in g]).norm()
    with perturbed(model, rho=0.1):
        assert all(p.grad is None for p in model.parameters())
        for p, old, each in zip(model.parameters(), before, g, strict=True):
            torch.testing.assert_close(p.detach(), old + 0.1 * each / norm)
        loss_of(model).backward()
        inside = gradients(model)
    assert equal(model, before)
    assert math.copysign(1.0, model[0].bias[0].item()) == -1.0
    assert [p.data_ptr() for p in model.parameters()] == places
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), inside, strict=True))
    assert not torch.equal(inside[0], g[0])


def test_the_adaptive_direction_is_asams() -> None:
    model = network()
    before = copies(model)
    loss_of(model).backward()
    scale = [w.abs() + 0.01 for w in before]
    g = gradients(model)
    norm = torch.cat([(t * each).flatten() for t, each in zip(scale, g, strict=True)]).norm()
    with perturbed(model, rho=0.5, adaptive=True, eta=0.01):
        for p, old, t, each in zip(model.parameters(), before, scale, g, strict=True):
            torch.testing.assert_close(p.detach(), old + 0.5 * t**2 * each / norm)


def test_the_adaptive_neighbourhood_does_not_know_how_layers_share_their_scale() -> None:
    losses = []
    for factor in (1.0, 4.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
        with torch.no_grad():
            model[0].weight.mul_(factor)
            model[2].weight.div_(factor)
        loss_of(model).backward()
        with perturbed(model, rho=0.5, adaptive=True, eta=0.0):
            losses.append(loss_of(model).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_weights_come_back_after_an_error_inside() -> None:
    model = network()
    before = copies(model)
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match="out of memory"), perturbed(model, rho=1.0):
        raise RuntimeError("out of memory")
    assert equal(model, before)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    model = network()
    loss_of(model).backward()
    with perturbed(model, rho=0.1):
        expected = copies(model)
    model.zero_grad()
    (scale * loss_of(model)).backward()
    with perturbed(model, rho=0.1):
        for p, value in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), value)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_without_a_direction_the_weights_stay(value: float) -> None:
    model = network()
    before = copies(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, value)
    with perturbed(model, rho=0.1):
        assert equal(model, before)
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_entry_that_is_not_finite_is_enough(value: float) -> None:
    model = network()
    before = copies(model)
    loss_of(model).backward()
    model[0].weight.grad[0, 0] = value
    with perturbed(model, rho=0.1):
        assert equal(model, before)


def test_half_precision_moves_as_float32_does_and_rounds_once() -> None:
    w = nn.Parameter(torch.tensor([1.0, 0.5], dtype=torch.float16))
    w.grad = torch.tensor([6e-7, 0.0], dtype=torch.float16)  # rho / norm is far above the largest float16
    with perturbed(w, rho=0.25):
        assert w.tolist() == [1.25, 0.5]
    assert w.tolist() == [1.0, 0.5]


def test_complex_weights_go_up_as_pairs_of_real_ones() -> None:
    z = nn.Parameter(torch.tensor([1 + 2j, -1j]))
    pair = nn.Parameter(torch.view_as_real(z.detach()).clone())
    z.abs().pow(3).sum().backward()
    torch.view_as_complex(pair).abs().pow(3).sum().backward()
    with perturbed(z, rho=0.3), perturbed(pair, rho=0.3):
        torch.testing.assert_close(torch.view_as_real(z.detach()), pair.detach())


class Counting(nn.Module):
    """A norm of the user's own, whose buffer is replaced and not written to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + 1
        return x


def test_statistics_count_a_batch_once() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), Counting(), nn.Linear(8, 3), nn.BatchNorm1d(3, momentum=None)]
    model = nn.Sequential(*layers)
    loss_of(model).backward()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    place = model[1].running_mean.data_ptr()
    with perturbed(model, rho=0.5):
        loss_of(model).backward()
        assert model[2].seen == 2
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert model[1].num_batches_tracked == 1
    assert model[1].running_mean.data_ptr() == place


def test_parameters_without_a_gradient_stay_and_a_list_is_enough() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    loss_of(model).backward()
    frozen, bias = model[0].weight.clone(), model[0].bias.detach().clone()
    with perturbed([*model.parameters(), model[0].bias], rho=0.5):  # one given twice moves once
        assert torch.equal(model[0].weight, frozen)
        moved = torch.cat([(model[0].bias - bias).flatten()])
        assert 0 < moved.norm() <= 0.5


def test_clear_words_for_what_cannot_be() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"no parameter has a gradient.*backward"), perturbed(model):
        pass
    loss_of(model).backward()
    for rho in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"rho is .* at least 0"), perturbed(model, rho):
            pass
    with pytest.raises(ValueError, match=r"eta is .* at least 0"), perturbed(model, adaptive=True, eta=-1.0):
        pass
    with pytest.raises(ValueError, match="got a tuple"), perturbed(model.named_parameters()):
        pass
    before = copies(model)
    model[0].weight.grad = torch.zeros_like(model[0].weight).to_sparse()
    with pytest.raises(ValueError, match="sparse"), perturbed(model):
        pass
    assert equal(model, before)


def test_the_norm_is_over_all_parameters_in_at_least_float32() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([2.0], dtype=torch.float16)
    big = {a: torch.tensor([3e4]), b: torch.tensor([4e4], dtype=torch.float16)}
    assert ascent_norm(big, {a: Reach(1.0), b: Reach(1.0)}) == pytest.approx(5e4)
    assert ascent_norm(big, {a: Reach(1.0, 1.0), b: Reach(1.0, 1.0)}) == pytest.approx(math.hypot(6e4, 12e4))
    torch.testing.assert_close(ascent(b, torch.ones(1), 0.5, eta=1.0), torch.tensor([4.5]))


def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, seed)
        loss.backward()
        return loss

    return closure


BASES: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda params: torch.optim.AdamW(params, lr=0.01),
]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_optimizer_and_the_context_do_the_same(base: Callable[[Any], Any], adaptive: bool) -> None:
    model, other = network(), network()
    kind = ASAM if adaptive else SAM
    optimizer, plain = kind(base(model.parameters()), rho=0.2), base(other.parameters())
    for step in range(5):
        expected = loss_of(model, step).item()
        assert optimizer.step(closure_of(model, optimizer, step)).item() == expected
        closure_of(other, plain, step)()
        with perturbed(other, rho=0.2, adaptive=adaptive):
            loss_of(other, step).backward()
        plain.step()
    assert equal(model, copies(other))
    assert not equal(network(), copies(other))


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_radius_zero_is_the_base_with_one_gradient_per_step(kind: type[SAM | ASAM]) -> None:
    model, other = network(), network()
    optimizer, plain = kind(BASES[0](model.parameters()), rho=0.0), BASES[0](other.parameters())
    calls = 0
    for step in range(3):
        inner = closure_of(model, optimizer, step)

        def closure(inner: Callable[[], torch.Tensor] = inner) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return inner()

        optimizer.step(closure)
        plain.step(closure_of(other, plain, step))
    assert equal(model, copies(other))
    assert calls == 3
    optimizer.param_groups[0]["rho"] = 0.1
    optimizer.step(closure)
    assert calls == 5


def test_the_weights_are_where_they_were_when_the_base_steps() -> None:
    model = network()

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # pyright: ignore
            assert equal(model, before)
            super().step()

    optimizer = SAM(Watching(model.parameters(), lr=0.1), rho=3.0)
    for step in range(3):
        before = copies(model)
        optimizer.step(closure_of(model, optimizer, step))
        assert not equal(model, before)


def test_each_group_moves_by_its_own_radius_along_one_direction() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = SAM(torch.optim.SGD([{"params": [a], "rho": 1.0}, {"params": [b]}], lr=1.0), rho=10.0)
    seen = []

    def closure() -> None:
        optimizer.zero_grad()
        seen.append((round(a.item(), 6), round(b.item(), 6)))
        (3 * a + 4 * b).sum().backward()

    optimizer.step(closure)
    assert seen == [(0.0, 0.0), (0.6, 8.0)]


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_a_step_without_a_closure_says_what_to_write(kind: type[SAM | ASAM]) -> None:
    model = network()
    optimizer = kind(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(ValueError, match=r"step\(closure\).*GradScaler.*perturbed"):
        optimizer.step()
    with pytest.raises(ValueError, match="goes outermost"):
        GradPower(optimizer)


def test_bad_settings_are_refused_also_later() -> None:
    model = network()
    with pytest.raises(ValueError, match="rho is -1"):
        SAM(torch.optim.SGD(model.parameters(), 0.1), rho=-1.0)
    with pytest.raises(ValueError, match="eta is nan"):
        ASAM(torch.optim.SGD(model.parameters(), 0.1), eta=math.nan)
    optimizer = SAM(torch.optim.SGD(model.parameters(), 0.1))
    optimizer.param_groups[0]["rho"] = -2.0
    with pytest.raises(ValueError, match="rho is -2"):
        optimizer.step(closure_of(model, optimizer))


def test_a_second_gradient_that_is_not_finite_skips_the_step() -> None:
    model = network()
    optimizer = SAM(BASES[0](model.parameters()), rho=0.1)
    before, calls = copies(model), 0

    def closure() -> None:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        (loss_of(model) * (1.0 if calls == 1 else math.nan)).backward()

    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step(closure)
    assert (calls, optimizer.skipped) == (2, 1)
    assert equal(model, before)


def test_with_a_model_its_statistics_count_a_batch_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    optimizer = SAM(BASES[0](model.parameters()), rho=0.5, model=model)
    for step in range(3):
        optimizer.step(closure_of(model, optimizer, step))
    assert model[1].num_batches_tracked == 3
    assert pickle.loads(pickle.dumps(optimizer)).model is None


class Doubling(Wrapper):
    """A method inside SAM, as IRE is: it needs the weights before and after the base's step."""

    name = "doubling"

    def update(self) -> None:
        before = [p.detach().clone() for p in self.parameters()]
        self.base.step()
        for p, old in zip(self.parameters(), before, strict=True):
            p.add_(p - old)


def test_methods_inside_see_the_weights_restored() -> None:
    model, other = network(), network()
    optimizer = SAM(Doubling(torch.optim.SGD(model.parameters(), 0.1), {}), rho=2.0)
    plain = SAM(torch.optim.SGD(other.parameters(), 0.2), rho=2.0)
    optimizer.step(closure_of(model, optimizer))
    plain.step(closure_of(other, plain))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def parts_of(model: nn.Module, count: int) -> list[Callable[[], float]]:
    x, y = batch()

    def part(a: torch.Tensor, b: torch.Tensor) -> float:
        loss = F.cross_entropy(model(a), b) / count
        loss.backward()
        return loss.item()

    return [lambda a=a, b=b: part(a, b) for a, b in zip(x.chunk(count), y.chunk(count), strict=True)]


def test_accumulating_over_the_batch_is_one_large_batch() -> None:
    model, other = network(), network()
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)  # of the step before
    before = copies(model)
    assert sum(sam_backward(model, parts_of(model, 4), rho=0.2)) == pytest.approx(loss_of(model).item())
    loss_of(other).backward()
    with perturbed(other, rho=0.2):
        loss_of(other).backward()
    for p, q in zip(gradients(model), gradients(other), strict=True):
        torch.testing.assert_close(p, q)
    assert equal(model, before)


def test_accumulating_per_micro_batch_goes_up_for_each() -> None:
    model, other = network(), network()
    before = copies(model)
    sam_backward(list(model.parameters()), parts_of(model, 4), rho=0.2, mode="micro-batch")
    totals = [torch.zeros_like(p) for p in other.parameters()]
    for run in parts_of(other, 4):
        other.zero_grad()
        run()
        with perturbed(other, rho=0.2):
            run()
        for total, g in zip(totals, gradients(other), strict=True):
            total += g
    for p, q in zip(gradients(model), totals, strict=True):
        torch.testing.assert_close(p, q)
    assert equal(model, before)
    sam_backward(other, parts_of(other, 4), rho=0.2)
    assert not torch.allclose(gradients(other)[0], totals[0], rtol=1e-3)


def test_one_micro_batch_is_the_same_in_both_modes() -> None:
    model, other = network(), network()
    sam_backward(model, parts_of(model, 1), rho=0.2, mode="batch")
    sam_backward(other, parts_of(other, 1), rho=0.2, mode="micro-batch")
    assert all(torch.equal(p, q) for p, q in zip(gradients(model), gradients(other), strict=True))


def test_accumulation_refuses_what_it_does_not_know() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"unknown mode 'mini'.*micro-batch"):
        sam_backward(model, parts_of(model, 2), mode="mini")
    with pytest.raises(ValueError, match="no passes"):
        sam_backward(model, [])
    with pytest.raises(ValueError, match="rho is -1"):
        sam_backward(model, parts_of(model, 2), rho=-1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradscaler_and_autocast_train_as_float32_does(dtype: torch.dtype) -> None:
    model, other = network(), network()
    optimizer, plain = BASES[0](model.parameters()), BASES[0](other.parameters())
    # the first scales overflow in float16; from there on the two runs are compared
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22 if dtype == torch.float16 else 2.0**10)
    skipped = 0
    for step in range(25):
        before, scale = copies(model), scaler.get_scale()
        optimizer.zero_grad()

        def half_loss(step: int = step) -> torch.Tensor:
            x, y = batch(step)
            with torch.autocast("cpu", dtype):
                return F.cross_entropy(model(x).float(), y)

        scaler.scale(half_loss()).backward()
        with perturbed(model, rho=0.1):
            scaler.scale(half_loss()).backward()
        assert equal(model, before)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale:
            skipped += 1
            assert equal(model, before)
            continue
        plain.zero_grad()
        loss_of(other, step).backward()
        with perturbed(other, rho=0.1):
            loss_of(other, step).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        plain.step()
    assert (skipped > 0) == (dtype == torch.float16)
    assert skipped < 20
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.02)


def test_gradscaler_with_the_optimizer_gets_the_recipe() -> None:
    model = network()
    optimizer = SAM(torch.optim.SGD(model.parameters(), 0.1))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model)).backward()
    with pytest.raises(ValueError, match=r"With GradScaler.*second backward"):
        scaler.step(optimizer)


def test_rho_is_kept_with_the_state_and_can_be_scheduled() -> None:
    model = network()
    optimizer = SAM(copy.deepcopy(BASES[0](model.parameters())), rho=0.3)
    state = optimizer.state_dict()
    assert state["param_groups"][0]["rho"] == 0.3
    other = SAM(BASES[0](network().parameters()), rho=0.1)
    other.load_state_dict(state)
    assert other.param_groups[0]["rho"] == 0.3
