"""`flatwing demo`: the built-in examples in one table, and the Hadamard factors as a picture."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from .. import Factorization, choose
from .. import factorize as factorize_matrix
from ..core import require_writable
from ..data import MATRICES, Example
from .output import note, plainly, stdout, working
from .summary import draw

# name, size, tolerance for examples without a natural chain
SHOWN = (
    ("hadamard", 64, None),
    ("dft", 256, None),
    ("dct", 256, None),
    ("noisy-butterfly", 256, None),
    ("smooth", 256, 0.1),
    ("digits", 1792, 0.3),
    ("gaussian", 256, 0.1),
)
COLUMNS = ("example", "size", "chain", "numbers", "share", "error", "bound", "within", "time")
LEGEND = (
    "numbers: parameters of the factors; share: of the dense entries; error: relative to the norm of the matrix;\n"
    "bound: no product of this chain has a smaller error; within: error / bound, so at most that far from the best"
)


@plainly
def command(
    out: Annotated[Path, typer.Option(help="Folder for the picture; made if missing.")] = Path("flatwing-demo"),
) -> None:
    """Factorize the built-in examples, print one table and draw the factors of the Hadamard matrix."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {str(out)!r} is a file. Rule: a folder, such as 'flatwing-demo'.")
    out.mkdir(parents=True, exist_ok=True)
    picture = out / "hadamard.png"
    require_writable(picture)
    title = "Fast factors, and how far they are from the best possible"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:3] else "right")
    remarks = []
    with working("demo") as progress:
        for done, (name, n, tolerance) in enumerate(SHOWN):
            progress(name, done, len(SHOWN))
            shown = _factorize(MATRICES[name](n), tolerance)
            table.add_row(*shown.cells())
            if shown.remark:
                remarks.append(f"{name}: {shown.remark}")
            if name == "hadamard":
                draw(f"{name}({n})", shown.example.matrix, shown.result, picture)
    stdout().print(table)
    for remark in remarks:
        typer.echo(remark)
    note(LEGEND)
    typer.echo(f"picture of the Hadamard factors: {picture}")


@dataclass(frozen=True)
class _Shown:
    example: Example
    result: Factorization
    chosen: bool
    remark: str
    seconds: float

    def cells(self) -> list[str]:
        certificate, chain = self.result.certificate, self.result.product.chain
        exact = certificate.exact
        return [
            self.example.name,
            "x".join(map(str, self.example.matrix.shape)),
            "dense" if chain.density == 1 else f"{len(chain)} {'chosen' if self.chosen else 'natural'}",
            f"{chain.nnz:,}",
            f"{chain.density:.1%}",
            f"{certificate.error:.1e}" if exact else f"{certificate.error:.4f}",
            "-" if exact else f"{certificate.lower_bound:.4f}",
            "exact" if exact else _upwards(certificate.ratio),
            f"{self.seconds:.2f}s",
        ]


def _factorize(example: Example, tolerance: float | None) -> _Shown:
    perm = None if example.perm_in is None else (example.perm_in, None)
    begin = time.perf_counter()
    chain, remark = example.chain, ""
    if chain is None:
        choice = choose(example.matrix, tolerance=tolerance, perm=perm)
        chain, remark = choice.chain, str(choice)
    result = factorize_matrix(example.matrix, chain, perm=perm)
    return _Shown(example, result, example.chain is None, remark, time.perf_counter() - begin)


def _upwards(ratio: float) -> str:
    """Two digits, rounded so that the claim stays true; the sixth digit is left to rounding."""
    return f"{ceil((ratio - 1e-6) * 100) / 100:.2f}x" if isfinite(ratio) else "unknown"
