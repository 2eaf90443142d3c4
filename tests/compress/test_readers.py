import importlib.util
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flatwing.compress import readers
from flatwing.compress.readers import read_arrays, read_texts


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines(path: Path, *rows: object) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def test_a_text_is_one_text(tmp_path: Path) -> None:
    assert read_texts(write(tmp_path / "a.txt", "héllo\nworld")) == ["héllo\nworld"]
    assert read_texts(write(tmp_path / "b.txt", b"\xef\xbb\xbfmarked")) == ["marked"]


def test_a_folder_gives_its_texts_in_order_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "b.py", "two")
    write(tmp_path / "a.TXT", "one")
    write(tmp_path / "deep" / "c.md", "three")
    write(tmp_path / "image.png", b"\xff\xfe")
    assert read_texts(tmp_path) == ["one", "two", "three"]


def test_json_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "one", "n": 1}, {"text": "two"})
    write(path, path.read_text() + "\n\n")
    assert read_texts(path) == ["one", "two"]
    other = lines(tmp_path / "b.ndjson", {"body": "x", "text": "y"})
    assert read_texts(other, "body") == ["x"]


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_text_may_hold_every_separator_but_the_newline(tmp_path: Path, separator: str) -> None:
    row = json.dumps({"text": f"one{separator}two"}, ensure_ascii=False)
    if separator in "\x0b\x1c":  # these must be escaped in JSON
        assert separator not in row
    assert read_texts(write(tmp_path / "a.jsonl", row + "\r\n" + row)) == [f"one{separator}two"] * 2


@pytest.mark.parametrize(
    ("data", "field", "message"),
    [
        ('{"txet": "a"}', None, r"line 1 has no text 'text'; its texts are: txet\. Write --field txet"),
        (
            '{"content": "a"}\n{"body": "b", "contents": "c"}',
            "content",
            r"line 2 .* contents\. Write --field contents",
        ),
        ('{"n": 1}', None, r"its texts are: none\. It has no text at all"),
        ('["a"]', None, r"line 1 has no text 'text'"),
        ('{"text": "a"}\n{"text": ', None, r"a\.jsonl, line 2 is not JSON .* Rule: one object per line"),
        ("[" * 200_000, None, r"a\.jsonl, line 1 is not JSON .* Rule: one object per line"),
        ('{"text": "a", "n": ' + "1" * 5000 + "}", None, r"a\.jsonl, line 1 is not JSON"),
        ("", None, r"'a\.jsonl' is empty\. Rule: one JSON object"),
        ('{"text": "  "}', None, r"'a\.jsonl' is empty"),
        (b'{"text": "\xff"}', None, r"'a\.jsonl' is not UTF-8 text \(byte 10\)"),
    ],
)
def test_bad_json_lines_are_refused(tmp_path: Path, data: str | bytes, field: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_texts(write(tmp_path / "a.jsonl", data), field)


@pytest.mark.parametrize("data", [b"caf\xe9", b"\xff", b"a\x80b" * 10, b"half \xe2\x82"])
def test_what_is_not_utf8_is_refused_wherever_it_breaks(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"'a\.txt' is not UTF-8 text \(byte \d+\)\. Rule: a text, \.jsonl"):
        read_texts(write(tmp_path / "a.txt", data))


def test_empty_texts_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'a\.txt' is empty\. Rule: some text"):
        read_texts(write(tmp_path / "a.txt", " \n"))
    with pytest.raises(ValueError, match=r"the folder .* holds no text\. Rule: files such as \.txt"):
        read_texts(tmp_path)


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.bin", "a.PTH"])
def test_pickles_are_refused_by_name_without_being_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"may be a pickle, which can run code"):
        read_texts(write(tmp_path / name, "text"))


def test_only_the_beginning_of_a_huge_text_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LARGEST_TEXT", 10)
    assert read_texts(write(tmp_path / "a.txt", "é" * 20)) == ["é" * 5]
    assert read_texts(write(tmp_path / "b.txt", "x" + "é" * 20)) == ["x" + "é" * 4]  # the last character is cut


def test_a_line_that_the_limit_cuts_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LARGEST_TEXT", 40)
    assert read_texts(lines(tmp_path / "a.jsonl", *[{"text": "0123"}] * 9)) == ["0123"] * 2


def test_arrays(tmp_path: Path) -> None:
    x, y = np.random.rand(4, 3), np.arange(4)
    np.savez(tmp_path / "a.npz", x=x, labels=y)
    np.save(tmp_path / "b.npy", x)
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == ["x", "labels"]
    np.testing.assert_array_equal(found["x"], x)
    np.testing.assert_array_equal(read_arrays(tmp_path / "b.npy")["x"], x)


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">f8"])
def test_arrays_of_the_other_byte_order_are_turned(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3).astype(dtype))
    found = read_arrays(tmp_path / "a.npy")["x"]
    assert found.dtype.isnative
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


class Bomb:
    """Fails when unpickled."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickle was read",))


def test_no_array_is_ever_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([Bomb()], dtype=object))
    np.save(tmp_path / "b.npy", np.array([Bomb()], dtype=object))
    write(tmp_path / "c.npy", pickle.dumps(Bomb()))
    for name in ("a.npz", "b.npy", "c.npy"):
        with pytest.raises(ValueError, match=r"is not readable .* pickled objects are not read") as refusal:
            read_arrays(tmp_path / name)
        assert "allow_pickle" not in str(refusal.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(["a"]), r"a\.npz\[x\] has dtype <U1\. Rule: whole or real"),
        (np.ones(2, complex), r"dtype complex128"),
        (np.ones((0, 3)), r"a\.npz holds no numbers"),
    ],
)
def test_arrays_that_are_no_numbers_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(ValueError, match=message):
        read_arrays(tmp_path / "a.npz")


def test_truncated_archives_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.random.rand(100, 10))
    data = (tmp_path / "a.npz").read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 5):
        with pytest.raises(ValueError, match=r"a\.npz' is not readable"):
            read_arrays(write(tmp_path / "a.npz", data[:cut]))


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path: Path) -> None:
    head = {"descr": "<f8", "fortran_order": False, "shape": (1 << 45,)}  # 256 TiB
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "x.npy")
    for name in ("a.npy", "b.npz"):
        with pytest.raises(ValueError, match=rf"{name}' is not readable .* Rule: a whole \.npy or \.npz file"):
            read_arrays(tmp_path / name)


def test_saved_data_sets_name_the_package_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "dataset_info.json", "{}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"saved data set, and the package datasets is not installed"):
        read_texts(tmp_path)
