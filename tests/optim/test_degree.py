"""Degrees of networks: found in the graph, equal to what is measured, refused where there is none, by name."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from flatwing.nn import BlastLinear, StructuredLinear, SumLinear
from flatwing.optim.degree import degree_of, homogeneity
from flatwing.structure import Chain
from flatwing.train import build_model


def perceptron(*sizes: int, bias_first: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(a, b, bias=bias_first and k == 0), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """x + body(x) behind a stem; the skip has as many linear layers as the body where `balanced`."""

    def __init__(self, balanced: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.body = nn.Linear(4, 4, bias=False)
        self.skip = nn.Linear(4, 4, bias=False) if balanced else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return F.relu(self.body(x)) + self.skip(x)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.view(x.size(0), -1) / 2
        return self.a(x) * F.leaky_relu(self.b(x)) * self.scale


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4)),
        nn.Conv1d(1, 3, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.MaxPool1d(2),
        nn.Conv1d(3, 2, 1, bias=False),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(4, 2, bias=False),
    )


class Checked(nn.Module):
    """Looks at shapes before it computes, and at none that would change the degree."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 2 or x.shape[1] != 4:
            raise ValueError(f"x has shape {tuple(x.shape)}.")
        assert x.is_floating_point()
        h = F.relu(self.first(x))
        return self.last(h.T.mT if h.shape[0] > 3 else h.contiguous())


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(2, 5))
        self.shift = nn.Parameter(torch.randn(5))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.a, bias=self.shift), self.b * self.mask)


def structured(outer: nn.Module) -> nn.Sequential:
    """Two factors, ReLU and what is given for 8 features."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), outer)


def masked() -> nn.Sequential:
    net = perceptron(4, 5, 2, bias_first=True)
    for layer, name in ((net[0], "weight"), (net[0], "bias"), (net[2], "weight")):
        prune.random_unstructured(layer, name, 0.3)
    return net


def summed(*chains: Chain) -> SumLinear:
    return SumLinear(*(StructuredLinear(chain, bias=False) for chain in chains))


NETWORKS = {
    "shapes": (Checked, 2),
    "functions": (Functional, 2),
    "masks": (masked, 2),
    "butterfly": (lambda: structured(StructuredLinear(Chain.butterfly(8), bias=False)), 4),
    "blast": (lambda: structured(BlastLinear(8, 8, 2, 2, bias=False)), 4),
    "sum": (lambda: structured(summed(Chain.monarch(8, 8, 2), Chain.low_rank(8, 8, 2))), 3),
    "linear of ours": (lambda: build_model("linear", {"inputs": 4, "classes": 3}), 1),
    "perceptron of ours": (lambda: build_model("relu-mlp", {"inputs": 4, "width": 6, "depth": 2, "classes": 3}), 3),
    "structured perceptron of ours": (
        lambda: build_model("relu-mlp", {"inputs": 4, "width": 16, "depth": 2, "classes": 3, "budget": 0.5}),
        5,
    ),
    "linear": (lambda: nn.Linear(4, 2, bias=False), 1),
    "affine": (lambda: nn.Linear(4, 2), 1),
    "three layers": (lambda: perceptron(4, 5, 5, 2), 3),
    "bias in the first": (lambda: perceptron(4, 5, 2, bias_first=True), 2),
    "convolutions": (convolutional, 3),
    "balanced residual": (lambda: Residual(True), 2),
    "products": (Gated, 3),
    "tanh of the data": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 2)), 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_degree_of_the_graph_is_the_degree_that_is_measured(name: str) -> None:
    make, degree = NETWORKS[name]
    net = make()
    assert degree_of(net) == degree
    found = homogeneity(net, torch.randn(6, 4))
    assert found.degree == degree
    assert found.error < 1e-12


def test_frozen_layers_are_numbers() -> None:
    net = perceptron(4, 5, 5, 2)
    net[2].weight.requires_grad_(False)
    assert degree_of(net) == 2
    assert homogeneity(net, torch.randn(6, 4)).degree == 2


def test_shared_weights_count_each_time() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    assert degree_of(net) == 2
    assert homogeneity(net, torch.randn(6, 4)).degree == 2


def test_frozen_factors_are_numbers() -> None:
    net = structured(StructuredLinear(Chain.butterfly(8), bias=False))
    net[2].factors[1].requires_grad_(False)
    assert degree_of(net) == 3
    assert homogeneity(net, torch.randn(6, 4)).degree == 3
    pruned = masked()
    pruned[2].weight_orig.requires_grad_(False)  # torch's mask keeps a weight that requires grad until the next pass
    assert degree_of(pruned) == 1


class Scaled(nn.Linear):
    """Only called a linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).tanh()


WRONG = {
    "bias of factors": (
        nn.Sequential(StructuredLinear(Chain.monarch(4, 4, 2))),
        r"layer 0 \(StructuredLinear\): its bias",
    ),
    "sum of degrees": (
        nn.Sequential(summed(Chain.low_rank(4, 4, 2), Chain.block_diagonal(4, 4, 4))),
        r"layer 0 \(SumLinear\): its terms have degrees \[2, 1\]",
    ),
    "weights of norm one": (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 2, bias=False), dim=None)),
        "layer 0",
    ),
    "subclass": (nn.Sequential(Scaled(4, 2)), r"operation tanh \(tanh\) is not homogeneous"),
    "gelu of ours": (build_model("mlp", {"inputs": 4, "width": 3}), r"operation gelu \(gelu\) is not homogeneous"),
    "cnn of ours": (build_model("cnn", {"side": 2, "depth": 1}), r"layer norms\.0 \(GroupNorm\) is not homogeneous"),
    "vit of ours": (build_model("vit", {"side": 2, "depth": 1}), r"layer blocks\.0\.norm1 \(RMSNorm\) is not"),
    "bias": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), r"layer 2 \(Linear\): its bias has degree 1"),
    "frozen bias": (nn.Linear(4, 2), r"its bias has degree 0, the rest degree 1"),
    "layer norm": (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), r"layer 1 \(LayerNorm\) is not homogeneous"),
    "batch norm": (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), r"layer 1 \(BatchNorm1d\) is not"),
    "gelu": (nn.Sequential(nn.Linear(4, 4), nn.GELU()), r"layer 1 \(GELU\) is not"),
    "tanh": (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), r"layer 1 \(Tanh\) is not"),
    "softmax": (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), r"layer 1 \(Softmax\) is not"),
    "residual": (Residual(False), r"operation add \(add\) joins degrees \[2, 1\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_homogeneous_is_refused_by_name(name: str) -> None:
    net, message = WRONG[name]
    if name == "frozen bias":
        net.bias.requires_grad_(False)
    if name not in ("bias", "frozen bias", "residual", "weights of norm one"):
        assert homogeneity(net.train(), torch.randn(6, 4)).error > 1e-6
    with pytest.raises(ValueError, match=message):
        degree_of(net)


class PlusOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + 1


class Sigmoid(PlusOne):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.layer(x))


class ByShape(PlusOne):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.layer(x) if x.shape[0] > 9 else self.layer(x)


class Endless(PlusOne):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while not x.shape[0] > 9:
            x = x.repeat(2, 1)
        return self.layer(x)


class Picky(PlusOne):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 9:
            raise ValueError("it takes no large ones")
        raise ValueError("it takes no small ones")


class PerSize(PlusOne):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in x.shape:
            x = self.layer(x)
        return x


class Branching(PlusOne):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (PlusOne(), r"operation add \(add\) joins degrees \[1\]"),
        (Sigmoid(), r"operation sigmoid \(sigmoid\) is not homogeneous, or has no rule"),
        (Branching(), r"Branching cannot be traced .* Measure homogeneity"),
        (ByShape(), r"ByShape has degrees \[1, 2\], by the shape of its input"),
        (Endless(), r"Endless cannot be traced .*asks for shapes more than 50 times"),
        (Picky(), r"Picky cannot be traced .*it takes no small ones"),
        (PerSize(), r"PerSize cannot be traced .*it goes through the sizes"),
        (nn.ReLU(), r"ReLU returns degrees \[0\]"),
    ],
    ids=["constant", "function", "branch", "two degrees", "endless", "takes nothing", "per size", "nothing to train"],
)
def test_what_the_graph_cannot_answer_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degree_of(net)


def test_measuring_leaves_no_trace() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    x, before = torch.randn(6, 4), copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    homogeneity(net, x)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    assert net.training


@pytest.mark.parametrize(("value", "rule"), [(0.0, "finite, not 0"), (torch.nan, "finite, not 0")])
def test_outputs_that_say_nothing_are_refused(value: float, rule: str) -> None:
    net = nn.Linear(2, 2, bias=False)
    nn.init.constant_(net.weight, value)
    with pytest.raises(ValueError, match=rule):
        homogeneity(net, torch.ones(3, 2))
