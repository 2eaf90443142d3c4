"""`flatwing wellposed`: whether training with these masks has a solution."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..core import require_writable
from ..structure import Verdict
from ..structure.repair import Repair, advice, repair
from ..structure.wellposed import wellposedness
from .masks import Product, read_pairs
from .output import Format, note, plainly, working, write_json

SEARCHED = 20_000  # entries of two supports; larger ones are not searched for a repair
TALL, WIDE = 16, 64  # of a picture in letters
WORST = ("not closed", "undecided", "closed")


@plainly
def command(
    source: Annotated[Path, typer.Argument(metavar="MASKS", help="masks.npz or MODEL.safetensors.")],
    pairs: Annotated[
        list[str] | None,
        typer.Option(metavar="FIRST:SECOND", help="Matrices of the file, y = SECOND @ FIRST @ x; repeatable."),
    ] = None,
    advise: Annotated[
        bool, typer.Option("--advise", help="Also say which entries to add, and what weight decay costs instead.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the first pair in question into this .png or .svg.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --picture.")] = False,
    format: Annotated[
        Format, typer.Option(help="quiet is one line: the worst verdict and the numbers of pairs, separated by tabs.")
    ] = Format.human,
) -> None:
    """Tell for each two neighbouring layers whether best weights exist for their masks, whatever the data.

    An .npz file holds masks, true or 1 where a weight may be, in the order of the matrix product (numbers in their
    names come before their places in the file); of three and more the whole product is judged, too. A .safetensors
    file holds a model: masks (NAME_mask), or else the non-zeros of its matrices. Neighbours are layers whose names
    differ in one number, such as net.0.weight and net.2.weight, with nothing between them; name others with --pairs.
    "closed": best weights exist for every matrix that the product shall be. "not closed": there is a matrix that is
    only approached by weights that run away.
    """
    if picture is not None:
        from ..report import require_picture  # here, because most calls draw nothing

        require_picture(picture)
        require_writable(picture)
        if picture.exists() and not force:
            raise ValueError(f"{str(picture)!r} exists. Rule: nothing is overwritten without --force.")
    found = read_pairs(source, pairs or ())
    results: list[tuple[Product, Verdict, Repair | None]] = []
    with working("looking at pairs") as progress:
        whole = wellposedness(found.whole.supports) if found.whole is not None else None
        for i, pair in enumerate(found.pairs):
            progress(pair.name, i, len(found.pairs))
            verdict = wellposedness(pair.supports) if whole is None else whole.pairs[i]
            mended = None
            # quiet shows no advice
            if advise and format is not Format.quiet and not verdict.closed and _size(pair) <= SEARCHED:
                what = f"{pair.name}, looking for entries to add"
                mended = repair(pair.supports, progress=partial(progress, what))
            results.append((pair, verdict, mended))
    if picture is not None:
        _draw(*min(results, key=lambda result: WORST.index(result[1].status))[:2], picture)
    counts = Counter(verdict.status for _, verdict, _ in results)
    worst = next(status for status in WORST if counts[status])
    if format is Format.quiet:
        typer.echo(f"{worst}\t" + "\t".join(f"{counts[status]} {status}" for status in WORST if counts[status]))
        return
    for text in found.notes:
        note(f"note: {text}")
    if format is Format.json:
        record = {
            "input": str(source),
            "status": worst,
            "assumed": found.assumed,
            "pairs": [_record(*result, advise) for result in results],
            "whole": None if whole is None or found.whole is None else _record(found.whole, whole, None, False),
            "picture": str(picture) if picture else None,
        }
        write_json(record)
        return
    width = max(len(pair.name) for pair in found.pairs)
    for pair, verdict, mended in results:
        typer.echo(f"{pair.name:<{width}}  {verdict.status:<10}  {verdict.reason}")
        if not verdict.closed:
            typer.echo(f"    where X = {pair.names[0]}, Y = {pair.names[1]}")
            for line in str(verdict).splitlines()[1:]:
                typer.echo(f"  {line}")
            for line in _letters(pair, verdict):
                typer.echo(f"    {line}")
            if advise:
                typer.echo(f"    advice: {_advice(verdict, mended)}")
    if whole is not None and found.whole is not None:
        typer.echo(f"{found.whole.name}  {whole.status}  {whole.reason}")
        for line in str(whole).splitlines()[1:]:
            if not line.startswith("  factors "):  # the pairs, told above
                typer.echo(f"  {line}")


def _size(pair: Product) -> int:
    return sum(int(np.prod(support.shape)) for support in pair.supports)


def _advice(verdict: Verdict, found: Repair | None) -> str:
    text = advice(verdict, found)
    return text if found is not None else f"too large to search for entries to add; {text}"


def _letters(pair: Product, verdict: Verdict) -> list[str]:
    """The product where it is restricted, as a matrix of letters that its last line explains, with rows and columns."""
    if verdict.cells is None or not verdict.cells.any():
        return []
    rows, columns = np.flatnonzero(verdict.cells.any(1)), np.flatnonzero(verdict.cells.any(0))
    limit = verdict.family.limit if verdict.family is not None else np.zeros(verdict.cells.shape)
    # the entries of the proof come first where not all fit
    rows = sorted(sorted(map(int, rows), key=lambda i: not limit[i].any())[:TALL])
    columns = sorted(sorted(map(int, columns), key=lambda j: not limit[:, j].any())[:WIDE])
    reach = (pair.supports[0] @ pair.supports[1]).array
    wide, tall = len(str(max(columns))), len(str(max(rows)))
    # numbers of columns are read downwards
    lines = [" " * (tall + 1) + "".join(f"{j:>{wide}}"[digit] for j in columns) for digit in range(wide)]
    lines += [
        f"{i:>{tall}} "
        + "".join("1" if limit[i, j] else "#" if verdict.cells[i, j] else ".+"[int(reach[i, j])] for j in columns)
        for i in rows
    ]
    cut = len(rows) < verdict.cells.any(1).sum() or len(columns) < verdict.cells.any(0).sum()
    ones = "1 in the limit, " if verdict.family is not None else ""
    legend = f"rows and columns of X Y: {ones}# restricted, + free, . zero"
    return [*lines, f"({legend}{', the rest is cut off' if cut else ''})"]


def _draw(pair: Product, verdict: Verdict, path: Path) -> None:
    """The entries of the product and both supports; orange is what is in the way."""
    from ..report import draw_factors

    left, right = (support.array.astype(float) for support in pair.supports)
    product = (left @ right > 0).astype(float)
    if verdict.cells is not None:
        product[verdict.cells] = -1
    status = f"{pair.name}: {verdict.status}"
    titles = ["entries of the product\n(orange: in the way)", *(f"{name}" for name in pair.names)]
    draw_factors([left, right], path, matrix=product, titles=titles, suptitle=status)


def _record(pair: Product, verdict: Verdict, found: Repair | None, advise: bool) -> dict[str, Any]:
    family = verdict.family
    record: dict[str, Any] = {
        "pair": pair.name,
        "shapes": [list(support.shape) for support in pair.supports],
        "status": verdict.status,
        "reason": verdict.reason,
        "tried": list(verdict.tried),
        "family": None,
        "advice": None,
    }
    if family is not None:
        record["family"] = {
            "proof": family.proof,
            "limit": np.argwhere(family.limit).tolist(),
            "factors": [[list(term) for term in terms] for terms in family.terms],
            "measured": [dict(zip(("eps", "error", "norm"), row, strict=True)) for row in family.table],
        }
    if advise and not verdict.closed:
        record["advice"] = {
            "text": _advice(verdict, found),
            "added": None if found is None else [list(entry) for entry in found.added],
            "smallest": None if found is None else found.smallest,
        }
    return record
