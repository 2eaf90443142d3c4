import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from flatwing.optim import GradPower, boost
from flatwing.optim.gradpower import power, unit_of

REAL = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [*REAL, torch.complex64])
def test_power_one_is_a_copy_and_power_zero_the_sign(dtype: torch.dtype) -> None:
    g = torch.randn(50).to(dtype)
    g[:2] = torch.tensor([0.0, -0.0])
    same = power(g, 1.0, unit=1e-8)
    assert torch.equal(same, g)
    assert same.data_ptr() != g.data_ptr()
    assert torch.equal(power(g, 0.0), g.sgn())
    torch.testing.assert_close(power(g.to(torch.complex128), 1e-9).abs()[2:], torch.ones(48, dtype=torch.float64))


@given(st.floats(0.0, 3.0), st.floats(1e-3, 1e3))
def test_power_is_odd_monotone_and_of_its_degree(p: float, c: float) -> None:
    g = torch.linspace(-2, 2, 101, dtype=torch.float64)
    assert torch.equal(power(-g, p), -power(g, p))
    assert (power(g, p).diff() >= 0).all()
    torch.testing.assert_close(power(c * g, p), c**p * power(g, p))
    torch.testing.assert_close(power(g, p, unit=c), c ** (1 - p) * power(g, p))
    torch.testing.assert_close(power(torch.tensor([c]), p, unit=c), torch.tensor([c]))


def test_power_keeps_the_phase_of_a_complex_entry() -> None:
    g = torch.polar(torch.tensor([4.0, 9.0, 0.0]), torch.tensor([0.3, -2.0, 0.0]))
    torch.testing.assert_close(
        power(g, 0.5), torch.polar(torch.tensor([2.0, 3.0, 0.0]), torch.tensor([0.3, -2.0, 0.0]))
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_power_rounds_once_in_half_precision(dtype: torch.dtype) -> None:
    g = torch.randn(1000).to(dtype)
    # float32 is a second rounding, which matters where it falls on a tie; computing in half would miss every third
    assert (power(g, 1.2) != power(g.double(), 1.2).to(dtype)).double().mean() < 0.01


def test_a_unit_saves_float16_from_underflow() -> None:
    g = torch.full((4,), 1e-6, dtype=torch.float16)
    assert (power(g, 1.5) == 0).all()
    torch.testing.assert_close(power(g, 1.5, unit=1e-6).double(), torch.full((4,), 1e-6).double(), rtol=0.1, atol=0)


@pytest.mark.parametrize("p", [-0.1, math.inf, math.nan])
def test_bad_powers_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"p is .* at least 0"):
        power(torch.ones(2), p)
    with pytest.raises(ValueError, match=r"p is .* at least 0"):
        GradPower(torch.optim.SGD([torch.zeros(2)], 0.1), p)


@pytest.mark.parametrize("unit", [0.0, -1.0, math.inf, math.nan])
def test_bad_units_are_refused(unit: float) -> None:
    with pytest.raises(ValueError, match=r"unit is .* above 0"):
        GradPower(torch.optim.SGD([torch.zeros(2)], 0.1), unit=unit)


def drift(p: float, density: torch.Tensor, x: torch.Tensor, mu: float) -> float:
    """E[phi(mu + x)] / sqrt(E[phi(mu + x)^2]) for noise of this density: how fast Adam goes in the long run."""
    phi, weight = power(mu + x, p), density / density.sum()
    return float((weight * phi).sum() / (weight * phi.square()).sum().sqrt())


def test_adam_goes_as_fast_as_theory_says_under_uniform_noise() -> None:
    x = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    speeds = [drift(p, torch.ones_like(x), 10 * x, 1.0) for p in (1.0, 1.2, 3.0)]
    assert speeds == pytest.approx([0.171, 0.181, 0.243], abs=0.002)
    falling = [drift(p, torch.ones_like(x), x, 1.0) for p in (0.6, 1.0, 1.4, 2.0)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(
    ("shape", "best", "gain"),
    [(1.0, 0.0, -0.097), (1.5, 0.5, -0.035), (2.0, 1.0, -0.005), (2.2, 1.2, 0.004), (4.0, 3.0, 0.039)],
)
def test_the_best_power_is_the_tail_less_one(shape: float, best: float, gain: float) -> None:
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    density = torch.exp(-(x.abs() ** shape))
    sigma = float(((density * x.square()).sum() / density.sum()).sqrt())
    mu = 0.05 * sigma
    assert drift(1.2, density, x, mu) / drift(1.0, density, x, mu) - 1 == pytest.approx(gain, abs=0.003)
    grid = [k / 10 for k in range(36)]
    # at a signal of a twentieth of the noise the optimum is blunt, and near a sharp peak a little off
    assert max(grid, key=lambda p: drift(p, density, x, mu)) == pytest.approx(best, abs=0.11)


def model_and_batch() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(20, 6), torch.arange(20) % 3


def test_the_base_sees_powers_and_the_user_gradients() -> None:
    model, x, y = model_and_batch()
    twin = copy.deepcopy(model)
    optimizer = GradPower(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), p=1.3)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        before = [(p.grad, p.grad.clone()) for p in model.parameters()]
        optimizer.step()
        for p, (gradient, value) in zip(model.parameters(), before, strict=True):
            assert p.grad is gradient
            assert torch.equal(gradient, value)
        plain.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        for p in twin.parameters():
            p.grad = p.grad.sign() * p.grad.abs() ** 1.3
        plain.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_gradients_are_put_back_after_an_error() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = GradPower(torch.optim.SGD([w], 0.1))
    w.grad = torch.full((3,), 0.5)
    optimizer.param_groups[0]["p"] = -1.0
    with pytest.raises(ValueError, match="p is -1"):
        optimizer.step()
    assert torch.equal(w.grad, torch.full((3,), 0.5))
    assert torch.equal(w.data, torch.ones(3))


def test_groups_have_powers_of_their_own() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = GradPower(torch.optim.SGD([{"params": [a], "p": 2.0}, {"params": [b]}], lr=1.0), p=1.0)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([3.0])
    optimizer.step()
    assert (a.item(), b.item()) == (-9.0, -3.0)


def test_several_bases_are_one() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = GradPower([torch.optim.SGD([a], lr=1.0), torch.optim.SGD([b], lr=2.0)], p=2.0)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([3.0])
    optimizer.step()
    assert (a.item(), b.item()) == (-9.0, -18.0)


def test_the_unit_is_eps_where_the_base_has_one() -> None:
    assert unit_of({"unit": None, "eps": 1e-6}) == 1e-6
    assert unit_of({"unit": 0.5, "eps": 1e-6}) == 0.5
    assert unit_of({"unit": None, "eps": (None, 1e-3)}) == 1.0  # Adafactor's pair
    assert unit_of({"unit": None, "eps": 0.0}) == 1.0


def steps_of(scale: float, p: float, unit: float | None, eps: float) -> torch.Tensor:
    w = nn.Parameter(torch.zeros(64, dtype=torch.float64))
    optimizer = GradPower(torch.optim.Adam([w], lr=1.0, eps=eps), p, unit=unit)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        w.grad = scale * torch.randn(64, dtype=torch.float64, generator=generator)
        optimizer.step()
    return w.detach()


def test_adam_does_not_know_the_scale_of_the_gradient() -> None:
    torch.testing.assert_close(steps_of(1.0, 1.2, 1.0, 1e-30), steps_of(1e-4, 1.2, 1.0, 1e-30))


def test_adams_eps_cuts_off_at_the_same_size_as_without_a_power() -> None:
    # entries of 1e-7 are ten times eps: they count, as for plain Adam; with unit 1 their powers are below eps
    first = steps_of(1e-7, 1.5, None, 1e-8).abs().mean()
    assert first > 0.8 * steps_of(1.0, 1.5, None, 1e-8).abs().mean()
    assert steps_of(1e-7, 1.5, 1.0, 1e-8).abs().mean() < 0.1 * first


def test_a_power_that_overflows_skips_the_step() -> None:
    w = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    optimizer = GradPower(torch.optim.SGD([w], 1.0), p=2.0)
    w.grad = torch.tensor([1.0, 300.0], dtype=torch.float16)
    with pytest.warns(UserWarning, match="overflows"):
        optimizer.step()
    assert optimizer.skipped == 1
    assert torch.equal(w.data, torch.zeros(2, dtype=torch.float16))
    assert w.grad[1] == 300
    optimizer.step()  # the second time it is known
    w.grad = torch.tensor([1.0, 2.0], dtype=torch.float16)
    optimizer.step()
    assert w.tolist() == [-1.0, -4.0]


def test_a_power_that_only_might_overflow_is_stepped_along() -> None:
    w = nn.Parameter(torch.zeros(10_000, dtype=torch.float16))
    optimizer = GradPower(torch.optim.SGD([w], 1.0), p=1.2)
    w.grad = torch.full_like(w, 100.0)  # the power of the norm is 63096, beyond half of the largest float16
    optimizer.step()
    assert optimizer.skipped == 0
    torch.testing.assert_close(w.detach(), torch.full_like(w, -(100**1.2)).detach())


class Counting(torch.optim.SGD):
    """Sees how many gradients are not the user's at a time."""

    def step(self, closure=None):
        self.seen = [p.grad for group in self.param_groups for p in group["params"]]
        return super().step(closure)


@pytest.mark.parametrize("base", [torch.optim.SGD, Counting])
def test_stepping_in_pieces_is_one_step(base: type[torch.optim.SGD], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (300, 230), (5,)]
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    monkeypatch.setattr(boost, "PIECE", {"cpu": 1})
    optimizer, plain = GradPower(base(params, lr=0.1), 1.3), torch.optim.SGD(twins, lr=0.1)
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    for p, q, g in zip(params, twins, gradients, strict=True):
        p.grad, q.grad = g, power(g, 1.3)
    optimizer.step()
    plain.step()
    for p, q, g in zip(params, twins, gradients, strict=True):
        assert torch.equal(p, q)
        assert p.grad is g
    if isinstance(optimizer.base, Counting):  # of a class of which nobody knows, all at once
        assert len(optimizer.base.seen) == 3


def test_muon_takes_powers() -> None:
    w = nn.Parameter(torch.zeros(4, 4))
    twin = nn.Parameter(torch.zeros(4, 4))
    g = torch.randn(4, 4)
    w.grad, twin.grad = g, power(g, 1.2)
    GradPower(torch.optim.Muon([w], lr=0.1), 1.2).step()
    torch.optim.Muon([twin], lr=0.1).step()
    torch.testing.assert_close(w, twin, rtol=1e-2, atol=1e-3)  # Newton-Schulz is in bfloat16


def test_loss_scaling_does_not_change_the_powers() -> None:
    model, x, y = model_and_batch()
    twin = copy.deepcopy(model)
    scaled = GradPower(torch.optim.SGD(model.parameters(), lr=0.1), 1.5)
    plain = GradPower(torch.optim.SGD(twin.parameters(), lr=0.1), 1.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        scaled.zero_grad()
        scaler.scale(F.cross_entropy(model(x) * (torch.inf if step == 1 else 1.0), y)).backward()
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(scaled)
        scaler.update()
        if step == 1:  # an overflow
            assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
            continue
        plain.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        plain.step()
    assert scaler.get_scale() == 512.0
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
