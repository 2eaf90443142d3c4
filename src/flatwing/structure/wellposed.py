"""Whether the best product of factors on fixed supports exists for every matrix: closed, not closed, or undecided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, final

import numpy as np
from jaxtyping import Bool

from .chain import Chain
from .closed import Rest, closed_because, rest_of
from .diverging import Family, rank_family, window_family
from .merged import different_entries, merged, require_product, spread
from .pattern import Pattern
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
    has one verdict for each two neighbours, and `family.supports` are the given ones, or, where the family could not be
    spread over them, those of the two factors that they act as.
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
            if self.pairs and len(self.family.supports) <= len(self.pairs):
                sizes = " and ".join("x".join(map(str, support.shape)) for support in self.family.supports)
                lines += [f"  the family is one of the factors that act as one, {sizes}, not of the given ones"]
            lines += [f"  eps {eps:.0e}: error {error:.3g}, norms {norm:.4g}" for eps, error, norm in self.family.table]
        lines += [f"  tried: {what}" for what in self.tried]
        lines += [
            f"  factors {i} and {i + 1}: {verdict.status}, {verdict.reason}" for i, verdict in enumerate(self.pairs)
        ]
        return "\n".join(lines)


def wellposedness(*supports: Any) -> Verdict:
    """Whether min ||A - X_1 ... X_L|| over factors on fixed supports is attained for every matrix A.

    Takes the supports in the order of the product, or one iterable of them (a list, a generator, an array (L, n, n) of
    masks), or a `Chain`. If the set of products is closed, it is. If not, some A has better and better factors that run
    away, and sparse networks with these supports have finite training sets without best weights. Holds for real and for
    complex values.

    Two factors: decided wherever what restricts the product (see `closed.rest_of`) are classes that do not overlap,
    with one inner index each; and for many that do overlap. Families are looked for in single classes of any size, and
    where classes overlap in at most 2000 windows of up to 3 x 3 entries with at most 4 inner indices. Dense masks with
    holes leave none so small: of 20 random pairs of n x n masks 20 were decided for n = 8, 16 and 32 with 20 or 30 % of
    the entries; with 50 % 17 for n = 8, 6 for n = 16 and none for n = 32; with 80 % none of these.

    More factors: closed if the supports are a chainable Kronecker-sparse chain; neighbours that can make everything on
    the support of their product are one factor, as the products stay the same; what then can be seen as two factors, in
    one way or another, is decided as such, its family spread over the given factors (see `merged.spread`); the rest is
    reported pair by pair, which decides nothing for the whole.

    Raises `ValueError` for supports that do not multiply or a product that is zero, `TypeError` for masks that are not
    boolean, and for a mapping. Cost: that of `tractability`, which grows with the entries of all different rank-one
    supports together.
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
    found = as_supports(_masks(supports))
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


def _masks(given: tuple[Any, ...]) -> Iterable[Any]:
    """The masks of several arguments, or of one that holds them all."""
    if len(given) != 1:
        return given
    (one,) = given
    if isinstance(one, Chain):
        return one.patterns
    if isinstance(one, Mapping):
        raise TypeError(
            f"the supports are a {type(one).__name__}. Rule: a sequence in the order of the product, not names. "
            "Write wellposedness(list(masks.values()))."
        )
    stacked = getattr(one, "ndim", 3) == 3  # an array of masks of one shape, or no array
    return one if stacked and isinstance(one, Iterable) and not isinstance(one, Support | Pattern) else given


def _of_two(left: Support, right: Support) -> Verdict:
    entries = different_entries(left, right)
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
    require_product(supports)
    pairs = tuple(_of_two(left, right) for left, right in pairwise(supports))
    patterns = [recognized(support) for support in supports]
    if all(pattern is not None for pattern in patterns):
        chain = Chain([pattern for pattern in patterns if pattern is not None])
        if chain.chainable or chain.T.chainable:
            return Verdict("closed", f"a chainable Kronecker-sparse chain, {chain}", pairs=pairs)
    found: Verdict | None = None
    for acting in merged(supports, LARGEST):
        whole = wellposedness([one.support for one in acting])
        parts = ", " + " and ".join(f"{name} = {one}" for name, one in zip("XY", acting, strict=False))
        told = f"{len(supports)} factors that act as {len(acting)}{parts if len(acting) > 1 else ''}; {whole.reason}"
        family = whole.family and (spread(whole.family, acting) or whole.family)
        verdict = Verdict(whole.status, told, family, whole.tried, whole.cells, pairs)
        if whole.status != "undecided":
            return verdict
        found = found or verdict
    if found is not None:
        return found
    bad = [i for i, verdict in enumerate(pairs) if verdict.status != "closed"]
    which = f"factors {', '.join(f'{i} and {i + 1}' for i in bad)}" if bad else "no two neighbours"
    return Verdict(
        "undecided",
        f"{len(supports)} factors; by themselves {which} are not known to be closed, which does not decide the whole",
        tried=("a chainable chain", "neighbours that make everything on the support of their product are one factor"),
        pairs=pairs,
    )
