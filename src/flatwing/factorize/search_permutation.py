"""Unknown orders of rows and columns: known ones first, then a tree of clusters, level by level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int, Num

from ..structure import Chain, transforms
from .clusters import find_clusters
from .exchange import exchange, measure
from .factorization import Factorization
from .permutation import Permutations, digits_reversed, tree

Progress = Callable[[str, int, int], None]
SEED = 0
# An order is worth its name if it leaves less than this share of the error of an arbitrary order.
FOUND = 0.5


def search_permutation(
    matrix: Num[torch.Tensor, "m n"],
    chain: Chain,
    fit: Callable[[Permutations], Factorization],
    progress: Progress | None = None,
) -> Factorization:
    """The best factorization of a matrix whose rows and columns are in an unknown order; `fit` factorizes in an order.

    First the known orders (`listed_orders`): if none is exact, clusters of rows and columns (`cluster_orders`), and in
    noise exchanges of clusters (`exchange`) if the best order so far is worth it. Lower bounds, which need singular
    values only, exclude most orders before they are factorized. The name of the order in
    the result begins with "search: "; a note says when nothing better than an arbitrary order was found. The search is
    deterministic, and it can be interrupted at any time. `progress` is called at every level.

    Raises `ValueError` for a batch and for chains without clusters to look for: known are chains that, after redundant
    splits are merged, have splits of rank one and a = 1 in the first and d = 1 in the last pattern; sizes of clusters
    may differ from level to level, and rows from columns. Cost: O(m^2 n + m n^2), times some 100 for the alternation.
    """
    require_searchable(matrix, chain)
    orders = listed_orders(chain)
    bounds = {name: measure(matrix, chain, perms)[0] for name, perms in orders.items()}
    likely = min(bounds, key=lambda name: bounds[name])
    best, result = likely, fit(orders[likely])
    if result.certificate.exact:
        return replace(result, permutation=f"search: {best}")
    clusters = cluster_orders(matrix, chain, progress)
    orders |= clusters
    bounds |= {name: measure(matrix, chain, perms)[0] for name, perms in clusters.items()}
    others = [name for name in orders if name != likely]
    for name in sorted(others, key=lambda name: bounds[name]):
        if result.certificate.exact or bounds[name] >= result.certificate.error:
            break  # neither this order nor the later ones can be better
        other = fit(orders[name])
        if other.certificate.error < result.certificate.error:
            best, result = name, other
    notes: list[str] = []
    if not result.certificate.exact:
        notes.append("search: the lower bound holds for the order that was found, not for all orders")
        if best not in clusters:
            notes.append(f"search: clustering found no better order than {best!r}")
        arbitrary = fit(_arbitrary(chain)).certificate.error
        if result.certificate.error > FOUND * arbitrary:
            notes.append(
                f"search failed: the best order leaves an error of {result.certificate.error:.3g}, an arbitrary order "
                f"{arbitrary:.3g}; the matrix probably has this structure in no order, or is too noisy"
            )
        else:
            perms = exchange(matrix, chain, orders[best], fit, progress)
            other = result if perms is None else fit(perms)
            if other.certificate.error < result.certificate.error:
                best, result = f"{best} and exchanges", other
    return replace(result, permutation=f"search: {best}", notes=(*result.notes, *notes))


def require_searchable(matrix: torch.Tensor, chain: Chain) -> None:
    """Raise `ValueError` unless matrix and chain are of a kind that `search_permutation` knows."""
    if matrix.ndim > 2:
        raise ValueError(
            f"perm='search' got a batch of shape {tuple(matrix.shape)}. Rule: one matrix, because each may need "
            "its own order. Call factorize for each matrix, or search for one and pass its (perm_in, perm_out) for all."
        )
    reduced = chain.reduced()
    outer, ranks = (reduced[0].a, reduced[-1].d), reduced.ranks
    if outer != (1, 1) or any(rank > 1 for rank in ranks):
        raise ValueError(
            f"perm='search' cannot search for {chain}: without redundant splits it has ranks {ranks}, a={outer[0]} in "
            f"the first and d={outer[1]} in the last pattern. Rule: ranks 1 and a = d = 1, as in Chain.butterfly and "
            "Chain.monarch of rank 1. perm='auto' tries digit reversals for any chain."
        )


def listed_orders(chain: Chain) -> dict[str, Permutations]:
    """Orders (perm_in, perm_out) that occur in known transforms, by name.

    As it is; digit reversal (bit reversal for dyadic chains) of columns, rows or both; and for sizes that are powers of
    two the block permutations of columns, of rows, and of columns with rows reversed. Of orders that have the same
    clusters at every split, and so the same errors, only the first is listed: for columns, block permutations without
    separation are as good as none, and the others as good as bit reversal.
    Source: Dao et al., "Learning fast algorithms for linear transforms using butterfly factorizations", ICML 2019.
    """
    (q, p), (m, n) = chain.radices, chain.shape
    outer = chain[0].a, chain[-1].d
    columns = transforms.digit_reversal((outer[0], *p, outer[1]))
    rows = transforms.digit_reversal((outer[0], *q, outer[1]))
    orders: dict[str, Permutations] = {
        "none": (None, None),
        "bitrev columns": (columns, None),
        "bitrev rows": (None, rows),
        "bitrev rows and columns": (columns, rows),
    }
    for code in ("001", "010", "011", "100", "101", "110", "111"):
        if is_power_of_two(n):
            blocks = block_permutation(n, code)
            orders[f"blocks {code} columns"] = (blocks, None)
            orders[f"blocks {code} columns and bitrev rows"] = (blocks, rows)
        if is_power_of_two(m):
            orders[f"blocks {code} rows"] = (None, block_permutation(m, code))
    trees: dict[tuple[bytes, bytes], str] = {}
    row_radices, column_radices = chain.reduced().radices
    for name, (perm_in, perm_out) in orders.items():
        columns = torch.arange(n) if perm_in is None else perm_in
        rows = torch.arange(m) if perm_out is None else perm_out
        # a column's first digit names its largest cluster, a row's last digit
        rows = digits_reversed(rows.numpy(), row_radices)
        key = tree(columns.numpy(), column_radices).tobytes(), tree(rows, row_radices[::-1]).tobytes()
        trees.setdefault(key, name)
    return {name: orders[name] for name in trees.values()}


def is_power_of_two(n: int) -> bool:
    """Whether n is 1, 2, 4, ..."""
    return n & (n - 1) == 0


def block_permutation(n: int, code: str) -> Int[torch.Tensor, " n"]:
    """The permutation of 0 ... n-1, n a power of two, that does the same to every block of n, n/2, ..., 2 in turn.

    The three digits of `code` say whether even places are put before odd ones, whether the first half is then
    reversed, and whether the second is: "000" changes nothing, "100" is bit reversal.

    >>> block_permutation(8, "100").tolist(), block_permutation(8, "001").tolist()
    ([0, 4, 2, 6, 1, 5, 3, 7], [0, 1, 3, 2, 7, 6, 4, 5])
    """
    order = torch.arange(n)[None]
    while order.shape[1] > 1:
        halves = order.unflatten(1, (-1, 2)).mT if code[0] == "1" else order.unflatten(1, (2, -1))
        flips = [half.flip(1) if flip == "1" else half for half, flip in zip(halves.unbind(1), code[1:], strict=True)]
        order = torch.stack(flips, 1).flatten(0, 1)
    return order.reshape(-1)


def cluster_orders(
    matrix: Num[torch.Tensor, "m n"], chain: Chain, progress: Progress | None = None
) -> dict[str, Permutations]:
    """Orders from trees of clusters, one grown from the rows upwards and one from the columns.

    Cost: see `search_permutation`. Computed in double precision by numpy, whatever the device of the matrix.
    """
    values = matrix.to(torch.promote_types(matrix.dtype, torch.float64)).numpy(force=True)
    values = values / (np.abs(values).max() or 1.0)
    q, p = chain.reduced().radices
    levels = len(q) - 1

    def say(done: int) -> None:
        if progress is not None:
            progress("clustering rows and columns", done, 2 * levels)

    columns, rows = grow(values, q, p, say)
    # of the transposed matrix, levels come in the opposite order, and so do the digits of what is found
    turned_rows, turned_columns = grow(values.T, p[::-1], q[::-1], lambda done: say(levels + done))
    say(2 * levels)
    turned = digits_reversed(turned_columns, p[::-1]), digits_reversed(turned_rows, q[::-1])
    return {
        "clusters from rows": (torch.from_numpy(columns), torch.from_numpy(rows)),
        "clusters from columns": (torch.from_numpy(turned[0]), torch.from_numpy(turned[1])),
    }


def grow(
    values: Num[np.ndarray, "m n"], q: Sequence[int], p: Sequence[int], say: Callable[[int], None]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Orders of columns and rows for the chain with radices q and p: one tree upwards, the other downwards.

    At the first split, clusters of q_1 rows meet p_1 clusters of columns in blocks of rank one. What stands to the
    right of these blocks is, for each cluster of columns, a smaller matrix with one row per cluster of rows and an
    order of columns of its own: the same task at the next split. So the clusters form trees by construction.
    """
    rng = np.random.default_rng(SEED)
    m, n = values.shape
    rows, columns, batch = np.arange(m)[None], np.arange(n)[None], values[None]
    for level, (size, parts) in enumerate(zip(q[:-1], p[:-1], strict=True)):
        say(level)
        found = find_clusters(batch, size, parts, rng)
        # row digits, the first level slowest, then the clusters; column digits, then the columns that are left
        rows = rows[:, found.rows.T].reshape(-1, len(found.rows))
        pieces = found.columns.reshape(len(columns), -1)
        columns = np.take_along_axis(columns, pieces, 1).reshape(-1, found.columns.shape[2])
        batch = found.right.reshape(len(columns), len(found.rows), -1)
    return columns.reshape(-1), rows.reshape(-1)


def _arbitrary(chain: Chain) -> Permutations:
    """Orders that have nothing to do with any matrix."""
    generator = torch.Generator().manual_seed(SEED)
    m, n = chain.shape
    return torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
