"""`compress` on networks from Python: what it returns, what it chooses, and that the network stays as it was."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import flatwing
from flatwing.compress import Compression, compress
from flatwing.nn import StructuredLayer
from flatwing.train import DigitsMLP

QUICK: dict[str, Any] = {
    "structures": ["low_rank"], "landmarks": False, "curve": False, "timing": 0.01, "samples": 200,
}  # fmt: skip
DATA = torch.rand(300, 24, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """All that a careless call would change: dropout draws, batch norm counts, one part is frozen, one in another mode.

    The weights are of low rank and some noise, so that the loss falls with the share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.drop = nn.Linear(24, 32), nn.BatchNorm1d(32), nn.Dropout(0.5)
        self.down, self.head = nn.Linear(32, 24, bias=False), nn.Linear(24, 5)
        with torch.no_grad():
            for layer in (self.up, self.down):
                m, n = layer.weight.shape
                layer.weight.mul_(0.1).add_(torch.randn(m, 6) @ torch.randn(6, n) / 8)
        self.up.requires_grad_(False)
        self.train()
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.down(self.drop(torch.relu(self.norm(self.up(x))))))


def everything(model: nn.Module) -> dict[str, Any]:
    """All that can be said about a network and the generators of random numbers."""
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "identity": [id(p) for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1],
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (torch.Tensor, np.ndarray)):
        return bool((one == other).all())
    return one == other


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, dict[str, Any], Compression]:
    torch.manual_seed(0)
    model = Net()
    before = everything(model)
    out = tmp_path_factory.mktemp("api") / "out"
    result = compress(model, out, budget=0.5, heal=4, heal_lr=1e-3, calibration=DATA, **QUICK)
    assert same(before, everything(model)), "the network or the random state changed"
    return model, before, result


def test_network_is_unchanged(done: tuple[Net, dict[str, Any], Compression]) -> None:
    model, before, result = done
    assert same(before["state"], everything(model)["state"])
    assert result.model is not model
    assert result.model is not None
    assert not any(module.training for module in result.model.modules())
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in result.model.parameters()}


def test_result_tells_everything(done: tuple[Net, dict[str, Any], Compression]) -> None:
    _, _, result = done
    assert (result.run, result.report) == (result.run, result.run / "report.html")  # type: ignore[operator]
    assert {"before", "compressed", "healed", "quantized"} <= set(result.metrics)
    assert [row["name"] for row in result.layers] == ["up", "down", "head"]
    assert result.layers[2]["action"] == "skipped"
    assert "outputs" in result.layers[2]["reason"]
    for row in result.layers[:2]:
        assert 0 <= row["lower_bound"] <= row["error"] * (1 + 1e-9) < 1
    assert result.metrics["compressed"]["linear_parameters"] <= 0.5 * result.metrics["before"]["linear_parameters"]
    plain = result.to_dict()
    assert (plain["run"], plain["report"]) == (str(result.run), str(result.report))
    assert result.summary == plain["summary"]
    assert len(result.summary) > 1


def test_report_names_all_layers(done: tuple[Net, dict[str, Any], Compression]) -> None:
    _, _, result = done
    assert result.report is not None
    text = result.report.read_text(encoding="utf-8")
    for row in result.layers:
        assert row["name"] in text


def test_load_needs_the_network(done: tuple[Net, dict[str, Any], Compression]) -> None:
    model, _, result = done
    assert result.run is not None
    assert result.model is not None
    with pytest.raises(ValueError, match=r"holds Net, which flatwing cannot build.*model=Net\(\)"):
        flatwing.load(result.run)
    loaded = flatwing.load(result.run, model=Net())
    assert same(loaded.state_dict(), result.model.state_dict())
    x = DATA[:7]
    torch.testing.assert_close(loaded(x), result.model(x))
    with pytest.raises(ValueError, match="that the network does not have"):
        flatwing.load(result.run, model=nn.Sequential(nn.Linear(24, 5)))
    assert not same(model.state_dict(), loaded.state_dict())


def test_targets_tell_the_task() -> None:
    batches = [(DATA[i : i + 50], torch.arange(50) % 5) for i in range(0, 300, 50)]
    done = compress(Net(), budget=0.5, calibration=batches, **QUICK)
    assert done.result["task"] == "classification"
    assert done.metrics["compressed"]["accuracy"] is not None
    assert any("taken for a classifier" in warning for warning in done.result["calibration"]["warnings"])
    named = compress(Net(), budget=0.5, calibration=batches, task="other", **QUICK)
    assert named.result["task"] == "other"


def test_same_call_same_network() -> None:
    model = DigitsMLP(width=16)
    one, two = (compress(model, budget=0.5, heal=3, heal_lr=1e-3, **QUICK) for _ in range(2))
    assert one.model is not None
    assert two.model is not None
    assert (one.run, one.report) == (None, None)
    assert same(one.model.state_dict(), two.model.state_dict())


def test_frozen_network_is_healed_nonetheless() -> None:
    model = DigitsMLP(width=16).requires_grad_(False)
    healed = compress(model, budget=0.2, heal=30, heal_lr=1e-3, **QUICK)
    before, after = (healed.metrics[stage]["agreement"]["kl"]["value"] for stage in ("compressed", "healed"))
    assert after < before
    assert healed.model is not None
    assert not any(p.requires_grad for p in (*model.parameters(), *healed.model.parameters()))


def test_looser_limit_smaller_share() -> None:
    torch.manual_seed(0)
    model = Net()
    shares, losses = [], []
    for limit in (0.02, 0.5):
        result = compress(model, max_loss=limit, calibration=DATA, where="down", **QUICK)
        shares.append(result.result["budget"]["asked"])
        losses.append(result.metrics["compressed"]["loss"]["value"])
    assert 0 < shares[1] < shares[0] <= 1
    assert losses[0] < losses[1]


@pytest.mark.parametrize("unit", ["bytes", "flops"])
def test_unit(unit: str) -> None:
    result = compress(DigitsMLP(width=16), budget=0.4, unit=unit, **QUICK)
    budget = result.result["budget"]
    assert (budget["unit"], budget["asked"]) == (unit, 0.4)
    assert budget["kept"] <= 0.4 * budget["dense"]
    before, after = (result.metrics[stage][unit] for stage in ("before", "compressed"))
    assert after < before


def test_where_and_skip() -> None:
    model = DigitsMLP(width=16, depth=3)
    for options, wanted in (
        ({"where": "layers.[01]"}, {"layers.0", "layers.1"}),
        ({"where": ["layers.0", "head"]}, {"layers.0", "head"}),
        ({"skip": "layers.0"}, {"layers.1", "layers.2"}),
        ({"where": "layers.*", "skip": ["layers.0", "*.2"]}, {"layers.1"}),
    ):
        result = compress(model, budget=0.3, **options, **QUICK)  # type: ignore[arg-type]
        assert result.model is not None
        structured = {name for name, m in result.model.named_modules() if isinstance(m, StructuredLayer)}
        assert structured
        assert structured <= wanted
        assert {row["name"] for row in result.layers if row["action"] != "skipped"} == wanted


def test_budget_of_one_keeps_everything() -> None:
    model = DigitsMLP(width=16).eval()
    result = compress(model, budget=1.0, **QUICK)
    assert result.model is not None
    x = torch.rand(5, 64)
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-6)
    assert "stays as it is: within this budget every layer is kept dense, and nothing is lost" in result.summary[0]


def test_int8_is_measured_where_every_layer_is_kept() -> None:
    model = DigitsMLP(width=16).eval()
    result = compress(model, budget=1.0, quantize="int8", **QUICK)
    assert result.model is not None
    x = torch.rand(5, 64)
    assert (result.model(x) - model(x)).abs().max() > 1e-4
    quantized, kept = result.metrics["quantized"], result.metrics["compressed"]
    assert quantized["agreement"]["kl"]["value"] > kept["agreement"]["kl"]["value"]
    assert quantized["bytes"] < kept["bytes"]


def test_dry_run_only_plans(tmp_path: Path) -> None:
    model = DigitsMLP(width=16)
    before = copy.deepcopy(model.state_dict())
    result = compress(model, tmp_path / "out", budget=0.5, dry_run=True, **QUICK)
    assert (result.model, result.run, list(tmp_path.iterdir())) == (None, None, [])
    assert result.result["dry_run"] is True
    assert {row["structure"].split("(")[0] for row in result.layers if row["action"] == "replaced"}
    assert same(before, model.state_dict())
    done = compress(model, budget=0.5, **QUICK)
    assert [row["structure"] for row in done.layers] == [row["structure"] for row in result.layers]
