"""`choose`: the cheapest chain for a tolerated error, or the best chain for a budget of parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import gcd, isfinite, log10, sqrt
from numbers import Integral, Real
from typing import Any, final

import torch
from jaxtyping import Num

from ..core import as_matrix, divisors
from ..structure import Chain, Pattern
from ..structure.factor import extract, without_support
from .paths import Path, cheapest_path
from .permutation import Permutations, candidate_permutations, permuted
from .problem import exponents_of, scaled, squared_norms
from .solvers import energy
from .tails import Cut, measure, places

WORK = 2e11  # multiplications spent on singular values; about half a minute on one core
GRAM_TOLERANCE = 1e-6
BISECTION_BUCKETS = 48
ROUNDING, PRECISE_ROUNDING = 1e-7, 1e-14  # errors that count as none, by Gram matrices and by singular values


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """A chain and what is known before factorizing: any end-peeling order reaches a relative error <= `bound`."""

    chain: Chain
    bound: float
    dense: bool
    """True if no structure pays: the chain is one dense factor."""
    why: str
    perm: Permutations
    """Pass it on: `factorize(A, choice.chain, perm=choice.perm)`."""
    permutation: str
    """Its name: what "auto" found."""

    def __str__(self) -> str:
        return f"{self.chain}: {self.why}"


def choose(
    A: Any,
    *,
    tolerance: float | None = None,
    budget: float | int | None = None,
    perm: Any = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Choice:
    """The chain with the fewest parameters whose a-priori error meets `tolerance`, or the best one within `budget`.

    Args:
        A: matrix as for `factorize`, shape (m, n).
        tolerance: relative Frobenius error allowed, 0 <= tolerance < 1.
        budget: parameters allowed: a share of m*n if it is a float, a count if it is an int.
        perm: None, "bitrev", "auto" or a pair, as for `factorize`, with the digits of m and n in prime radices.
        progress: called as progress(what, done, total).

    The error of an end-peeling factorization is at most the root of the summed squared tails of its cuts, so the search
    is a shortest path over cuts and ranks (see `cheapest_path`). Raises `ValueError` unless exactly one of tolerance
    and budget is given and sensible, or if no chain fits the budget. Cost: one batch of singular values per cut,
    O(m n min(b, c)) each.

    >>> import torch
    >>> H = torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64)
    >>> H = torch.kron(torch.kron(H, H), torch.kron(H, H))
    >>> print(choose(H, tolerance=1e-6).chain)
    (1,4,4,4)(4,4,4,1)
    """
    if (tolerance is None) == (budget is None):
        raise ValueError(f"choose needs one of tolerance={tolerance} and budget={budget}. Write tolerance=0.1.")
    matrix = as_matrix(A)
    m, n = matrix.shape
    limit = _limit(tolerance, budget, m, n)
    matrix = scaled(matrix[None], -exponents_of(matrix[None], squared_norms(matrix[None])))[0]
    norm = sqrt(float(energy(matrix[None])))
    matrix = matrix / norm if norm > 0 else matrix
    precise = tolerance is not None and tolerance < GRAM_TOLERANCE
    # an error below this counts as none: nothing smaller can be measured
    floor = PRECISE_ROUNDING if precise else ROUNDING
    best: Choice | None = None
    with torch.autocast(matrix.device.type, enabled=False):
        for label, perms in candidate_permutations(perm, _finest(m, n), matrix.device).items():
            ordered = permuted(matrix, perms)
            for a1, dL in _outer(m, n):
                pattern = Pattern(a1, m // (a1 * dL), n // (a1 * dL), dL)
                accepted = tolerance if tolerance is not None else best.bound if best is not None else 1.0
                allowed = max(accepted, floor) ** 2
                inside = _restricted(ordered, pattern, allowed)
                if inside is None:
                    continue
                values, outside = inside
                say = None if progress is None else partial(progress, f"measuring cuts, columns {label}")
                path = _search(_cuts(values, precise, say), values, tolerance, allowed - outside, limit, floor)
                if path is None:
                    continue
                chain = path.chain(pattern.b, pattern.c, a1, dL)
                bound = sqrt(path.squared_error + outside)
                why = _why(chain, bound, tolerance, limit)
                choice = Choice(chain, bound, chain == Chain.dense(m, n), why, perms, label)
                if best is None or _merit(choice, tolerance) < _merit(best, tolerance):
                    best = choice
    if best is None:
        raise ValueError(
            f"budget={budget} allows {limit} parameters, too few for any chain found for this {m} x {n} matrix. "
            f"Nearest good value: budget={min(m + n, m * n)}, which a product of rank one needs."
        )
    return best


def _limit(tolerance: float | None, budget: float | int | None, m: int, n: int) -> int:
    """The number of parameters allowed: never more than dense."""
    for name, value in (("tolerance", tolerance), ("budget", budget)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}. Rule: a number, such as {name}=0.1.")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance}. Rule: a relative error with 0 <= tolerance < 1, such as 0.1.")
    if budget is None:
        return m * n
    if not (isfinite(budget) and budget > 0):
        raise ValueError(f"budget={budget}. Rule: a share of the entries (float > 0) or a count (int >= 1).")
    return min(m * n, int(budget) if isinstance(budget, Integral) else int(budget * m * n))


def _outer(m: int, n: int) -> list[tuple[int, int]]:
    """Outer numbers (a1, dL) of chains: (1, 1) for a full support, others for matrices with blocks of zeros."""
    common = gcd(m, n)
    return [(a1, dL) for a1 in divisors(common) for dL in divisors(common // a1)]


def _restricted(
    matrix: Num[torch.Tensor, "m n"], pattern: Pattern, allowed: float
) -> tuple[Num[torch.Tensor, "blocks b c"], float] | None:
    """Values on the support of a pattern and the squared error outside it, or None if that is more than `allowed`."""
    values = extract(matrix, pattern)
    if pattern.blocks == 1:
        return values, 0.0
    total = float(energy(matrix[None]))
    if total - float(energy(values[None])) > 2 * allowed + 1e-5:  # quick, and wrong only by rounding
        return None
    outside = float(energy(without_support(matrix, pattern)[None]))
    return (values, outside) if outside <= allowed else None


def _cuts(
    values: Num[torch.Tensor, "blocks m n"], precise: bool, progress: Callable[[int, int], None] | None
) -> list[Cut]:
    blocks, m, n = values.shape
    where = places(m, n, WORK / blocks)
    cuts = []
    for i, (rows, columns) in enumerate(where):
        cuts.append(measure(values, rows, columns, precise))
        if progress is not None:
            progress(i + 1, len(where))
    return cuts


def _search(
    cuts: list[Cut],
    values: Num[torch.Tensor, "blocks m n"],
    tolerance: float | None,
    allowed: float,
    limit: int,
    floor: float,
) -> Path | None:
    """Cheapest path for the squared error allowed; for a budget, bisection on the logarithm of the tolerance.

    Parameters of a path are those of one block: all blocks share the chain.
    """
    blocks, m, n = values.shape
    limit = min(limit // blocks, m * n)
    if tolerance is not None or limit >= m * n:
        # dense is within a budget of m n and has no error; a chain that has none either is smaller
        return cheapest_path(cuts, m, n, max(allowed if tolerance is not None else 0.0, floor**2), m * n)
    best = cheapest_path(cuts, m, n, 1.0, limit, BISECTION_BUCKETS)
    if best.parameters > limit:
        return None
    low, high = log10(floor), log10(max(sqrt(best.squared_error), floor))
    while high - low > 0.01:
        middle = (low + high) / 2
        path = cheapest_path(cuts, m, n, 10.0 ** (2 * middle), limit, BISECTION_BUCKETS)
        if path.parameters <= limit:
            best = min(best, path, key=lambda p: (p.squared_error, p.parameters))
            high = min(middle, log10(max(sqrt(path.squared_error), floor)))
        else:
            low = middle
    return best


def _merit(choice: Choice, tolerance: float | None) -> tuple[float, float]:
    parameters, bound = float(choice.chain.nnz), choice.bound
    return (parameters, bound) if tolerance is not None else (bound, parameters)


def _why(chain: Chain, bound: float, tolerance: float | None, limit: int) -> str:
    m, n = chain.shape
    if chain == Chain.dense(m, n):
        reason = (
            f"meets the tolerance {tolerance:g}" if tolerance is not None else f"within {limit} parameters is better"
        )
        return f"dense is best: no chain with fewer than {m * n} parameters {reason}"
    aim = f"fewest parameters found for tolerance {tolerance:g}" if tolerance is not None else f"best within {limit}"
    return f"{aim}: {chain.nnz} parameters, {chain.density:.1%} of dense, a-priori relative error {bound:.2g}"


def _finest(m: int, n: int) -> Chain:
    """A chain whose radices are the primes of m and of n, only to name permutations."""
    q, p = list(Chain.butterfly(m).radices[0]), list(Chain.butterfly(n).radices[0])
    length = max(len(q), len(p))
    q, p = q + [1] * (length - len(q)), p + [1] * (length - len(p))
    return Chain.from_radices(q, p, [1] * (length - 1))
