"""The libraries that `cpu_multiply.py` compares with, each used as its documentation tells a user to.

Every function yields contestants: something to call, and where its result is. Peers get the layout they are fastest in:
vectors as rows for torch, as columns for lazylinop, as columns in Fortran order for pyfaust. What can be prepared once
(merged factors, operators, packed weights) is prepared before the clock starts.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from flatwing import Chain, SparseProduct, kernels

SPARSE_GROUPS = 3  # merging more neighbours only adds work to a sparse matrix
LARGEST = 1 << 23  # values of merged factors: more never was the fastest variant


@dataclass
class Case:
    """What every contestant multiplies: `rows` vectors of length n, as rows ("first") and as columns ("last")."""

    n: int
    rows: int
    train: bool
    threads: int
    pick: torch.Tensor
    """Vectors whose results are compared with the definition in float64."""
    x: dict[str, torch.Tensor] = field(default_factory=dict)
    g: dict[str, torch.Tensor] = field(default_factory=dict)
    """Gradient of the result, only when training."""


@dataclass
class Contestant:
    """One way to multiply. Variants of one row compete, and the fastest stands in the table."""

    row: str
    run: Callable[[], Any]
    layout: str = "first"
    variant: str = ""
    product: SparseProduct | None = None
    """What it computes, with its parameters; None for a landmark that nothing is compared with."""
    factors: int = 1
    """How many intermediate results autograd keeps."""
    hopeless: str = ""
    """Why it is not even tried."""


Groupings = list[tuple[int, SparseProduct]]


def groupings(product: SparseProduct) -> Groupings:
    """The product with runs of neighbours merged, as evenly as possible: (longest run, product)."""
    length, found = len(product), {}
    for longest in (5, 4, 3, 7, 2, 1, length):
        count = -(-length // longest)
        if count in found or (count == 1 and length > 1 and product.shape[0] > 1024):
            continue
        merged = product
        for i in range(count):
            merged = merged.merge(i, i + (i + 1) * length // count - i * length // count - 1)
        if merged.nnz <= LARGEST:
            found[count] = longest, SparseProduct(merged.chain, [w.contiguous() for w in merged.factors])
    return list(found.values())


def step(
    case: Case, product: SparseProduct, layout: str, function: Callable[[torch.Tensor, Sequence[torch.Tensor]], Any]
) -> Callable[[], Any]:
    """`function` alone, or the gradients of it for x and all factors."""
    x = case.x[layout]
    if not case.train:
        factors = product.factors
        return lambda: function(x, factors)
    g = case.g[layout]
    leaves = [x.detach().requires_grad_(), *(w.detach().clone().requires_grad_() for w in product.factors)]

    def gradients() -> Any:
        with torch.enable_grad():
            return torch.autograd.grad(function(leaves[0], leaves[1:]), leaves, g)

    return gradients


def flatwing(case: Case, product: SparseProduct) -> Iterator[Contestant]:
    """`kernels.multiply`: what the planner chooses, and every backend by name; and weights packed before the clock."""
    if not case.train:
        packed, x = kernels.Packed(product), case.x["first"]
        plan = packed.plan(case.rows, case.threads)
        yield Contestant("flatwing packed", lambda: packed(x), "first", plan.backend, product)
    auto = kernels.explain(product, case.rows, train=case.train, threads=case.threads)
    full: dict[str, Any] = {"first": "batch-first", "last": "batch-last"}
    for layout, names in (("first", ["auto", *kernels.list_backends()]), ("last", ["auto"])):
        for name in names:
            try:
                plan = kernels.explain(
                    product, case.rows, backend=name, layout=full[layout], train=case.train, threads=case.threads
                )
            except ValueError:
                continue

            run = step(case, product, layout, _multiply(product.chain, name, full[layout]))
            suffix = "" if layout == "first" else " batch-last"
            kept = 2 * len(product) if kernels.BACKENDS[plan.backend].native else 1
            hopeless = f"predicted {plan.seconds:.2g} s" if plan.seconds > max(20 * auto.seconds, 0.1) else ""
            yield Contestant(f"flatwing {name}{suffix}", run, layout, plan.backend, product, kept, hopeless)


def _multiply(chain: Chain, backend: str, layout: Any) -> Callable[[torch.Tensor, Sequence[torch.Tensor]], Any]:
    made: list[SparseProduct] = []  # the operator is made in the first call, as a layer makes its own once

    def multiply(x: torch.Tensor, factors: Sequence[torch.Tensor]) -> torch.Tensor:
        if not made:
            made.append(SparseProduct(chain, factors))
        return kernels.multiply(x, made[0], backend=backend, layout=layout)

    return multiply


def batch_first(x: torch.Tensor, factors: Sequence[torch.Tensor], patterns: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Batched GEMM, vectors as rows: reshape, permute, bmm, permute back."""
    rows = x.shape[0]
    for w, (a, b, c, d) in zip(factors[::-1], patterns[::-1], strict=True):
        x = x.reshape(rows, a, c, d).permute(1, 3, 0, 2).reshape(a * d, rows, c)
        x = torch.bmm(x, w.mT).view(a, d, rows, b).permute(2, 0, 3, 1)
    return x.reshape(rows, -1)


def batch_last(x: torch.Tensor, factors: Sequence[torch.Tensor], patterns: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Batched GEMM, vectors as columns: no copy where a = 1 or d = 1."""
    rows = x.shape[1]
    for w, (a, b, c, d) in zip(factors[::-1], patterns[::-1], strict=True):
        x = x.reshape(a, c, d, rows).transpose(1, 2).reshape(a * d, c, rows)
        x = torch.bmm(w, x).view(a, d, b, rows).transpose(1, 2)
    return x.reshape(-1, rows)


LAYOUTS = {"first": batch_first, "last": batch_last}


def bmm(case: Case, groups: Groupings) -> Iterator[Contestant]:
    """torch.bmm of merged neighbours. When training, the merged factors are the parameters: less work than ours."""
    for longest, merged in groups:
        if len(merged) == 1:
            continue  # the dense matrix
        patterns = [tuple(p) for p in merged.chain]
        for layout, apply in LAYOUTS.items():
            run = step(case, merged, layout, lambda x, ws, p=patterns, f=apply: f(x, ws, p))
            variant = f"runs of {longest}"
            yield Contestant(f"bmm batch-{layout}", run, layout, variant, merged, 2 * len(merged))


def compiled(case: Case, best: Contestant) -> Contestant:
    """torch.compile of the fastest `bmm` of this case; the first call, which compiles, is not timed."""
    assert best.product is not None
    patterns = [tuple(p) for p in best.product.chain]
    apply = LAYOUTS[best.layout]
    # code of its own: dynamo keeps what it compiled with the code object, and gives up after a few shapes
    copied = types.FunctionType(apply.__code__.replace(co_name=f"{apply.__name__}_{id(best)}"), apply.__globals__)
    ready = torch.compile(copied, fullgraph=True, dynamic=False)
    run = step(case, best.product, best.layout, lambda x, ws: ready(x, ws, patterns))
    variant = f"batch-{best.layout}, {best.variant}"
    return Contestant("compiled bmm", run, best.layout, variant, best.product, best.factors)


LAZYLINOP = (("torch", "xp"), ("numpy", "xp"), ("numpy", "scipy"), ("torch", "torch_sparse"))


def lazylinop(case: Case, groups: Groupings, operators: dict[Any, Any]) -> Iterator[Contestant]:
    """`ksm` with every backend it has on a CPU; as it is, and fused to runs of every length (the best one counts).

    Its `optimize` fuses in the same way, by heuristics or by minutes of measuring. When training, the operator is built
    in every step, since it copies the values it is given; only the torch namespace is differentiable.
    """
    import lazylinop.butterfly as lb

    for longest, merged in groups:
        fused = " fused" if longest > 1 else ""
        variant = f"runs of {longest}" if fused else ""
        for library, name in LAZYLINOP:
            if name != "xp" and longest > SPARSE_GROUPS:
                continue
            row, options = f"lazylinop {library} {name}{fused}".replace("torch torch", "torch"), {"backend": name}
            if case.train:
                if library == "torch" and name == "xp":

                    def rebuilt(x: torch.Tensor, ws: Sequence[torch.Tensor], chain: Chain = merged.chain) -> Any:
                        return lb.ksm(SparseProduct(chain, ws).ks_values(), {"backend": "xp"}) @ x

                    run = step(case, merged, "last", rebuilt)
                    yield Contestant(row, run, "last", variant, merged, 2 * len(merged))
                continue
            key = (library, name, len(merged))
            if key not in operators:
                values = [w.contiguous() for w in merged.ks_values()]
                operators[key] = lb.ksm([w.numpy() for w in values] if library == "numpy" else values, options)
            x = case.x["last"].numpy() if library == "numpy" else case.x["last"]
            yield Contestant(row, lambda x=x, op=operators[key]: op @ x, "last", variant, merged)


def pyfaust(case: Case, product: SparseProduct, operators: dict[Any, Any]) -> Iterator[Contestant]:
    """A Faust of sparse factors, and what `opt_butterfly_faust` makes of it where it applies; no gradients."""
    if case.train:
        return
    import pyfaust as pf

    if "faust" not in operators:
        operators["faust"] = pf.Faust([sparse(product[i : i + 1]) for i in range(len(product))], dtype="float32")
        if all((p.b, p.c) == (2, 2) for p in product.chain):
            operators["butterfly"] = pf.opt_butterfly_faust(operators["faust"])
    x = case.x["first"].numpy().T  # Fortran order: what its C++ core reads without a copy
    for key, row in (("faust", "pyfaust"), ("butterfly", "pyfaust opt_butterfly")):
        if key in operators:
            yield Contestant(row, lambda op=operators[key]: op @ x, "last", "", product)


def sparse(factor: SparseProduct) -> Any:
    """One factor as a scipy matrix."""
    import scipy.sparse as sp

    (pattern,), (w,) = factor.chain, factor.factors
    a, b, c, d = pattern
    i, j, o, k = np.ogrid[:a, :b, :c, :d]  # entry (j, o) of block (i, k)
    row, column = np.broadcast_arrays((i * b + j) * d + k, (i * c + o) * d + k)
    values = w.reshape(a, d, b, c).permute(0, 2, 3, 1).numpy()
    return sp.csr_matrix((values.ravel(), (row.ravel(), column.ravel())), shape=pattern.shape)


def landmarks(case: Case, matrix: torch.Tensor | None, dense: SparseProduct | None) -> Iterator[Contestant]:
    """Dense F.linear with this matrix (that of `dense`, if given), and what is faster than any weights can be."""
    x = case.x["first"]
    if matrix is not None:
        if case.train:
            leaves = (x.detach().requires_grad_(), matrix.detach().requires_grad_())

            def gradients() -> Any:
                with torch.enable_grad():
                    return torch.autograd.grad(torch.nn.functional.linear(*leaves), leaves, case.g["first"])

            yield Contestant("F.linear", gradients, "first", "", dense)
        else:
            yield Contestant("F.linear", lambda: torch.nn.functional.linear(x, matrix), "first", "", dense)
    if case.train:
        return
    out = torch.empty_like(x)
    yield Contestant("memcpy", lambda: out.copy_(x))
    yield Contestant("rfft", lambda: torch.fft.rfft(x))
    if case.n & (case.n - 1) == 0:
        columns = case.x["last"].numpy()
        transform = _hadamard(case.n, case.threads)
        _ = transform @ columns  # compiles
        yield Contestant("hadamard", lambda: transform @ columns)


@lru_cache(maxsize=1)
def _hadamard(n: int, threads: int) -> Any:
    """The fast Walsh-Hadamard transform of lazylinop, compiled by numba: a butterfly without weights to read."""
    from lazylinop.signal.fwht import _fwht_helper  # the public fwht offers no number of threads

    return _fwht_helper(n, backend="direct", workers=threads)
