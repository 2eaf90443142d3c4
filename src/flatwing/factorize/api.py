"""`factorize`: a matrix and a chain in, a product and its certificate out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Any, final

import numpy as np
import torch

from ..core import as_matrix, require_whole, threads_for
from ..structure import Chain, SparseProduct
from ..structure.nearest import nearest_chainable
from .butterfly import splits_of
from .certificate import is_rounding, prove, relative
from .compiled import attempt, fix_signs
from .factorization import Factorization, SplitReport
from .order import split_order
from .permutation import Permutations, candidate_permutations, permuted
from .problem import Problem, scaled
from .refine import refine_factors
from .story import Story


def factorize(
    A: Any,
    chain: Chain | str,
    *,
    order: str | Sequence[int] = "best",
    orthonormalize: bool = True,
    refine: int = 0,
    refine_sites: int = 1,
    perm: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Factorization:
    """Approximate A by a product of sparse factors, and prove how good the product is.

    Args:
        A: torch tensor or numpy array, real or complex, shape (m, n) or a batch (..., m, n) that shares the chain.
            float16 and bfloat16 are computed in float32. Tensors that require grad are detached: the result carries no
            history; to train a product, set `requires_grad_` on its factors.
        chain: chainable, or the transpose of a chainable chain; a string is parsed (`Chain.parse`).
        order: "l2r", "r2l", "balanced", a permutation of the splits such as (3, 1, 2), or "best", the better of "l2r"
            and "r2l" (the first alone if it is exact). Splits count from 1; split s cuts between the factors s and s+1.
        orthonormalize: keep the parts beside the one being cut orthonormal; False is only for comparison.
        refine: number of sweeps of alternating least squares afterwards; the error (of the whole batch) never grows.
        refine_sites: factors updated together, 1 or 2 (see `refine_factors`).
        perm: see `candidate_permutations`; A[perm_out][:, perm_in] is factorized and the product undoes it. For the
            transpose of a chainable chain, "bitrev" reorders rows.
        progress: called as progress(what, done, total) in long work.

    Errors in the certificate are relative to the Frobenius norm; its bounds are of one order of rows and columns, and
    with "auto" and "search" it says so. Raises `ValueError` for a wrong shape, NaN or Inf, a
    chain that does not fit (the nearest is named) or is not chainable (the pair and condition are named), `TypeError`
    for a wrong dtype or kind. Cost: O(m n max b), certificate included, times the small side of the blocks at most. On
    the CPU compiled loops do the work (see `compiled.py`): the first call ever in a dtype compiles for some seconds.
    Source: Zheng, Le, Riccietti, Gribonval, "Butterfly factorization with error guarantees", SIAM J. Matrix Anal. Appl.
    46(4), 2025; beta -> chain, sigma -> order, E^beta(A) >= lower_bound.

    >>> import torch
    >>> H = torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64)
    >>> result = factorize(torch.kron(H, torch.kron(H, H)), Chain.butterfly(8))
    >>> result.certificate.exact, result.product.nnz
    (True, 48)
    """
    if isinstance(chain, str):
        chain = Chain.parse(chain)
    if not isinstance(chain, Chain):
        raise TypeError(f"chain is a {type(chain).__name__}. Rule: a Chain or its text, such as 'butterfly(64)'.")
    refine = require_whole("refine", refine, 0)
    if isinstance(refine_sites, bool) or refine_sites not in (1, 2):
        raise ValueError(f"refine_sites={refine_sites!r}. Rule: 1 (one factor at a time) or 2 (neighbours together).")
    matrix = as_matrix(A, batch=True)
    notes = _notes(A, matrix)
    if tuple(matrix.shape[-2:]) != chain.shape:
        m, n = matrix.shape[-2:]
        batch = f" (A of shape {tuple(matrix.shape)} is read as a batch of matrices)" if matrix.ndim > 2 else ""
        raise ValueError(
            f"A is {m} x {n}{batch} and the chain {chain} is {chain.shape[0]} x {chain.shape[1]}. Rule: equal sizes. "
            f"The nearest chain for A is {nearest_chainable(chain, m, n)}."
        )
    if isinstance(perm, (tuple, list)):
        perm = candidate_permutations(perm, chain, matrix.device)["given"]
    ground = _ground(chain)
    if ground is None:
        transposed = factorize(
            matrix.mT,
            chain.T,
            order=_mirrored(order, len(chain)),
            orthonormalize=orthonormalize,
            refine=refine,
            refine_sites=refine_sites,
            perm=perm[::-1] if isinstance(perm, tuple) else perm,
            progress=progress,
        )
        return _transposed(transposed, notes)
    if isinstance(perm, str) and perm == "search":
        from .search_permutation import search_permutation

        again = partial(
            factorize,
            matrix,
            chain,
            order=order,
            orthonormalize=orthonormalize,
            refine=refine,
            refine_sites=refine_sites,
            progress=progress,
        )
        with threads_for(ground.side), _full_precision(matrix.device.type):
            found = search_permutation(matrix, chain, lambda perms: again(perm=perms), progress)
        return replace(found, notes=(*notes, *found.notes)).in_found_order()
    names = ("l2r", "r2l") if isinstance(order, str) and order == "best" else (order,)
    reduced, kept = ground.reduced, ground.kept
    # Redundant splits restrict nothing: the reduced chain is factorized, its products are expanded at the end.
    orders = dict.fromkeys(tuple(s for s in split_order(name, len(chain)) if s in kept) for name in names)
    candidates = candidate_permutations(perm, chain, matrix.device)
    attempts: list[_Attempt] = []
    # reduced precision would make the errors and bounds below untrue
    with threads_for(ground.side), _full_precision(matrix.device.type):
        for label, perms in candidates.items():
            problem = Problem.of(permuted(matrix, perms), reduced)
            for cuts in orders:
                if any(a.exact for a in attempts):
                    break  # nothing can be better than rounding
                say = None if progress is None else partial(progress, f"order {cuts}, columns {label}"[:60])
                places = [kept.index(s) + 1 for s in cuts]
                factors, story, regions = attempt(problem.values, problem.patterns, places, orthonormalize, say)
                error = problem.outside + problem.per_matrix(regions)
                if refine:
                    factors = refine_factors(problem, factors, int(refine), refine_sites, say)
                    error = problem.error(factors)
                    factors = fix_signs(factors, problem.patterns)
                attempts.append(_Attempt(problem, cuts, label, factors, story, error))
        best = min(attempts, key=lambda a: a.problem.total(a.error))
        others = [a for a in attempts if a.label == best.label and a is not best]
        stories = [a.story for a in (best, *others)] if orthonormalize else []
        certificates, matrix_errors = prove(best.problem, best.error, stories, best.order, orthonormalize)
    splits = tuple(_reports(best, ground, matrix_errors))
    product = _product(best, chain, candidates[best.label])
    result = Factorization(product, certificates[0], splits, best.order, best.label, notes, certificates[1:])
    return result.in_found_order() if len(candidates) > 1 else result


@final
@dataclass(frozen=True, slots=True)
class _Attempt:
    """Factors found in one order, before anything is proved about them."""

    problem: Problem
    order: tuple[int, ...]
    label: str
    factors: list[torch.Tensor]
    story: Story
    error: np.ndarray

    @property
    def exact(self) -> bool:
        """Whether the errors of all matrices are rounding."""
        return bool(is_rounding(self.problem, self.error).all())


@final
@dataclass(frozen=True, slots=True)
class _Ground:
    """What depends on the chain alone: the chain without redundant splits, the places of its splits in the given
    chain, the smaller side of the squarest blocks that are ever solved, and what a report begins with, split by split:
    position, rank, blocks and shape of a block.
    """

    reduced: Chain
    kept: tuple[int, ...]
    side: int
    splits: tuple[tuple[int, int, int, tuple[int, int]], ...]


@lru_cache(maxsize=256)
def _ground(chain: Chain) -> _Ground | None:
    """None for the transpose of a chainable chain; refuses chains that are neither."""
    if not chain.chainable and chain.T.chainable:
        return None
    _require_chainable(chain)
    kept = tuple(s for s in range(1, len(chain)) if s not in chain.redundant_splits)
    reduced = chain.reduced()
    side = max((min(split.block_shape) for split in splits_of(reduced.patterns)), default=1)
    splits = enumerate(splits_of(chain.patterns), start=1)
    return _Ground(reduced, kept, side, tuple((s, x.rank, prod(x.regions), x.block_shape) for s, x in splits))


def _full_precision(device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _product(best: _Attempt, chain: Chain, perms: Permutations) -> SparseProduct:
    problem, factors, rest = best.problem, best.factors, best.problem.exponents
    if problem.batch or any(rest.tolist()):
        for i, (p, w) in enumerate(zip(problem.chain, best.factors, strict=True)):
            part = rest // (len(factors) - i)  # the exponent is spread over the factors: none of them overflows
            rest = rest - part
            w = scaled(w.reshape(problem.count, p.blocks, p.b, p.c), part)
            factors[i] = w.reshape(*problem.batch, p.blocks, p.b, p.c)
    product = SparseProduct(problem.chain, factors, *perms)
    return product if problem.chain == chain else product.expanded(chain)


def _reports(best: _Attempt, ground: _Ground, matrix_errors: list[float | None]) -> Iterator[SplitReport]:
    """One report per split of the chain."""
    problem = best.problem
    norm = problem.total(problem.norm)
    sums = dict(zip(best.story.order, problem.each(best.story.sums(problem.count)), strict=True))
    for split in ground.splits:
        if split[0] not in ground.kept:
            yield SplitReport(*split, True, 0.0, 0.0)
            continue
        place = ground.kept.index(split[0])
        yield SplitReport(*split, False, relative(sums[place + 1][0], norm), matrix_errors[place])


def _notes(given: Any, matrix: torch.Tensor) -> tuple[str, ...]:
    dtype = given.dtype if isinstance(given, torch.Tensor) else getattr(given, "dtype", None)
    name = str(dtype).removeprefix("torch.")
    return (f"{name} input was computed in float32",) if name in ("float16", "bfloat16") else ()


def _require_chainable(chain: Chain) -> None:
    try:
        chain.require_chainable()
    except ValueError as error:
        raise ValueError(
            f"{error} The best product of such factors is not known to be computable. "
            f"The nearest chainable chain is {nearest_chainable(chain)}."
        ) from None


def _mirrored(order: str | Sequence[int], factors: int) -> str | tuple[int, ...]:
    """The order on the transposed chain that makes the same cuts."""
    if isinstance(order, str):
        return {"l2r": "r2l", "r2l": "l2r"}.get(order, order)
    return tuple(factors - s for s in split_order(order, factors))


def _transposed(result: Factorization, notes: tuple[str, ...]) -> Factorization:
    factors = len(result.product)
    splits = tuple(
        replace(split, position=factors - split.position, block_shape=split.block_shape[::-1])
        for split in reversed(result.splits)
    )
    order = tuple(factors - s for s in result.order)
    swap = {"columns": "rows", "rows": "columns"}
    label = " ".join(swap.get(word, word) for word in result.permutation.split())
    label = label.replace("columns and rows", "rows and columns")
    notes = (*notes, *result.notes)
    return replace(result, product=result.product.T, splits=splits, order=order, notes=notes, permutation=label)
