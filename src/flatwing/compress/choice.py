"""Choice: whether quantization alone would serve this user better, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

QUANTIZATION = ("int8", "int4")
SAME = 1.02  # of bytes: the header of a file may not decide


def better_choice(rows: Sequence[Mapping[str, Any]], goal: str, ours: str = "flatwing") -> str | None:
    """A sentence with numbers if quantization alone is at least as good as our row and not larger; None otherwise.

    Sizes within 2 % count as equal. `goal` is the unit of the budget: arithmetic and time ("flops", "latency") are not
    what quantization saves, and the sentence then says so.

    >>> row = {"loss": None, "agreement_kl": None}
    >>> better_choice([{**row, "name": "int8", "accuracy": {"value": 0.97}, "bytes": 100_000},
    ...                {**row, "name": "flatwing", "accuracy": {"value": 0.95}, "bytes": 120_000}], "bytes")
    'For a small file, int8 alone is the better choice here: accuracy 97.0 % in 100 kB, against 95.0 % in 120 kB.'
    """
    own = next((row for row in rows if row["name"] == ours), None)
    others = [row for row in rows if row["name"] in QUANTIZATION]
    if own is None or not others:
        return None
    key, sign = next(
        ((k, s) for k, s in (("accuracy", -1), ("loss", 1), ("agreement_kl", 1)) if _value(own, k) is not None),
        (None, 0),
    )
    if key is None:
        return None

    def rank(row: Mapping[str, Any]) -> tuple[float, float]:
        value = _value(row, key)
        return (math.inf if value is None else sign * value, row["bytes"])

    fits = [row for row in others if row["bytes"] <= SAME * own["bytes"] and rank(row)[0] <= rank(own)[0]]
    if not fits:
        return None
    best = min(fits, key=rank)
    words = f"{_quality(best, key)} in {_bytes(best)}, against {_quality(own, key, named=False)} in {_bytes(own)}."
    if goal in ("flops", "latency"):
        return (
            f"If only the size of the file matters, {best['name']} alone is the better choice: {words} "
            "It saves no arithmetic, which is what structure is for."
        )
    return f"For a small file, {best['name']} alone is the better choice here: {words}"


def _value(row: Mapping[str, Any], key: str) -> float | None:
    return row[key]["value"] if row.get(key) else None


def _quality(row: Mapping[str, Any], key: str, named: bool = True) -> str:
    value = row[key]["value"]
    text = f"{100 * value:.1f} %" if key == "accuracy" else f"{value:.4f}"
    name = {"accuracy": "accuracy", "loss": "loss", "agreement_kl": "divergence"}[key]
    return f"{name} {text}" if named else text


def _bytes(row: Mapping[str, Any]) -> str:
    size, unit = float(row["bytes"]), "B"
    for larger in ("kB", "MB", "GB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
