"""Pairs of layers: who is a neighbour, which support a layer has, and what a verdict says about training."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from flatwing import Chain, Pattern, StructuredLinear
from flatwing.nn.wellposed import layer_pairs, layer_supports
from flatwing.structure import Support

LOWER = torch.tensor([[1.0, 0.0], [1.0, 1.0]])


def masked(weight_mask: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight_mask.shape[1], weight_mask.shape[0])
    prune.custom_from_mask(layer, "weight", weight_mask)
    return layer


def test_lu_network_is_ill_posed_and_its_turn_is_not() -> None:
    (bad,) = layer_pairs(nn.Sequential(masked(LOWER.T), nn.ReLU(), masked(LOWER)))
    assert (bad.first, bad.second, bad.between) == ("0", "2", ("ReLU",))
    assert bad.verdict.status == "not closed"
    assert "finite training sets without best weights" in bad.meaning
    assert str(bad).startswith("0 - ReLU - 2: not closed, ")
    (other,) = layer_pairs(nn.Sequential(masked(torch.ones(2, 2)), nn.ReLU(), masked(LOWER)))
    assert other.verdict.closed
    assert "promises no best weights" in other.meaning


def test_order_of_the_product_is_second_times_first() -> None:
    first, second = torch.ones(3, 2), torch.ones(4, 3)
    first[0, 1] = second[2, 1] = 0
    (pair,) = layer_pairs(nn.Sequential(masked(first), masked(second)))
    assert pair.between == ()
    assert "best approximation by their product" in pair.meaning
    supports = layer_supports(masked(second))
    assert supports == (Support(second.bool()),)


def test_neighbours_in_containers() -> None:
    net = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
        nn.Dropout(),
        nn.Linear(4, 4),
        nn.LayerNorm(4),
        nn.Linear(4, 4),
        nn.GELU(),
        nn.Linear(4, 2),
    )
    pairs = layer_pairs(nn.ModuleDict({"body": net}))
    assert [(p.first, p.second, p.between) for p in pairs] == [
        ("body.0.0", "body.2", ("Tanh", "Dropout")),
        ("body.4", "body.6", ("GELU",)),
    ], "a norm mixes numbers: no neighbours around it"
    assert all(p.verdict.closed for p in pairs)


def test_other_activations_prove_nothing() -> None:
    (pair,) = layer_pairs(nn.Sequential(masked(LOWER.T), nn.Tanh(), masked(LOWER)))
    assert pair.meaning.endswith("for Tanh nothing is proved")
    (linear,) = layer_pairs(nn.Sequential(masked(LOWER.T), nn.Dropout(), masked(LOWER)))
    assert "weights run away" in linear.meaning


def test_zeros_of_weights_are_a_mask() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.mul_(LOWER)
    assert layer_supports(layer) == (Support(LOWER.bool()),)
    prune.remove(pruned := masked(LOWER), "weight")
    assert layer_supports(pruned) == (Support(LOWER.bool()),)


def test_structured_layers_give_their_factors() -> None:
    diagonal = Chain([Pattern(2, 3, 3, 1), Pattern(6, 1, 1, 1)])  # its product is not full
    perm_in, perm_out = torch.tensor([3, 1, 0, 5, 4, 2]), torch.tensor([1, 3, 4, 0, 5, 2])
    for perms in ({"perm_in": perm_in}, {"perm_out": perm_out}, {"perm_in": perm_in, "perm_out": perm_out}):
        layer = StructuredLinear(diagonal, bias=False, **perms)
        with torch.no_grad():
            for factor in layer.factors:
                factor.fill_(1.0)
        S, T = layer_supports(layer)
        reach = S.array.astype(float) @ T.array
        assert np.array_equal(reach > 0, layer(torch.eye(6)).T.numpy(force=True) > 0.5)
    chain = Chain.monarch(6, 6, blocks=2)
    (pair,) = layer_pairs(nn.Sequential(nn.Linear(6, 6), StructuredLinear(chain)))
    assert len(pair.verdict.pairs) == 2


def test_named_pairs_and_refusals() -> None:
    net = nn.ModuleDict({"up": masked(LOWER.T), "down": masked(LOWER), "act": nn.ReLU(), "wide": nn.Linear(2, 3)})
    (pair,) = layer_pairs(net, [("up", "down")])
    assert pair.verdict.status == "not closed"
    with pytest.raises(ValueError, match=r"'donw' is no module of the model.*Did you mean 'down'"):
        layer_pairs(net, [("up", "donw")])
    with pytest.raises(ValueError, match="'act' is a ReLU"):
        layer_pairs(net, [("up", "act")])
    with pytest.raises(ValueError, match="'wide' has 3 outputs, 'up' has 2 inputs"):
        layer_pairs(net, [("wide", "up")])
    with torch.no_grad():
        net["wide"].weight.zero_()
    with pytest.raises(ValueError, match=r"wide: the mask .* allows no entry"):
        layer_pairs(net, [("up", "wide")])


class Block(nn.Module):
    """Layers in a `forward` of their own: who follows whom is not known from the modules."""

    def __init__(self, *masks: torch.Tensor) -> None:
        super().__init__()
        self.up, self.down = (masked(mask) for mask in masks)
        self.head = nn.Linear(2, 2)


def test_models_without_neighbours_are_refused_with_what_was_found() -> None:
    net = Block(LOWER.T, LOWER)
    with pytest.raises(ValueError, match=r"masked or structured are up, down\. Name .* pairs=\[\('up', 'down'\)\]"):
        layer_pairs(net)
    with pytest.raises(ValueError, match="there are a, b, none of them masked"):
        layer_pairs(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}))
    with pytest.raises(ValueError, match=r"the model has 1 linear layers \(0\)\. Rule: two or more"):
        layer_pairs(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(ValueError, match=r"the model has 0 linear layers \(none\)"):
        layer_pairs(nn.ReLU())
    block = nn.ModuleDict({"q": nn.Linear(2, 2), "k": nn.Linear(2, 2), "up": nn.Linear(2, 5), "down": nn.Linear(5, 2)})
    with pytest.raises(ValueError, match=r"such as layer_pairs\(model, pairs=\[\('up', 'down'\)"):
        layer_pairs(block)
    structured = nn.ModuleList([StructuredLinear(Chain.monarch(6, 6, blocks=2)), nn.Linear(6, 6)])
    with pytest.raises(ValueError, match=r"structured are 0\. "):
        layer_pairs(structured)
    assert layer_pairs(net, pairs=[]) == ()


def test_masked_layers_in_no_pair_are_told() -> None:
    net = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), "tail": Block(LOWER, LOWER)}
    )
    with pytest.warns(UserWarning, match=r"in no pair of neighbours: tail.up, tail.down .*\('tail.up', 'tail.down'\)"):
        (pair,) = layer_pairs(net)
    assert pair.first == "body.0"


def test_pairs_are_pairs_of_names() -> None:
    net = Block(LOWER.T, LOWER)
    (pair,) = layer_pairs(net, pairs=(("up", "down") for _ in range(1)))
    assert layer_pairs(net, pairs=[pair])[0].verdict.status == pair.verdict.status == "not closed"
    for wrong in (("up", "down"), ["up", "down"]):
        with pytest.raises(TypeError, match=r"Rule: a list of pairs. Write pairs=\[\('up', 'down'\)\]"):
            layer_pairs(net, pairs=wrong)
    for wrong in ([("up",)], [("up", "down", "head")], [3], "up", [("up", 3)], ["up"]):
        with pytest.raises(TypeError, match=r"pairs has .* Rule: \(first, second\), two names"):
            layer_pairs(net, pairs=wrong)
    with pytest.raises(ValueError, match="is a layer and itself"):
        layer_pairs(net, pairs=[("up", "up")])
    for model in (3, "net", LOWER):
        with pytest.raises(TypeError, match=r"the model is .* Rule: an nn.Module"):
            layer_pairs(model)
