"""Data sets of Hugging Face, with a stand-in for the package that has the shape of its interface."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flatwing.data import open_data
from flatwing.data.hf import hf_rows, hf_tables, hf_text


class Table:
    """As `datasets.Dataset`: columns by name, row count; a column is a sequence of Python values."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns, self.column_names = columns, list(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


class TableDict(dict[str, Table]):
    """As `datasets.DatasetDict`: a dict of tables."""


class Picture:
    """As an image of PIL: numpy reads its pixels."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.pixels


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The stand-in as the installed package; `asked` records the calls."""
    texts = {"train": Table(text=["ab\n", "cd"] * 50), "validation": Table(text=["ef"] * 20)}
    rng = np.random.default_rng(0)
    pictures = Table(
        image=[Picture(rng.integers(256, size=(4, 4), dtype=np.uint8)) for _ in range(40)], label=[0, 1, 2, 3] * 10
    )
    known = {"texts": TableDict(texts), "pictures": TableDict(train=pictures, test=pictures), "single": texts["train"]}
    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None = None) -> Any:
        asked.append((path, name))
        if path not in known:
            raise FileNotFoundError(f"Couldn't find any data file at {path}.")
        return known[path]

    def load_from_disk(path: str) -> Any:
        asked.append(("disk", path))
        return known["texts"]

    module = SimpleNamespace(load_dataset=load_dataset, load_from_disk=load_from_disk, asked=asked)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"data 'hf:imdb' needs the package datasets. Write: pip install datasets"):
        open_data("hf:imdb")


def test_text_is_bytes_with_a_newline_after_each_row(package: SimpleNamespace) -> None:
    parts = hf_text(hf_tables("texts"))
    train, valid, test = (b"".join(p.tobytes() for p in part) for part in (parts.train, parts.valid, parts.test))
    assert train + test == b"ab\ncd\n" * 50  # the package has no test split here: it is the end of train
    assert len(test) == 300 * 6 // 100
    assert valid == b"ef\n" * 20


def test_all_missing_splits_are_cut_from_train_in_order(package: SimpleNamespace) -> None:
    parts = hf_text(hf_tables("single"))
    texts = [b"".join(p.tobytes() for p in part) for part in (parts.train, parts.valid, parts.test)]
    assert b"".join(texts) == b"ab\ncd\n" * 50
    assert [len(text) for text in texts] == [264, 18, 18]


def test_rows_have_the_splits_of_the_data_set_and_a_share_of_train(package: SimpleNamespace) -> None:
    parts = hf_rows(hf_tables("pictures"), "image", "label", scale=255)
    assert [tuple(part[0].shape) for part in (parts.train, parts.valid, parts.test)] == [
        (36, 4, 4),
        (4, 4, 4),
        (40, 4, 4),
    ]
    assert sorted(parts.valid[1].tolist()) == [0, 1, 2, 3]
    assert 0.9 < parts.train[0].max() <= 1
    rows = {tuple(row.flatten().tolist()) for part in (parts.train, parts.valid) for row in part[0]}
    assert rows == {tuple(row.flatten().tolist()) for row in parts.test[0]}  # none lost, none twice


def test_front_door(package: SimpleNamespace, tmp_path: Path) -> None:
    text = open_data("hf:texts", length=8, config="small")
    assert package.asked[-1] == ("texts", "small")
    assert (text.task, text.shape, text.classes) == ("lm", (8,), 256)
    images = open_data("hf:pictures", x="image", y="label", scale=255)
    assert (images.task, images.shape, images.classes) == ("classification", (4, 4), 4)
    assert images.sizes == {"train": 36, "valid": 4, "test": 40}
    (tmp_path / "dataset_dict.json").write_text("{}")
    open_data(f"hf:{tmp_path}", length=8)
    assert package.asked[-1] == ("disk", str(tmp_path))


def test_bad_requests_are_refused_by_name(package: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="datasets could not load 'imbd': FileNotFoundError: Couldn't find"):
        open_data("hf:imbd")
    with pytest.raises(ValueError, match="unknown column 'txt', did you mean 'text'"):
        open_data("hf:texts", column="txt")
    with pytest.raises(TypeError, match=r"row 0 of column 'label' is a int. Rule: text"):
        open_data("hf:pictures", column="label")
    with pytest.raises(ValueError, match="x is 'image' and y is None"):
        open_data("hf:pictures", x="image")
    with pytest.raises(ValueError, match="column is 'text', but these are rows x and y, which have no column"):
        open_data("hf:pictures", x="image", y="label", column="text")
    with pytest.raises(ValueError, match="scale is 255, but these are text"):
        open_data("hf:texts", scale=255)
    ragged = {"train": Table(x=[[1], [1, 2]], y=[0, 1])}
    with pytest.raises(ValueError, match=r"column 'x' has values of shapes \(1,\), \(2,\)"):
        hf_rows(ragged, "x", "y")
    package.load_dataset = lambda path, name: TableDict(test=Table(text=["a"]))
    with pytest.raises(ValueError, match=r"has the splits test. Rule: one of them is 'train'"):
        open_data("hf:odd")


def test_no_row_of_a_small_test_split_is_taken_for_a_key() -> None:
    tables = {"train": Table(x=[[0.0]] * 100, y=list(range(100))), "test": Table(x=[[0.0]], y=[99])}
    assert torch.equal(hf_rows(tables, "x", "y").test[1], torch.tensor([99]))
