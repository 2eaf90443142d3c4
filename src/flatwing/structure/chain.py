"""Chain: an ordered tuple of patterns whose product is defined."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, reduce
from itertools import pairwise
from math import prod
from typing import final, overload

from ..core import parse_json
from .families import ChainFamilies
from .pattern import Pattern, require_chainable, violated

_PATTERNS = re.compile(r"(\([\d,\s]+\)\s*)+")


@final
class Chain(ChainFamilies):
    """Patterns of the factors K_1 ... K_L of a product, leftmost first; immutable and hashable.

    Only sizes must fit. Whether the chain is also *chainable* (and so can be factorized with a guarantee) is
    `chain.chainable`; `chain.require_chainable()` explains why not. Transposed chains are the dual flavour: they are
    products like any other and are factorized through the transposed matrix.

    Raises `ValueError` for an empty chain or sizes that do not fit, `TypeError` for entries that are not patterns.
    Source: Zheng et al., "Butterfly factorization with error guarantees"; beta -> Chain, r_l -> `ranks[l-1]`.

    >>> chain = Chain([Pattern(1, 2, 2, 2), Pattern(2, 2, 2, 1)])
    >>> chain.shape, chain.nnz, chain.density, chain.ranks
    ((4, 4), 16, 1.0, (1,))
    >>> print(Chain.butterfly(8))
    (1,2,2,4)(2,2,2,2)(4,2,2,1)
    """

    def __init__(self, patterns: Iterable[Pattern | Sequence[int]]) -> None:
        self.patterns = tuple(p if isinstance(p, Pattern) else _pattern(p) for p in patterns)
        self.depths = tuple(p.d for p in self.patterns)  # what the shapes of the factors leave open
        self.factor_shapes = [(p.blocks, p.b, p.c) for p in self.patterns]
        if not self.patterns:
            raise ValueError("a chain needs at least one pattern, got none. Try Chain.dense(m, n).")
        self.shape = self.patterns[0].shape[0], self.patterns[-1].shape[1]  # rows and columns of the product
        for i, (left, right) in enumerate(pairwise(self.patterns)):
            if left.shape[1] != right.shape[0]:
                raise ValueError(
                    f"factors {i} and {i + 1} do not fit: {left} has {left.shape[1]} columns, {right} has "
                    f"{right.shape[0]} rows. Rule: a*c*d on the left = a*b*d on the right."
                )

    @property
    def nnz(self) -> int:
        """Number of parameters: the sum of a*b*c*d over the factors."""
        return sum(p.nnz for p in self.patterns)

    @property
    def flops(self) -> int:
        """Real multiplications and additions to apply the product to one vector, 2 nnz."""
        return 2 * self.nnz

    @property
    def density(self) -> float:
        """Parameters over entries, nnz / (m n); above 1 the dense matrix is smaller."""
        return self.nnz / prod(self.shape)

    @property
    def T(self) -> Chain:
        """The chain of the transposed product; of a chainable chain with two or more factors it is the dual flavour."""
        return Chain(p.T for p in reversed(self.patterns))

    @property
    def chainable(self) -> bool:
        """Whether all neighbours are chainable: a | a', d' | d, a' | a c, and sizes fit."""
        return all(violated(p, q) is None for p, q in pairwise(self.patterns))

    def require_chainable(self) -> None:
        """Raise `ValueError` that names the first pair and the condition it violates, unless the chain is chainable."""
        for i, (left, right) in enumerate(pairwise(self.patterns)):
            require_chainable(left, right, f"factors {i} and {i + 1}, ")

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Ranks (r_1, ..., r_{L-1}) of the splits; raises `ValueError` if the chain is not chainable."""
        self.require_chainable()
        return tuple(p.rank(q) for p, q in pairwise(self.patterns))

    @cached_property
    def pattern(self) -> Pattern:
        """Pattern of the whole product; raises `ValueError` if the chain is not chainable.

        >>> Chain.butterfly(8).pattern
        Pattern(a=1, b=8, c=8, d=1)
        """
        self.require_chainable()
        return reduce(Pattern.__mul__, self.patterns)

    @property
    def radices(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Row and column radices (q, p) with `Chain.from_radices(q, p, ranks, a1, dL) == self`.

        >>> Chain.monarch(12, 20, blocks=4).radices
        ((3, 4), (4, 5))
        """
        self.require_chainable()
        steps = list(pairwise(self.patterns))
        q = (self.patterns[0].b, *(left.d // right.d for left, right in steps))
        p = (*(right.a // left.a for left, right in steps), self.patterns[-1].c)
        return q, p

    @cached_property
    def redundant_splits(self) -> tuple[int, ...]:
        """Splits (1-based) that restrict nothing, in the order in which neighbours can be merged.

        Split s is redundant when its rank r_s >= min(b of the merged left factor, c of the merged right factor): then
        the two factors can produce every matrix of their product pattern. Merging goes on until no pair is redundant.
        Source: Def. 4.18 and Algorithm 4.1 of the paper above.

        >>> Chain.butterfly(16, rank=2).redundant_splits
        (1, 3)
        """
        self.require_chainable()
        nodes, ends, found = list(self.patterns), list(range(1, len(self) + 1)), []
        i = 0
        while i < len(nodes) - 1:
            left, right = nodes[i], nodes[i + 1]
            if left.rank(right) >= min(left.b, right.c):
                found.append(ends[i])
                nodes[i : i + 2] = [left * right]
                del ends[i]
                i = max(i - 1, 0)  # the merged factor may now be redundant with its left neighbour
            else:
                i += 1
        return tuple(found)

    def reduced(self) -> Chain:
        """The chain without redundant splits: the same set of products, with the fewest factors; dual chains too.

        >>> print(Chain.butterfly(16, rank=2).reduced())
        (1,4,8,4)(4,8,4,1)
        """
        if not self.chainable and self.T.chainable:
            return self.T.reduced().T
        return self.merged(self.redundant_splits) if self.redundant_splits else self

    def merged(self, splits: Iterable[int]) -> Chain:
        """The chain with the neighbours at the given splits (1-based) replaced by their product pattern."""
        gone = set(splits)
        unknown = sorted(gone - set(range(1, len(self))))
        if unknown:
            raise ValueError(f"{self} has splits 1 to {len(self) - 1}, got {unknown[0]}.")
        nodes = [self.patterns[0]]
        for s, pattern in enumerate(self.patterns[1:], start=1):
            if s in gone:
                nodes[-1] = nodes[-1] * pattern
            else:
                nodes.append(pattern)
        return Chain(nodes)

    def __len__(self) -> int:
        return len(self.patterns)

    def __iter__(self) -> Iterator[Pattern]:
        return iter(self.patterns)

    @overload
    def __getitem__(self, index: int) -> Pattern: ...
    @overload
    def __getitem__(self, index: slice) -> Chain: ...
    def __getitem__(self, index: int | slice) -> Pattern | Chain:
        if isinstance(index, slice):
            if index.step not in (None, 1):
                raise ValueError(f"a chain is sliced with step 1, got step {index.step}. For the reverse use chain.T.")
            return Chain(self.patterns[index])
        return self.patterns[index]

    def __add__(self, other: Chain) -> Chain:
        """The chain of the product of two products: the factors of `self`, then those of `other`."""
        return Chain((*self.patterns, *other.patterns)) if isinstance(other, Chain) else NotImplemented

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Chain) and self.patterns == other.patterns)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # chains are looked up in every multiplication
        return hash(self.patterns)

    def __str__(self) -> str:
        return "".join(map(str, self.patterns))

    def __repr__(self) -> str:
        return f"Chain.parse({str(self)!r})"

    @classmethod
    def parse(cls, text: str) -> Chain:
        """Read patterns as `str` writes them, or a family with its arguments; a trailing ".T" transposes.

        Raises `ValueError` for unknown families (naming the nearest), wrong arguments, or sizes that do not fit.

        >>> Chain.parse("(1,2,2,2)(2,2,2,1)") == Chain.butterfly(4)
        True
        >>> Chain.parse("monarch(1024, 1024, blocks=32)").nnz
        65536
        """
        if text.strip().endswith(".T"):
            return cls.parse(text.strip()[:-2]).T
        if _PATTERNS.fullmatch(text.strip()):
            return cls(Pattern.parse(part + ")") for part in text.strip().split(")") if part.strip())
        from .spec import parse_family  # the registry of families is filled by this module's users

        return parse_family(text)

    def to_json(self) -> str:
        """The chain as JSON, with a format version."""
        return json.dumps({"format": "flatwing.chain", "version": 1, "patterns": [list(p) for p in self.patterns]})

    @classmethod
    def from_json(cls, text: str) -> Chain:
        """Read what `to_json` writes; raises `ValueError` if it is anything else.

        >>> Chain.from_json(Chain.butterfly(8).to_json()) == Chain.butterfly(8)
        True
        """
        try:
            data = parse_json(text, deepest=8)
            if data["format"] != "flatwing.chain" or str(data["version"]) != "1":
                raise ValueError(f"format {data['format']!r} version {data['version']!r}")
            return cls(_pattern(p) for p in data["patterns"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"this is not the JSON of a chain ({error}). Rule: an object with format 'flatwing.chain', "
                "version 1 and patterns [[a, b, c, d], ...], as chain.to_json() writes."
            ) from error


def _pattern(entries: object) -> Pattern:
    if not isinstance(entries, Sequence) or isinstance(entries, str) or len(entries) != 4:
        raise TypeError(f"a chain is made of patterns, got {entries!r}. Write Chain([Pattern(a, b, c, d), ...]).")
    return Pattern(*entries)
