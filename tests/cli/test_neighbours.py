"""Which matrices of a model follow each other, by names and shapes alone."""

import pytest

from flatwing.cli.neighbours import chosen, known_names, neighbours, no_neighbours

NET = {"net.0.weight": (8, 4), "net.0.bias": (8,), "net.2.weight": (8, 8), "net.4.weight": (2, 8), "net.4.bias": (2,)}


def test_layers_of_a_container_follow_each_other() -> None:
    assert neighbours(NET) == ([("net.0.weight", "net.2.weight"), ("net.2.weight", "net.4.weight")], "")


@pytest.mark.parametrize(
    "between",
    [
        {"net.1.weight": (8,), "net.1.bias": (8,)},  # a norm
        {"net.1.weight": (8, 8, 3, 3)},  # a convolution
        {"net.1.up.weight": (8, 8), "net.1.down.weight": (8, 8)},  # a block
        {"net.1.factors.0": (2, 4, 4)},  # a structured layer
    ],
)
def test_what_stands_between_parts_them(between: dict[str, tuple[int, ...]]) -> None:
    pairs, left_out = neighbours({**NET, **between})
    assert pairs == [("net.2.weight", "net.4.weight")]
    assert left_out.startswith("in no pair: net.0.weight (8x4)")


@pytest.mark.parametrize(
    "names",
    [
        ("layers.0.q.weight", "layers.0.k.weight", "layers.1.q.weight", "layers.1.k.weight"),
        ("experts.0.weight", "experts.1.weight"),
        ("heads.0.weight", "heads.1.weight"),
        ("emb.0.weight", "emb.1.weight"),
        ("up.weight", "down.weight"),
        ("a.0.0.weight", "a.1.1.weight"),
        ("a.0.x.weight", "a.1.y.weight"),
    ],
)
def test_square_matrices_side_by_side_are_no_pair(names: tuple[str, ...]) -> None:
    assert neighbours(dict.fromkeys(names, (4, 4)))[0] == []


def test_numbers_are_counted_and_shapes_must_multiply() -> None:
    shapes = {"fc10.weight": (2, 3), "fc9.weight": (3, 4), "fc11.weight": (5, 5)}
    assert neighbours(shapes) == ([("fc9.weight", "fc10.weight")], "in no pair: fc11.weight (5x5)")


def test_masks_stand_for_their_weights() -> None:
    shapes = {"a.0.weight_orig": (4, 4), "a.0.weight_mask": (4, 4), "a.1.weight": (4, 4), "a.1.bias_mask": (4,)}
    assert neighbours(shapes) == ([("a.0.weight_mask", "a.1.weight")], "")
    known = known_names(shapes)
    assert {known[name] for name in ("a.0", "a.0.weight", "a.0.weight_orig", "a.0.weight_mask")} == {"a.0.weight_mask"}


def test_refusals_name_what_there_is() -> None:
    shapes = {f"block.0.m{i}.weight": (4, 4) for i in range(12)}
    message = str(no_neighbours("m.safetensors", shapes))
    assert "block.0.m7.weight (4x4) and 4 more. Name them with --pairs FIRST:SECOND" in message
    assert str(no_neighbours("m", {"a.weight": (2, 2)})).startswith("'m' has 1 matrices of layers (a.weight (2x2))")
    for wanted, told in {
        "net.0": r"--pairs net.0 names 1 matrices. Rule: FIRST:SECOND",
        "net.0:": "names 1 matrices",
        "a:b:c": "names 3 matrices",
        "net.0:nett.2": r"no matrix 'nett.2', did you mean 'net.2'\? There are net.0.weight \(8x4\), ",
        "net.0:net.0.bias": "no matrix 'net.0.bias'",
        "net.2:net.0": r"net.2.weight has 8 outputs .* net.0.weight has 4 inputs .* Write --pairs net.0:net.2",
        "net.4:net.4": "Rule: equal, .* Name neighbours",
    }.items():
        with pytest.raises(ValueError, match=told):
            chosen([wanted], NET, known_names(NET))
    assert chosen(["net.0:net.2.weight"], NET, known_names(NET)) == [("net.0.weight", "net.2.weight")]
