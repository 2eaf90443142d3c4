import json
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatwing.compress.candidates import Candidate
from flatwing.compress.plan import LayerPlan, Option, allocate, fill, hull


def option(cost: float, loss: float) -> Option:
    return Option(None, float(cost), float(loss))


OPTIONS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=6)
LAYERS = st.lists(OPTIONS, min_size=1, max_size=3)


def layers_of(drawn: list) -> dict[str, list[Option]]:
    return {f"layer{i}": [option(float(c), float(x)) for c, x in own] for i, own in enumerate(drawn)}


def totals(taken: dict[str, Option]) -> tuple[float, float]:
    return sum(o.cost for o in taken.values()), sum(o.loss for o in taken.values())


def best_loss(options: dict[str, list[Option]], budget: float) -> float:
    """Over all combinations."""
    losses = [sum(o.loss for o in own) for own in product(*options.values()) if sum(o.cost for o in own) <= budget]
    return min(losses)


def steps_of(hulls: dict[str, list[Option]]) -> list[float]:
    """The budgets at which a step along the hulls ends, all layers together."""
    steps = sorted(
        ((a.loss - b.loss) / (b.cost - a.cost), name, b.cost - a.cost)
        for name, own in hulls.items()
        for a, b in pairwise(own)
    )
    spent = sum(own[0].cost for own in hulls.values())
    found = [spent]
    by_gain: dict[float, float] = {}
    for gain, _, more in steps:
        by_gain[gain] = by_gain.get(gain, 0.0) + more
    for gain in sorted(by_gain, reverse=True):
        spent += by_gain[gain]
        found.append(spent)
    return found


@given(LAYERS)
@settings(max_examples=150)
def test_allocation_is_optimal_where_a_step_ends(drawn: list) -> None:
    options = layers_of(drawn)
    for budget in steps_of({name: hull(own) for name, own in options.items()}):
        cost, loss = totals(allocate(options, budget))
        assert cost <= budget + 1e-9
        assert loss == pytest.approx(best_loss(options, budget))


@given(LAYERS, st.integers(3, 40))
@settings(max_examples=150)
def test_allocation_never_spends_more_than_there_is(drawn: list, budget: int) -> None:
    options = layers_of(drawn)
    least = sum(min(o.cost for o in own) for own in options.values())
    if budget < least:
        with pytest.raises(ValueError, match=r"the budget is .* cheapest structures of all layers cost .*--budget"):
            allocate(options, float(budget))
        return
    taken = allocate(options, float(budget))
    assert list(taken) == list(options)
    assert all(taken[name] in options[name] for name in taken)
    assert totals(taken)[0] <= budget
    if budget > least:
        assert totals(taken)[1] <= totals(allocate(options, float(least)))[1]


def test_a_larger_budget_at_the_steps_is_never_worse() -> None:
    options = {"a": [option(1, 9), option(2, 4), option(4, 1)], "b": [option(1, 5), option(3, 0)]}
    hulls = {name: hull(own) for name, own in options.items()}
    losses = [totals(allocate(options, budget))[1] for budget in steps_of(hulls)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == 14
    assert losses[-1] == 1


def test_a_layer_whose_next_step_is_too_dear_takes_no_later_one() -> None:
    """Steps go along the hull: jumping over one would leave it."""
    options = {"a": [option(1, 10), option(8, 1), option(9, 0.9)], "b": [option(1, 3), option(3, 2)]}
    taken = allocate(options, 5.0)
    assert (taken["a"].cost, taken["b"].cost) == (1, 3)


@given(OPTIONS)
def test_the_hull_lies_below_all_options(drawn: list) -> None:
    own = [option(float(c), float(x)) for c, x in drawn]
    corners = hull(own)
    assert corners[0].cost == min(o.cost for o in own)
    assert corners[-1].loss == min(o.loss for o in own)
    costs, losses = [o.cost for o in corners], [o.loss for o in corners]
    assert costs == sorted(set(costs))
    assert losses == sorted(set(losses), reverse=True)
    gains = [(a.loss - b.loss) / (b.cost - a.cost) for a, b in pairwise(corners)]
    assert gains == sorted(gains, reverse=True)
    for o in own:  # no option lies below a line between two corners
        for a, b in pairwise(corners):
            if a.cost <= o.cost <= b.cost:
                line = a.loss + (b.loss - a.loss) * (o.cost - a.cost) / (b.cost - a.cost)
                assert o.loss >= line - 1e-9


def test_an_empty_rest_is_spent_on_the_rank_of_the_layer_that_loses_most() -> None:
    thin = Candidate("low_rank", (20, 20), (1, 1), 2)
    taken = {
        "a": Option(thin, 80.0, 1.0, 0.4),
        "b": Option(thin, 80.0, 2.0, 0.5, 0.3),
        "dense": Option(None, 400.0, 0.0),
    }
    filled = fill(taken, 605.0, lambda name, c: float(c.parameters))
    assert filled["b"].candidate is not None
    assert filled["b"].candidate.rank == 3
    assert filled["b"].cost == 120
    assert filled["b"].error == 0.5
    assert filled["b"].bound is None, "that of the smaller rank may be above the error of the larger one"
    assert Option.from_dict(filled["b"].to_dict()) == filled["b"]
    assert filled["a"] == taken["a"]
    assert filled["dense"] == taken["dense"]
    assert taken["b"].cost == 80, "what was given stays as it was"


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 5)), min_size=1, max_size=4), st.floats(0, 900))
@settings(max_examples=80)
def test_filling_stays_within_the_budget_and_takes_nothing_away(drawn: list, more: float) -> None:
    taken = {
        f"layer{i}": Option(own := Candidate("low_rank", (20, 30), (1, 1), rank), 3.0 * own.parameters, loss)
        for i, (rank, loss) in enumerate(drawn)
    }
    spent = sum(o.cost for o in taken.values())
    filled = fill(taken, spent + more, lambda name, c: 3.0 * c.parameters)
    assert sum(o.cost for o in filled.values()) <= spent + more + 1e-6
    for name, o in filled.items():
        before = taken[name].candidate
        assert o.candidate is not None
        assert before is not None
        assert o.candidate.rank >= before.rank
        assert o.candidate.parameters < 20 * 30
    if more >= 150:
        assert sum(o.cost for o in filled.values()) > spent or all(o.candidate.rank > 10 for o in filled.values())


def test_options_survive_json() -> None:
    for given_option in (
        Option(Candidate("blast", (8, 6), (4, 2), 3), 10.0, 0.5, 0.2, 0.1),
        Option(None, 48.0, 0.0),
    ):
        assert Option.from_dict(json.loads(json.dumps(given_option.to_dict()))) == given_option


def test_the_structure_of_a_plan_in_words() -> None:
    facts = (0.1, 0.05, 0.2, 3.0)
    chosen = Candidate("monarch", (8, 8), (2, 2), 2)
    assert LayerPlan("a", (8, 8), chosen, 64, *facts).structure == "monarch(blocks=2, rank=2)"
    assert LayerPlan("a", (8, 8), None, 64, *facts).structure == "dense"
