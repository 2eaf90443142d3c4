"""Structured layers of every kind, for the tests of several rooms: name -> a function that makes one for a dtype."""

from collections.abc import Callable

import torch

from flatwing import StructuredLinear
from flatwing.nn import BlastLinear, StructuredLayer, SumLinear

Maker = Callable[[torch.dtype], StructuredLayer]


def chain(text: str, **options: object) -> Maker:
    return lambda dtype: StructuredLinear(text, dtype=dtype, **options)


def total(*texts: str, bias: bool) -> Maker:
    return lambda dtype: SumLinear(*(StructuredLinear(text, bias=False, dtype=dtype) for text in texts), bias=bias)


CONFIGURATIONS: dict[str, dict[str, Maker]] = {
    "chain": {
        "monarch": chain("monarch(12, 20, blocks=4, rank=2)"),
        "butterfly": chain("butterfly(24)"),
        "dual": chain("butterfly(12).T", bias=False),
        "low rank": chain("low_rank(6, 9, rank=2)"),
        "dense": chain("dense(5, 7)"),
        "outer": chain("(2,3,4,2)"),
        "diagonal": chain("block_diagonal(6, 6, blocks=6)"),
        "not chainable": chain("(2,2,2,1)(1,2,2,2)"),
        "permuted": chain("butterfly(8)", perm_in=[3, 1, 0, 2, 7, 4, 6, 5], perm_out=[1, 0, 3, 2, 5, 4, 6, 7]),
        "one": chain("dense(1, 1)"),
    },
    "blast": {
        "tall": lambda dtype: BlastLinear(12, 20, blocks=(4, 3), rank=5, dtype=dtype),
        "one block": lambda dtype: BlastLinear(6, 4, blocks=1, rank=2, bias=False, dtype=dtype),
    },
    "sum": {
        "low rank + diagonal": total("low_rank(6, 6, 2)", "block_diagonal(6, 6, 6)", bias=True),
        "one term": total("butterfly(8)", bias=False),
        "with blast": lambda dtype: SumLinear(
            BlastLinear(6, 4, blocks=2, rank=2, bias=False, dtype=dtype),
            StructuredLinear("low_rank(4, 6, 1)", bias=False, dtype=dtype),
            bias=True,
        ),
    },
}

EVERY = [(kind, name) for kind, configurations in CONFIGURATIONS.items() for name in configurations]


def make(kind: str, name: str, dtype: torch.dtype = torch.float32) -> StructuredLayer:
    """The layer, with values that are not those of a fresh one for anybody who forgets to copy them."""
    return CONFIGURATIONS[kind][name](dtype)
