import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flatwing.compress import Batch, Data, load_data
from flatwing.compress.calibration import LENGTH, by_targets
from flatwing.compress.source import Source, from_module
from flatwing.data import python_sources
from flatwing.train import ByteLM, DigitsMLP
from strategies import as_user


def language_model(vocab: int = 256, context: int = 16) -> Source:
    return from_module(ByteLM(width=8, depth=1, heads=2, context=context, vocab=vocab))


def network() -> Source:
    return from_module(DigitsMLP(width=8))


def inputs(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in batches])


def parts(data: Data) -> list[torch.Tensor]:
    return [inputs(part) for part in (data.fit, data.heldout, data.test)]


def rows_of(x: torch.Tensor) -> set[tuple]:
    return {tuple(row) for row in x.tolist()}


def numbered(count: int) -> torch.Tensor:
    """Rows that differ."""
    return torch.arange(count)[:, None].expand(-1, 64) / 1000.0


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def test_rows_are_split_into_disjoint_parts(tmp_path: Path) -> None:
    for given in (numbered(100), save(tmp_path / "a.npz", x=numbered(100))):
        fit, heldout, test = parts(load_data(network(), given))
        assert (len(fit), len(heldout), len(test)) == (70, 15, 15)
        sets = [rows_of(part) for part in (fit, heldout, test)]
        assert len(set.union(*sets)) == 100


@pytest.mark.parametrize("count", [3, 4, 5, 10])
def test_few_rows_are_split_too(count: int) -> None:
    found = parts(load_data(network(), numbered(count)))
    assert min(map(len, found)) >= 1
    assert sum(map(len, found)) == count


def test_samples_limit_the_rows_that_are_fitted_and_spread_them() -> None:
    fit, _, _ = parts(load_data(network(), numbered(100), samples=5))
    rows = [round(1000 * float(row[0])) for row in fit]
    assert len(rows) == 5
    assert rows == sorted(rows)
    assert rows[0] < 10
    assert rows[-1] > 90


def test_rows_sorted_by_class_are_mixed(tmp_path: Path) -> None:
    labels = np.arange(10).repeat(30)
    pairs = [(row[None], torch.tensor([label])) for row, label in zip(numbered(300), labels, strict=True)]
    arrays = save(tmp_path / "a.npz", x=numbered(300), y=labels)
    tokens = save(tmp_path / "b.npz", input_ids=np.full((300, 8), 3), y=labels)
    for source, given in ((network(), arrays), (network(), pairs), (language_model(), tokens)):
        data = load_data(source, given)
        for part in (data.fit, data.heldout, data.test):
            targets = torch.cat([batch.targets for batch in part if batch.targets is not None])
            assert set(targets.tolist()) == set(range(10))
    fit, heldout, _ = parts(load_data(network(), numbered(300)))
    assert float(fit.max()) > float(heldout.min()), "rows of a tensor are mixed, too"


def test_running_text_is_not_mixed(tmp_path: Path) -> None:
    ids = np.arange(200).reshape(50, 4)
    for given in (save(tmp_path / "a.npz", input_ids=ids), torch.from_numpy(ids), list(torch.from_numpy(ids)[:, None])):
        fit, heldout, test = parts(load_data(language_model(), given))
        assert int(fit.max()) < int(heldout.min()) <= int(heldout.max()) < int(test.min())


def test_labels_that_repeat_the_tokens_are_those_of_the_next_position(tmp_path: Path) -> None:
    ids = np.arange(200).reshape(20, 10)
    arrays = save(tmp_path / "a.npz", input_ids=ids, labels=ids)
    items = [{"idx": row[None], "labels": row[None]} for row in torch.from_numpy(ids)]
    model = ByteLM(width=8, depth=1, heads=2, context=16)
    model.forward = (lambda forward: lambda idx: forward(idx))(model.forward)  # type: ignore[method-assign]
    for source, given in ((language_model(), arrays), (from_module(model, "lm"), items)):
        targets = load_data(source, given).fit[0].targets
        assert targets is not None
        assert targets[0].tolist() == [*range(1, 10), -100]


class Plain(nn.Linear):
    """A network whose class tells no task."""


@pytest.mark.parametrize(
    ("targets", "task", "word"),
    [
        (torch.tensor([0, 4, -100, 2]), "classification", r"was taken for a classifier \(task=classification\)"),
        (torch.tensor([0, 5, 1, 2]), "other", r"\(4,\) beside outputs \(4, 5\), were not used.*Name the task"),
        (torch.tensor([0, -1, 1, 2]), "other", "were not used"),
        (torch.rand(4), "other", "were not used"),
        (torch.zeros(4, 5, dtype=torch.long), "other", r"\(4, 5\) beside outputs \(4, 5\), were not used"),
    ],
)
def test_targets_tell_the_task_or_that_they_are_not_used(targets: torch.Tensor, task: str, word: str) -> None:
    source = from_module(Plain(3, 5))
    given = load_data(source, [(torch.rand(4, 3), targets)] * 3)
    assert re.search(r"were not used.*Name the task, classification", *given.warnings)
    found, data = by_targets(source, given)
    assert found.task == task
    (warning,) = data.describe(True, [])["warnings"]
    assert re.search(word, warning)
    assert data.describe(True, ["few samples"])["warnings"] == [warning, "few samples"]


def test_a_task_that_is_known_is_kept_and_no_targets_tell_nothing() -> None:
    for source, given in (
        (from_module(Plain(3, 5), "classification"), [(torch.rand(4, 3), torch.tensor([0, 1, 2, 3]))] * 3),
        (from_module(Plain(3, 5)), torch.rand(9, 3)),
    ):
        data = load_data(source, given)
        assert by_targets(source, data) == (source, data)


def test_the_code_of_a_tokenizer_is_not_run_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    (tmp_path / "evil.py").write_text("raise SystemExit('the code was run')")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    settings = {"tokenizer_class": "EvilTok", "auto_map": {"AutoTokenizer": ["evil.EvilTok", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "a.txt").write_text("hello " * 100)
    source = replace(language_model(), folder=tmp_path)
    with pytest.raises(ValueError, match=r"the tokenizer in .* cannot be used .*code in the directory is not run"):
        load_data(source, tmp_path / "a.txt")


def test_labels_go_with_their_rows(tmp_path: Path) -> None:
    data = load_data(network(), save(tmp_path / "a.npz", x=numbered(50), labels=np.arange(50)))
    for batch in (*data.fit, *data.heldout, *data.test):
        assert batch.targets is not None
        assert batch.targets.tolist() == [round(1000 * float(row[0])) for row in batch.inputs]


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f4"])
def test_real_arrays_get_the_dtype_of_the_network(tmp_path: Path, dtype: str) -> None:
    data = load_data(network(), save(tmp_path / "a.npz", x=numbered(10).numpy().astype(dtype)))
    assert inputs(data.fit).dtype == torch.float32


def test_a_text_becomes_bytes_in_order_with_the_next_one_as_target(tmp_path: Path) -> None:
    text = "".join(f"{i:03d}," for i in range(200))
    (tmp_path / "a.txt").write_text(text)
    data = load_data(language_model(), tmp_path / "a.txt", length=10)
    assert data.source == "a.txt"
    for batch in (*data.fit, *data.heldout, *data.test):
        assert batch.targets is not None
        for row, target in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            assert len(row) == 10
            assert bytes([*row, target[-1]]).decode() in text
            assert row[1:] == target[:-1]
    sizes = [len(part) for part in parts(data)]
    assert sum(sizes) == (len(text) - 1) // 10
    first = [bytes(part[0].tolist()).decode() for part in parts(data)]
    assert [text.index(word) for word in first] == sorted(text.index(word) for word in first)


def test_a_folder_and_json_lines_are_texts_too(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("a" * 100)
    (folder / "b.txt").write_text("b" * 100)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"body": letter * 100}) for letter in "ab"))
    one = load_data(language_model(), folder, length=8)
    other = load_data(language_model(), path, length=8, field="body")
    assert torch.equal(inputs(one.batches), inputs(other.batches))
    assert {ord("a"), ord("b"), ord("\n")} == set(torch.cat(parts(one)).reshape(-1).tolist())


def test_texts_are_as_long_as_the_network_reads(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 5000)
    assert inputs(load_data(language_model(context=16), tmp_path / "a.txt").fit).shape[1] == 16
    assert inputs(load_data(language_model(context=16), tmp_path / "a.txt", length=99).fit).shape[1] == 16
    assert inputs(load_data(language_model(context=2000), tmp_path / "a.txt").fit).shape[1] == LENGTH
    (tmp_path / "short.txt").write_text("x" * 30)
    assert inputs(load_data(language_model(context=16), tmp_path / "short.txt").fit).shape[1] == 9


def test_token_ids_from_arrays(tmp_path: Path) -> None:
    ids = np.arange(200).reshape(20, 10).astype(np.int32)
    data = load_data(language_model(), save(tmp_path / "a.npz", input_ids=ids, attention_mask=ids % 10 < 7))
    batch = data.fit[0]
    assert batch.inputs.dtype == torch.int64
    assert batch.mask is not None
    assert batch.positions == 14 * 7


def test_the_default_of_a_byte_model_is_python_and_of_digits_digits() -> None:
    data = load_data(language_model(), samples=3)
    assert "built-in default" in data.source
    assert inputs(data.fit).shape == (3, 16)
    text = bytes(inputs(data.fit)[0].tolist())
    assert text in python_sources("train").numpy().tobytes()
    data = load_data(network(), samples=10)
    assert "digits" in data.source
    assert inputs(data.fit).shape == (10, 64)
    assert data.test[0].targets is not None


def test_a_network_of_ones_own_has_no_default() -> None:
    with pytest.raises(ValueError, match=r"there are no default data for Linear\. Rule: give --calibration FILE"):
        load_data(from_module(nn.Linear(3, 3)))


def test_batches_from_python_are_taken_as_they_are() -> None:
    items: list[Any] = [Batch((torch.rand(2, 64),)) for _ in range(10)]
    data = load_data(network(), iter(items))
    assert [len(part) for part in (data.fit, data.heldout, data.test)] == [7, 1, 2]
    assert {id(item) for item in (*data.batches, *data.test)} == {id(item) for item in items}
    assert data.batches == [*data.fit, *data.heldout]
    assert load_data(network(), data) is data
    pairs = load_data(network(), [(torch.rand(2, 64), torch.tensor([1, 2]))] * 3)
    assert pairs.fit[0].targets is not None
    plain = load_data(network(), [{"x": torch.rand(2, 64), "labels": torch.tensor([1, 2])}] * 3)
    assert set(plain.fit[0].kwargs) == {"x"}
    assert plain.fit[0].targets is not None


def test_the_description_counts_what_was_used() -> None:
    data = load_data(network(), numbered(100))
    told = data.describe(True, ["few samples"])
    assert told == {
        "source": "a tensor", "samples": 70, "tokens": 70, "heldout_tokens": 15, "anchored": True,
        "warnings": ["few samples"],
    }  # fmt: skip


X = numbered(10)


@pytest.mark.parametrize(
    ("arrays", "field", "message"),
    [
        ({"a": X, "b": X}, None, r"a\.npz has no array 'input_ids, pixel_values or x'\. It has a, b\. .*--field"),
        ({"x": X}, "y", r"has no array 'y'\. It has x"),
        ({"x": X[:, 0]}, None, r"a\.npz\[x\] has shape \(10,\)\. Rule: \(rows, \.\.\.\)"),
        ({"x": X[:2]}, None, r"shape \(2, 64\)\. Rule: .*at least 3 rows"),
        ({"x": X * np.nan}, None, r"a\.npz\[x\] holds NaN or infinity"),
        ({"x": X, "labels": np.arange(9)}, None, r"a\.npz\[labels\] has 9 rows, x has 10\. Rule: one label per row"),
        ({"x": X[:, :50]}, None, r"the network cannot take the calibration data of a\.npz: inputs \(7, 50\)"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, arrays: dict, field: str | None, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        load_data(network(), save(tmp_path / "a.npz", **arrays), field=field)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": np.full((9, 8), 40)}, r"a\.npz\[input_ids\] has tokens 40 to 40, the network knows 0 to 31"),
        ({"input_ids": np.full((9, 8), -1)}, r"tokens -1 to -1, .*Rule: tokens of the network's own tokenizer"),
        (
            {"input_ids": np.ones((9, 8), int), "attention_mask": np.ones((9, 7))},
            r"attention_mask\] has shape \(9, 7\)",
        ),
        ({"input_ids": np.ones((9, 30), int)}, r"cannot take .*Rule: at most the context, 16"),
    ],
)
def test_bad_tokens_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        load_data(language_model(vocab=32), save(tmp_path / "a.npz", **arrays))


def test_bytes_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello " * 100)
    with pytest.raises(ValueError, match=r"the text has tokens 32 to 111, the network knows 0 to 99"):
        load_data(language_model(vocab=100), tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("no/such/file.txt", ValueError, r"there are no calibration data at 'no.such.file\.txt'"),
        (torch.ones(64), ValueError, r"calibration has shape \(64,\)\. Rule: \(rows, \.\.\.\)"),
        (torch.ones(2, 64), ValueError, r"at least 3 rows"),
        (5, TypeError, r"calibration is a int\. Rule: a path, a tensor of rows"),
        ([torch.ones(2, 64)] * 2, ValueError, r"calibration has 2 batches\. Rule: at least 3"),
        ([[1, 2]] * 3, TypeError, r"a batch is a list\. Rule: a tensor, \(inputs, targets\)"),
        ([torch.full((2, 64), torch.nan)] * 3, ValueError, r"outputs on 3 batches from Python are not finite"),
    ],
)
def test_bad_data_from_python_are_refused(given: Any, error: type[Exception], message: str) -> None:
    with as_user(), pytest.raises(error, match=message):
        load_data(network(), given)


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"samples is 0\. Rule: a whole number, at least 1"):
        load_data(network(), numbered(10), samples=0)
    (tmp_path / "a.txt").write_text("hello " * 100)
    with pytest.raises(ValueError, match=r"length is -5\. Rule: a whole number, at least 2"):
        load_data(language_model(), tmp_path / "a.txt", length=-5)
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"a\.txt has 5 tokens\. Rule: at least 9"):
        load_data(language_model(), tmp_path / "a.txt")
