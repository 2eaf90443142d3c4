"""Reading calibration data from files. Nothing that a file contains is ever executed."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path

import numpy as np

from ..core import parse_json
from ..data.arrays import opened_arrays

TEXTS = (".txt", ".md", ".py", ".rst", ".text", ".html", ".json", ".csv", ".c", ".h", ".js", ".rs")
LARGEST_TEXT = 64 << 20  # bytes that are read of one text; calibration needs thousands of tokens, not millions


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, or of an .npy file as "x"; never unpickles. Raises `ValueError`."""
    with opened_arrays(path) as file:
        loaded = np.load(file, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    for key, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{path.name}[{key}] has dtype {array.dtype}. Rule: whole or real numbers.")
    if not any(array.size for array in arrays.values()):
        raise ValueError(f"{path.name} holds no numbers. Rule: some rows to calibrate with.")
    return {key: np.ascontiguousarray(array, array.dtype.newbyteorder("=")) for key, array in arrays.items()}


def read_texts(path: Path, field: str | None = None) -> list[str]:
    """The texts of a file, of all files of a folder, of a JSONL file's `field`, or of a saved Hugging Face data set.

    Raises `ValueError` for what is empty, is not UTF-8 text, or has no such field (naming the nearest).
    """
    if path.is_dir():
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return _data_set(path, field)
        texts = [_text(file) for file in sorted(path.rglob("*")) if file.suffix.lower() in TEXTS and file.is_file()]
        if not any(text.strip() for text in texts):
            raise ValueError(f"the folder {str(path)!r} holds no text. Rule: files such as {', '.join(TEXTS[:4])}.")
        return texts
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _json_lines(path, field)
    if path.suffix.lower() in (".pkl", ".pickle", ".pt", ".pth", ".bin"):
        raise ValueError(
            f"{path.name!r} may be a pickle, which can run code when it is read. Save arrays with numpy.savez."
        )
    text = _text(path)
    if not text.strip():
        raise ValueError(f"{path.name!r} is empty. Rule: some text to calibrate with.")
    return [text]


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(LARGEST_TEXT)
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if len(data) == LARGEST_TEXT and error.start > len(data) - 4:  # the limit cut the last character
            return data[: error.start].decode("utf-8")
        raise ValueError(
            f"{path.name!r} is not UTF-8 text (byte {error.start}). Rule: a text, .jsonl, .npz or .npy file."
        ) from error


def _json_lines(path: Path, field: str | None) -> list[str]:
    field, texts = field or "text", []
    lines = _text(path).split("\n")  # not splitlines: texts may hold other separators, such as U+2028
    if path.stat().st_size > LARGEST_TEXT:
        lines.pop()  # the limit cut it
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number} is not JSON ({error}). Rule: one object per line.") from error
        texts.append(_entry(row, field, f"{path.name}, line {number}"))
    if not any(text.strip() for text in texts):
        raise ValueError(f"{path.name!r} is empty. Rule: one JSON object with a text per line.")
    return texts


def _entry(row: object, field: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        known = [key for key, value in row.items() if isinstance(value, str)] if isinstance(row, dict) else []
        near = difflib.get_close_matches(field, known, n=1) or known[:1]
        hint = f" Write --field {near[0]}." if near else " It has no text at all."
        raise ValueError(f"{where} has no text {field!r}; its texts are: {', '.join(known) or 'none'}.{hint}")
    return row[field]


def _data_set(path: Path, field: str | None) -> list[str]:
    if importlib.util.find_spec("datasets") is None:
        raise ValueError(
            f"{str(path)!r} is a saved data set, and the package datasets is not installed. Install it, or save the "
            "texts as .jsonl."
        )
    from datasets import load_from_disk  # type: ignore[import-not-found]

    loaded = load_from_disk(str(path))
    rows = next(iter(loaded.values())) if hasattr(loaded, "values") else loaded
    return [_entry(row, field or "text", f"row {i} of {path.name}") for i, row in enumerate(rows)]
