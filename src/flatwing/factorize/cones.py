"""Cones: sets of sparse or structured matrices, each as the function that finds the nearest matrix in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import TypeVar, final

import torch
from jaxtyping import Bool, Int, Num, Shaped

from ..core import Registry
from ..structure import Support

# Roundings by which equal sizes may differ. Rounding would decide else which of them are kept, and with them whether a
# Hadamard matrix with other phases is still recovered.
TIE = 64
Values = Num[torch.Tensor, "m n"]
Function = TypeVar("Function", bound=Callable[..., torch.Tensor])


@final
@dataclass(frozen=True, slots=True)
class Rule:
    """What a registered name means: `function(matrix, *arguments)` is the nearest matrix of the set, before scaling.

    Law: the set is a cone, so the nearest of its matrices of norm 1 is the nearest of all, scaled; the result depends
    on the matrix alone, of equal entries the first ones win; what is in the set stays as it is.
    """

    function: Callable[..., torch.Tensor]
    entries: bool
    """Whether the set says only which entries may be non-zero, so that values on them are free."""
    fixed: bool
    """Whether these entries are the same for every matrix."""
    closest: bool
    """Whether the result is the nearest one; otherwise it is a rule of thumb that users of FAuST expect."""

    @property
    def summary(self) -> str:
        """One line for lists."""
        return (self.function.__doc__ or "").splitlines()[0]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the arguments after the matrix."""
        return tuple(signature(self.function).parameters)[1:]


PROJECTIONS: Registry[Rule] = Registry("projection")


def _rule(
    name: str, *, entries: bool = False, fixed: bool = False, closest: bool = True
) -> Callable[[Function], Function]:
    def file(function: Function) -> Function:
        PROJECTIONS.register(name)(Rule(function, entries, fixed, closest))
        return function

    return file


def _largest(scores: Num[torch.Tensor, "*batch k"], count: int) -> Bool[torch.Tensor, "*batch k"]:
    """Where the `count` largest of the last axis are; of those equal to rounding the first."""
    total = scores.shape[-1]
    count, eps = min(count, total), torch.finfo(scores.dtype).eps
    least = scores.kthvalue(total - count + 1, dim=-1, keepdim=True).values
    above = scores > least * (1 + TIE * eps)
    equal = (scores >= least * (1 - TIE * eps)) & ~above
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def _divides(values: Values, rows: int, columns: int, what: str) -> None:
    m, n = values.shape
    if m % rows or n % columns:
        raise ValueError(f"{what} for a factor of {m} x {n}. Rule: whole parts, {rows} | {m} and {columns} | {n}.")


def _square(values: Values, what: str) -> int:
    if values.shape[0] != values.shape[1]:
        raise ValueError(f"{what} of {values.shape[0]} x {values.shape[1]}. Rule: a square factor.")
    return len(values)


def _levels(values: Values, labels: Int[torch.Tensor, "m n"]) -> Values:
    """The mean over all entries with the same label, everywhere."""
    flat, labels = values.reshape(-1), labels.reshape(-1).to(values.device)
    sums = flat.new_zeros(int(labels.max()) + 1).index_add_(0, labels, flat)
    return (sums / labels.bincount().clamp(min=1))[labels].reshape(values.shape)


def _places(values: Shaped[torch.Tensor, "m n"]) -> tuple[Int[torch.Tensor, "m 1"], Int[torch.Tensor, " n"]]:
    m, n = values.shape
    return torch.arange(m)[:, None], torch.arange(n)


@_rule("sp", entries=True)
def _sparse(values: Values, k: int) -> Values:
    """The k largest entries."""
    return values * _largest(values.abs().reshape(-1), k).reshape(values.shape)


@_rule("splin", entries=True)
def _sparse_rows(values: Values, k: int) -> Values:
    """The k largest entries of each row."""
    return values * _largest(values.abs(), k)


@_rule("spcol", entries=True)
def _sparse_columns(values: Values, k: int) -> Values:
    """The k largest entries of each column."""
    return values * _largest(values.abs().T, k).T


@_rule("splincol", entries=True, closest=False)
def _sparse_rows_or_columns(values: Values, k: int) -> Values:
    """The entries that are among the k largest of their row or of their column."""
    sizes = values.abs()
    return values * (_largest(sizes, k) | _largest(sizes.T, k).T)


@_rule("skperm", entries=True)
def _sparse_both(values: Values, k: int) -> Values:
    """k entries in each row and each column, of the largest energy: the best assignment."""
    from scipy.optimize import LinearConstraint, linear_sum_assignment, milp  # here, because importing them is slow
    from scipy.sparse import eye_array, kron, vstack

    n = _square(values, f"skperm({k})")
    if k >= n:
        return values.clone()
    gains = values.abs().square().numpy(force=True).astype("float64")
    mask = torch.zeros(values.shape, dtype=torch.bool)
    if k == 1:
        mask[linear_sum_assignment(gains, maximize=True)] = True
    else:
        ones = torch.ones(1, n).numpy()
        sums = vstack([kron(eye_array(n), ones), kron(ones, eye_array(n))])  # of rows, of columns
        scale = float(gains.max()) or 1.0
        found = milp(-gains.reshape(-1) / scale, constraints=LinearConstraint(sums, k, k), bounds=(0, 1)).x
        mask = torch.from_numpy(found.reshape(n, n) > 0.5)  # corners of this polytope are zeros and ones
    return values * mask.to(values.device)


@_rule("nm", entries=True)
def _n_of_m(values: Values, n: int, m: int) -> Values:
    """The n largest of each m neighbours in a row."""
    _divides(values, 1, m, f"nm({n},{m})")
    return values * _largest(values.abs().reshape(len(values), -1, m), n).reshape(values.shape)


@_rule("block", entries=True)
def _sparse_blocks(values: Values, k: int, rows: int, columns: int) -> Values:
    """The k blocks of rows x columns entries with the largest norm."""
    _divides(values, rows, columns, f"block({k},{rows},{columns})")
    blocks = values.reshape(len(values) // rows, rows, -1, columns)
    energy = blocks.abs().square().sum((1, 3))
    kept = _largest(energy.reshape(-1), k).reshape(energy.shape)
    return (blocks * kept[:, None, :, None]).reshape(values.shape)


@_rule("supp", entries=True, fixed=True)
def _support(values: Values, support: Support) -> Values:
    """The entries of a fixed support."""
    if tuple(values.shape) != support.shape:
        raise ValueError(f"a support of {support.shape} for a factor of {tuple(values.shape)}. Rule: equal shapes.")
    return torch.where(support.mask.to(values.device), values, 0)


@_rule("blockdiag", entries=True, fixed=True)
def _block_diagonal(values: Values, blocks: int) -> Values:
    """That many equal blocks on the diagonal."""
    _divides(values, blocks, blocks, f"blockdiag({blocks})")
    i, j = _places(values)
    same = i // (len(values) // blocks) == j // (values.shape[1] // blocks)
    return values * same.to(values.device)


@_rule("tril", entries=True, fixed=True)
def _lower(values: Values) -> Values:
    """Lower triangular, with the diagonal."""
    return values.tril()


@_rule("triu", entries=True, fixed=True)
def _upper(values: Values) -> Values:
    """Upper triangular, with the diagonal."""
    return values.triu()


@_rule("circ")
def _circulant(values: Values) -> Values:
    """Circulant: entry (i, j) depends on i - j modulo the size."""
    n = _square(values, "circ")
    i, j = _places(values)
    return _levels(values, (i - j) % n)


@_rule("anticirc")
def _anticirculant(values: Values) -> Values:
    """Anti-circulant: entry (i, j) depends on i + j modulo the size."""
    n = _square(values, "anticirc")
    i, j = _places(values)
    return _levels(values, (i + j) % n)


@_rule("toeplitz")
def _toeplitz(values: Values) -> Values:
    """Toeplitz: entry (i, j) depends on i - j."""
    i, j = _places(values)
    return _levels(values, i - j + values.shape[1] - 1)


@_rule("hankel")
def _hankel(values: Values) -> Values:
    """Hankel: entry (i, j) depends on i + j."""
    i, j = _places(values)
    return _levels(values, i + j)


@_rule("normcol")
def _even_columns(values: Values) -> Values:
    """All columns have the same norm; a zero column becomes a constant one."""
    norms = torch.linalg.vector_norm(values, dim=0)
    whole = torch.where(norms > 0, values, 1)
    return whole * (norms.mean() / torch.linalg.vector_norm(whole, dim=0))


@_rule("normlin")
def _even_rows(values: Values) -> Values:
    """All rows have the same norm; a zero row becomes a constant one."""
    return _even_columns(values.T).T


@_rule("const", fixed=True)
def _constant(values: Values, matrix: torch.Tensor) -> Values:
    """A given matrix, whatever the argument; only its scale is free."""
    if values.shape != matrix.shape:
        raise ValueError(
            f"a constant of {tuple(matrix.shape)} for a factor of {tuple(values.shape)}. Rule: equal shapes."
        )
    if matrix.is_complex() and not values.is_complex():
        raise ValueError("a complex constant in a product for a real matrix. Rule: real ones. Write A.to(complex128).")
    return matrix.to(values)


@_rule("id", entries=True, fixed=True)
def _anything(values: Values) -> Values:
    """Any matrix."""
    return values.clone()
