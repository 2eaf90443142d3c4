"""One front door: every kind of data behaves alike behind it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flatwing.data import DATA, Dataset, chunks, digit_images, open_data, python_sources
from flatwing.train import DigitsMLP, fit


def _text(folder: Path) -> Dataset:
    (folder / "a.txt").write_bytes(bytes(range(1, 100)) * 30)
    return open_data(f"text:{folder / 'a.txt'}", length=16)


def _rows(folder: Path) -> Dataset:
    np.savez(folder / "a.npz", x=np.random.default_rng(0).random((60, 3, 3)), y=np.arange(60) % 3)
    return open_data(f"array:{folder / 'a.npz'}")


def _tokens(folder: Path) -> Dataset:
    np.save(folder / "a.npy", np.arange(2000, dtype=np.uint16) % 300)
    return open_data(f"array:{folder / 'a.npy'}", length=8)


KINDS: dict[str, Callable[[Path], Dataset]] = {
    "digits": lambda folder: open_data("digits"),
    "python": lambda folder: open_data("python", length=24, vocab=128),
    "text": _text,
    "array rows": _rows,
    "array tokens": _tokens,
}  # "hf" has a file of its own


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    return KINDS[request.param](tmp_path)


def test_every_kind_is_tested() -> None:
    assert {kind.split()[0] for kind in KINDS} | {"hf"} == set(DATA)


def test_batches_have_the_shapes_that_the_data_promises(data: Dataset) -> None:
    x, y = data.take(data.indices(step=3, batch_size=5))
    assert tuple(x.shape) == (5, *data.shape)
    assert tuple(y.shape) == ((5,) if data.task == "classification" else x.shape)
    assert x.dtype == (torch.float32 if data.task == "classification" else torch.int64)
    assert y.dtype == torch.int64
    assert y.min() >= 0
    assert y.max() < data.classes


def test_batches_depend_on_step_and_seed_alone(data: Dataset) -> None:
    batches = data.batches(6, seed=2)
    first = batches(4, torch.Generator().manual_seed(1))
    torch.randn(3)
    again = data.take(data.indices(4, 6, seed=2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], data.batches(6, seed=3)(4, torch.Generator())[0])
    assert not torch.equal(first[0], batches(5, torch.Generator())[0])


def test_evaluation_gives_each_sample_of_a_split_once(data: Dataset) -> None:
    for split in ("valid", "test"):
        assert sum(len(y) for _, y in data.evaluation(split, 7)) == data.sizes[split]
    assert sum(len(y) for _, y in data.evaluation("train", 2, limit=5)) == 5
    with pytest.raises(ValueError, match="unknown split 'vali', did you mean 'valid'"):
        data.evaluation("vali", 3)


def test_digits_are_digit_images() -> None:
    x, y = next(open_data("digits", seed=5).evaluation("test", 10**6))
    assert all(torch.equal(a, b) for a, b in zip((x, y), digit_images("test", seed=5), strict=True))


def test_python_is_evaluated_on_the_chunks_of_its_sources() -> None:
    data = open_data("python", length=32)
    x, y = next(data.evaluation("valid", 10**6))
    want = chunks(python_sources("valid"), 32)
    assert torch.equal(x, want[:, :-1])
    assert torch.equal(y, want[:, 1:])


def test_rows_are_split_by_class_and_seed(tmp_path: Path) -> None:
    _rows(tmp_path)
    data = open_data(f"array:{tmp_path / 'a.npz'}", seed=1)
    assert data.sizes == {"train": 42, "valid": 6, "test": 12}
    for split, each in (("train", 14), ("valid", 2), ("test", 4)):
        assert next(data.evaluation(split, 99))[1].bincount().tolist() == [each] * 3
    other = open_data(f"array:{tmp_path / 'a.npz'}", seed=2)
    assert not torch.equal(next(data.evaluation("test", 99))[0], next(other.evaluation("test", 99))[0])


def test_fit_takes_the_batches() -> None:
    data = open_data("digits")
    metrics = fit(model := DigitsMLP(width=32), data.batches(64), steps=60, lr=5e-3)
    x, y = next(data.evaluation("valid", 10**6))
    assert isinstance(model, nn.Module)
    assert metrics[-1]["loss"] < 0.5 * metrics[0]["loss"]
    assert (model(x).argmax(1) == y).float().mean() > 0.8


def test_notes_reach_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 500)
    (tmp_path / "b.bin").write_bytes(b"\0")
    assert open_data(f"text:{tmp_path}", length=4).notes == (
        "skipped, binary: b.bin.",
        "too few files to split by file (1): the text is cut into three ranges.",
    )


def test_labels_with_gaps_are_told_and_one_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((60, 1)), y=np.arange(60) % 3 * 10)
    data = open_data(f"array:{path}")
    assert data.classes == 21
    assert len(data.notes) == 1
    assert "labels go up to 20, but only 3 of these 21 classes have rows" in data.notes[0]
    np.savez(path, x=np.zeros((60, 1)), y=np.arange(60) % 3)
    assert open_data(f"array:{path}").notes == ()
    np.savez(path, x=np.zeros((60, 1)), y=np.full(60, 4))
    with pytest.raises(ValueError, match=r"all labels of 'array:.*' are 4. Rule: at least 2 classes"):
        open_data(f"array:{path}")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"seed": "abc"}, "seed is 'abc' for data 'digits'. Rule: a whole number"),
        ({"seed": True}, "seed is True for data 'digits'"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": -1}, "seed is -1. Rule: a whole number from 0"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616. Rule"),
    ],
)
def test_options_of_another_type_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_data("digits", **option)


def test_bad_requests_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("abc" * 10)
    np.savez("few.npz", x=np.zeros((4, 1)), y=np.arange(4))
    np.save("tokens.npy", np.arange(500))
    with pytest.raises(ValueError, match="unknown data 'digit', did you mean 'digits'"):
        open_data("digit")
    with pytest.raises(ValueError, match=r"'a.txt' is a path.*Write 'text:a.txt'"):
        open_data("a.txt")
    with pytest.raises(ValueError, match=r"data 'text:' names nothing to open. Write 'text:'"):
        open_data("text:")
    with pytest.raises(ValueError, match="data 'digits' takes nothing after the name, got 'x'"):
        open_data("digits:x")
    with pytest.raises(ValueError, match="unknown option of data 'python' 'lenght', did you mean 'length'"):
        open_data("python", lenght=3)
    with pytest.raises(ValueError, match="unknown option of data 'text' 'path'"):
        open_data("text:a.txt", path="b.txt")
    with pytest.raises(ValueError, match=r"split 'valid' of 'text:a.txt' has 1 tokens, length is 8.*Give more text.$"):
        open_data("text:a.txt", length=8)
    Path("b.txt").write_text("abc" * 300)
    with pytest.raises(ValueError, match=r"split 'valid' of 'text:b.txt' has 54 tokens.*or write length=53"):
        open_data("text:b.txt", length=99)
    with pytest.raises(ValueError, match=r"'array:few.npz' has too few rows: none is left for 'valid'"):
        open_data("array:few.npz")
    with pytest.raises(ValueError, match="length is 4, but these are rows x and y, which have no length"):
        open_data("array:few.npz", length=4)
    with pytest.raises(ValueError, match="scale is 2, but these are tokens"):
        open_data("array:tokens.npy", scale=2)
    with pytest.raises(ValueError, match="vocab is at most 400"):
        open_data("array:tokens.npy", vocab=400)
