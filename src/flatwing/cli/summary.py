"""One factorization for people: words, a table of the cuts, a picture."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich import box
from rich.table import Table

from ..factorize import Factorization
from ..report import draw_factors
from ..structure import Chain, SparseProduct
from .output import stdout


def print_summary(record: dict[str, Any]) -> None:
    """Print the record of `flatwing factorize` in words."""
    m, n = record["shape"]
    factors = len(record["patterns"])
    if record["dense"] and record["why"]:
        typer.echo(f"{record['input']}: {record['why']}")
    lines = {
        "matrix": f"{record['input']}, {m} x {n} {record['dtype']}",
        "chain": f"{record['chain']} ({factors} factor{'s' * (factors > 1)})",
        "why": None if record["dense"] else record["why"],
        "reordered": None if record["perm"] == "none" else record["perm"],
        "parameters": f"{record['parameters']:,} = {record['density']:.1%} of the {m * n:,} dense ones",
        "flops": f"{record['flops']:,} per vector instead of {2 * m * n:,}",
        "result": record["certificate"]["summary"],
        "seconds": f"{record['seconds']:.3g}",
        "factors in": record["out"],
        "picture in": record["draw"],
    }
    for name, text in lines.items():
        if text is not None:
            typer.echo(f"{name:<12}{text}")
    for text in record["notes"]:
        typer.echo(f"{'note':<12}{text}")
    if record["splits"]:
        stdout().print(_cuts(record["splits"]))


def _cuts(splits: list[dict[str, Any]]) -> Table:
    table = Table(title="Cuts; errors relative to the norm of the matrix", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("cut after factor", "rank", "blocks", "of size", "error made here", "least error possible here"):
        table.add_column(column, justify="right")
    for split in splits:
        least = split["matrix_error"]
        table.add_row(
            str(split["position"]),
            str(split["rank"]),
            f"{split['blocks']:,}",
            " x ".join(map(str, split["block_shape"])),
            "none, restricts nothing" if split["redundant"] else f"{split['error']:.3g}",
            "-" if least is None else f"{least:.3g}",
        )
    return table


def draw(name: str, matrix: torch.Tensor, result: Factorization, path: Path) -> None:
    """Draw the matrix, in the order of rows and columns that was factorized, and the factors."""
    product, (m, n) = result.product, matrix.shape
    if product.perm_out is not None:
        matrix = matrix[product.perm_out]
    if product.perm_in is not None:
        matrix = matrix[:, product.perm_in]
    reordered = "" if product.perm_in is None and product.perm_out is None else ", reordered"
    captions = [f"{pattern}\n{pattern.nnz:,} nonzeros" for pattern in product.chain]
    share = f"{product.nnz:,} of {prod((m, n)):,} numbers"
    error = "exact" if result.certificate.exact else f"relative error {result.certificate.error:.2g}"
    draw_factors(
        _dense_factors(product),
        path,
        matrix=_wide(matrix).numpy(),
        exact=result.certificate.exact,
        titles=[f"A: {m} \N{MULTIPLICATION SIGN} {n}{reordered}\n{m * n:,} entries", *captions],
        suptitle=f"{Path(name).name}: {share}, {error}",
    )


def _dense_factors(product: SparseProduct) -> Iterator[np.ndarray]:
    for pattern, values in zip(product.chain, product.factors, strict=True):
        factor = SparseProduct(Chain([pattern]), [values]).dense()
        yield np.ma.masked_array(_wide(factor).numpy(), mask=~pattern.support().numpy())


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))  # numpy knows no bfloat16
