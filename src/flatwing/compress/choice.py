"""Choice: whether quantization alone would serve this user better, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

QUANTIZATION = ("int8", "int4")
BOTH, DENSIFIED = "flatwing + int8", "flatwing + densify"
OURS = ("flatwing + heal", "flatwing")  # the first of them is what the user gets, unless another row is named
QUALITY = {"accuracy": "accuracy", "loss": "loss", "agreement_kl": "divergence"}  # the first one that is known decides
SAME = 1.02  # of bytes: the header of a file may not decide


def better_choice(rows: Sequence[Mapping[str, Any]], goal: str, written: str | None = None) -> str | None:
    """A sentence with numbers if quantization alone is as good as our row, and not larger; None otherwise.

    Our row is the one called `written`; by default "flatwing + heal" where there is one, or else "flatwing". Quality is
    the accuracy, or else the loss, or else the divergence from the original. Up to one standard error of the difference
    counts as good as ours (then the sentence says so), and so do 2 % of the bytes. `goal` is the unit of the budget:
    quantization saves no arithmetic, and for "flops" and "latency" the sentence says that as well.

    >>> row = {"loss": None, "agreement_kl": None}
    >>> better_choice([{**row, "name": "int8", "accuracy": {"value": 0.97}, "bytes": 100_000},
    ...                {**row, "name": "flatwing", "accuracy": {"value": 0.95}, "bytes": 120_000}], "bytes")
    'For a small file, int8 alone is the better choice here: accuracy 97.0 % in 100 kB, against 95.0 % in 120 kB.'
    """
    named = {row["name"]: row for row in rows}
    own = next((named[name] for name in ((written,) if written else OURS) if name in named), None)
    key = next((key for key in QUALITY if own and _value(own, key) is not None), None)
    if own is None or key is None:
        return None

    def lost(row: Mapping[str, Any]) -> float:
        value = _value(row, key)
        return math.inf if value is None else -value if key == "accuracy" else value

    def noise(row: Mapping[str, Any]) -> float:
        return math.hypot(*(each[key].get("stderr") or 0.0 for each in (row, own)))

    fits = [
        row
        for row in rows
        if row["name"] in QUANTIZATION and row["bytes"] <= SAME * own["bytes"] and _value(row, key) is not None
    ]
    fits = [row for row in fits if lost(row) <= lost(own) + noise(row)]
    if not fits:
        return None
    best = min(fits, key=lambda row: (lost(row), row["bytes"]))
    claim = "is the better choice here" if lost(best) <= lost(own) else "does as well within one standard error"
    start = "If only the size of the file matters" if goal in ("flops", "latency") else "For a small file"
    sentence = (
        f"{start}, {best['name']} alone {claim}: {_quality(best, key)} in {_bytes(best)}, "
        f"against {_quality(own, key, named=False)} in {_bytes(own)}."
    )
    if goal in ("flops", "latency") and written != DENSIFIED:
        sentence += " It saves no arithmetic, which is what structure is for."
    both = named.get(BOTH)
    if both is not None and both is not own and both["bytes"] < best["bytes"] and _value(both, key) is not None:
        sentence += f" Smaller still are both together: {_quality(both, key)} in {_bytes(both)}."
    return sentence


def _value(row: Mapping[str, Any], key: str) -> float | None:
    return row[key]["value"] if row.get(key) else None


def _quality(row: Mapping[str, Any], key: str, named: bool = True) -> str:
    value = row[key]["value"]
    text = f"{100 * value:.1f} %" if key == "accuracy" else f"{value:.4f}"
    return f"{QUALITY[key]} {text}" if named else text


def _bytes(row: Mapping[str, Any]) -> str:
    size, unit = float(row["bytes"]), "B"
    for larger in ("kB", "MB", "GB"):
        if size >= 1000:
            size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
