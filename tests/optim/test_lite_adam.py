import copy
import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.optim import SGD, AdamW

from distributed import run_ranks
from flatwing.optim import LITE, LITEAdam, Shell
from flatwing.optim.lite_adam import flatness

SHAPES = [(40, 5), (7,), (64,)]


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def gradient(step: int, shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(90 + step)
    return torch.randn(shape, generator=generator) * torch.linspace(0.01, 3.0, shape[0]).reshape(
        -1, *[1] * (len(shape) - 1)
    )


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        for p in params:
            p.grad = gradient(step, tuple(p.shape))
        optimizer.step()


def test_switched_off_it_is_the_base() -> None:
    ours, theirs = parameters(), parameters()
    steps(LITEAdam(AdamW(ours), chi=1.0, ramp=0), ours, 0, 5)
    steps(AdamW(theirs), theirs, 0, 5)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_flatness_is_a_straight_line_between_the_levels() -> None:
    moment = torch.tensor([0.0, 2.0, 3.0, 4.0, 9.0], dtype=torch.float64)
    found = flatness(moment, torch.tensor(2.0), torch.tensor([1.0, 2.0]))
    assert found.tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert flatness(torch.zeros(3), torch.tensor(0.0), torch.tensor([1.0, 2.0])).isfinite().all()


def test_flat_coordinates_go_chi_times_as_far_with_their_decay() -> None:
    base, ours = nn.Parameter(torch.ones(100)), nn.Parameter(torch.ones(100))
    g = torch.full((100,), 0.1)
    g[:5] = 10.0
    plain = AdamW([base], lr=0.1, weight_decay=0.5)
    optimizer = LITEAdam(AdamW([ours], lr=0.1, weight_decay=0.5), chi=3.0, ramp=0)
    base.grad = ours.grad = g
    plain.step()
    optimizer.step()
    torch.testing.assert_close(ours[:5] - 1, base[:5] - 1)
    torch.testing.assert_close(ours[5:] - 1, 3 * (base[5:] - 1))


@pytest.mark.parametrize(("sharp", "soft"), [(0.1, 0.1), (0.3, 0.2)])
def test_levels_find_the_shares(sharp: float, soft: float) -> None:
    p = nn.Parameter(torch.zeros(2000))
    optimizer = LITEAdam(AdamW([p], betas=(0.9, 0.999)), sharp=sharp, soft=soft, ramp=0)
    g = torch.linspace(-4, 4, 2000).exp()  # moments over seven decades
    for _ in range(250):
        p.grad = g
        optimizer.step()
    v = optimizer.base.state[p]["exp_avg_sq"]
    low, high = optimizer.kept[p]["levels"] * v.mean()
    assert float((v > high).float().mean()) == pytest.approx(sharp, abs=0.02)
    assert float((v > low).float().mean()) == pytest.approx(sharp + soft, abs=0.02)


def test_ramp_and_groups_of_their_own() -> None:
    p, q = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    optimizer = LITEAdam(
        SGD([{"params": [p], "chi": 3.0}, {"params": [q], "chi": 1.0}], lr=1.0), warmup=1, ramp=2, soft=0.4
    )
    moves = []
    for _ in range(5):
        before = p.detach().clone()
        p.grad = q.grad = torch.tensor([1.0, 1e-3, 1e-3, 1e-3])
        optimizer.step()
        moves.append(float((before - p.detach())[1] / 1e-3))
    assert moves == pytest.approx([1, 1, 2, 3, 3], rel=1e-3)
    assert float(-q.detach()[1]) == pytest.approx(5e-3)
    assert q not in optimizer.kept


def test_resumed_is_uninterrupted() -> None:
    whole, half = parameters(), parameters()
    steps(LITEAdam(AdamW(whole), ramp=5), whole, 0, 9)
    first = LITEAdam(AdamW(half), ramp=5)
    steps(first, half, 0, 4)
    second = LITEAdam(AdamW(half))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, half, 4, 9)
    assert all(torch.equal(p, q) for p, q in zip(whole, half, strict=True))


def test_beside_lite_it_trains_a_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 11, bias=False))
    matrices, rest = [model[2].weight], [*model[0].parameters(), *model[1].parameters()]
    optimizer = Shell([LITE(matrices, lr=0.02, ramp=10), LITEAdam(AdamW(rest, lr=3e-3), ramp=10)])
    x = torch.arange(11)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), x.roll(3))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"chi": 0.5}, "chi is 0.5. Rule: a number, at least 1.*Nearest good value: 1"),
        ({"sharp": 0.0}, "sharp is 0.0"),
        ({"soft": 0.5}, "soft"),
        ({"ramp": -1}, "ramp is -1"),
    ],
)
def test_settings_are_checked(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LITEAdam(AdamW(parameters()), **setting)


@pytest.mark.parametrize("name", ["chi", "sharp", "soft", "warmup", "ramp", "floor"])
@pytest.mark.parametrize("value", ["x", None, [], True, float("nan")])
def test_settings_of_a_wrong_type_are_named_whenever_they_come(name: str, value: object) -> None:
    first, later = parameters()[:2]
    optimizer = LITEAdam(AdamW([first]))
    with pytest.raises(ValueError, match=rf"{name} is {re.escape(repr(value))}\. Rule: a number.*Nearest good value"):
        optimizer.add_param_group({"params": [later], name: value})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"{name} is"):
        optimizer.step()


def on_ranks(rank: int, world: int) -> list[torch.Tensor]:
    mesh = init_device_mesh("cpu", (world,))
    params = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in parameters()]
    optimizer = LITEAdam(AdamW(params), ramp=2)
    for step in range(6):
        for p in params:
            p.grad = distribute_tensor(gradient(step, tuple(p.shape)), mesh, [Shard(0)])
        optimizer.step()
    return [p.full_tensor().detach().clone() for p in params]


def test_sharded_it_equals_one_process() -> None:
    """Seven entries on two ranks: parts are uneven."""
    params = parameters()
    steps(LITEAdam(AdamW(params), ramp=2), params, 0, 6)
    for found in run_ranks(on_ranks, 2):
        for p, q in zip(params, found, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
