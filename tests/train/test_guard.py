"""Layers that run away are told from layers that do not, in the training loop."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from flatwing.nn.wellposed import layer_pairs
from flatwing.train import fit
from flatwing.train.callbacks import DivergenceGuard
from flatwing.train.guard import FactorWatch

LOWER = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
STEPS = 1200


def make() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for layer, mask in zip(net, (LOWER.T, LOWER), strict=True):
        prune.custom_from_mask(layer, "weight", mask)
    return net


def train(target: torch.Tensor, guard: DivergenceGuard) -> None:
    def loss(model: nn.Module, batch: int) -> torch.Tensor:
        return (model(torch.eye(2)).T - target).square().sum()

    fit(make(), lambda step, generator: step, steps=STEPS, lr=0.02, loss=loss, callbacks=[guard])


def test_the_lu_network_is_warned_about_once() -> None:
    pairs = [(p.first, p.second) for p in layer_pairs(make()) if p.verdict.status == "not closed"]
    assert pairs == [("0", "1")]
    with pytest.warns(UserWarning, match=r"'0' and '1' together: runs away: norm ~ residual") as caught:
        train(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), DivergenceGuard(1e9, pairs=pairs))
    assert len([w for w in caught if "runs away" in str(w.message)]) == 1


def test_a_matrix_that_is_attained_is_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), DivergenceGuard(1e9, pairs=[("0", "1")]))


def test_watch_sees_a_family() -> None:
    net, watch, growth = make(), FactorWatch("0", "1"), None
    for step in range(1, 600):
        eps = step**-0.5
        with torch.no_grad():
            net[0].weight_orig.copy_(torch.tensor([[eps, 1 / eps], [7.0, 1 / eps]]))  # 7 is masked
            net[1].weight_orig.copy_(torch.tensor([[eps, 7.0], [1 / eps, -1 / eps]]))
        growth = watch.look(net, step) or growth
    assert growth is not None
    assert growth.diverging
    # distances to a last product that is not the limit fall faster than those to the limit
    assert growth.exponent == pytest.approx(0.5, abs=0.15)
    assert growth.norm > 1.5


def test_watch_looks_at_geometric_steps() -> None:
    net, watch, looks = make(), FactorWatch("0", "1"), []
    for step in range(1, 40):
        before = len(watch._norms)
        assert watch.look(net, step) is None, "nothing moved: there is no residual"
        if len(watch._norms) > before:
            looks.append(step)
    assert looks == [8, 10, 12, 14, 16, 20, 23, 27, 32, 39]


def test_bad_names_are_refused() -> None:
    for name in ("9", "0.weight"):
        with pytest.raises(ValueError, match=f"no layer '{name}' with a matrix"):
            FactorWatch(name, "1").look(make(), 8)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'0' has 3 outputs, '1' has 2 inputs"):
        FactorWatch("0", "1").look(net, 8)
