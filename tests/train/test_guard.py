"""Layers that run away are told from layers that do not, in the training loop."""

import warnings
from itertools import cycle

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from flatwing.nn.wellposed import layer_pairs
from flatwing.structure.growth import Growth
from flatwing.train import fit
from flatwing.train.callbacks import DivergenceGuard
from flatwing.train.guard import FactorWatch
from strategies import as_user

LOWER = torch.tensor([[1.0, 0.0], [1.0, 1.0]])


def make(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for layer, mask in zip(net, (LOWER.T, LOWER), strict=True):
        prune.custom_from_mask(layer, "weight", mask)
    return net


def train(
    target: list[list[float]], guard: DivergenceGuard, lr: float = 0.05, optimizer: str = "AdamW", seed: int = 1
) -> None:
    def loss(model: nn.Module, batch: int) -> torch.Tensor:
        return (model(torch.eye(2)).T - torch.tensor(target)).square().sum()

    kind = {"optimizer": optimizer, "schedule": "constant", "weight_decay": 0.0, "clip": None}
    fit(make(seed), lambda step, generator: step, steps=650, lr=lr, loss=loss, callbacks=[guard], **kind)


def test_the_lu_network_is_warned_about_once() -> None:
    pairs = [(p.first, p.second) for p in layer_pairs(make()) if p.verdict.status == "not closed"]
    assert pairs == [("0", "1")]
    with pytest.warns(UserWarning, match=r"'0' and '1' together: runs away: norm ~ residual") as caught:
        train([[0.0, 1.0], [1.0, 0.0]], DivergenceGuard(1e9, pairs=pairs))
    assert len([w for w in caught if "runs away" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("optimizer", "lr", "seed"), [("AdamW", 0.01, 8), ("AdamW", 0.01, 13), ("AdamW", 0.01, 22), ("SGD", 0.02, 9)]
)
def test_a_matrix_that_is_attained_is_not(optimizer: str, lr: float, seed: int) -> None:
    """The norm grows to its size while the product comes near, for a while like that of one that runs away."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train([[1.0, 1.0], [1.0, 2.0]], DivergenceGuard(1e9, pairs=[("0", "1")]), lr, optimizer, seed)


def test_one_look_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    away, calm = Growth(0.5, 0.01, 4.0, 0.1, 16, 0.5), Growth(0.0, 0.01, 1.0, 0.1, 16, 0.0)
    story = iter([away, away, away, calm, None, away, away, away, away, away, calm])
    monkeypatch.setattr(FactorWatch, "growth", lambda watch: next(story))
    net, watch, said = make(), FactorWatch("0", "1"), []
    for step in (8, 10, 12, 14, 16, 20, 23, 27, 32, 39, 46):
        watch.look(net, step)
        said.append(watch.certain)
    assert said == [False] * 8 + [True, True, False]
    turns, guard = cycle([away, away, calm]), DivergenceGuard(1e9, pairs=[("0", "1")])
    monkeypatch.setattr(type(guard._watches[0]), "growth", lambda watch: next(turns))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train([[0.0, 1.0], [1.0, 0.0]], guard)


def test_weights_that_are_no_numbers_tell_nothing() -> None:
    net, watch = make(), FactorWatch("0", "1")
    for step in range(1, 400):
        with torch.no_grad():
            net[0].weight_orig.copy_(torch.full((2, 2), float(step) if step < 100 else float("nan")))
        assert watch.look(net, step) is None or step >= 8 * 2 ** (19 / 4)
    assert watch.growth() is None
    assert not watch.certain


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


@pytest.mark.parametrize(
    ("pairs", "error", "match"),
    [
        ([("0",)], TypeError, r"pairs has \('0',\)\. Rule: \(first, second\), two names"),
        (("0", "1"), TypeError, r"pairs is \('0', '1'\)\. Rule: a list of pairs\. Write pairs=\[\('0', '1'\)\]"),
        (["02"], TypeError, "pairs has '02'. Rule:"),
        (5, TypeError, r"pairs has 5\. Rule: \(first, second\)"),
        ([("0", "0")], ValueError, r"the pair \('0', '0'\) is a layer and itself"),
    ],
)
def test_what_is_no_pair_is_refused_by_the_guard(pairs: object, error: type[Exception], match: str) -> None:
    with as_user(), pytest.raises(error, match=match):
        DivergenceGuard(pairs=pairs)  # type: ignore[arg-type]


def test_names_are_looked_for_before_the_first_step() -> None:
    steps = []

    def batches(step: int, generator: torch.Generator) -> int:
        steps.append(step)
        return step

    with pytest.raises(ValueError, match=r"the model has no layer 'O' with a matrix.*Rule: the name of a linear layer"):
        fit(
            make(),
            batches,
            steps=30,
            lr=0.1,
            loss=lambda model, batch: model(torch.eye(2)).sum(),
            callbacks=[DivergenceGuard(pairs=[("0", "1"), ("O", "1")])],
        )
    assert steps == []
    named = nn.ModuleDict({"up": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="Did you mean 'up'"):
        FactorWatch("upp", "up").require(named)


def test_bad_names_are_refused() -> None:
    for name in ("9", "0.weight"):
        with pytest.raises(ValueError, match=f"no layer '{name}' with a matrix"):
            FactorWatch(name, "1").look(make(), 8)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'0' has 3 outputs, '1' has 2 inputs"):
        FactorWatch("0", "1").look(net, 8)
