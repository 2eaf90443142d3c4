"""JSON of others: any nesting is refused before the parser recurses."""

import json
import sys

import pytest

from flatwing.core import parse_json


@pytest.mark.parametrize(
    "text",
    ['{"a": [1, {"b": null}], "c": "[[[{"}', '"\\"[[["', "[]", "3", '["\\\\", "]"]', '{"' + "[" * 500 + '": 1}'],
)
def test_what_json_reads_is_read(text: str) -> None:
    assert parse_json(text) == json.loads(text)


def test_depth_is_counted() -> None:
    assert parse_json("[" * 64 + "]" * 64) == json.loads("[" * 64 + "]" * 64)
    assert parse_json('[{"a": [2]}]', deepest=3) == [{"a": [2]}]
    wide = "[" + ",".join(["[[]]"] * 5000) + "]"
    assert len(parse_json(wide, deepest=3)) == 5000
    for text in ("[" * 8 + "]" * 8, '{"a": ' * 5 + "1", "[" * 100 + "]" * 100 + "[]" * 100):
        with pytest.raises(json.JSONDecodeError, match="nested more than 3 deep"):
            parse_json(text, deepest=3)


@pytest.mark.parametrize("bracket", ["[", '{"a":', "]", '["', '"' + "[" * 1000])
def test_what_is_cut_off_is_no_json(bracket: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=r"Expecting|Unterminated|nested"):
        parse_json(bracket)


@pytest.mark.parametrize("closing", ["]", ""])
def test_the_limit_of_the_interpreter_does_not_matter(closing: str) -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000_000)  # as packages do: the parser of Python would end the process
    try:
        with pytest.raises(json.JSONDecodeError, match="nested more than 64 deep"):
            parse_json("[" * 1_000_000 + closing * 1_000_000)
    finally:
        sys.setrecursionlimit(before)
