"""Projections: the nearest matrix of norm 1 with a given sparsity or structure, read from text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from ..core import as_matrix, require_whole
from ..structure import Pattern, Support
from .cones import PROJECTIONS as PROJECTIONS
from .cones import Rule, Values

# what stands in parentheses and after * is looked at later, so that an error can show it
_TERM = re.compile(r"([^\W\d]+)(?:\(([^()]*)\))?(?:\s*\*\s*([\d.]+))?")
MOST = 1000  # factors


@final
@dataclass(frozen=True, slots=True)
class Projection:
    """The nearest matrix of norm 1 in a set: of what `PROJECTIONS` lists, with its arguments.

    Made by `Projection.of`: from text such as "spcol(2)", from whatever `Support` takes, a boolean mask above all (that
    support), or from another matrix (that matrix, whatever the argument). Called with a real or complex matrix (m, n);
    of a matrix whose projection is zero, the result is the scaled projection of the matrix of ones. Raises `ValueError`
    for unknown names, wrong numbers of arguments, sizes that do not fit and a constant of zeros, `TypeError` for what
    stands for no projection, and for a matrix of zeros and ones that is not boolean: a mask or a constant?
    Cost: O(m n log(m n)), assignments excepted. Source: Le Magoarou and Gribonval, "Flexible multilayer sparse
    approximations of matrices and applications", IEEE J. Sel. Top. Signal Process. 10(4), 2016, where the sets are
    called E_j.

    >>> Projection.of("sp(1)")(torch.tensor([[3.0, -4.0]])).tolist()
    [[0.0, -1.0]]
    """

    name: str
    arguments: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        wanted, given = PROJECTIONS[self.name].parameters, self.arguments
        if len(given) != len(wanted):
            raise ValueError(f"{self.name} has arguments {given}. Rule: {self.name}{parameters_rule(wanted)}")
        if self.name == "supp":
            found: tuple[Any, ...] = tuple(one if isinstance(one, Support) else Support(one) for one in given)
        elif self.name == "const":
            matrix = as_matrix(given[0], "the constant")
            matrix = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
            largest = matrix.abs().max()
            if largest == 0:
                raise ValueError("the constant is zero everywhere. Rule: an entry that is not zero. Leave it out.")
            found = (matrix / largest,)  # only its scale is free; squares of others may be out of range
        else:
            found = tuple(require_whole(name, number) for name, number in zip(wanted, given, strict=True))
        object.__setattr__(self, "arguments", found)

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
        if isinstance(what, Support | Pattern) or hasattr(what, "toarray"):
            return Projection("supp", (what,))
        array = what if isinstance(what, torch.Tensor) else np.asarray(what)
        if array.dtype in (torch.bool, np.bool_):
            return Projection("supp", (what,))
        if not isinstance(array, torch.Tensor) and array.dtype.kind not in "iufc":
            raise TypeError(
                f"{what!r:.60} is no projection. Rule: a text such as 'sp(9)', a boolean mask, or a matrix to keep."
            )
        if _zeros_and_ones(array):
            raise TypeError(
                f"a matrix of {tuple(array.shape)}, {array.dtype}, has only zeros and ones. Rule: boolean is a mask, "
                "other numbers are a constant. Write M != 0 for a mask, Projection('const', (M,)) for a constant."
            )
        return Projection("const", (what,))

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


def _zeros_and_ones(array: Any) -> bool:
    if isinstance(array, torch.Tensor) and (array.layout != torch.strided or array.is_meta):
        return False  # refused by name elsewhere
    return bool(((array == 0) | (array == 1)).all())


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
        arguments, wanted = numbers_of(inside), PROJECTIONS[name].parameters
        if name in ("supp", "const"):
            raise ValueError(f"{name!r} takes no text. Rule: give the mask (boolean) or the matrix itself instead.")
        count = numbers_of(times or "1")
        if len(arguments) != len(wanted) or 0 in (*arguments, *count) or not count:
            shown = max(match.group().strip(), rest.split()[0], key=len)
            raise ValueError(f"{shown[:40]!r} does not fit {name}{parameters_rule(wanted)}")
        if len(found) + count[0] > MOST:
            raise ValueError(f"{text[:80]!r} holds more than {MOST} projections. Rule: one per factor.")
        found += [Projection(name, arguments)] * count[0]
        place = len(text) - len(rest) + match.end()
    if not found:
        raise ValueError(f"{text!r} holds no projection. Rule: at least one, such as 'spcol(2)'.")
    return tuple(found)


def numbers_of(text: str | None) -> tuple[int, ...]:
    """Whole numbers apart by commas or spaces; none if one of them is anything else.

    >>> numbers_of("2, 4"), numbers_of("1.5")
    ((2, 4), ())
    """
    words = (text or "").replace(",", " ").split()
    fine = all(word.isdecimal() and len(word) < 20 for word in words)
    return tuple(map(int, words)) if fine else ()


def parameters_rule(wanted: Sequence[str]) -> str:
    """What should follow a name.

    >>> parameters_rule(["k"])
    '(k). Rule: whole numbers >= 1 there.'
    """
    return f"({', '.join(wanted)}). Rule: whole numbers >= 1 there." if wanted else ". Rule: the name alone."


def projections_of(what: Any) -> tuple[Projection, ...]:
    """One projection per factor, leftmost first, from a text for all of them or from one description each."""
    if isinstance(what, str):
        return parse_projections(what)
    if not isinstance(what, Iterable) or isinstance(what, Mapping) or getattr(what, "ndim", 3) == 2:
        raise TypeError(f"projections are a {type(what).__name__}. Rule: a list, one per factor, or a text for all.")
    found: list[Projection] = []
    for k, one in enumerate(what):
        try:
            found.append(Projection.of(one))
        except (TypeError, ValueError) as error:
            raise type(error)(f"projection {k}: {error}") from error
    if not found:
        raise ValueError("there is no projection. Rule: one per factor, leftmost first, such as ['splin(2)', 'sp(9)'].")
    return tuple(found)
