"""Recipes: every packaged one can be run; what is misspelt, missing or of the wrong type is refused by name."""

import tomllib
from pathlib import Path

import pytest

from flatwing.train.parts import make_parts
from flatwing.train.recipe import packaged, parse_recipe, read_recipe, recipe_text, to_toml


@pytest.mark.parametrize("name", packaged())
def test_packaged_recipes_are_whole_and_say_how_to_run_them(name: str) -> None:
    head = recipe_text(name).split("\n\n")[0]
    assert f"flatwing train {name}" in head
    assert f"torchrun --nproc-per-node 4 -m flatwing train {name}" in head
    recipe = read_recipe(name)
    assert parse_recipe(tomllib.loads(to_toml(recipe.table()))) == recipe
    parts = make_parts(recipe)
    assert parts.steps >= 100
    assert parts.model.task == parts.data.task


def test_names_are_frozen() -> None:
    llamas = ["llama-bytes", *(f"llama-bytes-{method}" for method in ("blockwise", "gradpower", "ire", "muon"))]
    digits = ["digits-margin", "digits-mlp", "digits-vit", "late-sam-digits"]
    assert list(packaged()) == ["bytelm", *digits, *llamas, "monarch-bytes"]


def test_values_are_set_from_texts() -> None:
    values = ["optimizer.lr=1", "run.steps=7", "model.width=9", "optimizer.name=SGD", "optimizer.ire={kappa=2}"]
    recipe = read_recipe("digits-mlp", [*values, "optimizer.sam.rho=0.1", "data.seed = 3"])
    assert recipe.optimizer.lr == 1.0
    assert type(recipe.optimizer.lr) is float
    assert (recipe.run.steps, recipe.run.epochs) == (7, None)  # the length that is asked for replaces the other
    assert recipe.model.sizes["width"] == 9
    assert recipe.optimizer.name == "SGD"
    assert recipe.optimizer.ire == {"kappa": 2}
    assert recipe.optimizer.sam is not None
    assert recipe.optimizer.sam.rho == 0.1
    assert recipe.data.options == {"seed": 3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("optimiser.lr=1", "unknown table 'optimiser', did you mean 'optimizer'"),
        ("run.setps=1", r"unknown key of \[run\] 'setps', did you mean 'steps'"),
        ("optimizer.sam.roh=1", r"unknown key of \[optimizer.sam\] 'roh', did you mean 'rho'"),
        ("run.steps=1.5", "run.steps is 1.5. Rule: a whole number"),
        ("run.steps=true", "run.steps is True. Rule: a whole number"),
        ("optimizer.lr=nan", "optimizer.lr is nan. Rule: a finite number"),
        ("optimizer.lr=fast", "optimizer.lr is 'fast'. Rule: a finite number"),
        ("run.tensorboard=1", "run.tensorboard is 1. Rule: true or false"),
        ("model.name=3", "model.name is 3. Rule: a string"),
        ("run.epochs=-1", "run.epochs is -1.0. Rule: a number, at least 0, such as 1"),
        ("run.steps=-1", "run.steps is -1. Rule: a whole number, at least 0"),
        ("run.evaluate_samples=0", "run.evaluate_samples is 0. Rule: a whole number, at least 1"),
        ("run.batch_stages=3", r"run.batch_stages is 3. Rule: a list"),
        ("run.batch_stages=[[0, 1.5]]", r"run.batch_stages\[0\]\[1\] is 1.5. Rule: a whole number"),
        ("run.batch_stages=[[0]]", r"run.batch_stages is \[\[0\]\]. Rule: pairs"),
        ("run.batch_stages=[]", r"run.batch_stages is \[\]. Rule: pairs"),
        ("run=3", r"run is 3. Rule: a table. Write \[run\]"),
        ("optimizer.ire=3", "optimizer.ire is 3. Rule: a table"),
        ("optimizer.lr.x=3", "lr is a value, not a table"),
        ("optimizer.lr", "sets nothing. Rule: key=value"),
        ("=3", "sets nothing"),
    ],
)
def test_bad_values_are_refused_by_name(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe("digits-mlp", [value])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model", "is no TOML"),
        ('[data]\nname = "digits"\n[run]\nsteps = 1', r"there is no table \[model\]"),
        ('[model]\nwidth = 3\n[data]\nname = "digits"', r"\[model\] has no name"),
        ('[model]\nname = "mlp"\n[data]\nname = "digits"', "run.steps is None, run.epochs None. Rule: one of them"),
        ('[model]\nname = "mlp"\n[data]\nname = "digits"\n[run]\nsteps=1\nepochs=1', "Rule: one of them"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(path)


def test_unknown_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown recipe 'digits-mpl', did you mean 'digits-mlp'"):
        read_recipe("digits-mpl")
    with pytest.raises(ValueError, match=r"there is no recipe .*no\.toml"):
        read_recipe(tmp_path / "no.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        read_recipe(tmp_path / "b.toml")


def test_a_mark_at_the_beginning_of_the_file_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(recipe_text("digits-mlp"), encoding="utf-8-sig")
    assert read_recipe(path) == read_recipe("digits-mlp")


def test_toml_survives_the_way_back() -> None:
    table = {"a": {"x": 1e-12, "y": [1, 2.5], "s": 'say "ä"\n', "t": True, "empty": {}, "deep": {"z": []}}, "top": {}}
    assert tomllib.loads(to_toml(table)) == table
