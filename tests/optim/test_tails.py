import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatwing.optim import diagnose
from flatwing.optim.tails import Tails, best_power, shape_lightness, speed, tails


def noise(a: float, n: int, d: int, seed: int = 0) -> torch.Tensor:
    """n by d draws of density exp(-|x|^a): the a-th root of a Gamma(1/a) variable, with a sign."""
    torch.manual_seed(seed)
    size = torch.distributions.Gamma(torch.tensor(1 / a).double(), 1.0).sample((n, d)).pow(1 / a)
    return size * torch.randint(0, 2, (n, d)).mul(2).sub(1)


@pytest.mark.parametrize("n", [8, 9, 40])
def test_gaussian_noise_is_on_average_neither_light_nor_heavy_however_few_the_batches(n: int) -> None:
    found = tails(noise(2.0, n, 20_000) * torch.logspace(-6, 3, 20_000))  # coordinates have scales of their own
    assert found.lightness == pytest.approx(0.0, abs=0.005)
    assert found.kurtosis == pytest.approx(0.0, abs=0.05)
    assert found.signal == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize(
    ("a", "kurtosis", "verdict"),
    [(1.0, 3.0, "does not help"), (1.5, 0.762, "does not help"), (4.0, -0.812, "helps"), (50.0, -1.195, "helps")],
)
def test_the_shape_of_the_noise_is_found(a: float, kurtosis: float, verdict: str) -> None:
    found = tails(noise(a, 200, 3000))
    assert found.verdict == verdict
    assert found.lightness == pytest.approx(shape_lightness(a), abs=0.03)
    assert found.kurtosis == pytest.approx(kurtosis, abs=0.3)
    if a < 10:
        assert found.best_power == pytest.approx(a - 1, abs=0.15)
        assert found.low <= found.best_power <= found.high
    assert str(found).startswith(f"p > 1: {verdict}. Best power ")


def test_the_error_is_that_of_batches_not_of_coordinates() -> None:
    """Coordinates that all say the same are no more evidence than one; the error knows."""
    runs = [tails(noise(2.0, 30, 1, seed).expand(30, 500)) for seed in range(150)]
    spread = torch.tensor([run.lightness for run in runs]).std().item()
    typical = torch.tensor([run.error for run in runs]).median().item()
    assert 0.7 < typical / spread < 1.4
    assert sum(run.verdict == "not decided" for run in runs) > 120
    kurtoses = torch.tensor([run.kurtosis for run in runs])
    assert abs(kurtoses.mean()) < 3 * kurtoses.std() / math.sqrt(150)


def test_the_error_is_from_the_influence_of_each_batch() -> None:
    half = noise(1.5, 25, 1)
    g = torch.cat([half, -half])  # symmetric: moving the mean does nothing in first order

    def lightness(weight: torch.Tensor) -> torch.Tensor:
        w = weight[:, None] / weight.sum()
        r = g - (w * g).sum(0)
        logs = r.abs().log()
        return 1 + (w * logs).sum() - (w * r.square() * logs).sum() / (w * r.square()).sum()

    influence = torch.func.jacrev(lightness)(torch.ones(50, dtype=torch.float64)) * 50
    assert tails(g).error == pytest.approx(influence.std().item() / math.sqrt(50), rel=1e-2)


def test_few_batches_look_gaussian_but_keep_the_sign() -> None:
    heavy = [tails(noise(1.0, n, 3000)).lightness for n in (12, 30, 120)]
    assert heavy == sorted(heavy, reverse=True)
    assert heavy[1] == pytest.approx(-0.37, abs=0.02)
    assert heavy[0] < -0.15


def test_a_signal_is_told_from_the_noise() -> None:
    found = tails(noise(2.0, 50, 5000) + 0.5 * math.sqrt(0.5))  # noise of variance 1/2
    assert found.signal == pytest.approx(0.25, abs=0.01)
    assert found.lightness == pytest.approx(0.0, abs=0.01)


def test_coordinates_that_do_not_move_are_counted_and_left_out() -> None:
    g = noise(4.0, 40, 300)
    found, alone = tails(torch.cat([g, torch.ones(40, 50)], 1)), tails(g)
    assert (found.silent, found.coordinates) == (50, 350)
    assert found.lightness == alone.lightness
    rare = torch.zeros(40, 1)
    rare[3] = 1.0  # without batch 3 it stands still
    assert math.isfinite(tails(torch.cat([g, rare], 1)).error)


def test_speed_is_best_at_the_power_that_is_named() -> None:
    for a in (1.2, 1.5, 2.0, 3.0, 4.0):
        grid = [k / 100 for k in range(2, 400)]
        assert max(grid, key=lambda p: speed(p, a)) == pytest.approx(best_power(shape_lightness(a)), abs=0.01)
        # lightness is the slope of log speed at p = 1
        slope = (math.log(speed(1.001, a)) - math.log(speed(0.999, a))) / 0.002
        assert slope == pytest.approx(shape_lightness(a), abs=1e-4)
    gains = [speed(1.2, a) - 1 for a in (400.0, 4.0, 2.2, 2.0, 1.5, 1.0)]
    assert gains == pytest.approx([0.064, 0.039, 0.004, -0.005, -0.035, -0.097], abs=0.002)
    with pytest.raises(ValueError, match="p is 0"):
        speed(0.0, 2.0)


def test_powers_stay_in_range() -> None:
    assert best_power(-5.0) == 0.0
    assert best_power(1.0) == math.inf


class Noisy(nn.Module):
    """Buffers that move, random numbers that are drawn, and a parameter that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def cross_entropy(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(32, 6, generator=generator), torch.randint(3, (32,), generator=generator)) for _ in range(count)
    ]


def test_nothing_is_changed_and_the_same_is_found_again() -> None:
    model = Noisy()
    cross_entropy(model, batches(1)[0]).backward()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    found = diagnose(model, iter(batches(12)), cross_entropy)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    for p, g in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None) == (g is None)
        assert g is None or torch.equal(p.grad, g)
    torch.manual_seed(5)
    with torch.no_grad():
        assert diagnose(model, batches(12), cross_entropy) == found
    assert (found.batches, found.silent) == (12, 5)


def test_the_coordinates_are_those_of_the_whole_gradient() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    rows = []
    for batch in batches(10):
        model.zero_grad()
        cross_entropy(model, batch).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert diagnose(model, batches(10), cross_entropy) == tails(torch.stack(rows))
    some = diagnose(model, batches(10), cross_entropy, coordinates=40)
    assert 20 < some.coordinates <= 40
    assert some == diagnose(model, batches(10), cross_entropy, coordinates=40)
    assert some != diagnose(model, batches(10), cross_entropy, coordinates=40, seed=1)


def test_clear_words_for_what_cannot_be() -> None:
    model = Noisy()
    with pytest.raises(ValueError, match=r"there are 7 batches.*at least 8"):
        diagnose(model, batches(7), cross_entropy)
    with pytest.raises(ValueError, match=r"there are 7 batches.*at least 8"):
        tails(torch.randn(7, 3))
    with pytest.raises(ValueError, match="coordinates is 0"):
        diagnose(model, batches(8), cross_entropy, coordinates=0)
    with pytest.raises(ValueError, match="same in all batches"):
        tails(torch.ones(9, 3))
    with pytest.raises(ValueError, match="not finite"):
        tails(torch.full((9, 3), math.nan))
    with pytest.raises(ValueError, match="complex"):
        diagnose(nn.Linear(2, 2, dtype=torch.complex64), batches(8), cross_entropy)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter requires grad"):
        diagnose(model, batches(8), cross_entropy)


def test_buffers_are_back_after_an_error() -> None:
    model = Noisy()
    before = copy.deepcopy(model.state_dict())

    def breaks(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        model(batch[0])
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        diagnose(model, batches(8), breaks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_verdict_is_at_two_errors() -> None:
    def found(lightness: float) -> str:
        return Tails(lightness, 0.1, 0.0, 0.1, 1.0, 1.0, 1.0, 0.0, 10, 10, 0).verdict

    assert [found(x) for x in (-0.21, -0.19, 0.19, 0.21)] == ["does not help", "not decided", "not decided", "helps"]
