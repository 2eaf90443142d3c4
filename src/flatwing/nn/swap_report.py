"""SwapReport: what `compress_` did, layer by layer, as data and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

_PARAMETERS = ("parameters_after", "parameters_before")


@final
@dataclass(frozen=True, slots=True)
class SwapRow:
    """One layer: "replaced", "kept" (dense is no larger or was asked for) or "skipped" (it cannot or must not change).

    Errors are relative, ||W - W'|| / ||W|| in the Frobenius norm; `lower_bound` is what no product of this structure
    gets below, where that is known. Parameters are without the bias; of tied layers the first has them all.
    """

    name: str
    shape: tuple[int, int]
    action: str
    structure: str
    parameters_before: int
    parameters_after: int
    error: float | None = None
    lower_bound: float | None = None
    reason: str = ""


@final
@dataclass(frozen=True, slots=True)
class SwapReport:
    """Rows in the order of the model, and totals; `str` is a table for people, `to_dict` plain data for JSON.

    >>> row = SwapRow("fc", (8, 8), "replaced", "(1,4,2,2)(2,2,4,1)", 64, 32, 0.25)
    >>> print(SwapReport((row,), dry_run=False))
    layer  shape  action    before  after  error  bound  structure
    fc     8 x 8  replaced  64      32     0.25   -      (1,4,2,2)(2,2,4,1)
    1 of 1 layers replaced: 32 parameters instead of 64 (50.0%), 32 instead of 64 with all other matrices (50.0%).
    """

    rows: tuple[SwapRow, ...]
    dry_run: bool

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of the layers that were replaced, or would be in a dry run."""
        return tuple(row.name for row in self.rows if row.action == "replaced")

    @property
    def parameters_before(self) -> int:
        """Parameters of all matrices listed, before; shared ones once."""
        return sum(row.parameters_before for row in self.rows)

    @property
    def parameters_after(self) -> int:
        """Parameters of all matrices listed, after; shared ones once."""
        return sum(row.parameters_after for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "dry_run": self.dry_run,
            "replaced": len(self.replaced),
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "layers": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
        }

    def __str__(self) -> str:
        head = ("layer", "shape", "action", "before", "after", "error", "bound", "structure")
        table: list[tuple[str, ...]] = [head]
        for row in self.rows:
            detail = row.structure + (f" ({row.reason})" if row.structure and row.reason else row.reason)
            numbers = (
                str(row.parameters_before),
                str(row.parameters_after),
                _short(row.error),
                _short(row.lower_bound),
            )
            table.append((row.name, f"{row.shape[0]} x {row.shape[1]}", row.action, *numbers, detail))
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        before, after = self.parameters_before, self.parameters_after
        verb = "would be replaced" if self.dry_run else "replaced"
        new, old = (sum(getattr(row, key) for row in self.rows if row.action == "replaced") for key in _PARAMETERS)
        total = (
            f"{len(self.replaced)} of {len(self.rows)} layers {verb}: {new} parameters instead of {old}"
            f"{_share(new, old)}, {after} instead of {before} with all other matrices{_share(after, before)}."
        )
        return "\n".join([*(line.rstrip() for line in lines), total])


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if whole else ""


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
