"""Recipes: TOML in, a typed and complete description of a run out; what is misspelt or of the wrong type is refused."""

from __future__ import annotations

import json
import os
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from importlib import resources
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, Union, final, get_args, get_origin, get_type_hints

from ..core import Registry, require_number, require_whole

T = TypeVar("T")
SUFFIX = ".toml"
SEEDS = 1 << 63  # TOML has no larger numbers
REST = {"rest": True}  # of a field that takes all keys that are no fields


@final
@dataclass(frozen=True, slots=True)
class ModelPart:
    """[model]: the name of a built-in architecture; further keys are its sizes, and what data say is filled in."""

    name: str
    sizes: dict[str, Any] = field(default_factory=dict, metadata=REST)


@final
@dataclass(frozen=True, slots=True)
class DataPart:
    """[data]: what `open_data` opens; further keys are its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict, metadata=REST)


@final
@dataclass(frozen=True, slots=True)
class SamPart:
    """[optimizer.sam]: radius of the ascent, and the share of the summed learning rate at whose end SAM is on."""

    rho: float = 0.05
    adaptive: bool = False
    share: float = 1.0


@final
@dataclass(frozen=True, slots=True)
class OptimizerPart:
    """[optimizer]: a name, its learning rate, and tables of the methods that go around it."""

    name: str = "AdamW"
    lr: float = 1e-3
    weight_decay: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    ire: dict[str, Any] | None = None
    gradpower: dict[str, Any] | None = None
    blockwise: dict[str, Any] | None = None
    sam: SamPart | None = None


@final
@dataclass(frozen=True, slots=True)
class SchedulePart:
    """[schedule]: how the learning rate moves; warm-up in steps, floor as a share of the learning rate."""

    name: str = "cosine"
    warmup: int = 0
    floor: float = 0.0


@final
@dataclass(frozen=True, slots=True)
class GuardPart:
    """[guard]: the run ends when the smoothed loss is this many times its lowest value."""

    factor: float = 3.0
    after: int = 20


@final
@dataclass(frozen=True, slots=True)
class RunPart:
    """[run]: length in steps or epochs, sizes of batches in samples, and everything else that is not mathematics.

    `batch_size` is that of all ranks together. With `batch_stages` = [[0, 64], [10000, 256]] it is 64 until 10 000
    samples were seen, texts for language models, and 256 from then on, and `batch_size` is not used; learning rates
    then follow the samples seen, and `batch_lr_scale` says how they change with the batch: "none" (the theory, and
    the default), "sqrt" or "linear". See `flatwing.optim.batch_size` for when to switch. `parallel` says how several
    ranks work; a process alone needs nothing. `checkpoint_every` steps the run is saved, so that a kill loses no more;
    by default each time it is scored, and not less often than each twentieth of the run; 0 is at the end only.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 32
    batch_stages: list[list[int]] | None = None
    batch_lr_scale: str | None = None
    micro_batch: int | None = None
    precision: str = "fp32"
    clip: float = 1.0
    seed: int = 0
    evaluate_every: int = 0
    evaluate_samples: int | None = None
    checkpoint_every: int | None = None
    keep: str = "last"
    parallel: str = "ddp"
    device: str = "auto"
    threads: int | None = None
    tensorboard: bool = False


@final
@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole run: the tables of a recipe file."""

    model: ModelPart
    data: DataPart
    optimizer: OptimizerPart = field(default_factory=OptimizerPart)
    schedule: SchedulePart = field(default_factory=SchedulePart)
    run: RunPart = field(default_factory=RunPart)
    guard: GuardPart | None = None

    def table(self) -> dict[str, Any]:
        """The recipe as tables of TOML, complete but for what is None."""
        return _table(self)

    def flat(self) -> dict[str, Any]:
        """One entry per value, by its dotted name.

        >>> read_recipe("digits-mlp").flat()["model.name"]
        'digits-mlp'
        """
        return dict(_leaves(self.table(), ""))


def packaged() -> dict[str, str]:
    """Names of the recipes that come with the library, and the first line of each.

    >>> "digits-mlp" in packaged()
    True
    """
    folder = resources.files(__package__ or "flatwing.train") / "recipes"
    names = sorted(entry.name.removesuffix(SUFFIX) for entry in folder.iterdir() if entry.name.endswith(SUFFIX))
    return {name: recipe_text(name).partition("\n")[0].lstrip("# ") for name in names}


def recipe_text(source: str | os.PathLike[str]) -> str:
    """The text of a recipe: of a packaged one by name, or a file. Raises `ValueError` if there is neither."""
    path = Path(source)
    if path.suffix == SUFFIX:
        if not path.is_file():
            raise ValueError(f"there is no recipe {str(source)!r}. Rule: a .toml file, or a name: flatwing train ls.")
        try:
            return path.read_text(encoding="utf-8-sig")  # some editors begin files with a mark
        except UnicodeDecodeError as error:
            raise ValueError(f"{str(source)!r} is not UTF-8 text: {error.reason} at byte {error.start}.") from None
    folder = resources.files(__package__ or "flatwing.train") / "recipes"
    known: Registry[str] = Registry("recipe")
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(SUFFIX):
            known.register(entry.name.removesuffix(SUFFIX))(entry.name)
    return (folder / known[str(source)]).read_text(encoding="utf-8")


def read_recipe(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe, packaged by its name or from a .toml file, with values set by texts like "optimizer.lr=1e-3".

    Raises `ValueError` for what is no TOML, for unknown keys with the nearest one, and for values of a wrong type.

    >>> read_recipe("digits-mlp", ["optimizer.lr=0.5"]).optimizer.lr
    0.5
    >>> read_recipe("digits-mlp", ["optimiser.lr=0.5"])
    Traceback (most recent call last):
    ValueError: unknown table 'optimiser', did you mean 'optimizer'? Known: model, data, ...
    """
    try:
        table = tomllib.loads(recipe_text(source))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{str(source)!r} is no TOML: {error}. Correct it.") from None
    for text in overrides:
        _override(table, text)
        for length, other in (("steps", "epochs"), ("epochs", "steps")):
            if text.startswith(f"run.{length}="):
                table["run"].pop(other, None)  # the file's length gives way to the one that is asked for
    return parse_recipe(table)


def parse_recipe(table: Mapping[str, Any]) -> Recipe:
    """The recipe that tables of TOML describe; raises `ValueError` as `read_recipe`."""
    recipe = _parse(Recipe, table, "")
    run = recipe.run
    if (run.steps is None) == (run.epochs is None):
        raise ValueError(f"run.steps is {run.steps}, run.epochs {run.epochs}. Rule: one of them. Write run.steps=1000.")
    for name, value, least in (
        ("batch_size", run.batch_size, 1),
        ("steps", run.steps, 0),
        ("epochs", run.epochs, 0),
        ("evaluate_samples", run.evaluate_samples, 1),
        ("threads", run.threads, 1),
    ):
        if value is not None:
            require = require_number if name == "epochs" else require_whole
            require(f"run.{name}", value, least, good=1)
    if run.batch_stages is not None and not (run.batch_stages and all(len(stage) == 2 for stage in run.batch_stages)):
        rule = "Rule: pairs of samples seen and batch size. Write [[0, 64], [10000, 256]]."
        raise ValueError(f"run.batch_stages is {run.batch_stages}. {rule}")
    require_whole("run.seed", run.seed, 0, SEEDS - 1)
    return recipe


def to_toml(table: Mapping[str, Any], name: str = "") -> str:
    """Tables of numbers, strings, booleans, lists and tables as TOML.

    >>> print(to_toml({"run": {"steps": 3, "on": {"a": [1.5, "x"]}}}), end="")
    [run]
    steps = 3
    <BLANKLINE>
    [run.on]
    a = [1.5, "x"]
    """
    own = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    # a table without entries is written, too: [optimizer.ire] says that IRE is on
    lines = [f"[{name}]"] if name and (own or not table) else []
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in own.items()]
    parts = ["".join(line + "\n" for line in lines)] if lines else []
    for key, value in table.items():
        if isinstance(value, Mapping):
            parts.append(to_toml(value, f"{name}.{key}" if name else key))
    return "\n".join(part for part in parts if part)


def _override(table: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ValueError(f"{text!r} sets nothing. Rule: key=value with dots, such as optimizer.lr=1e-3.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()  # a bare word is a string, for shells eat quotes
    for name in names[:-1]:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ValueError(f"{text!r}: {name} is a value, not a table. Rule: names of tables before the last dot.")
    table[names[-1]] = parsed


def _parse(kind: type[T], table: Any, path: str) -> T:
    """A dataclass from a table, all of its fields checked against their types."""
    if not isinstance(table, Mapping):
        raise ValueError(f"{path} is {table!r}. Rule: a table. Write [{path}].")
    hints = get_type_hints(kind)
    known: Registry[Any] = Registry(f"key of [{path}]" if path else "table")
    rest = None
    for entry in fields(kind):  # type: ignore[arg-type]
        if entry.metadata.get("rest"):
            rest = entry.name
        else:
            known.register(entry.name)(entry)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if rest is not None and key not in known:
            values.setdefault(rest, {})[key] = value
        else:
            name = known[key].name  # raises, with the nearest name
            values[name] = _typed(hints[name], value, f"{path}.{name}" if path else name)
    for name, entry in known.items():
        if name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            where = f"[{path}] has no {name}" if path else f"there is no table [{name}]"
            raise ValueError(f"{where}. Rule: it is needed. Write it, or start from flatwing train cp.")
    return kind(**values)


def _typed(hint: Any, value: Any, path: str) -> Any:
    if get_origin(hint) in (types.UnionType, Union):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if is_dataclass(hint):
        return _parse(hint, value, path)  # type: ignore[arg-type]
    if get_origin(hint) is list:
        if type(value) is not list:
            raise ValueError(f"{path} is {value!r}. Rule: a list, [...].")
        return [_typed(get_args(hint)[0], entry, f"{path}[{place}]") for place, entry in enumerate(value)]
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{path} is {value!r}. Rule: a table. Write [{path}].")
        return dict(value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (hint is float and not isfinite(value)):
        names = {int: "a whole number", float: "a finite number", bool: "true or false", str: 'a string, "..."'}
        raise ValueError(f"{path} is {value!r}. Rule: {names[hint]}.")
    return value


def _table(part: Any) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for entry in fields(part):
        value = getattr(part, entry.name)
        if entry.metadata.get("rest"):
            table |= value
        elif is_dataclass(value):
            table[entry.name] = _table(value)
        elif value is not None and not (value == {} and entry.default is MISSING):
            table[entry.name] = value
    return table


def _leaves(table: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        found += _leaves(value, name) if isinstance(value, Mapping) and value else [(name, value)]
    return found
