"""JSON of others is read with its types; what is wrong is named with its place."""

import pytest

from flatwing.report.node import Node, parse


def node(**values: object) -> Node:
    return Node(values, "result.json")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_no_number_is_none(value: object) -> None:
    assert node(x=value).number("x") is None
    assert node(x=value).count("x") is None
    assert node().number("x") is None


def test_values_are_read() -> None:
    full = node(n=3, x=0.5, s="a", b=False, d={"y": 1}, l=[{"z": 2}], t=["u"], v=[1, 2.5, None, float("nan")])
    assert (full.number("n"), full.number("x"), full.count("n")) == (3.0, 0.5, 3)
    assert isinstance(full.count("n"), int)
    assert (full.text("s"), full.flag("b"), full.texts("t")) == ("a", False, ("u",))
    assert full.numbers("v") == (1.0, 2.5)
    assert node(c=[1, 2]).counts("c", 2) == (1, 2)
    child, (first,) = full.child("d"), full.children("l")
    assert child is not None
    assert (child.number("y"), child.where) == (1.0, "result.json: d")
    assert (first.number("z"), first.where, first.path("z")) == (2.0, "result.json: l[0]", "result.json: l[0].z")


@pytest.mark.parametrize(
    ("kind", "value", "rule"),
    [
        ("number", "4", "a number"),
        ("number", True, "a number"),
        ("number", 10**400, "a number that fits into 64 bits"),
        ("count", 1.5, "a whole number"),
        ("count", -1, "a number that is at least 0"),
        ("text", 1, "a text"),
        ("flag", 1, "true or false"),
        ("child", [], "an object"),
        ("children", {}, "a list"),
        ("children", [1], "a list of objects"),
        ("texts", ["a", 1], "a list of texts"),
        ("texts", "a", "a list"),
    ],
    ids=map(str, range(12)),
)
def test_wrong_value_is_refused_by_name(kind: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rf"^result\.json: x is .*\. Rule: {rule}.*Write the run folder again"):
        getattr(node(x=value), kind)("x")


@pytest.mark.parametrize("value", ["a", True, 10**400], ids=["text", "flag", "huge"])
def test_wrong_number_in_a_list_is_refused_by_place(value: object) -> None:
    with pytest.raises(ValueError, match=r"^result\.json: x\.1 is .*Rule: a number"):
        node(x=[0.5, value]).numbers("x")


@pytest.mark.parametrize("value", [[1], [1, 0], [1, 2, 3], [1, 2.0], [1, True], "12", [1, 2**60]])
def test_wrong_shape_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"result\.json: x is .*Rule: (2 whole numbers of at least 1|a list)"):
        node(x=value).counts("x", 2)


def test_error_quotes_little_of_a_long_value() -> None:
    with pytest.raises(ValueError, match="x is 'aaa") as caught:
        node(x="a" * 10_000).number("x")
    assert len(str(caught.value)) < 300


def test_absent_value_that_is_required() -> None:
    with pytest.raises(ValueError, match=r"result\.json: x is absent\. Rule: present"):
        node().require("x")
    assert node(x=0).require("x") == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"not whole JSON: Expecting value \(line 1, column 1\)"),
        ('{"a": [1, 2', "not whole JSON"),
        ('{"a": 1} trailing', "Extra data"),
        ("[" * 100_000, "not whole JSON: nested more than 64 deep"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON that can be read"),
        ("[1]", "holds a list. Rule: one JSON object"),
    ],
)
def test_text_that_is_no_object(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^run\.json .*{reason}"):
        parse(text, "run.json")


def test_numbers_that_are_no_json_are_tolerated() -> None:
    assert parse('{"a": NaN, "b": -Infinity}', "run.json").number("a") is None
