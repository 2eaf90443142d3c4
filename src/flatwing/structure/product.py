"""SparseProduct: a chain and the values of its factors, as a linear operator."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import cached_property, reduce
from math import prod
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int, Num

from ..core import as_permutation, from_numpy
from .chain import Chain
from .factor import apply_factor, embed, with_batch
from .pattern import Pattern
from .split import Split

ORDINARY = (torch.Tensor, torch.nn.Parameter)


@final
class SparseProduct:
    """The matrix P = Q_out^T K_1 ... K_L Q_in with K_l supported on the patterns of a chain.

    Factor l has shape (*batch, a*d, b, c): blocks first, each block out-by-in. The optional permutations act as
    P[perm_out][:, perm_in] = K_1 ... K_L. Everything is differentiable in the factors and in what P is applied to.

    Raises `ValueError` for wrong numbers or shapes of factors, `TypeError` for values that are not floating point.

    >>> factors = [torch.ones(2, 2, 2), torch.ones(2, 2, 2)]
    >>> P = SparseProduct(Chain.butterfly(4), factors)
    >>> P.shape, P.nnz, (P @ torch.ones(4)).tolist()
    ((4, 4), 16, [4.0, 4.0, 4.0, 4.0])
    """

    __array_ufunc__ = None  # numpy arrays leave `array @ P` to __rmatmul__

    def __init__(
        self,
        chain: Chain,
        factors: Iterable[torch.Tensor],
        perm_in: Any = None,
        perm_out: Any = None,
    ) -> None:
        self.chain = chain
        self.factors = tuple(factors)
        if not isinstance(chain, Chain) or not all(isinstance(w, torch.Tensor) for w in self.factors):
            kinds = ", ".join(type(x).__name__ for x in (chain, *self.factors))
            raise TypeError(f"a product is made of a Chain and torch tensors, got {kinds}. See Chain.parse, as_tensor.")
        if len(self.factors) != len(chain):
            raise ValueError(f"the chain {chain} has {len(chain)} factors, got {len(self.factors)} tensors.")
        first = self.factors[0]
        if not (first.is_floating_point() or first.is_complex()):
            raise TypeError(f"factors have dtype {first.dtype}. Rule: real or complex floating point, such as float32.")
        self.batch = first.shape[:-3]
        for i, (pattern, factor) in enumerate(zip(chain, self.factors, strict=True)):
            want = (*self.batch, pattern.blocks, pattern.b, pattern.c)
            if tuple(factor.shape) != want:
                raise ValueError(
                    f"factor {i} of pattern {pattern} has shape {tuple(factor.shape)}. "
                    f"Rule: (*batch, a*d, b, c), here {want}."
                )
            if factor.dtype != first.dtype or factor.device != first.device:
                raise ValueError(
                    f"factor {i} is {factor.dtype} on {factor.device}, factor 0 is {first.dtype} on {first.device}. "
                    "Rule: one dtype and one device; use .to(...) on the tensors."
                )
        m, n = chain.shape
        self.perm_in = None if perm_in is None else as_permutation(perm_in, n, "perm_in", first.device)
        self.perm_out = None if perm_out is None else as_permutation(perm_out, m, "perm_out", first.device)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*batch, rows, columns)."""
        return (*self.batch, *self.chain.shape)

    dtype = property(  # a lambda, so that no decorator of functions stands between it and its caller
        lambda self: self._dtype_for(sys._getframe(1).f_globals.get("__name__", "")),
        doc="Torch dtype of the factors; scipy (and only scipy), which knows no torch dtypes, is told the numpy one.",
    )

    def _dtype_for(self, caller: str) -> Any:
        dtype = self.factors[0].dtype
        if not caller.startswith("scipy."):
            return dtype
        return np.dtype(str(dtype).removeprefix("torch.") if dtype != torch.bfloat16 else "float32")

    @cached_property
    def plain_sizes(self) -> list[int] | None:
        """Bytes of each factor, if this is one matrix of ordinary tensors, without permutations; else None."""
        special = any(type(w) not in ORDINARY or w.is_conj() or w.is_neg() for w in self.factors)
        special |= bool(self.batch) or self.perm_in is not None or self.perm_out is not None
        return None if special else [p.nnz * self.factors[0].itemsize for p in self.chain]

    @property
    def device(self) -> torch.device:
        """Device of the factors."""
        return self.factors[0].device

    @property
    def nnz(self) -> int:
        """Number of parameters, over the whole batch."""
        return prod(self.batch) * self.chain.nnz

    @property
    def T(self) -> SparseProduct:
        """The transposed operator, sharing the values; its chain is the dual flavour."""
        return self._transposed(lambda w: w.mT)

    @property
    def H(self) -> SparseProduct:
        """The conjugate-transposed operator."""
        return self._transposed(lambda w: w.mH)

    def _transposed(self, flip: Callable[[torch.Tensor], torch.Tensor]) -> SparseProduct:
        return SparseProduct(self.chain.T, [flip(w) for w in reversed(self.factors)], self.perm_out, self.perm_in)

    def conj(self) -> SparseProduct:
        """The operator with conjugated values."""
        return self._with([w.conj() for w in self.factors])

    def to(self, *args: Any, **kwargs: Any) -> SparseProduct:
        """The operator with another dtype or device; arguments as for `Tensor.to`."""
        return self._with([w.to(*args, **kwargs) for w in self.factors])

    def detach(self) -> SparseProduct:
        """The operator without the history of its values."""
        return self._with([w.detach() for w in self.factors])

    def _with(self, factors: Iterable[torch.Tensor]) -> SparseProduct:
        return SparseProduct(self.chain, factors, self.perm_in, self.perm_out)

    def dense(self) -> Num[torch.Tensor, "*batch m n"]:
        """The matrix itself. Cost: neighbours are multiplied in a balanced tree where that is defined, O(m n r)."""
        if self.chain.chainable or self.chain.T.chainable:
            whole = self.merge(0, len(self.chain) - 1)
            m = embed(whole.factors[0], whole.chain[0])
            return self._unpermute(self._unpermute(m, self.perm_out, -2), self.perm_in, -1)
        n = self.chain.shape[1]
        return self @ torch.eye(n, dtype=self.factors[0].dtype, device=self.device).expand(*self.batch, n, n)

    @staticmethod
    def _unpermute(x: torch.Tensor, perm: Int[torch.Tensor, " k"] | None, dim: int) -> torch.Tensor:
        return x if perm is None else x.index_select(dim, perm.argsort())

    def merge(self, i: int, j: int) -> SparseProduct:
        """Fuse the factors i to j, both included, into one: exact, no approximation.

        Raises `ValueError` for indices out of range or factors whose product has no pattern (not chainable).

        >>> P = SparseProduct(Chain.butterfly(8), [torch.ones(4, 2, 2)] * 3)
        >>> print(P.merge(0, 1).chain)
        (1,4,4,2)(4,2,2,1)
        """
        if not 0 <= i <= j < len(self.chain):
            raise ValueError(f"merge({i}, {j}) of {len(self.chain)} factors. Rule: 0 <= i <= j < {len(self.chain)}.")
        run = self.chain[i : j + 1]
        if not run.chainable and run.T.chainable:  # a piece of the dual flavour
            return self.T.merge(len(self.chain) - 1 - j, len(self.chain) - 1 - i).T
        run.require_chainable()
        batch = prod(self.batch)
        flat = [w.reshape(-1, *w.shape[-2:]) for w in self.factors]

        def fuse(lo: int, hi: int) -> tuple[Pattern, torch.Tensor]:  # hi excluded; patterns with the batch inside a
            if hi - lo == 1:
                return with_batch(self.chain[lo], batch), flat[lo]
            middle = (lo + hi) // 2
            (left, x), (right, y) = fuse(lo, middle), fuse(middle, hi)
            split = Split(left, right)
            return split.pattern, split.multiply(x, y)

        pattern = reduce(Pattern.__mul__, run.patterns)
        values = fuse(i, j + 1)[1].reshape(*self.batch, pattern.blocks, pattern.b, pattern.c)
        chain = Chain((*self.chain.patterns[:i], pattern, *self.chain.patterns[j + 1 :]))
        factors = (*self.factors[:i], values, *self.factors[j + 1 :])
        return SparseProduct(chain, factors, self.perm_in, self.perm_out)

    def reduced(self) -> SparseProduct:
        """The same operator with redundant neighbours fused: fewer factors, never more parameters to no use."""
        if not self.chain.chainable and self.chain.T.chainable:
            return self.T.reduced().T
        product = self
        for s in sorted(self.chain.redundant_splits, reverse=True):
            product = product.merge(s - 1, s)
        return product

    def expanded(self, chain: Chain) -> SparseProduct:
        """The same operator on a longer chain that reduces to this one; the inverse of `reduced`, exact.

        Raises `ValueError` unless `chain.reduced()` is this product's chain.

        >>> long = Chain.butterfly(16, rank=2)
        >>> P = SparseProduct(long.reduced(), [torch.ones(4, 4, 8), torch.ones(4, 8, 4)])
        >>> P.expanded(long).chain == long, bool((P.expanded(long).dense() == P.dense()).all())
        (True, True)
        """
        if not chain.chainable and chain.T.chainable:
            return self.T.expanded(chain.T).T
        if chain.reduced() != self.chain:
            raise ValueError(
                f"{chain} reduces to {chain.reduced()}, not to {self.chain}. Rule: the same reduced chain."
            )
        batch = prod(self.batch)
        kept = [s for s in range(1, len(chain)) if s not in chain.redundant_splits]
        ends = [0, *kept, len(chain)]
        nodes = {
            (lo, hi): w.reshape(-1, *w.shape[-2:]) for lo, hi, w in zip(ends, ends[1:], self.factors, strict=False)
        }
        for s in reversed(chain.redundant_splits):  # undo the merges, last one first
            lo, hi = next(span for span in nodes if span[0] < s < span[1])
            left, right = chain[lo:s].pattern, chain[s:hi].pattern
            split = Split(with_batch(left, batch), with_batch(right, batch))
            nodes[lo, s], nodes[s, hi] = split.expand(nodes.pop((lo, hi)))
        values = [nodes[i, i + 1].reshape(*self.batch, p.blocks, p.b, p.c) for i, p in enumerate(chain)]
        return SparseProduct(chain, values, self.perm_in, self.perm_out)

    def __len__(self) -> int:
        return len(self.chain)

    def __getitem__(self, index: slice) -> SparseProduct:
        """Product of a slice of the factors, with the permutation of an end that is included."""
        if not isinstance(index, slice):
            raise TypeError(f"a product is sliced, as in P[0:2], got P[{index!r}]; one factor's values: P.factors[i].")
        start, stop, _ = index.indices(len(self.chain))
        return SparseProduct(
            self.chain[index],
            self.factors[index],
            self.perm_in if stop == len(self.chain) else None,
            self.perm_out if start == 0 else None,
        )

    def __matmul__(self, x: Any) -> Any:
        """P @ x for a vector (n,), a matrix (n, k) or a stack (..., n, k), or another product (lazily).

        Cost: 2 nnz k multiplications and additions. numpy in, numpy out. Raises `ValueError` if the sizes do not fit.
        """
        if isinstance(x, SparseProduct):
            return self._compose(x)
        if isinstance(x, np.ndarray):
            return _to_numpy(self @ from_numpy(x))
        if not isinstance(x, torch.Tensor):
            return NotImplemented
        n = self.chain.shape[1]
        if x.ndim == 1 and len(x) == n:
            return (self @ x[:, None])[..., 0]
        if x.ndim < 2 or x.shape[-2] != n:
            raise ValueError(f"P has {n} columns, x has shape {tuple(x.shape)}. Rule: x is ({n},) or (..., {n}, k).")
        return self._apply(x)

    def _apply(self, x: Num[torch.Tensor, "*stack n k"]) -> Num[torch.Tensor, "*batch m k"]:
        dtype = torch.promote_types(self.factors[0].dtype, x.dtype)
        if self.perm_in is not None:
            x = x.index_select(-2, self.perm_in)
        (m, n), k = self.chain.shape, x.shape[-1]
        if self.batch:
            stack = self.batch
            try:
                y = x.expand(*stack, n, k).reshape(-1, k)  # the batch becomes part of `a`
            except RuntimeError:
                raise ValueError(
                    f"P has batch {tuple(stack)}, x has {tuple(x.shape[:-2])}. Rule: the same batch, or none."
                ) from None
        else:
            stack = x.shape[:-2]
            y = x.movedim(-2, 0).reshape(n, -1)
        y = y.to(dtype)
        for pattern, w in zip(reversed(self.chain.patterns), reversed(self.factors), strict=True):
            y = apply_factor(w.reshape(-1, pattern.b, pattern.c).to(dtype), y, pattern.d)
        y = y.reshape(*stack, m, k) if self.batch else y.reshape(m, *stack, k).movedim(0, -2)
        return self._unpermute(y, self.perm_out, -2)

    def _compose(self, other: SparseProduct) -> SparseProduct:
        inner = [p for p in (self.perm_in, other.perm_out) if p is not None]
        same = len(inner) == 2 and torch.equal(inner[0], inner[1])
        if inner and not same:
            raise ValueError(
                "P @ Q needs the same (or no) permutation between them, but P.perm_in and Q.perm_out differ. "
                "Use P @ Q.dense(), or apply one after the other."
            )
        return SparseProduct(self.chain + other.chain, (*self.factors, *other.factors), other.perm_in, self.perm_out)

    def __rmatmul__(self, x: Any) -> Any:
        """The product x @ P for a vector (m,) or (..., k, m)."""
        if isinstance(x, np.ndarray):
            return _to_numpy(from_numpy(x) @ self)
        if not isinstance(x, torch.Tensor):
            return NotImplemented
        m, _ = self.chain.shape
        if x.ndim < 1 or x.shape[-1] != m:
            raise ValueError(
                f"P has {m} rows, x has shape {tuple(x.shape)}. Rule: x @ P with x ({m},) or (..., k, {m})."
            )
        return (self.T @ x) if x.ndim == 1 else (self.T @ x.mT).mT

    def __mul__(self, scale: int | float | complex | torch.Tensor) -> SparseProduct:
        """The operator times a number (a tensor without dimensions, say), absorbed by the first factor."""
        if isinstance(scale, SparseProduct) or np.ndim(scale) > 0:
            raise TypeError("P * x multiplies by a number. For products of matrices write P @ x, for rows scale_rows.")
        scaled = self.factors[0] * scale
        return self._with([scaled, *(w.to(scaled.dtype) for w in self.factors[1:])])

    __rmul__ = __mul__

    def matvec(self, x: np.ndarray) -> np.ndarray:
        """P x for a numpy vector: what scipy asks for."""
        return np.asarray(self.matmat(x.reshape(-1, 1))).reshape(-1)

    def rmatvec(self, x: np.ndarray) -> np.ndarray:
        """P^H x for a numpy vector: what scipy asks for."""
        return self.H.matvec(x)

    def matmat(self, x: np.ndarray) -> np.ndarray:
        """P X for a numpy matrix."""
        return self.detach() @ x

    def rmatmat(self, x: np.ndarray) -> np.ndarray:
        """P^H X for a numpy matrix."""
        return self.H.matmat(x)

    def ks_values(self) -> list[Num[torch.Tensor, "*batch a b c d"]]:
        """The values as (*batch, a, b, c, d) arrays, K[i b d + j d + l, i c d + k d + l] = T[i, j, k, l], the layout of
        lazylinop's `ks_values` and of the ksmm kernels.
        """
        pairs = zip(self.chain, self.factors, strict=True)
        return [w.reshape(*self.batch, p.a, p.d, p.b, p.c).movedim(-3, -1) for p, w in pairs]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with the chain in its metadata; nothing is left behind if writing fails."""
        from .storage import save_product

        save_product(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SparseProduct:
        """Read what `save` wrote; raises `ValueError` for a truncated, foreign or newer file."""
        from .storage import load_product

        return load_product(path)

    def __repr__(self) -> str:
        dtype = str(self.factors[0].dtype).removeprefix("torch.")
        return f"SparseProduct(shape={self.shape}, chain={str(self.chain)!r}, nnz={self.nnz}, dtype={dtype})"


def _to_numpy(x: torch.Tensor) -> np.ndarray:
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy(force=True)  # numpy has no bfloat16
