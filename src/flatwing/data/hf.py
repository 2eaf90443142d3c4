"""Data sets of Hugging Face, where the package `datasets` is installed: a column of text, or columns x and y."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .arrays import as_rows
from .corpus import HELD_OUT_PERCENT
from .samples import Pieces, cut
from .splits import SPLITS, Splits, stratified

NAMES = {"train": ("train",), "valid": ("validation", "valid", "val", "dev"), "test": ("test",)}
SAVED = ("dataset_dict.json", "state.json")  # in folders that save_to_disk wrote
HELD_OUT = 0.1  # of the rows of each class of "train", for a split that the data set does not have

Table = Any  # a `datasets.Dataset`: len(table), table.column_names, table[column]


def hf_tables(name: str, config: str | None = None) -> dict[str, Table]:
    """The tables "train" and, where the data set has them, "valid" and "test".

    `name` is that of a data set on the hub, a folder of files that `datasets` reads, or one that its `save_to_disk`
    wrote. Code that comes with a data set is not run. Raises `ImportError` without the package, `ValueError` for what
    it cannot load and for a data set without "train".
    """
    try:
        datasets: Any = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ImportError(f"data 'hf:{name}' needs the package datasets. Write: pip install datasets") from error
    try:
        if any((Path(name) / file).is_file() for file in SAVED):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config)
    except Exception as error:  # hub, files, parsers: each has errors of its own
        raise ValueError(f"datasets could not load {name!r}: {type(error).__name__}: {error}") from error
    tables = dict(loaded) if isinstance(loaded, Mapping) else {"train": loaded}
    found = {split: tables[key] for split, keys in NAMES.items() for key in keys[::-1] if key in tables}
    if "train" not in found:
        raise ValueError(f"{name!r} has the splits {', '.join(tables) or '(none)'}. Rule: one of them is 'train'.")
    return {split: found[split] for split in SPLITS if split in found}


def hf_text(tables: Mapping[str, Table], column: str = "text") -> Splits[Pieces]:
    """The texts of a column as UTF-8, each ended by a newline; missing splits are the last 6 % of "train" each.

    Raises `ValueError` for an unknown column, `TypeError` for values that are no text.
    """
    pieces = {split: [_joined(column, _column(table, column))] for split, table in tables.items()}
    missing = [split for split in SPLITS if split not in pieces]
    total = len(pieces["train"][0])
    held = total * HELD_OUT_PERCENT // 100
    train = pieces["train"]
    for k, split in enumerate(missing):
        stop = total - held * (len(missing) - 1 - k)
        pieces[split] = cut(train, stop - held, stop)
    pieces["train"] = cut(train, 0, total - held * len(missing))
    return Splits(**pieces)


def hf_rows(
    tables: Mapping[str, Table], x: str, y: str, scale: float | int = 1, seed: int = 0
) -> Splits[tuple[torch.Tensor, torch.Tensor]]:
    """Two columns as rows (n, ...), divided by `scale`, and labels (n,); images become arrays.

    A missing split is 10 % of the rows of each class of "train", drawn by `seed`. Raises as `as_rows`, and `ValueError`
    for an unknown column or rows of several shapes.
    """
    rows = {split: as_rows(_stacked(table, x), _stacked(table, y), scale) for split, table in tables.items()}
    missing = [split for split in SPLITS if split not in rows]
    shares = {"train": 1 - HELD_OUT * len(missing)} | dict.fromkeys(missing, HELD_OUT)
    inputs, labels = rows["train"]
    rows |= {split: (inputs[part], labels[part]) for split, part in stratified(labels, seed, shares).items()}
    return Splits(**rows)


def _column(table: Table, name: str) -> Iterable[Any]:
    if name not in table.column_names:
        near = difflib.get_close_matches(name, table.column_names, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown column {name!r}{hint} Known: {', '.join(table.column_names)}.")
    return table[name]


def _joined(name: str, texts: Iterable[Any]) -> np.ndarray:
    found = bytearray()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"row {row} of column {name!r} is a {type(text).__name__}. Rule: text. Name another column."
            )
        found += text.encode()
        if not text.endswith("\n"):
            found += b"\n"
    return np.frombuffer(found, dtype=np.uint8)


def _stacked(table: Table, name: str) -> np.ndarray:
    values = [np.asarray(value) for value in _column(table, name)]
    shapes = dict.fromkeys(value.shape for value in values)
    if len(shapes) != 1:
        some = ", ".join(map(str, list(shapes)[:3])) or "no rows"
        raise ValueError(f"column {name!r} has values of shapes {some}. Rule: rows of one shape. Name another column.")
    return np.stack(values)
