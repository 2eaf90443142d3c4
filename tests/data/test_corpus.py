"""The corpus is Python's own sources, split by file without overlap, and every byte is predicted once."""

import sysconfig
from pathlib import Path

import pytest
import torch

from flatwing.data import chunks, corpus, python_sources, windows

LIBRARY = Path(sysconfig.get_path("stdlib"))
SPLITS = ("train", "valid", "test")


def test_splits_are_files_and_do_not_overlap() -> None:
    names = corpus._names(LIBRARY)
    assert names == sorted(names)
    assert len(names) == len(set(names)) > 200
    assert {corpus.split_of(name) for name in names} == set(SPLITS)
    total = sum(len(python_sources(split)) for split in SPLITS)
    assert total == sum((LIBRARY / name).stat().st_size for name in names)


def test_held_out_parts_are_large_enough_to_measure_on() -> None:
    sizes = {split: len(python_sources(split)) for split in SPLITS}
    assert sizes["train"] > 8 * max(sizes["valid"], sizes["test"])
    assert min(sizes.values()) > 100_000


@pytest.mark.parametrize("folder", ["site-packages", "test", "encodings", "__pycache__", "idlelib"])
def test_folders_that_are_not_the_librarys_prose_are_left_out(folder: str) -> None:
    assert not [name for name in corpus._names(LIBRARY) if folder in name.split("/")]


def test_split_depends_on_the_path_alone() -> None:
    # frozen: a changed hash would silently move files between train and test
    names = ["ast.py", "json/decoder.py", "hmac.py", "xml/dom/__init__.py", "pprint.py", "unittest/mock.py"]
    assert [corpus.split_of(name) for name in names] == ["train", "train", "valid", "valid", "test", "test"]


@pytest.mark.parametrize("split", SPLITS)
def test_limit_keeps_the_first_bytes(split: str) -> None:
    assert torch.equal(python_sources(split, 5000), python_sources(split)[:5000])


def test_text_is_python() -> None:
    text = bytes(python_sources("train", 50_000).tolist()).decode("utf-8", errors="ignore")
    assert "def " in text
    assert "import " in text


def test_unreadable_files_are_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(corpus, "split_of", lambda name: "train")
    (tmp_path / "a.py").write_bytes(b"aa")
    (tmp_path / "b.py").symlink_to("nowhere")
    (tmp_path / "c.py").write_bytes(b"cc")
    assert bytes(python_sources("train").tolist()) == b"aacc"


def test_python_without_sources_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match="no readable source files"):
        python_sources("train")


def test_unknown_split_and_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown split 'tests', did you mean 'test'"):
        python_sources("tests")
    with pytest.raises(ValueError, match="limit_bytes is 0"):
        python_sources("train", 0)


def test_chunks_predict_each_token_once() -> None:
    tokens = torch.arange(23)
    rows = chunks(tokens, 5)
    assert rows.dtype == torch.int64
    assert rows[:, 1:].flatten().tolist() == list(range(1, 21))
    assert torch.equal(rows[1:, 0], rows[:-1, -1])


def test_windows_are_pieces_of_the_text_and_cover_both_ends() -> None:
    tokens = torch.arange(10, dtype=torch.uint8)
    rows = windows(tokens, 4, 200, torch.Generator().manual_seed(0))
    assert rows.shape == (200, 5)
    assert rows.dtype == torch.int64
    assert torch.equal(rows.diff(dim=1), torch.ones(200, 4, dtype=torch.int64))
    assert rows.min() == 0
    assert rows.max() == 9


def test_windows_follow_their_generator() -> None:
    tokens = torch.arange(1000)
    first, second, third = (windows(tokens, 4, 9, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize(("tokens", "length"), [(5, 5), (5, 0), (5, -1), (0, 1), (1, 1)])
def test_too_little_text_is_refused(tokens: int, length: int) -> None:
    for cut in (lambda t: chunks(t, length), lambda t: windows(t, length, 1)):
        with pytest.raises(ValueError, match=r"Rule: at least"):
            cut(torch.arange(tokens))


def test_no_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="count is 0"):
        windows(torch.arange(5), 2, 0)
