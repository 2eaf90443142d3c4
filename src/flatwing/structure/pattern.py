"""Pattern: which entries of one Kronecker-sparse factor may be non-zero, and which factors may follow each other."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool

_TEXT = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\)")


@final
@dataclass(frozen=True, slots=True, order=True)
class Pattern:
    """Support I_a (x) 1_{b x c} (x) I_d of one Kronecker-sparse factor.

    The matrix has a*b*d rows, a*c*d columns and a*d dense blocks of b x c. Block (i, k), i < a, k < d, maps the inputs
    (i, :, k) to the outputs (i, :, k), where a row index is read as (i, j, k) with j < b and a column index with j < c.

    Raises `TypeError` if an entry is not an integer, `ValueError` if one is smaller than 1.
    Source: Zheng, Le, Riccietti, Gribonval, "Butterfly factorization with error guarantees", section 4; pi -> Pattern.

    >>> p = Pattern(2, 3, 2, 4)
    >>> p.shape, p.nnz, p.density
    ((24, 16), 48, 0.125)
    >>> str(p.T)
    '(2,2,3,4)'
    """

    a: int
    b: int
    c: int
    d: int

    def __post_init__(self) -> None:
        for name in ("a", "b", "c", "d"):
            value = getattr(self, name)
            if isinstance(value, bool):
                raise TypeError(f"Pattern needs integers, got {name}={value!r} (a bool). Write {name}={int(value)}.")
            try:
                value = operator.index(value)
            except TypeError:
                raise TypeError(
                    f"Pattern needs integers, got {name}={value!r} of type {type(value).__name__}. "
                    "Write Pattern(a, b, c, d) with four whole numbers >= 1."
                ) from None
            if value < 1:
                raise ValueError(f"Pattern needs entries >= 1, got {name}={value}. The nearest good value is {name}=1.")
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the factor."""
        return self.a * self.b * self.d, self.a * self.c * self.d

    @property
    def blocks(self) -> int:
        """Number of dense blocks, a*d."""
        return self.a * self.d

    @property
    def nnz(self) -> int:
        """Number of entries that may be non-zero, which is the number of parameters of the factor."""
        return self.a * self.b * self.c * self.d

    @property
    def density(self) -> float:
        """Share of the entries that may be non-zero, 1 / (a*d)."""
        return 1 / self.blocks

    @property
    def T(self) -> Pattern:
        """Pattern of the transposed factor, (a, c, b, d)."""
        return Pattern(self.a, self.c, self.b, self.d)

    def support(self) -> Bool[torch.Tensor, "m n"]:
        """The support as a boolean matrix; costs m*n bytes."""
        ones = torch.ones(self.b, self.c, dtype=torch.bool, device="cpu")
        blocks = torch.kron(ones, torch.eye(self.d, dtype=torch.bool, device="cpu"))
        return torch.kron(torch.eye(self.a, dtype=torch.bool, device="cpu"), blocks)

    def __mul__(self, other: Pattern) -> Pattern:
        """Pattern of the product of two chainable factors, (a, b d / d', a' c' / a, d').

        With r = `self.rank(other)`, the 0/1 supports obey S * S' = r S''. Raises `ValueError` if not chainable.

        >>> Pattern(1, 2, 2, 4) * Pattern(2, 2, 2, 2)
        Pattern(a=1, b=4, c=4, d=2)
        """
        if not isinstance(other, Pattern):
            return NotImplemented
        require_chainable(self, other)
        return Pattern(self.a, self.b * self.d // other.d, other.a * other.c // self.a, other.d)

    def rank(self, other: Pattern) -> int:
        """Rank r = a c / a' of the blocks of the product `self * other`; raises `ValueError` if not chainable.

        >>> Pattern(1, 8, 6, 4).rank(Pattern(2, 12, 8, 1))
        3
        """
        require_chainable(self, other)
        return self.a * self.c // other.a

    def __str__(self) -> str:
        return f"({self.a},{self.b},{self.c},{self.d})"

    def __iter__(self) -> Iterator[int]:
        return iter((self.a, self.b, self.c, self.d))

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read what `str` writes; raises `ValueError` for anything else.

        >>> Pattern.parse("(1, 2,2,8)") == Pattern(1, 2, 2, 8)
        True
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a pattern. Rule: four whole numbers in brackets, such as '(1,2,2,8)'.")
        return cls(*map(int, match.groups()))


@final
@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on two neighbouring factors; the only place from which messages and documentation are made."""

    name: str
    rule: str
    holds: Callable[[Pattern, Pattern], bool]

    def __str__(self) -> str:
        return f"{self.name}: {self.rule}"


# Order matters: the first one is what makes a product defined at all, the others make it chainable.
CONDITIONS = (
    Condition("sizes fit", "a*c*d = a'*b'*d'", lambda p, q: p.shape[1] == q.shape[0]),
    Condition("a grows", "a divides a'", lambda p, q: q.a % p.a == 0),
    Condition("d shrinks", "d' divides d", lambda p, q: p.d % q.d == 0),
    Condition("the rank is whole", "a' divides a*c", lambda p, q: (p.a * p.c) % q.a == 0),
)


def violated(left: Pattern, right: Pattern) -> Condition | None:
    """First of `CONDITIONS` that the neighbours `left`, `right` violate, or None if the pair is chainable.

    >>> print(violated(Pattern(1, 2, 2, 2), Pattern(2, 2, 2, 1)))
    None
    >>> print(violated(Pattern(2, 2, 2, 1), Pattern(1, 2, 2, 2)))
    a grows: a divides a'
    """
    return next((condition for condition in CONDITIONS if not condition.holds(left, right)), None)


def require_chainable(left: Pattern, right: Pattern, where: str = "") -> None:
    """Raise `ValueError` that names the violated condition unless (`left`, `right`) is a chainable pair."""
    condition = violated(left, right)
    if condition is not None:
        raise ValueError(
            f"{where}{left} and {right} are not chainable: they violate '{condition}', "
            f"with a={left.a}, c={left.c}, d={left.d}, a'={right.a}, b'={right.b}, d'={right.d}. "
            f"Chainable means {'; '.join(c.rule for c in CONDITIONS)}."
        )
