"""Structures as users write them."""

import pytest
import torch
from torch import nn

from flatwing import Chain, StructuredLinear, choose, factorize
from flatwing.nn import BlastLinear, SumLinear
from flatwing.nn.recipe import as_recipe, relative_error
from strategies import as_user


@pytest.mark.parametrize(
    ("structure", "chain"),
    [
        (Chain.monarch(12, 24, blocks=4), Chain.monarch(12, 24, blocks=4)),
        ("monarch(12, 24, blocks=4)", Chain.monarch(12, 24, blocks=4)),
        ("monarch(blocks=4)", Chain.monarch(12, 24, blocks=4)),
        ("monarch(blocks=3, rank=2)", Chain.monarch(12, 24, blocks=3, rank=2)),
        ("low_rank(rank=3)", Chain.low_rank(12, 24, 3)),
        ("block_diagonal(blocks=6)", Chain.block_diagonal(12, 24, 6)),
        ("low_rank(m=12, n=24, rank=1)", Chain.low_rank(12, 24, 1)),
        ("(1,12,3,1)(1,3,24,1)", Chain.low_rank(12, 24, 3)),
        ("kronecker(shapes=((3, 4), (4, 6)))", Chain.kronecker([(3, 4), (4, 6)])),
    ],
    ids=str,
)
def test_chains_in_every_spelling(structure: Chain | str, chain: Chain) -> None:
    linear = nn.Linear(24, 12)
    made = as_recipe(structure)("x", linear)
    assert isinstance(made.layer, StructuredLinear)
    assert made.layer.chain == chain
    certificate = factorize(linear.weight, chain).certificate
    assert (made.error, made.lower_bound) == (certificate.error, certificate.lower_bound)
    assert made.error == pytest.approx(relative_error(linear, made.layer), abs=1e-5)


def test_square_families() -> None:
    made = as_recipe("butterfly(rank=1)")("x", nn.Linear(16, 16))
    assert made.layer is not None
    assert made.layer.config()["chain"] == str(Chain.butterfly(16))
    refused = as_recipe("butterfly()")("x", nn.Linear(16, 8))
    assert (refused.layer, refused.fits, refused.reason) == (None, False, "it is 8 x 16, a butterfly is square")


def test_blocks_that_do_not_divide_become_the_nearest_and_it_is_said() -> None:
    made = as_recipe("monarch(blocks=5)")("x", nn.Linear(24, 12))
    assert made.layer is not None
    assert made.layer.config()["chain"] == str(Chain.monarch(12, 24, blocks=4))
    assert made.reason == "blocks=5 does not divide 12 x 24, so blocks=4"
    blast = as_recipe("blast(blocks=(5, 5), rank=2)")("x", nn.Linear(24, 12))
    assert isinstance(blast.layer, BlastLinear)
    assert blast.layer.blocks == (4, 4)
    assert blast.reason == "blocks=(5, 5) do not divide 12 x 24, so blocks=(4, 4)"
    assert blast.lower_bound is not None
    assert 0 < blast.lower_bound <= blast.error < 1


def test_a_share_is_the_best_chain_for_it() -> None:
    linear = nn.Linear(24, 12)
    made = as_recipe(0.4)("x", linear)
    assert made.layer is not None
    assert made.layer.nnz <= 0.4 * 12 * 24
    assert made.layer.config()["chain"] == str(choose(linear.weight, budget=0.4).chain)
    kept = as_recipe(1)("x", linear)
    assert kept.layer is None
    assert kept.fits
    assert "dense is best" in kept.reason
    nothing = as_recipe(1e-9)("x", linear)
    assert (nothing.layer, nothing.fits) == (None, False)
    assert "too few for any chain" in nothing.reason


def test_what_is_no_smaller_is_kept() -> None:
    for structure in ("low_rank(rank=12)", "blast(blocks=2, rank=12)", "low_rank(rank=6) + monarch(blocks=2, rank=2)"):
        made = as_recipe(structure)("x", nn.Linear(12, 12))
        assert made.layer is None
        assert made.fits
        assert "are no fewer than 144" in made.reason


def test_sums() -> None:
    linear = nn.Linear(12, 12)
    made = as_recipe("low_rank(rank=1) + block_diagonal(blocks=12) + monarch(blocks=5)")("x", linear)
    assert isinstance(made.layer, SumLinear)
    assert made.layer.nnz == 24 + 12 + 4 * 24
    assert made.reason == "blocks=5 does not divide 12 x 12, so blocks=4"
    assert made.error == pytest.approx(relative_error(linear, made.layer))


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (0.0, r"structure=0.0. Rule: a share of the parameters in \(0, 1\]"),
        (1.5, "structure=1.5"),
        (float("nan"), "structure=nan"),
        ("monarh(blocks=4)", "unknown chain family 'monarh', did you mean 'monarch'"),
        ("monarch()", r"blocks missing. Rule: monarch\(blocks=..., rank=...\), where sizes come from the layer"),
        ("monarch(block=4)", "unknown argument 'block'"),
        ("blast(blocks=4)", "rank missing"),
        ("blast(4, 2)", r"Rule: blast\(blocks=..., rank=...\)"),
        ("low_rank(rank=f(2))", "has an argument that is not a literal"),
        ("low_rank(rank=1) + blast(blocks=2, rank=1)", "a sum is made of chains, blast is none"),
        ("monarch", "is not a chain"),
        ("1 + 1", "is not a chain"),
        ("", "is not a chain"),
        ("search(budget=4)", "unknown chain family 'search'"),
    ],
)
def test_refuses_texts_and_numbers(structure: float | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_recipe(structure)


@pytest.mark.parametrize("structure", [None, True, StructuredLinear, [0.5]], ids=str)
def test_refuses_other_things(structure: object) -> None:
    with as_user(), pytest.raises(TypeError, match=r"Rule: a Chain, a share such as 0.5, a text"):
        as_recipe(structure)  # type: ignore[arg-type]


def test_functions() -> None:
    linear = nn.Linear(8, 8)
    seen = []

    def function(name: str, layer: nn.Linear) -> Chain | None:
        seen.append((name, layer))
        return Chain.low_rank(8, 8, 2) if name == "a" else None

    recipe = as_recipe(function)
    assert recipe("a", linear).layer is not None
    assert recipe("b", linear).layer is None
    assert seen == [("a", linear), ("b", linear)]
    own = StructuredLinear("butterfly(8)")
    made = as_recipe(lambda name, layer: own)("a", linear)
    assert made.layer is own
    assert made.given
    assert made.error == pytest.approx(relative_error(linear, own))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            lambda: Chain.butterfly(4),
            r"for 'a' the function gave \(1,2,2,2\)\(2,2,2,1\): it is 8 x 8, the chain is 4 x 4",
        ),
        (lambda: StructuredLinear("butterfly(4)"), r"gave a layer \(4, 4\), the old one is \(8, 8\)"),
        (lambda: StructuredLinear("butterfly(8)", bias=False), "gave a layer with no bias, the old one has one"),
        (lambda: StructuredLinear("butterfly(8)", dtype=torch.float64), "gave torch.float64, the old layer is"),
    ],
)
def test_functions_that_give_something_unfit(given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_recipe(lambda name, layer: given())("a", nn.Linear(8, 8))


def test_functions_that_give_something_else() -> None:
    with as_user(), pytest.raises(TypeError, match=r"for 'a' the function gave a Linear. Rule: a Chain"):
        as_recipe(lambda name, layer: layer)("a", nn.Linear(8, 8))  # type: ignore[arg-type,return-value]


def test_zeros_have_no_error() -> None:
    linear = nn.Linear(8, 8)
    nn.init.zeros_(linear.weight)
    layer = StructuredLinear.from_linear(linear, "low_rank(8, 8, 1)")
    assert relative_error(linear, layer) == 0.0
