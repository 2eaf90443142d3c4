"""A user's own text: split without overlap, nothing lost but what is named."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from flatwing.data import text as module
from flatwing.data.corpus import split_of
from flatwing.data.samples import Pieces
from flatwing.data.text import by_ranges, text_bytes


def joined(pieces: Pieces) -> bytes:
    return b"".join(piece.tobytes() for piece in pieces)


def write(folder: Path, count: int = 60) -> dict[str, bytes]:
    files = {f"{'sub/' if k % 3 else ''}{k:02}.txt": b"file %d\n" % k * 20 for k in range(count)}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return files


def test_file_is_cut_into_three_ranges(tmp_path: Path) -> None:
    content = bytes(range(1, 201)) * 5
    (tmp_path / "a.txt").write_bytes(content)
    parts, notes = text_bytes(tmp_path / "a.txt")
    assert [len(joined(p)) for p in (parts.train, parts.valid, parts.test)] == [880, 60, 60]
    assert joined(parts.train) + joined(parts.valid) + joined(parts.test) == content
    assert notes == ()


def test_folder_is_split_by_file(tmp_path: Path) -> None:
    files = write(tmp_path)
    parts, notes = text_bytes(tmp_path)
    for split in ("train", "valid", "test"):
        want = b"".join(files[name] for name in sorted(files) if split_of(name) == split)
        assert want
        assert joined(getattr(parts, split)) == want
    assert notes == ()


def test_files_keep_their_split_when_others_come(tmp_path: Path) -> None:
    write(tmp_path)
    before = text_bytes(tmp_path)[0]
    (tmp_path / "new.txt").write_text("new " * 9)
    after = text_bytes(tmp_path)[0]
    same = [joined(getattr(before, s)) == joined(getattr(after, s)) for s in ("train", "valid", "test")]
    assert sorted(same) == [False, True, True]


def test_few_files_are_cut_into_ranges_and_said_so(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"b" * 40)
    (tmp_path / "a.txt").write_bytes(b"a" * 60)
    parts, notes = text_bytes(tmp_path)
    assert joined(parts.train) == b"a" * 60 + b"b" * 28
    assert joined(parts.valid) + joined(parts.test) == b"b" * 12
    assert notes == ("too few files to split by file (2): the text is cut into three ranges.",)


def test_splits_too_short_for_a_window_are_cut_into_ranges(tmp_path: Path) -> None:
    write(tmp_path)
    assert text_bytes(tmp_path, window=1000)[1] == (
        "too few files to split by file (60): the text is cut into three ranges.",
    )


def test_what_is_no_text_is_skipped_and_named(tmp_path: Path) -> None:
    write(tmp_path)
    clean = text_bytes(tmp_path)[0]
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("secret")
    (tmp_path / "sub" / ".hidden").write_text("secret")
    for k in range(4):
        (tmp_path / f"{k}.bin").write_bytes(b"ab\0cd")
    (tmp_path / "none.txt").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    parts, notes = text_bytes(tmp_path)
    assert [joined(getattr(parts, s)) for s in ("train", "valid", "test")] == [
        joined(getattr(clean, s)) for s in ("train", "valid", "test")
    ]
    assert set(notes) == {
        "skipped, hidden: .git, sub/.hidden.",
        "skipped, binary: 0.bin, 1.bin, 2.bin and 1 more.",
        "skipped, empty: none.txt.",
        "skipped, a link to a folder: loop.",
        "skipped, not a file: gone.txt, pipe.",
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files_and_folders_are_skipped_and_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "shut").mkdir(mode=0)
    (tmp_path / "shut.txt").write_text("x")
    (tmp_path / "shut.txt").chmod(0)
    assert text_bytes(tmp_path)[1] == ("skipped, not readable: shut, shut.txt.",)
    (tmp_path / "shut").chmod(0o700)


def test_large_files_are_mapped_and_join_the_small_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 100)
    for name, size in (("a", 30), ("b", 40), ("c", 150), ("d", 20), ("e", 200)):
        (tmp_path / name).write_bytes(name.encode() * size)
    pieces = module._joined([tmp_path / name for name in "abcde"])
    assert [len(piece) for piece in pieces] == [70, 150, 20, 200]
    assert joined(pieces) == b"a" * 30 + b"b" * 40 + b"c" * 150 + b"d" * 20 + b"e" * 200
    assert [piece.base is not None for piece in pieces] == [False, True, False, True]  # mapped: not owned by numpy


def test_a_large_file_is_not_read_to_be_opened(tmp_path: Path) -> None:
    file = tmp_path / "sparse.txt"
    with file.open("wb") as opened:
        opened.write(b"text " * 2000)
        opened.truncate(1 << 36)  # 64 GiB that take no disk
    parts, _ = text_bytes(file)
    assert sum(map(len, parts.train)) > 0.87 * 2**36


@pytest.mark.parametrize("lengths", [[], [5], [60, 40], [1, 99, 300]])
def test_ranges_are_in_order_and_complete(lengths: list[int]) -> None:
    ends = [0, *np.cumsum(lengths).tolist()]
    parts = by_ranges([np.arange(a, b) for a, b in pairwise(ends)])
    found = [x for part in (parts.train, parts.valid, parts.test) for piece in part for x in piece.tolist()]
    assert found == list(range(sum(lengths)))
    assert [sum(map(len, part)) for part in (parts.valid, parts.test)] == [sum(lengths) * 6 // 100] * 2


def test_paths_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file or folder"):
        text_bytes(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="has no text files"):
        text_bytes(tmp_path)
    (tmp_path / "a.bin").write_bytes(b"\0")
    with pytest.raises(ValueError, match=r"has no text files.*skipped, binary: a.bin"):
        text_bytes(tmp_path)
    with pytest.raises(ValueError, match=r"a.bin' is binary. Rule: a text file"):
        text_bytes(tmp_path / "a.bin")
