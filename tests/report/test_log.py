"""Lines of a log: what was cut off is noted, what is damaged is refused, steps that were run again count once."""

import pytest

from flatwing.report.log import Step, in_order, logged


def test_lines_are_parsed_and_blank_ones_passed_over() -> None:
    notes: list[str] = []
    lines = list(logged('{"step": 1}\n\n{"step": 2, "loss": 0.5}\n', notes))
    assert [(line.count("step"), line.number("loss")) for line in lines] == [(1, None), (2, 0.5)]
    assert notes == []


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (None, "metrics.jsonl is not in the run folder."),
        ('{"step": 1}\n\n{"st', "metrics.jsonl ends in the middle of line 3, which is left out."),
    ],
)
def test_what_is_missing_is_noted(text: str | None, note: str) -> None:
    notes = ["earlier"]
    assert len(list(logged(text, notes))) == (text is not None)
    assert notes == ["earlier", note]


def test_a_damaged_line_before_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 1"):
        list(logged('{"st\n{"step": 1}\n', []))


def test_steps_are_sorted_and_the_last_of_equal_ones_counts() -> None:
    first, again, second = Step(1, 3.0, None), Step(1, 2.0, None), Step(2, 1.0, 4.0, lr=0.1)
    assert in_order([second, first, again]) == (again, second)
    assert in_order([]) == ()
