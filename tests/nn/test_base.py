"""Descriptions of layers: what is damaged or hostile is refused by name."""

from typing import Any

import pytest
import torch

from flatwing import StructuredLinear
from flatwing.nn import BlastLinear, layer_from_config
from strategies import as_user

CHAIN = {"kind": "chain", "chain": "(1,2,2,1)", "bias": True}
BLAST = {"kind": "blast", "in_features": 4, "out_features": 4, "blocks": [2, 2], "rank": 1, "bias": False}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "it has no entry 'kind'"),
        ({"kind": "chains"}, "unknown layer kind 'chains', did you mean 'chain'"),
        ({"kind": ["chain"]}, "unhashable"),
        ({"kind": "chain", "bias": True}, "it has no entry 'chain'"),
        ({"kind": "chain", "chain": "(1,2,2,1)"}, "it has no entry 'bias'"),
        ({**CHAIN, "chain": 7}, "chain is a int"),
        ({**CHAIN, "chain": "(1,2,2,1)(1,3,3,1)"}, "factors 0 and 1 do not fit"),
        ({**CHAIN, "chain": "__import__('os').getcwd()"}, "is not a chain"),
        ({**CHAIN, "chain": f"(1,{10**9},{10**9},1)"}, "1000000000000000000 parameters. Rule: at most 34359738368"),
        ({**CHAIN, "chain": f"({10**30},1,1,1)"}, "Rule: at most 34359738368"),
        ({**CHAIN, "bias": "yes"}, "bias is 'yes'. Rule: true or false"),
        ({**CHAIN, "perm_in": [1, 0]}, "perm_in is"),
        ({**BLAST, "rank": 0}, "rank is 0. Rule: a whole number, at least 1"),
        ({**BLAST, "rank": True}, "rank is True"),
        ({**BLAST, "rank": 10**18}, "Rule: at most 34359738368"),
        ({**BLAST, "in_features": -4}, "in_features is -4"),
        ({**BLAST, "blocks": [3, 2]}, "A=3 does not divide out_features=4.*the nearest good value is A=2"),
        ({**BLAST, "blocks": [2]}, r"blocks is \[2\]. Rule: two whole numbers"),
        ({**BLAST, "blocks": 2}, "blocks is 2"),
        ({"kind": "sum", "terms": [], "bias": False}, "a sum needs at least one term"),
        ({"kind": "sum", "terms": "chain", "bias": False}, "terms is not a list"),
        ({"kind": "sum", "terms": [CHAIN], "bias": False}, "term 0 has a bias"),
        ({"kind": "sum", "terms": [{"kind": "sum", "terms": []}], "bias": False}, "other than sums"),
        ({"kind": "sum", "terms": [None], "bias": False}, "a NoneType where an object should be"),
        ([], "a list where an object should be"),
    ],
)
def test_damaged_descriptions_are_refused(config: Any, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=f"describes no layer.*{message}"):
        layer_from_config(config)


def test_no_memory_is_taken_before_the_size_is_known_to_be_sensible() -> None:
    with pytest.raises(ValueError, match="Rule: at most"):
        BlastLinear(10**6, 10**6, blocks=1, rank=10**6)
    with pytest.raises(ValueError, match="Rule: at most"):
        StructuredLinear(f"dense({10**6}, {10**6})")


def test_rebuilt_permutations_are_permutations() -> None:
    layer = StructuredLinear("butterfly(8)", perm_in=[1, 0, 2, 3, 4, 5, 6, 7], perm_out=True)
    again = layer_from_config(layer.config())
    assert again.perm_in.tolist() == again.perm_out.tolist() == list(range(8))
    assert again(torch.ones(8)).shape == (8,)
