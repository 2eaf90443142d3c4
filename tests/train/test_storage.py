"""A built-in model in one file: weights, name and sizes; anything else is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from flatwing.train import ByteLM, DigitsMLP, load_model, save_model
from flatwing.train.storage import WEIGHTS, load_tensors, save_tensors


def test_model_comes_back(tmp_path: Path) -> None:
    model = ByteLM(width=8, depth=1, heads=2, context=6)
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    tokens = torch.randint(256, (2, 6))
    assert type(again) is ByteLM
    assert again.config() == model.config()
    assert torch.equal(again(tokens), model(tokens))


def test_file_is_plain_safetensors_with_the_state_dict(tmp_path: Path) -> None:
    model = DigitsMLP(width=4, depth=1)
    save_model(tmp_path / "m.safetensors", model, {"seed": 3})
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert json.loads(file.metadata()["flatwing"])["notes"] == {
            "architecture": "digits-mlp",
            "config": {"width": 4, "depth": 1},
            "recipe": {"seed": 3},
        }


def test_equal_models_are_equal_bytes_and_earlier_files_are_read(tmp_path: Path) -> None:
    model = DigitsMLP(width=4, depth=1)
    for name in "abcdefgh":  # two keys of metadata would come in either order
        save_model(tmp_path / name, model, {"seed": 3})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    notes = {"architecture": "digits-mlp", "config": {"width": 4, "depth": 1}}
    save_file(model.state_dict(), tmp_path / "old", metadata={"format": WEIGHTS, "notes": json.dumps(notes)})
    assert torch.equal(load_model(tmp_path / "old").head.weight, model.head.weight)
    save_file(model.state_dict(), tmp_path / "odd", metadata={"flatwing": "[]"})
    with pytest.raises(ValueError, match="not readable"):
        load_model(tmp_path / "odd")


def test_another_recipe_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", DigitsMLP(width=4), {"seed": 3})
    load_model(tmp_path / "m.safetensors", {"seed": 3})
    with pytest.raises(ValueError, match="was trained with seed=3, wanted is seed=4"):
        load_model(tmp_path / "m.safetensors", {"seed": 4})


def test_other_modules_are_refused(tmp_path: Path) -> None:
    class Other(DigitsMLP):
        pass

    with pytest.raises(ValueError, match="Other is not a built-in architecture"):
        save_model(tmp_path / "m.safetensors", Other())
    assert list(tmp_path.iterdir()) == []


def test_tied_and_transposed_tensors_are_written_as_they_are(tmp_path: Path) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    save_tensors(tmp_path / "t.safetensors", {"a": one, "b": one, "c": one.T}, {}, "kind")
    tensors, notes = load_tensors(tmp_path / "t.safetensors", "kind")
    assert notes == {}
    assert torch.equal(tensors["b"], one)
    assert torch.equal(tensors["c"], one.T)


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"config": {}}, "holds no built-in model: 'architecture'"),
        ({"architecture": "byte-ml", "config": {}}, "unknown architecture 'byte-ml', did you mean 'byte-lm'"),
        ({"architecture": "digits-mlp", "config": {"width": 0}}, "width is 0"),
        ({"architecture": "digits-mlp", "config": {"width": 5}}, "the weights do not fit DigitsMLP"),
    ],
)
def test_files_that_hold_no_model_are_refused(tmp_path: Path, notes: dict[str, object], message: str) -> None:
    save_tensors(tmp_path / "m.safetensors", nn.Linear(2, 2).state_dict(), notes, WEIGHTS)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "m.safetensors")


def test_missing_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="there is no file"):
        load_model(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"has format None. Rule: 'flatwing\.weights\.1'"):
        load_model(path)
    save_model(path, DigitsMLP(width=4))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not readable"):
        load_model(path)
