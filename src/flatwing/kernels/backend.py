"""Backend: one way to multiply by a product of factors, and the registry of them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias, final

import torch

from ..core import Registry
from ..structure import Chain

Layout = Literal["batch-first", "batch-last"]
Runner: TypeAlias = Callable[[torch.Tensor, Sequence[torch.Tensor]], torch.Tensor]
"""Multiplies x by factors of one chain."""
Prepared: TypeAlias = Callable[[torch.Tensor, int], torch.Tensor]
"""Multiplies x (rows, n) by factors that it knows, on so many threads."""


@final
@dataclass(frozen=True, slots=True)
class Task:
    """What is to be multiplied: everything that the choice of a backend may depend on.

    >>> Task(Chain.butterfly(8), rows=16).dtype
    torch.float32
    """

    chain: Chain
    rows: int
    """Number of vectors."""
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    """Kind of device: "cpu", "cuda"."""
    layout: Layout = "batch-first"
    """Vectors are the rows (batch-first) or the columns (batch-last) of what is multiplied."""
    train: bool = False
    """Whether both gradients are counted in, too."""
    threads: int = 1
    products: int = 1
    """How many products of one size stand on the diagonal of the chain, which is that of all of them."""
    packed: bool = False
    """Whether the weights are prepared once, so that no call has to read, pack or merge them: see `Packed`."""


NARROW = (torch.float16,)
"""Types whose range a product of factors leaves easily: those are not merged unless the user says so."""


class Gradients(NamedTuple):
    """Gradients of one multiplication; None for what was not asked for."""

    x: torch.Tensor | None
    factors: list[torch.Tensor] | None


class Backend(abc.ABC):
    """Law: `forward` equals x @ (K_1 ... K_L)^T up to rounding for every task that `unsupported_because` lets pass.

    Factors are (a*d, b, c), leftmost first; `depths` are the d of their patterns, so a = blocks // d. Factors may have
    any strides. x has the dtype of the factors, any strides, and the shape (rows, n), or (n, rows) if `last`.
    """

    native: bool = False
    """True if `forward` is made of differentiable torch operations, which autograd and compilers see through."""

    @abc.abstractmethod
    def unsupported_because(self, task: Task) -> str | None:
        """None if supported, else a reason a user can act on. Takes no time."""

    def fails_because(self, task: Task) -> str | None:
        """None if a supported task can run here, else the reason. May take seconds: kernels are compiled and tried."""
        return None

    @abc.abstractmethod
    def seconds(self, task: Task) -> float:
        """Predicted time of one call, without the overhead that all backends share."""

    def merges(self, task: Task) -> tuple[int, ...]:
        """Splits (1-based) whose two sides should be multiplied together first, in every call, to make this faster."""
        return ()

    @abc.abstractmethod
    def forward(
        self, x: torch.Tensor, factors: Sequence[torch.Tensor], depths: Sequence[int], last: bool
    ) -> torch.Tensor:
        """A new contiguous (rows, m), or (m, rows) if `last`."""

    def runner(self, task: Task) -> Runner:
        """`forward` for at most the rows of a task: what depends on nothing else is decided here, once."""
        depths, last = task.chain.depths, task.layout == "batch-last"
        return lambda x, factors: self.forward(x, factors, depths, last)

    def prepared(self, factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Prepared:
        """`forward` of rows for contiguous factors that never change: what depends on them alone is done once, here."""
        return lambda x, threads: self.forward(x, factors, depths, False)

    def backward(
        self,
        x: torch.Tensor,
        factors: Sequence[torch.Tensor],
        depths: Sequence[int],
        grad: torch.Tensor,
        last: bool,
        need_x: bool = True,
        need_factors: bool = True,
    ) -> Gradients:
        """Gradients for x and all factors, conjugated as autograd wants them; `grad` has the shape of the result.

        Only backends that are not `native` have it.
        """
        raise TypeError(f"{type(self).__name__} is differentiated by autograd.")


def chain_of(factors: Sequence[torch.Tensor], depths: Sequence[int]) -> Chain:
    """The chain of factors (a*d, b, c) with these d.

    >>> print(chain_of([torch.ones(2, 2, 2), torch.ones(2, 2, 2)], (2, 1)))
    (1,2,2,2)(2,2,2,1)
    """
    return _chain(tuple((w.shape[0] // d, w.shape[1], w.shape[2], d) for w, d in zip(factors, depths, strict=True)))


@lru_cache(maxsize=1024)
def _chain(patterns: tuple[tuple[int, ...], ...]) -> Chain:
    return Chain(patterns)


BACKENDS: Registry[Backend] = Registry("backend")


def resolved(x: torch.Tensor) -> torch.Tensor:
    """The tensor with conjugation and negation carried out where torch only noted them: what kernels may read."""
    return solid(x.resolve_conj().resolve_neg())


LOW = 1 << 40
"""Addresses below may be offsets into memory that was freed: worth a look by `solid`."""


def solid(x: torch.Tensor) -> torch.Tensor:
    """x, or zeros in memory if torch only noted that it is zero.

    Raises `RuntimeError` for a tensor whose memory was freed.
    """
    if x.numel() == 0 or x.data_ptr() != x.storage_offset() * x.itemsize:  # without memory it begins at zero
        return x
    if x._is_zerotensor():
        return x.new_zeros(x.shape)
    raise RuntimeError(
        f"a tensor of shape {tuple(x.shape)} has no memory: it was freed, as wrappers that shard weights do between "
        "calls. Rule: weights that are there; call the wrapped module, or gather its parameters first."
    )
