"""Whether the best product of factors on fixed supports exists for every matrix: closed, not closed, or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Bool

from .chain import Chain
from .closed import Rest, closed_because, rest_of
from .diverging import Family, rank_family, window_family
from .recognize import recognized
from .support import Support, as_supports
from .tractable import tractability

Status = Literal["closed", "not closed", "undecided"]
LARGEST = 2**28  # entries of all rank-one supports together; more are not looked at


@final
@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Whether the products of factors on some supports form a closed set, and why.

    `status` is "closed": for every matrix there is a nearest product; "not closed": `family` shows factors that run
    away while their product converges to a matrix that is no product; or "undecided": `tried` says what was looked at.
    `cells` are the entries of the product on which it is not closed, or undecided. For more than two factors `pairs`
    has one verdict for each two neighbours.
    """

    status: Status
    reason: str
    family: Family | None = None
    tried: tuple[str, ...] = ()
    cells: Bool[np.ndarray, "m n"] | None = None
    pairs: tuple[Verdict, ...] = ()

    @property
    def closed(self) -> bool:
        """Whether it is certain that best factors exist."""
        return self.status == "closed"

    def __str__(self) -> str:
        lines = [f"{self.status}: {self.reason}"]
        if self.family is not None:
            lines += [f"  not attained: {self.family.proof}"]
            lines += [f"  eps {eps:.0e}: error {error:.3g}, norms {norm:.4g}" for eps, error, norm in self.family.table]
        lines += [f"  tried: {what}" for what in self.tried]
        lines += [
            f"  factors {i} and {i + 1}: {verdict.status}, {verdict.reason}" for i, verdict in enumerate(self.pairs)
        ]
        return "\n".join(lines)


def wellposedness(*supports: Any) -> Verdict:
    """Whether min ||A - X_1 ... X_L|| over factors on fixed supports is attained for every matrix A.

    Takes the supports in the order of the product, or one sequence of them, or a `Chain`. If the set of products is
    closed, it is. If not, some A has better and better factors that run away, and sparse networks with these supports
    have finite training sets without best weights. Holds for real and for complex values.

    Two factors: decided wherever what restricts the product (see `closed.rest_of`) are classes that do not overlap,
    with one inner index each; and for many that do overlap. More factors: closed if the supports are a chainable
    Kronecker-sparse chain; neighbours that can make everything on the support of their product are one factor; what
    then are two factors is decided as such, and the rest is reported pair by pair, which decides nothing for the whole.

    Raises `ValueError` for supports that do not multiply or a product that is zero, `TypeError` for masks that are not
    boolean. Cost: that of `tractability`, which grows with the entries of all different rank-one supports together.
    Source: Le, Riccietti, Gribonval, "Does a sparse ReLU network training problem always admit an optimum?",
    NeurIPS 2023. The criteria are proved where they stand, in `closed` and `diverging`.

    >>> lower = np.tril(np.ones((2, 2), dtype=bool))
    >>> print(wellposedness(lower, lower.T))
    not closed: inner index 0 on rows {0, 1} x columns {0, 1} can share an entry that runs away
      not attained: only inner index 0 reaches (0,0), (0,1) and (1,0): X[0,0] Y[0,0] = 0, but X[0,0] Y[0,1] = 1 and ...
      eps 1e-01: error 0.01, norms 28.28
      eps 1e-02: error 0.0001, norms 282.8
      eps 1e-03: error 1e-06, norms 2828
      eps 1e-04: error 1e-08, norms 2.828e+04
    >>> wellposedness(np.ones((2, 1), dtype=bool), np.ones((1, 3), dtype=bool)).status
    'closed'
    """
    given = supports[0] if len(supports) == 1 and isinstance(supports[0], list | tuple | Chain) else supports
    found = as_supports(given.patterns if isinstance(given, Chain) else given)
    if len(found) == 1:
        return Verdict("closed", "one factor: its products are all matrices on the support")
    return _of_two(*found) if len(found) == 2 else _of_many(found)


def is_closed(left: Support, right: Support) -> bool:
    """Whether the products of two factors are known to be a closed set: `wellposedness` without a search for families.

    >>> is_closed(Support(np.eye(2, dtype=bool)), Support(np.ones((2, 2), dtype=bool)))
    True
    """
    verdict = tractability(left, right)
    alone = 1 in (left.shape[0], right.shape[1])
    return alone or verdict.tractable or bool(closed_because(rest_of(verdict))[0])


def _of_two(left: Support, right: Support) -> Verdict:
    entries = _entries(left, right)
    if entries > LARGEST:
        return Verdict(
            "undecided", f"{entries:.3g} entries in different classes, more than {LARGEST} are not looked at"
        )
    verdict = tractability(left, right)
    if 1 in (left.shape[0], right.shape[1]):
        side = "row" if left.shape[0] == 1 else "column"
        return Verdict("closed", f"a single output {side}: everything on the entries that X Y reaches is attained")
    if verdict.tractable:
        return Verdict("closed", str(verdict))
    return _of_rest(rest_of(verdict), left, right)


def _entries(left: Support, right: Support) -> int:
    """Entries of the rank-one supports, each different one once: what `tractability` works and remembers."""
    rows, columns = (np.ascontiguousarray(side) for side in (np.packbits(left.array, 0).T, np.packbits(right.array, 1)))
    kinds = {(r.tobytes(), c.tobytes()): k for k, (r, c) in enumerate(zip(rows, columns, strict=True))}
    which = list(kinds.values())
    return int(left.array.sum(0)[which] @ right.array.sum(1)[which])


def _of_rest(rest: Rest, left: Support, right: Support) -> Verdict:
    reason, open_pieces = closed_because(rest)
    if reason:
        return Verdict("closed", reason)
    found = rank_family(rest, left, right)
    windows = 0
    if found is None:
        found, windows = window_family(rest, left, right)
    cells = np.zeros_like(rest.cells)
    for piece in open_pieces if found is None else [found[1]]:
        cells[piece.place] = rest.cells[piece.place]
    if found is not None:
        family, piece = found
        return Verdict("not closed", f"{piece} can share an entry that runs away", family, cells=cells)
    count = len(open_pieces)
    tried = (
        "classes and complete classes (Theorems 1 and 2), groups that hold everything, one side of each normalized",
        f"families with a limit of too high a rank, in {len(rest.pieces)} classes",
        f"families that cancel in one entry, in {windows} windows of up to 3 x 3 entries",
    )
    some = f"{open_pieces[0]}" + (f" and {count - 1} more that overlap" if count > 1 else "")
    return Verdict("undecided", f"no criterion covers {some}", tried=tried, cells=cells)


def _of_many(supports: Sequence[Support]) -> Verdict:
    pairs = tuple(_of_two(left, right) for left, right in pairwise(supports))
    patterns = [recognized(support) for support in supports]
    if all(pattern is not None for pattern in patterns):
        chain = Chain([pattern for pattern in patterns if pattern is not None])
        if chain.chainable or chain.T.chainable:
            return Verdict("closed", f"a chainable Kronecker-sparse chain, {chain}", pairs=pairs)
    merged = _merged(supports)
    if len(merged) <= 2:
        whole = wellposedness(merged)
        count = len(supports)
        told = f"{count} factors that act as {len(merged)}; {whole.reason}"
        return Verdict(whole.status, told, whole.family, whole.tried, whole.cells, pairs)
    bad = [i for i, verdict in enumerate(pairs) if verdict.status != "closed"]
    which = f"factors {', '.join(f'{i} and {i + 1}' for i in bad)}" if bad else "no two neighbours"
    return Verdict(
        "undecided",
        f"{len(supports)} factors; by themselves {which} are not known to be closed, which does not decide the whole",
        tried=("a chainable chain", "neighbours that make everything on the support of their product are one factor"),
        pairs=pairs,
    )


def _merged(supports: Sequence[Support]) -> list[Support]:
    """The supports with neighbours made one whose products are all matrices on one support."""
    found = list(supports)
    i = 0
    while i + 1 < len(found):
        if _everything(found[i], found[i + 1]):
            found[i : i + 2] = [found[i] @ found[i + 1]]
            i = max(i - 1, 0)  # the merged factor may now merge with its left neighbour
        else:
            i += 1
    return found


def _everything(left: Support, right: Support) -> bool:
    """Whether every matrix on the support of the product is a product: nothing is left that restricts it."""
    return not rest_of(tractability(left, right)).pieces
