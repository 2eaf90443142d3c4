from collections.abc import Callable, Iterator

import pytest
import torch

from flatwing.optim import compiled, memory
from flatwing.optim.gradpower import power
from flatwing.optim.perturb import Reach, ascent_norm, climb
from flatwing.optim.quantile import DIGITS, _counted, kth_smallest

SIZE = 3 * memory.WORTH + 6  # no whole number of lanes


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def wide(seed: int, low: float = -40, high: float = 30, size: int = SIZE) -> torch.Tensor:
    """Both signs, as many decades as asked for; those below float32 are 0."""
    generator = torch.Generator().manual_seed(seed)
    decades = torch.empty(size, dtype=torch.float64).uniform_(low, high, generator=generator)
    return (10**decades * (torch.randint(2, (size,), generator=generator) * 2 - 1)).float()


def without(monkeypatch: pytest.MonkeyPatch, function: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What torch code says."""
    with monkeypatch.context() as patch:
        patch.setattr(memory, "WORTH", 1 << 60)
        return function()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("p", [0.01, 0.5, 1.2, 2.0, 3.7])
@pytest.mark.parametrize("unit", [1.0, 1e-8])
def test_a_power_is_the_nearest_float(p: float, unit: float) -> None:
    g = wide(0)
    found = power(g, p, unit)
    exact = g.double().abs().div(unit).pow(p).mul(unit).copysign(g)
    wanted = exact.float()
    normal = wanted.isfinite() & (exact.abs() > 2.0**-126)
    torch.testing.assert_close(found[normal], wanted[normal], rtol=1.3e-7, atol=0)
    torch.testing.assert_close(found[~normal], wanted[~normal], rtol=0, atol=3e-45)
    assert float((found == wanted).double().mean()) > 0.99
    assert torch.equal(power(-g, p, unit), -found)


def test_powers_of_what_has_none_are_as_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0]).repeat(memory.WORTH)
    for p in (0.1, 1.2):
        found, wanted = power(special, p), without(monkeypatch, lambda p=p: power(special, p))
        assert torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0))
        assert torch.equal(found.signbit()[:4], wanted.signbit()[:4])


@pytest.mark.usefixtures("threads")
def test_the_way_up_of_asam(monkeypatch: pytest.MonkeyPatch) -> None:
    w, g = wide(1, -4, 0), wide(2, -6, 0)
    reach = {w: Reach(1.0, eta=0.1)}
    norm = ascent_norm({w: g}, reach)
    exact = float((g.double() * (w.double().abs() + 0.1)).norm())
    assert norm == pytest.approx(exact, rel=1e-6)

    def climbed() -> torch.Tensor:
        there = w.clone()
        climb(there, g, 0.3, 0.1)
        return there

    torch.testing.assert_close(climbed(), without(monkeypatch, climbed), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(climbed().double(), w + 0.3 * (w.double().abs() + 0.1) ** 2 * g, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("threads")
def test_digits_are_counted_as_torch_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = wide(3, -2, 0).view(torch.int32)
    above = 32
    for shift, width in DIGITS:
        for entry in (int(bits[bits > 0][0]), int(bits[bits < 0][0])):
            prefix = entry >> above if above < 32 else 0

            def table(prefix: int = prefix, above: int = above, shift: int = shift, width: int = width) -> torch.Tensor:
                return _counted(bits, prefix, above, shift, width)

            found = table()
            assert torch.equal(found, without(monkeypatch, table))
            assert (int(found.sum()) == SIZE) == (above == 32)
            assert found.sum() > 0
        above = shift


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("positive", [True, False])
def test_the_kth_smallest_of_large_and_small_tensors(positive: bool) -> None:
    first, second, third = wide(4), wide(5, -9, -7).reshape(2, -1).T, wide(6, size=9)
    tensors = [t.abs() if positive else t for t in (first, second, third)]
    every = torch.cat([t.flatten() for t in tensors])
    for k in (1, 1000, int(0.6 * every.numel()), every.numel()):
        assert kth_smallest(tensors, k) == every.kthvalue(k).values


def test_compiled_parts_do_not_depend_on_the_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for number in (1, 4):
            torch.set_num_threads(number)
            w, g = wide(7, -4, 2), wide(8, -6, 0)
            climb(w, g, 0.3, 0.1)
            compiled.power(g, 1.2, 1e-8, g)
            found.append(torch.stack([w, g]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
