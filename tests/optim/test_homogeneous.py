"""PRGD: its formula step by step, what it does to margins, and how it behaves in a training loop."""

import copy
import inspect
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.nn import functional as F

from distributed import run_ranks
from flatwing.optim.homogeneous import PRGD, log_margin_loss


def perceptron(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def length(net: nn.Module) -> float:
    return math.sqrt(sum(float(p.detach().square().sum()) for p in net.parameters()))


def backward(net: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    net.zero_grad()
    F.cross_entropy(net(x), torch.arange(8) % 2).backward()


def moved(net: nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    optimizer.step()
    return nn.utils.parameters_to_vector(net.parameters()).detach() - before


def test_warm_up_steps_have_the_length_lr_against_the_gradient() -> None:
    net = perceptron(4, 5, 2)
    optimizer = PRGD(net, lr=0.3)
    backward(net)
    gradient = nn.utils.parameters_to_vector([p.grad for p in net.parameters()])
    torch.testing.assert_close(moved(net, optimizer), -0.3 * gradient / gradient.norm())


def test_the_scale_of_the_loss_does_not_matter_and_none_is_needed() -> None:
    steps = []
    for scale in (1.0, 2.0**-70, 2.0**70):
        net = perceptron(4, 5, 2)
        optimizer = PRGD(net)
        backward(net)
        for p in net.parameters():
            p.grad.mul_(scale)
        steps.append(moved(net, optimizer))
    assert torch.equal(steps[0], steps[1])
    assert torch.equal(steps[0], steps[2])


def test_after_warm_up_weights_stay_in_the_ball_and_grow_by_cycles() -> None:
    net, degree = perceptron(4, 5, 5, 2), 3
    optimizer = PRGD(net, lr=0.01, warmup=2, cycle=4, growth=1.5, tol=1e-9)
    radii = []
    for k in range(14):
        backward(net, k)
        optimizer.step()
        radii.append(length(net))
        if k >= 2:
            assert radii[-1] <= optimizer.param_groups[0]["radius"] * (1 + 1e-12)
    start = optimizer.param_groups[0]["start"]
    assert start == pytest.approx(radii[1])
    # steps 6, 10 and 14 lengthen: warm-up is two, then every fourth
    assert optimizer.param_groups[0]["radius"] == pytest.approx(start * 1.5 ** (3 / degree))
    assert radii[5] == pytest.approx(start * 1.5 ** (1 / degree))


def test_lengthening_multiplies_scores_by_growth() -> None:
    net = perceptron(4, 5, 5, 2)
    optimizer = PRGD(net, warmup=0, growth=1.5, tol=0.999, cycle=10**9)
    x = torch.randn(3, 4, dtype=torch.float64)
    before = net(x).detach()
    for p in net.parameters():
        p.grad = -p.detach().clone()  # descent along the weights: the direction is solved
    optimizer.step()
    torch.testing.assert_close(net(x).detach(), 1.5 * before)


@pytest.mark.parametrize(("normalize", "power"), [("norm", -2), ("log", -4)])
def test_steps_shorten_as_the_radius_grows(normalize: str, power: int) -> None:
    net = perceptron(4, 5, 5, 2)
    optimizer = PRGD(net, lr=1e-6, warmup=0, normalize=normalize, tol=1e-9)
    backward(net)
    gradients = [p.grad.clone() for p in net.parameters()]
    # across the weights, so that the ball does not shorten the step
    inner = (
        sum(float((p.detach() * g).sum()) for p, g in zip(net.parameters(), gradients, strict=True)) / length(net) ** 2
    )
    gradients = [g - inner * p.detach() for p, g in zip(net.parameters(), gradients, strict=True)]
    sizes = []
    for factor in (1.0, 2.0):
        optimizer.param_groups[0].update(start=length(net) / factor, radius=length(net), steps=1)
        for p, g in zip(net.parameters(), gradients, strict=True):
            p.grad = g.clone()
        sizes.append(float(moved(net, optimizer).norm()))
    assert sizes[1] / sizes[0] == pytest.approx(2.0**power, rel=1e-4)


def test_gradients_of_zero_are_a_step_of_nothing() -> None:
    net = perceptron(4, 5, 2)
    optimizer = PRGD(net, warmup=0)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    assert moved(net, optimizer).norm() == 0


def test_the_radius_has_a_cap() -> None:
    net = perceptron(4, 5, 2)
    optimizer = PRGD(net, lr=1e-3, warmup=1, cycle=2, growth=10.0, radius_cap=30.0)
    for _ in range(40):
        backward(net)
        optimizer.step()
    assert length(net) <= 30.0 * optimizer.param_groups[0]["start"] * (1 + 1e-9)
    assert optimizer.param_groups[0]["radius"] == 30.0 * optimizer.param_groups[0]["start"]


def test_the_margin_of_digits_is_wider_than_without_rescaling() -> None:
    images, labels = load_digits(return_X_y=True)
    of = (labels == 4) | (labels == 9)
    x, y = torch.tensor(images[of] / 16), torch.tensor((labels[of] == 9).astype("int64"))
    margins = []
    for warmup in (100, 10**9):
        net = perceptron(64, 16, 16, 2)
        optimizer = PRGD(net, lr=0.03, warmup=warmup)
        for _ in range(700):
            optimizer.zero_grad()
            log_margin_loss(net(x), y).backward()
            optimizer.step()
        scores = net(x).detach()
        gaps = (scores[:, 1] - scores[:, 0]) * (2 * y - 1)
        margins.append(float(gaps.min()) / length(net) ** 3)
    assert margins[0] > margins[1] > 0


def test_the_log_loss_does_not_underflow() -> None:
    scores = torch.tensor([[1e4, 0.0, -5.0], [0.0, 2e4, 3.0]], requires_grad=True)
    loss = log_margin_loss(scores, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(-1e4 - math.log(4), rel=1e-6)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad[0], torch.tensor([-1.0, 0.9933, 0.0067]), atol=1e-3, rtol=0)
    assert F.cross_entropy(scores, torch.tensor([0, 1])) == 0


def test_the_log_loss_is_the_logarithm_of_the_exponential_loss() -> None:
    scores, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    terms = [math.exp(scores[i, j] - scores[i, y]) for i, y in enumerate(labels) for j in range(3) if j != y]
    assert float(log_margin_loss(scores, labels)) == pytest.approx(math.log(sum(terms) / 10))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2]), "labels go from 0 to 2 for 2 scores. Rule: 0 to 1"),
        (torch.tensor([0, 1]), r"scores have shape \(3, 2\), labels \(2,\)"),
        (torch.tensor([], dtype=torch.long), r"labels \(0,\)"),
        (torch.tensor([0, 1, 1], dtype=torch.int32), "of torch.int32. Rule: .* of int64"),
    ],
)
def test_labels_that_do_not_fit_the_scores_are_refused(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(log_margin_loss)(torch.ones(3, 2), labels)


def test_what_has_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no parameter"):
        PRGD(nn.Linear(2, 2).requires_grad_(False), degree=1)
    with pytest.raises(ValueError, match="there is no parameter"):
        PRGD([], degree=1)


def test_parameters_and_groups_need_a_degree() -> None:
    net = perceptron(4, 5, 2)
    with pytest.raises(ValueError, match=r"degree is None. Rule: .* measure homogeneity"):
        PRGD(net.parameters())
    groups: list[dict[str, Any]] = [{"params": [net[0].weight], "lr": 0.5}, {"params": [net[2].weight]}]
    optimizer = PRGD(groups, lr=0.1, degree=2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    with pytest.raises(ValueError, match=r"growth is 3.0 in one group, 1.2 in another"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "growth": 3.0})
    assert len(optimizer.param_groups) == 2


def test_what_is_not_homogeneous_is_refused_by_the_name_of_the_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"layer 2 \(Linear\): its bias"):
        PRGD(net)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"degree": 0}, "degree is 0"),
        ({"growth": 1.0}, "growth is 1.0"),
        ({"tol": 1.0}, "tol is 1.0"),
        ({"cycle": 1}, "cycle is 1"),
        ({"warmup": -1}, "warmup is -1"),
        ({"radius_cap": 0.5}, "radius_cap is 0.5"),
        ({"normalize": "unit"}, "normalize is 'unit'"),
        ({"cycle": 2.5}, "cycle is 2.5. Rule: a whole number, at least 2"),
        ({"warmup": math.inf}, "warmup is inf. Rule: a whole number"),
        ({"degree": math.nan}, "degree is nan. Rule: a whole number"),
        *(
            ({name: "x"}, f"{name} is 'x'")
            for name in ("lr", "degree", "growth", "tol", "cycle", "warmup", "normalize")
        ),
        ({"lr": None}, "lr is None. Rule: a number"),
        ({"radius_cap": []}, r"radius_cap is \[\]. Rule: a number"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    optimizer = PRGD(perceptron(4, 5, 2))
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], **settings})
    assert len(optimizer.param_groups) == 1


def shards(rank: int, world: int) -> list[torch.Tensor]:
    """Three steps on weights cut in rows (an uneven cut), columns and copies; the whole weights afterwards."""
    mesh = init_device_mesh("cpu", (world,)) if world > 1 else None
    generator = torch.Generator().manual_seed(0)
    wholes = [torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(3)]
    placements = [Shard(0), Shard(1), Replicate()]

    def cut(whole: torch.Tensor, place: Placement) -> torch.Tensor:
        return whole if mesh is None else distribute_tensor(whole, mesh, [place])

    params = [nn.Parameter(cut(whole, place)) for whole, place in zip(wholes, placements, strict=True)]
    optimizer = PRGD(params, lr=0.1, degree=2, warmup=2, cycle=2)
    for _ in range(6):
        for p, place in zip(params, placements, strict=True):
            gradient = torch.randn(5, 3, generator=generator, dtype=torch.float64)
            p.grad = cut(gradient, place)
        optimizer.step()
    return [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in params]


def test_shards_take_the_steps_of_the_whole() -> None:
    alone = shards(0, 1)
    for ranks in run_ranks(shards, 2):
        for p, q in zip(alone, ranks, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_the_state_survives_a_copy() -> None:
    net = perceptron(4, 5, 2)
    optimizer = PRGD(net, warmup=1)
    for _ in range(4):
        backward(net)
        optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    other = PRGD(perceptron(4, 5, 2))
    other.load_state_dict(saved)
    assert other.param_groups[0]["radius"] == optimizer.param_groups[0]["radius"] > 0
    assert other.param_groups[0]["steps"] == 4
