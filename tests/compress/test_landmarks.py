import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from typing_extensions import override

from flatwing.compress.baselines import LANDMARKS, Known, two_in_four, uniform_rank
from flatwing.compress.batch import Batch
from flatwing.compress.evaluate import evaluate
from flatwing.compress.landmarks import landmarks
from flatwing.compress.measure import parameters, state_bytes
from flatwing.compress.quantize import fake_quantized, saved_bytes
from flatwing.data import digit_images
from flatwing.factorize import Metric
from flatwing.nn import linear_layers
from flatwing.train import ByteLM, DigitsMLP, Model
from searching import trained_on_digits

NAMES = ["plain SVD", "whitened SVD", "2:4", "unstructured", "int8", "int4"]
KEYS = ["name", "loss", "accuracy", "agreement_kl", "bytes", "parameters", "flops", "note"]


@pytest.fixture(scope="module")
def trained() -> tuple[Model, list[Batch], list[Batch]]:
    torch.manual_seed(0)
    (x, _), (xt, yt) = digit_images("train"), digit_images("test")
    model = DigitsMLP(width=96)
    trained_on_digits(model, 250, lr=2e-3, batch=128)
    batches = [Batch((part,)) for part in x.split(300)]
    return model, batches, [Batch((xt,), targets=yt)]


@pytest.fixture(scope="module")
def table(trained: tuple[Model, list[Batch], list[Batch]]) -> dict[str, dict[str, Any]]:
    model, batches, test = trained
    rows = landmarks(model, body(model), batches, len(batches), test, "classification", 0.125)
    return {row["name"]: row for row in rows}


def body(model: nn.Module) -> dict[str, Any]:
    return {name: info for name, info in linear_layers(model).items() if info.skip is None and not info.is_head}


def test_every_method_has_a_row_with_exactly_these_keys(table: dict[str, dict[str, Any]]) -> None:
    assert list(table) == NAMES == list(LANDMARKS)
    for row in table.values():
        assert list(row) == KEYS
        assert row["note"].endswith(".")
        assert all(type(row[key]) is int for key in ("bytes", "parameters", "flops"))
    json.dumps(table, allow_nan=False)


def test_the_order_is_the_known_one(table: dict[str, dict[str, Any]]) -> None:
    loss = {name: row["loss"]["value"] for name, row in table.items()}
    kl = {name: row["agreement_kl"]["value"] for name, row in table.items()}
    assert loss["whitened SVD"] < 0.9 * loss["plain SVD"]
    assert kl["whitened SVD"] < 0.9 * kl["plain SVD"]
    assert kl["int8"] < kl["int4"] < kl["2:4"] < kl["whitened SVD"]
    assert table["int8"]["accuracy"]["value"] > table["plain SVD"]["accuracy"]["value"] + 0.05


def test_sizes(table: dict[str, dict[str, Any]], trained: tuple[Model, list[Batch], list[Batch]]) -> None:
    model, _, test = trained
    layers = body(model)
    shapes = [tuple(info.weight.shape) for info in layers.values()]
    total = sum(m * n for m, n in shapes)
    rest = parameters(model) - total
    arithmetic = 2 * (total + 10 * 96)
    for name in ("plain SVD", "whitened SVD"):
        kept = sum((m + n) * int(0.125 * m * n / (m + n)) for m, n in shapes)
        assert table[name]["parameters"] == rest + kept <= rest + 0.125 * total
        assert table[name]["bytes"] == 4 * table[name]["parameters"]
        assert table[name]["flops"] == arithmetic - 2 * (total - kept)
    assert table["2:4"]["parameters"] == rest + total // 2
    assert table["2:4"]["bytes"] == 4 * (rest + total // 2) + total // 8
    assert table["unstructured"]["parameters"] == rest + total // 8
    assert table["unstructured"]["bytes"] == 4 * (rest + total // 8) + total // 8, "a bit for each entry is smaller"
    assert table["unstructured"]["flops"] == table["int8"]["flops"] == arithmetic
    assert table["int8"]["bytes"] == state_bytes(model) - saved_bytes(model, layers)
    groups = sum(m * (1 if n == 64 else 2) for m, n in shapes)  # 64 of 64 columns, 48 of 96
    assert table["int4"]["bytes"] == 4 * rest + (total + groups) // 2 + 2 * groups
    rounded = evaluate(fake_quantized(copy.deepcopy(model), layers), test, "classification", model).to_dict()
    assert table["int8"]["loss"] == pytest.approx(rounded["loss"])


def test_a_whole_share_leaves_the_network_as_it_is(trained: tuple[Model, list[Batch], list[Batch]]) -> None:
    model, batches, test = trained
    before = {key: value.clone() for key, value in model.state_dict().items()}
    names = ("plain SVD", "whitened SVD", "unstructured")
    for row in landmarks(model, body(model), batches, len(batches), test, "classification", 1.0, names=names):
        assert row["agreement_kl"]["value"] == 0
        assert row["bytes"] == state_bytes(model)
        assert row["note"].endswith("2 of 2 layers stay as they are.")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_language_model_and_progress() -> None:
    model = ByteLM(width=32, depth=1, heads=2, context=16)
    tokens = torch.randint(256, (8, 17))
    batches = [Batch((tokens[:, :-1],), targets=tokens[:, 1:])]
    seen: list[tuple[str, int, int]] = []
    rows = landmarks(
        model, body(model), batches, 1, batches, "lm", 0.5, names=("int8", "2:4"), progress=lambda *at: seen.append(at)
    )
    assert seen == [("landmark int8", 1, 2), ("landmark 2:4", 2, 2)]
    assert rows[0]["accuracy"] is None
    assert rows[1]["flops"] == rows[0]["flops"] - 16 * 12 * 32 * 32


def test_layers_with_one_weight_count_once() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
            self.b.weight = self.a.weight

        @override
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    model, batches = Twins(), [Batch((torch.randn(50, 64),))]
    (row,) = landmarks(model, linear_layers(model), batches, 1, batches, "other", 0.5, names=["int8"])
    assert row["bytes"] == 64 * (64 + 4) + 2 * 4 * 64
    assert row["parameters"] == 64 * 64 + 2 * 64
    assert 0 < row["loss"]["value"] < 0.02


def test_the_larger_half_of_each_four_is_kept() -> None:
    groups = torch.randn(6, 4, 4)
    kept = two_in_four(groups.reshape(6, 16)).reshape(6, 4, 4)
    assert bool((kept.sum(-1) == 2).all())
    least_kept = torch.where(kept, groups, torch.inf).amin(-1)
    most_cut = torch.where(kept, -torch.inf, groups).amax(-1)
    assert bool((least_kept > most_cut).all())


@pytest.mark.parametrize("name", NAMES)
def test_a_method_keeps_what_it_says(name: str) -> None:
    W = torch.randn(12, 24, dtype=torch.float64)
    wanted = uniform_rank((12, 24), 0.5)
    assert wanted is not None
    known = Known(W, 0.5, 2, torch.ones(24, dtype=torch.float64), wanted.fit(W, Metric.identity(24)).structure)
    made = LANDMARKS[name](known)
    assert made is not None
    assert (made.matrix - W).norm() < 0.8 * W.norm()
    if name in ("2:4", "unstructured"):
        assert int(made.matrix.count_nonzero()) == made.parameters == W.numel() // 2
    if name.endswith("SVD"):
        assert torch.linalg.matrix_rank(made.matrix) == wanted.rank
        assert made.bytes == 2 * made.parameters <= W.numel()


def test_refusals(trained: tuple[Model, list[Batch], list[Batch]]) -> None:
    model, batches, test = trained
    with pytest.raises(ValueError, match=r"share is 0\.0"):
        landmarks(model, body(model), batches, 1, test, "classification", 0.0)
    with pytest.raises(ValueError, match="did you mean 'int8'"):
        landmarks(model, body(model), batches, 1, test, "classification", 0.5, names=["int9"])
