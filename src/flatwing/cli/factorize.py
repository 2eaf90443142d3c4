"""`flatwing factorize`: a matrix in, sparse factors and a certificate out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .. import Chain, SparseProduct, choose
from .. import factorize as factorize_matrix
from ..core import require_writable
from ..data import MATRICES
from ..factorize import ORDERS, SCHEMES
from ..report import require_picture
from .inputs import read_matrix
from .masked import Wanted
from .output import Format, note, plainly, working, write_json
from .summary import draw, print_summary

DEFAULT_TOLERANCE = 0.01


class Perm(StrEnum):
    """Orders of rows and columns that can be asked for by name."""

    none = "none"
    bitrev = "bitrev"
    auto = "auto"
    search = "search"


@dataclass(frozen=True)
class _Task:
    """What to factorize, and how: the arguments, checked and in the types of the library."""

    name: str
    matrix: torch.Tensor
    chain: Chain | None
    perm: Any
    perm_name: str


@plainly
def command(
    source: Annotated[
        str | None, typer.Argument(metavar="INPUT", help="A.npy, A.npz:KEY, A.safetensors:KEY or A.mtx.")
    ] = None,
    chain: Annotated[
        str | None, typer.Option(help="'butterfly(64)', 'monarch(64,64,blocks=8)' or patterns '(1,8,8,8)(8,8,8,1)'.")
    ] = None,
    tolerance: Annotated[float | None, typer.Option(help="Choose the smallest chain with this relative error.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Choose the best chain with this share of the entries (0.25) or number (4096).")
    ] = None,
    order: Annotated[str, typer.Option(help="Order of the cuts: best, l2r, r2l, balanced or such as 3,1,2.")] = "best",
    perm: Annotated[
        Perm | None, typer.Option(help="Reorder columns (bitrev) or find an order, known (auto) or not (search).")
    ] = None,
    refine: Annotated[int, typer.Option(min=0, help="Sweeps of alternating least squares afterwards.")] = 0,
    example: Annotated[str | None, typer.Option(help=f"Instead of INPUT: {', '.join(MATRICES)}.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Size of the example.")] = None,
    support: Annotated[
        Path | None,
        typer.Option(help="Instead of a chain: masks of 0 and 1, leftmost first, in an .npz; PALM for more than 2."),
    ] = None,
    palm: Annotated[
        str | None, typer.Option(help="Instead of a chain: PALM with one projection per factor: 'spcol(2)*5 sp(64)'.")
    ] = None,
    hierarchical: Annotated[
        str | None, typer.Option(help=f"Instead of a chain, the scheme of FAuST: {', '.join(SCHEMES)}.")
    ] = None,
    starts: Annotated[int | None, typer.Option(min=1, help="With --support or --palm: the best of so many.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the factors to this .safetensors file.")] = None,
    draw_to: Annotated[Path | None, typer.Option("--draw", help="Draw the factors into this .png or .svg.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files of --out and --draw.")] = False,
    format: Annotated[
        Format, typer.Option(help="quiet is one line: error, parameters and chain, separated by tabs.")
    ] = Format.human,
) -> None:
    """Approximate a matrix by a product of sparse factors, and prove how good the product is.

    By default an example takes its natural chain, all else the smallest chain for a tolerance of 0.01.
    """
    say = note if format is not Format.quiet else lambda text: None
    wanted = Chain.parse(chain) if chain is not None else None
    cuts = _order(order)
    limits = _limits(chain, tolerance, budget)
    masked = Wanted(support, palm, hierarchical, starts)
    masked.check(**limits, chain=chain, perm=perm, refine=refine, draw=draw_to, order=order != "best")
    _check_outputs(out, draw_to, force)
    task = _task(source, example, n, wanted, perm)
    if masked:
        return masked.answer(task.name, task.matrix, out, format)
    natural = task.chain if not limits else None
    if natural is None:
        limits = limits or {"tolerance": DEFAULT_TOLERANCE}
        if perm is Perm.search:
            raise ValueError("--perm search looks for the order that a chain needs. Give --chain too.")
        if not isinstance(cuts, str):
            raise ValueError(f"--order {order} names the cuts of a chain that is not chosen yet. Give --chain too.")
        if tolerance is None and budget is None:
            say(f"no --chain, --tolerance or --budget: choosing a chain for tolerance {DEFAULT_TOLERANCE}")
    elif wanted is None:
        columns = "" if task.perm_name == "none" else f", its columns reordered ({task.perm_name})"
        say(f"using the natural chain of {task.name}{columns}")
    begin = time.perf_counter()
    perms, why = task.perm, None
    with working(f"factorizing {task.name}") as progress:
        if natural is None:
            choice = choose(task.matrix, **limits, perm=perms, progress=progress)
            natural, perms, why = choice.chain, choice.perm, choice.why
        result = factorize_matrix(task.matrix, natural, order=cuts, refine=refine, perm=perms, progress=progress)
        if perm is Perm.auto:  # `choose` may have found the order
            result = result.in_found_order()
    seconds = time.perf_counter() - begin
    if out is not None:
        result.product.save(out)
    if draw_to is not None:
        draw(task.name, task.matrix, result, draw_to)
    product = result.product
    record = {
        "input": task.name,
        "dtype": str(task.matrix.dtype).removeprefix("torch."),
        **result.to_dict(),
        "perm": result.permutation if perm is Perm.search else _perm_name(task, product),
        "why": why,
        "refine": refine,
        "out": str(out) if out else None,
        "draw": str(draw_to) if draw_to else None,
        "seconds": seconds,
    }
    if format is Format.json:
        write_json(record)
    elif format is Format.quiet:
        typer.echo(f"{result.certificate.error:.6g}\t{product.nnz}\t{product.chain}")
    else:
        print_summary(record)


def _perm_name(task: _Task, product: SparseProduct) -> str:
    """What was reordered: the name that was asked for, or what "auto" found (columns, rows or both)."""
    moved = [name for name, perm in (("columns", product.perm_in), ("rows", product.perm_out)) if perm is not None]
    return (
        f"bitrev {' and '.join(moved)}" if task.perm_name == "auto" and moved else task.perm_name if moved else "none"
    )


def _order(text: str) -> str | tuple[int, ...]:
    parts = text.replace(" ", "").strip("()").split(",")
    if all(part.isdecimal() for part in parts):
        return tuple(int(part) for part in parts)
    if text not in ORDERS:
        raise ValueError(f"--order {text} is unknown. Rule: {', '.join(ORDERS)} or a permutation of the cuts: 3,1,2.")
    return text


def _limits(chain: str | None, tolerance: float | None, budget: str | None) -> dict[str, float | int]:
    given = {"--chain": chain, "--tolerance": tolerance, "--budget": budget}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} were given. Rule: at most one of --chain, --tolerance and --budget.")
    if budget is None:
        return {} if tolerance is None else {"tolerance": tolerance}
    try:
        return {"budget": int(budget) if budget.isdecimal() else float(budget)}
    except ValueError:
        raise ValueError(
            f"--budget {budget} is not a number. Rule: a share of the entries such as 0.25 or a number such as 4096."
        ) from None


def _check_outputs(out: Path | None, picture: Path | None, force: bool) -> None:
    if out is not None and out.suffix.lower() != ".safetensors":
        raise ValueError(
            f"cannot write factors to {str(out)!r}: its suffix is {out.suffix!r}. Rule: .safetensors. "
            f"Write for example {str(out.with_suffix('.safetensors'))!r}."
        )
    if picture is not None:
        require_picture(picture)
    for path in (out, picture):
        if path is not None:
            require_writable(path)
            if path.exists() and not force:
                raise ValueError(f"{str(path)!r} exists. Rule: nothing is overwritten without --force.")


def _task(source: str | None, name: str | None, n: int | None, chain: Chain | None, perm: Perm | None) -> _Task:
    if (source is None) == (name is None):
        got = "neither" if source is None else "both"
        raise ValueError(f"give an INPUT file or --example NAME, got {got}. Examples: {', '.join(MATRICES)}.")
    if name is None:
        if n is not None:
            raise ValueError(f"--n {n} is the size of an --example, but the input is a file. Leave it out.")
        assert source is not None
        return _Task(source, read_matrix(source), chain, perm and perm.value, perm.value if perm else "none")
    example = MATRICES[name]() if n is None else MATRICES[name](n)
    own = perm is None and example.perm_in is not None
    return _Task(
        f"{name}({example.matrix.shape[0]})",
        example.matrix,
        chain or example.chain,
        (example.perm_in, None) if own else perm and perm.value,
        example.perm if own else (perm or Perm.none).value,
    )
