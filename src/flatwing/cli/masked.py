"""`flatwing factorize` on supports or projections instead of a chain: --support, --palm, --hierarchical."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from ..factorize import Factorization, factorize_fixed, hierarchical, palm
from ..structure import MaskedProduct
from .masks import read_supports
from .output import Format, working, write_json

STARTS = 20  # descents where supports are given and no theorem applies


@dataclass(frozen=True)
class Wanted:
    """What was asked for: exactly one of the three, and how many starts."""

    support: Path | None
    palm: str | None
    hierarchical: str | None
    starts: int | None

    def __bool__(self) -> bool:
        return self.support is not None or self.palm is not None or self.hierarchical is not None

    def check(self, **others: Any) -> None:
        """Refuse combinations: one of the three, none of the options that belong to chains."""
        mine = {"--support": self.support, "--palm": self.palm, "--hierarchical": self.hierarchical}
        names = [name for name, value in mine.items() if value is not None]
        if self.starts is not None and self.hierarchical is not None:
            raise ValueError(f"--starts {self.starts} with --hierarchical. Rule: it has one start. Leave it out.")
        if self.starts is not None and not names:
            raise ValueError(f"--starts {self.starts} is for --support and --palm. Rule: chains have one start.")
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} were given. Rule: one of {', '.join(mine)}.")
        clash = [f"--{name}" for name, value in others.items() if value]
        if names and clash:
            raise ValueError(f"{', '.join(clash)} with {names[0]}. Rule: for chains only. Leave one of them out.")

    def answer(self, name: str, matrix: torch.Tensor, out: Path | None, format: Format) -> None:
        """Factorize, save, and say what came out."""
        start = time.perf_counter()
        with working(f"factorizing {name}") as progress:
            result = self.run(matrix, progress)
        seconds, product = time.perf_counter() - start, result.product
        if out is not None:
            product.save(out)
        sizes = " @ ".join("x".join(map(str, support.shape)) for support in product.supports)
        dtype = str(matrix.dtype).removeprefix("torch.")
        rest = {"out": str(out) if out else None, "seconds": seconds}
        if format is Format.json:
            write_json({"input": name, "dtype": dtype, "method": self.method, **result.to_dict(), **rest})
        elif format is Format.quiet:
            typer.echo(f"{result.certificate.error:.6g}\t{product.nnz}\t{sizes}")
        else:
            (m, n), counts = product.shape, " + ".join(f"{support.nnz:,}" for support in product.supports)
            lines = {
                "matrix": f"{name}, {m} x {n} {dtype}",
                "method": self.method,
                "factors": sizes,
                "parameters": f"{counts} = {product.nnz / (m * n):.1%} of the {m * n:,} dense ones",
                "result": str(result.certificate),
                "theorem": result.certificate.theorem,
                "seconds": f"{seconds:.3g}",
                "factors in": rest["out"],
            }
            for label, text in [*lines.items(), *(("note", text) for text in result.notes)]:
                if text is not None:
                    typer.echo(f"{label:<12}{text}")

    @property
    def method(self) -> str:
        """What is done, in words."""
        if self.support is not None:
            return f"supports of {self.support}"
        return f"palm {self.palm}" if self.palm is not None else f"hierarchical {self.hierarchical}"

    def run(self, matrix: torch.Tensor, progress: Callable[[str, int, int], None]) -> Factorization[MaskedProduct]:
        """Factorize the matrix as asked."""
        if self.palm is not None:
            return palm(matrix, self.palm, starts=self.starts or 1, progress=progress)
        if self.hierarchical is not None:
            return hierarchical(matrix, self.hierarchical, progress=progress)
        assert self.support is not None
        supports = list(read_supports(self.support).values())
        starts = self.starts or STARTS
        if len(supports) == 2:
            return factorize_fixed(matrix, supports, starts=starts, progress=progress)
        return palm(matrix, supports, starts=starts, progress=progress)
