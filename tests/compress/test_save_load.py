"""What is saved comes back: shards, ties, the card without flatwing; damaged directories are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import flatwing
from flatwing.compress.load import fill
from flatwing.compress.plain import plain_state
from flatwing.compress.save import save_model, tensors_of
from flatwing.compress.source import from_module
from flatwing.nn import compress_, linear_layers
from flatwing.train import ByteLM, DigitsMLP


class Tied(nn.Module):
    """One module at two places, one weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(50, 16), nn.Linear(16, 16)
        self.again, self.head = self.first, nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.first(self.embed(tokens)).relu()))


def save(folder: Path, model: nn.Module, structure: str = "low_rank(rank=3)", **options: Any) -> nn.Module:
    """A compressed network, saved; its layers are described as those of the dense one."""
    folder.mkdir()
    source, layers = from_module(model), linear_layers(model)
    chosen = {name: info for name, info in layers.items() if info.skip is None and not info.is_head}
    compress_(model, structure, where=list(chosen))
    certificates = {name: {"structure": structure, "error": 0.5} for name in chosen}
    save_model(folder, model, source, chosen, certificates, **options)
    return model.eval()


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("structure", ["low_rank(rank=3)", "monarch(blocks=2, rank=2)", "blast(blocks=2, rank=3)"])
def test_built_in_comes_back(tmp_path: Path, structure: str) -> None:
    model = save(tmp_path / "a", ByteLM(width=16, depth=1, heads=2, context=8), structure)
    loaded = flatwing.load(tmp_path / "a")
    assert equal(model, loaded)
    assert not loaded.training
    assert repr(loaded) == repr(model)
    text = json.loads((tmp_path / "a" / "flatwing.json").read_text())
    assert text["architecture"] == {"kind": "flatwing", "name": "byte-lm", "config": model.config()}  # type: ignore[operator]
    dense = ByteLM(width=16, depth=1, heads=2, context=8)
    dense.load_state_dict(plain_state(str(tmp_path / "a")))
    tokens = torch.randint(256, (2, 8))
    torch.testing.assert_close(dense(tokens), model(tokens), rtol=0, atol=1e-5)


def test_shards(tmp_path: Path) -> None:
    model = save(tmp_path / "a", DigitsMLP(width=16), shard=1000)
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert len(files) > 1
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in state(tmp_path / "a").values())
    assert equal(model, flatwing.load(tmp_path / "a"))


def test_ties_stay_tied(tmp_path: Path) -> None:
    model = save(tmp_path / "a", Tied())
    assert "head.weight" not in state(tmp_path / "a")
    assert not any(key.startswith("again") for key in state(tmp_path / "a"))
    text = json.loads((tmp_path / "a" / "flatwing.json").read_text())
    assert text["layers"]["first"]["aliases"] == ["again"]
    loaded = flatwing.load(tmp_path / "a", model=Tied())
    assert equal(model, loaded)
    assert loaded.again is loaded.first
    assert loaded.head.weight is loaded.embed.weight  # type: ignore[union-attr]


def test_dtypes_come_back(tmp_path: Path) -> None:
    model = save(tmp_path / "a", DigitsMLP(width=16).double())
    assert equal(model, flatwing.load(tmp_path / "a"))
    assert {tensor.dtype for tensor in flatwing.load(tmp_path / "a").state_dict().values()} == {torch.float64}


def test_int8(tmp_path: Path) -> None:
    model = save(tmp_path / "a", DigitsMLP(width=64), quantize="int8")
    kept = state(tmp_path / "a")
    assert {key for key in kept if kept[key].dtype == torch.int8} == {
        f"layers.{i}.factors.{j}.int8" for i in range(2) for j in range(2)
    }
    loaded, plain = flatwing.load(tmp_path / "a"), DigitsMLP(width=64)
    plain.load_state_dict(plain_state(str(tmp_path / "a")))
    x = torch.rand(5, 64)
    torch.testing.assert_close(plain(x), loaded(x), rtol=0, atol=1e-5)
    assert 0 < (loaded(x) - model(x)).abs().max() < 0.05


def test_same_network_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(0)
        save(tmp_path / name, DigitsMLP(width=16), quantize="int8")
    for file in ("model.safetensors", "flatwing.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "flatwing.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not of format 'flatwing.model'"),
        ({"version": 2}, "has version 2 of the format, this flatwing reads 1. Update flatwing"),
        ({"architecture": None}, "has no object 'architecture'"),
        ({"architecture": {"kind": "flatwing", "name": "byte-ml", "config": {}}}, "did you mean 'byte-lm'"),
        ({"architecture": {"kind": "weights"}}, "holds weights without an architecture, which flatwing cannot build"),
        ({"layers": []}, "has no object 'layers'"),
        ({"layers": {"layers.7": {"config": {"kind": "chain"}}}}, "layers.7|kind|chain"),
    ],
)
def test_strange_description_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(tmp_path / "a", DigitsMLP(width=16))
    edit(tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=message):
        flatwing.load(tmp_path / "a")


HUGE = {"kind": "chain", "chain": "(1,1,34359738368,1)", "bias": True, "perm_in": True, "perm_out": False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": {"kind": "flatwing", "name": "digits-mlp", "config": {"width": 60_000}}}, "the network's is"),
        (
            {"architecture": {"kind": "flatwing", "name": "digits-mlp", "config": {"width": 16, "depth": 900}}},
            "of .* numbers",
        ),
        ({"architecture": {"kind": "flatwing", "name": ["digits-mlp"], "config": {}}}, "names no built-in"),
        ({"architecture": {"kind": "flatwing", "name": "digits-mlp"}}, "names no built-in"),
        ({"layers": {"layers.1": [1]}}, "something else than an object"),
        ({"layers": {"layers.1": {"config": HUGE}}}, r"is \(1, 34359738368\), the network's is"),
    ],
)
def test_hostile_description_asks_for_no_memory(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(tmp_path / "a", DigitsMLP(width=16))
    edit(tmp_path / "a", **changes)
    with pytest.raises(ValueError, match=message):
        flatwing.load(tmp_path / "a")


def test_deep_description_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a", DigitsMLP(width=16))
    (tmp_path / "a" / "flatwing.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"is damaged|not readable"):
        flatwing.load(tmp_path / "a")


def test_damaged_directory_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    save(folder, DigitsMLP(width=16))
    weights = folder / "model.safetensors"
    whole, text = weights.read_bytes(), (folder / "flatwing.json").read_text()
    (folder / "flatwing.json").write_text(text[:40])
    with pytest.raises(ValueError, match=r"flatwing.json' is (damaged|not readable JSON)"):
        flatwing.load(folder)
    (folder / "flatwing.json").write_text(text)
    weights.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=r"model.safetensors"):
        flatwing.load(folder)
    weights.write_bytes(whole)
    kept = load_file(weights)
    save_file({key: value for key, value in kept.items() if key != "head.bias"}, weights)
    with pytest.raises(ValueError, match=r"does not hold 'head.bias', which the network needs"):
        flatwing.load(folder)
    save_file(kept | {"extra": torch.ones(1)}, weights)
    with pytest.raises(ValueError, match="holds 'extra', which the network does not have"):
        flatwing.load(folder)


def test_other_skeleton_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a", DigitsMLP(width=16))
    with pytest.raises(ValueError, match=r"the layer 'layers.0' is \(16, 64\), the network's is \(8, 64\)"):
        flatwing.load(tmp_path / "a", model=DigitsMLP(width=8))
    with pytest.raises(ValueError, match=r"replaces a layer 'layers.0' that the network does not have"):
        flatwing.load(tmp_path / "a", model=nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"'weight' has shape \(2, 2\), the network has \(3, 3\)"):
        fill(nn.Linear(3, 3), {"weight": torch.ones(2, 2)}, "here")


def test_each_storage_once() -> None:
    model = Tied()
    assert "head.weight" not in tensors_of(model)
    assert list(tensors_of(model)) == ["embed.weight", "first.weight", "first.bias"]
    empty = nn.ParameterDict({"a": nn.Parameter(torch.empty(0)), "b": nn.Parameter(torch.empty(0))})
    assert list(tensors_of(empty)) == ["a", "b"]
