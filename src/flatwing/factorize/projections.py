"""Projections: the nearest matrix of norm 1 with a given sparsity or structure, read from text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

import torch

from ..core import as_matrix
from ..structure import Pattern, Support
from .cones import PROJECTIONS as PROJECTIONS
from .cones import Rule, Values

_TERM = re.compile(r"([a-z]+)(?:\(([\d,\s]*)\))?(?:\s*\*\s*(\d+))?")


@final
@dataclass(frozen=True, slots=True)
class Projection:
    """The nearest matrix of norm 1 in a set: of what `PROJECTIONS` lists, with its arguments.

    Made by `Projection.of`: from text such as "spcol(2)", from a `Support`, a `Pattern` or a boolean mask (that
    support), or from a matrix (that matrix, whatever the argument). Called with a real or complex matrix (m, n); of a
    matrix whose projection is zero, the result is the scaled projection of the matrix of ones. Raises `ValueError` for
    unknown names, wrong numbers of arguments, and sizes that do not fit. Cost: O(m n log(m n)), assignments excepted.
    Source: Le Magoarou and Gribonval, "Flexible multilayer sparse approximations of matrices and applications", IEEE J.
    Sel. Top. Signal Process. 10(4), 2016, where the sets are called E_j.

    >>> Projection.of("sp(1)")(torch.tensor([[3.0, -4.0]])).tolist()
    [[0.0, -1.0]]
    """

    name: str
    arguments: tuple[Any, ...] = ()

    @staticmethod
    def of(what: Any) -> Projection:
        """The projection that a text, a support or a matrix stands for."""
        if isinstance(what, Projection):
            return what
        if isinstance(what, str):
            found = parse_projections(what)
            if len(found) != 1:
                raise ValueError(f"{what!r} holds {len(found)} projections. Rule: one, such as 'spcol(2)'.")
            return found[0]
        if isinstance(what, Support | Pattern) or hasattr(what, "toarray") or "bool" in str(getattr(what, "dtype", "")):
            return Projection("supp", (what if isinstance(what, Support) else Support(what),))
        return Projection("const", (as_matrix(what, "the matrix of a constant factor"),))

    @property
    def rule(self) -> Rule:
        """What the name means."""
        return PROJECTIONS[self.name]

    @property
    def shape(self) -> tuple[int, int] | None:
        """The shape that the arguments dictate, if they do."""
        return tuple(self.arguments[0].shape) if self.name in ("supp", "const") else None

    def support(self, shape: tuple[int, int]) -> Support:
        """Entries outside of which every matrix of the set is zero; of the shape (m, n)."""
        inside = self.set(torch.ones(shape, dtype=torch.complex128)) if self.rule.fixed else torch.ones(shape)
        return Support.non_zeros(inside)

    def set(self, matrix: Values) -> Values:
        """The nearest matrix of the set, not scaled."""
        return self.rule.function(matrix, *self.arguments)

    def __call__(self, matrix: Values) -> Values:
        """The nearest matrix of the set with norm 1."""
        nearest = self.set(matrix)
        norm = torch.linalg.vector_norm(nearest)
        if norm == 0:
            nearest = self.set(torch.ones_like(matrix))
            norm = torch.linalg.vector_norm(nearest)
        return nearest / norm

    def __str__(self) -> str:
        if self.shape is not None:
            return f"{self.name}({self.shape[0]}x{self.shape[1]})"
        return self.name + (f"({','.join(map(str, self.arguments))})" if self.arguments else "")


def parse_projections(text: str) -> tuple[Projection, ...]:
    """Projections from a text: names with whole numbers, apart by spaces, commas or nothing, `*5` for five times.

    Raises `ValueError` that shows where a text is not understood, which names there are, and which arguments they take.

    >>> [str(one) for one in parse_projections("spcol(2)*2 splin(3)")]
    ['spcol(2)', 'spcol(2)', 'splin(3)']
    """
    found: list[Projection] = []
    place = 0
    while rest := text[place:].lstrip(" ,;"):
        match = _TERM.match(rest)
        if match is None:
            raise ValueError(
                f"{rest[:30]!r} in {text[:80]!r} is no projection. Rule: NAME(NUMBERS) or NAME, with *5 for five of "
                f"them; such as 'spcol(2)*3 splin(2)'. Known: {', '.join(PROJECTIONS)}."
            )
        name, inside, times = match.groups()
        arguments = tuple(int(number) for number in (inside or "").replace(",", " ").split())
        wanted = PROJECTIONS[name].parameters
        if name in ("supp", "const"):
            raise ValueError(f"{name!r} takes no text. Rule: give the mask (boolean) or the matrix itself instead.")
        if len(arguments) != len(wanted) or 0 in arguments or times == "0":
            call = f"{name}({', '.join(wanted)})" if wanted else name
            raise ValueError(
                f"{match.group().strip()!r} does not fit {call}. Rule: whole numbers >= 1, as many as that."
            )
        found += [Projection(name, arguments)] * int(times or 1)
        place = len(text) - len(rest) + match.end()
    if not found:
        raise ValueError(f"{text!r} holds no projection. Rule: at least one, such as 'spcol(2)'.")
    return tuple(found)


def projections_of(what: Any) -> tuple[Projection, ...]:
    """One projection per factor, leftmost first, from a text for all of them or from one description each."""
    if isinstance(what, str):
        return parse_projections(what)
    if not isinstance(what, Iterable) or isinstance(what, torch.Tensor):
        raise TypeError(f"projections are a {type(what).__name__}. Rule: a list, one per factor, or a text for all.")
    found = tuple(Projection.of(one) for one in what)
    if not found:
        raise ValueError("there is no projection. Rule: one per factor, leftmost first, such as ['splin(2)', 'sp(9)'].")
    return found
