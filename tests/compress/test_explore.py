import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from flatwing.compress.batch import Batch
from flatwing.compress.candidates import STRUCTURES, Candidate, candidate
from flatwing.compress.divergence import divergence
from flatwing.compress.explore import TEMPER, Cost, Explored, curve, decide, explore, instead, matrix, spectrum, weighed
from flatwing.compress.moments import Target
from flatwing.compress.plan import Option
from flatwing.compress.trace import call_apart
from flatwing.data import digit_images
from flatwing.factorize import Metric
from flatwing.nn import LinearInfo, linear_layers
from flatwing.train import ByteLM, DigitsMLP
from searching import trained_on_digits


def body(model: nn.Module) -> dict[str, LinearInfo]:
    return {name: info for name, info in linear_layers(model).items() if info.skip is None and not info.is_head}


def parameters(model: nn.Module) -> Cost:
    layers = body(model)

    def cost(name: str, chosen: Candidate | None) -> float:
        return float(layers[name].weight.numel() if chosen is None else chosen.parameters)

    return cost


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    model = trained_on_digits(DigitsMLP(width=48), 150)
    return model, [Batch((part,)) for part in digit_images("train")[0].split(300)]


@pytest.fixture(scope="module")
def found(digits: tuple[nn.Module, list[Batch]]) -> list[Explored]:
    model, batches = digits
    return explore(model, body(model), batches, share=0.3, cost=parameters(model), task="classification")


def test_every_layer_has_options_priced_and_measured(
    found: list[Explored], digits: tuple[nn.Module, list[Batch]]
) -> None:
    cost = parameters(digits[0])
    assert [own.name for own in found] == ["layers.0", "layers.1"]
    for own in found:
        m, n = own.shape
        assert own.sensitivity > 0
        for option in own.options:
            assert option.cost == cost(own.name, option.candidate)
            assert option.loss == own.sensitivity**TEMPER * option.error**2
            assert 0 <= option.bound <= option.error < 1
        assert own.options[-1] == Option(None, float(m * n), 0.0)
        assert len({o.candidate for o in own.options}) == len(own.options)
        families = {o.candidate.family for o in own.options if o.candidate is not None}
        assert families == {"low_rank", "monarch", "three_factor", "blast"}
        for name in STRUCTURES:  # each at the mean budget
            assert candidate(name, m, n).within(0.3 * m * n) in [o.candidate for o in own.options]
        curve_of = sorted((o.cost, o.error) for o in own.options if o.candidate and o.candidate.family == "low_rank")
        assert len(curve_of) >= 4
        assert [e for _, e in curve_of] == sorted((e for _, e in curve_of), reverse=True)
        assert own.spectrum[0] == 1.0
        assert list(own.spectrum) == sorted(own.spectrum, reverse=True)


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 0.8])
def test_the_plan_spends_the_budget_to_within_one_percent(
    found: list[Explored], digits: tuple[nn.Module, list[Batch]], share: float
) -> None:
    cost = parameters(digits[0])
    total = sum(cost(own.name, None) for own in found)
    plans = decide(found, share * total, cost)
    spent = sum(plan.parameters for plan in plans)
    assert spent <= share * total
    rank_step = max(sum(plan.shape) + 16 for plan in plans)
    assert spent >= share * total - max(0.01 * total, rank_step)
    for plan, own in zip(plans, found, strict=True):
        assert (plan.name, plan.shape, plan.sensitivity, plan.spectrum) == (
            own.name, own.shape, own.sensitivity, own.spectrum,
        )  # fmt: skip
        assert plan.parameters == cost(plan.name, plan.candidate)


def test_all_of_the_budget_leaves_every_layer_dense(found: list[Explored], digits: tuple) -> None:
    cost = parameters(digits[0])
    plans = decide(found, sum(cost(own.name, None) for own in found), cost)
    assert all(plan.structure == "dense" and plan.loss == 0 for plan in plans)


def test_too_small_a_budget_is_refused(found: list[Explored], digits: tuple) -> None:
    with pytest.raises(ValueError, match=r"the budget is 10 and the cheapest structures .* larger --budget"):
        decide(found, 10.0, parameters(digits[0]))


def test_the_sensitivity_predicts_the_divergence(found: list[Explored], digits: tuple) -> None:
    """Cutting one layer, with the bias that keeps its mean output, changes the outputs by about what is predicted."""
    model, batches = digits
    layers = body(model)
    for own in found:
        layer, x = layers[own.name], batches[0].args[0]
        x = (F.gelu(model.layers[0](x)) if own.name == "layers.1" else x).detach().double()
        W, chosen = matrix(layer), Candidate("low_rank", own.shape, (1, 1), 10)
        fit = chosen.fit(W, Metric(torch.cov(x.mT, correction=0), 1e-3))
        assert layer.bias is not None
        target = Target(W, layer.bias.detach().double() + W @ x.mean(0), x.mean(0), Metric.identity(own.shape[1]))
        reference, output = (
            call_apart(model, (x_all,), {}, parameters)
            for parameters in ({}, instead(layer, fit.structure.dense(), target))
            for x_all in batches[0].args
        )
        change = divergence(reference, output, batches[0], "classification")
        assert float(change.mean()) / fit.error**2 == pytest.approx(own.sensitivity, rel=0.6)


def test_the_sensitivity_is_to_what_a_bias_cannot_mend() -> None:
    """For one linear layer it is known: the share of the outputs' energy that is not in their mean."""
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(500, 8) + 5
    (own,) = explore(
        model, linear_layers(model), [Batch((x,))], share=0.5, cost=lambda *_: 1.0, task="other",
        structures=("low_rank",),
    )  # fmt: skip
    y = model(x).detach()
    wanted = float((y - y.mean(0)).square().sum() / y.square().sum())
    assert wanted < 0.5
    assert own.sensitivity == pytest.approx(wanted, rel=0.02)


def test_exploring_leaves_the_network_alone(digits: tuple[nn.Module, list[Batch]]) -> None:
    model, batches = digits
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    said: list[tuple[int, int]] = []
    explore(
        model, body(model), batches[:1], share=0.3, cost=parameters(model), task="classification",
        structures=("low_rank",), progress=lambda text, i, n: said.append((i, n)),
    )  # fmt: skip
    assert said == [(1, 2), (2, 2)]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def quick(model: nn.Module, x: torch.Tensor, **more: Any) -> list[Explored]:
    more = {"share": 0.5, "task": "other", "structures": ("low_rank",), "cost": parameters(model)} | more
    return explore(model, body(model), [Batch((x,))], **more)


class Counting(nn.Sequential):
    """Counts its calls in a buffer, and adds the count to its output."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.register_buffer("calls", torch.zeros(()))

    @override
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(input) + self.calls


def test_buffers_stay_and_do_not_pass_for_a_change_of_the_outputs() -> None:
    layers, x = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)], torch.randn(200, 8)
    model = Counting(*layers)
    found = quick(model, x)
    assert model.calls == 0
    assert found == quick(Counting(*layers), x)


def test_weights_made_for_inference_are_explored() -> None:
    with torch.inference_mode():
        model = Counting(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    assert [own.name for own in quick(model, torch.randn(200, 8))] == ["0", "2"]


def test_what_stands_instead_of_a_layer_has_its_names_its_orientation_and_its_mean_output() -> None:
    W, mean = torch.randn(2, 3).double(), torch.ones(3, dtype=torch.float64)
    target = Target(W, torch.ones(2, dtype=torch.float64), mean, Metric.identity(3))
    layer = linear_layers(nn.Sequential(nn.Linear(3, 2)))["0"]
    held = instead(layer, W, target)
    assert list(held) == ["0.weight", "0.bias"]
    assert torch.equal(held["0.weight"], W.float())
    torch.testing.assert_close(held["0.bias"], (1 - W @ mean).float())
    stored = replace(layer, name="", transposed=True, bias=None)
    assert torch.equal(instead(stored, W, target)["weight"], W.float().mT)


def test_a_layer_of_low_rank_is_not_free() -> None:
    """Half of its parameters lose nothing, an eighth of them would lose nearly everything."""
    model, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)), torch.randn(1000, 32)
    with torch.no_grad():
        model[2].weight.copy_(torch.randn(32, 4) @ torch.randn(4, 32))
    found = quick(model, x)
    assert found[1].sensitivity > 0.5
    for own in decide(found, 1000.0, parameters(model)):
        assert own.name == "0" or own.error < 1e-3


def test_no_layer_is_free() -> None:
    """What the outputs do not depend on at all still costs a thousandth of the median, so that errors count."""
    option = Option(None, 1.0, 0.0, 0.5)
    layers = [Explored(str(s), (2, 2), (option,), s, (1.0,)) for s in (0.0, 1.0, 2.0, 4.0)]
    result = weighed(layers)
    assert [own.sensitivity for own in result] == [2e-3, 1.0, 2.0, 4.0]
    assert [own.options[0].loss for own in result] == [own.sensitivity**TEMPER * 0.25 for own in result]
    assert weighed(layers[:1])[0].sensitivity == 1.0
    assert weighed([]) == []


@pytest.mark.parametrize("weight", [torch.zeros(8, 8), torch.outer(torch.ones(8), torch.arange(8.0))])
def test_layers_of_rank_0_and_1_are_explored(weight: torch.Tensor) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with torch.no_grad():
        model[2].weight.copy_(weight)
    found = quick(model, torch.randn(200, 8))
    assert len(found) == 3
    assert all(own.sensitivity > 0 and own.options[0].loss == own.options[0].loss for own in found)


def test_outputs_that_are_no_numbers_name_the_layer() -> None:
    class Broken(nn.Sequential):
        @override
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).log()

    with pytest.raises(
        ValueError, match=r"layer '0': an error of .* changes the outputs by nan\. Rule: outputs are finite"
    ):
        quick(Broken(nn.Linear(8, 8)), torch.randn(200, 8))


def test_only_called_layers_are_explored_in_the_order_of_calls() -> None:
    model = ByteLM(width=8, depth=1, heads=2, context=8, vocab=16)
    model.never = nn.Linear(8, 8)
    batches = [Batch((torch.randint(16, (20, 8)),))]
    found = explore(
        model, body(model), batches, share=0.5, cost=parameters(model), task="lm", structures=("low_rank", "blast_4")
    )
    assert [own.name.split(".")[-1] for own in found] == ["q", "k", "v", "o", "up", "down"]


def test_a_layer_too_small_for_its_budget_gets_the_cheapest_there_is() -> None:
    layer = linear_layers(nn.Sequential(nn.Linear(6, 6)))["0"]
    options = curve(layer, Metric.identity(6), 0.01, ["low_rank", "blast_4"], 0)
    assert [str(o.candidate) for o in options] == ["low_rank(rank=1)", "None"]
    tiny = linear_layers(nn.Sequential(nn.Linear(1, 2)))["0"]
    assert [o.candidate for o in curve(tiny, Metric.identity(1), 0.5, ["low_rank"], 0)] == [None]


def test_the_spectrum_is_that_of_the_weight_on_the_data() -> None:
    W, C = torch.diag(torch.tensor([2.0, 1.0, 0.5])).double(), torch.diag(torch.tensor([1.0, 16.0, 1.0])).double()
    assert spectrum(W, Metric(C, damp=0.0)) == (1.0, 0.5, 0.125)
    long = spectrum(torch.eye(300, dtype=torch.float64), Metric.identity(300))
    assert len(long) == 128
    assert set(long) == {1.0}
    assert spectrum(torch.zeros(2, 2, dtype=torch.float64), Metric.identity(2)) == (0.0, 0.0)


def test_what_was_explored_survives_json(found: list[Explored]) -> None:
    for own in found:
        assert Explored.from_dict(json.loads(json.dumps(own.to_dict()))) == own
