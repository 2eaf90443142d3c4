"""The pattern (a, b, c, d) that a support is, if it is one."""

from __future__ import annotations

from .pattern import Pattern
from .support import Support


def recognized(support: Support) -> Pattern | None:
    """The pattern with this support, `None` if it is no Kronecker-sparse one; diagonals give (n, 1, 1, 1).

    >>> recognized(Support(Pattern(2, 3, 1, 4)))
    Pattern(a=2, b=3, c=1, d=4)
    >>> recognized(Support.blocks([[True, True], [False, True]], 2, 2)) is None
    True
    """
    mask = support.array
    in_row, in_column = mask[0].nonzero()[0], mask[:, 0].nonzero()[0]
    if not len(in_row) or not len(in_column):
        return None
    # entries of one block are d apart, in rows and in columns
    d = int(in_row[1]) if len(in_row) > 1 else int(in_column[1]) if len(in_column) > 1 else 1
    b, c = len(in_column), len(in_row)
    a, rest = divmod(support.shape[0], b * d)
    if rest or not a or support.shape[1] != a * c * d or support.nnz != a * b * c * d:
        return None
    pattern = Pattern(a, b, c, d)
    return pattern if Support(pattern) == support else None
