from typing import Any

import pytest

from flatwing.compress.choice import better_choice


def row(
    name: str, size: int, *, accuracy: float | None = None, loss: float | None = None, kl: float | None = None
) -> Any:
    def value(number: float | None, stderr: float) -> dict[str, float] | None:
        return None if number is None else {"value": number, "stderr": stderr}

    return {
        "name": name,
        "bytes": size,
        "accuracy": value(accuracy, 0.01),
        "loss": value(loss, 0.01),
        "agreement_kl": value(kl, 0.001),
    }


def test_the_best_of_those_that_are_not_larger() -> None:
    rows = [row("int8", 2_000, loss=1.38), row("int4", 1_010, loss=1.39), row("flatwing", 1_000, loss=1.5)]
    assert better_choice(rows, "bytes") == (
        "For a small file, int4 alone is the better choice here: loss 1.3900 in 1.01 kB, against 1.5000 in 1 kB."
    )
    assert better_choice([rows[0], rows[2]], "bytes") is None


def test_for_arithmetic_it_says_what_quantization_does_not_save() -> None:
    rows = [row("int8", 900, accuracy=0.97), row("flatwing", 1_000, accuracy=0.95)]
    for goal in ("flops", "latency"):
        sentence = better_choice(rows, goal)
        assert sentence is not None
        assert sentence.startswith(
            "If only the size of the file matters, int8 alone is the better choice here: accuracy"
        )
        assert sentence.endswith("It saves no arithmetic, which is what structure is for.")


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [(0.951, "is the better choice"), (0.938, "does as well within one standard error"), (0.93, None)],
)
def test_a_difference_within_the_error_is_called_that(accuracy: float, words: str | None) -> None:
    sentence = better_choice([row("int8", 900, accuracy=accuracy), row("flatwing", 1_000, accuracy=0.95)], "bytes")
    assert sentence is None if words is None else words in (sentence or "")


def test_both_together_are_named_where_they_are_smaller() -> None:
    rows = [
        row("int4", 700, loss=1.39),
        row("flatwing", 1_000, loss=1.5),
        row("flatwing + int8", 300, loss=1.51),
    ]
    sentence = better_choice(rows, "parameters")
    assert sentence is not None
    assert sentence.endswith("Smaller still are both together: loss 1.5100 in 300 B.")
    rows[2]["bytes"] = 800
    assert "both together" not in (better_choice(rows, "parameters") or "")


def test_the_healed_network_is_the_one_to_compare_with() -> None:
    rows = [row("int8", 900, loss=1.4), row("flatwing", 1_000, loss=1.5), row("flatwing + heal", 1_000, loss=1.3)]
    assert better_choice(rows, "bytes") is None
    assert better_choice(rows[:2], "bytes") is not None


def test_other_tasks_are_judged_by_what_is_known() -> None:
    assert "divergence 0.0100" in (better_choice([row("int8", 9, kl=0.01), row("flatwing", 9, kl=0.1)], "bytes") or "")
    assert better_choice([row("int8", 9), row("flatwing", 9)], "bytes") is None
    assert better_choice([row("int8", 9, loss=1.0)], "bytes") is None
    assert better_choice([row("plain SVD", 9, loss=0.5), row("flatwing", 9, loss=1.0)], "bytes") is None


def test_the_row_that_is_written_is_the_one_to_compare_with() -> None:
    rows = [
        row("int8", 900, loss=1.4),
        row("flatwing", 1_000, loss=1.5),
        row("flatwing + int8", 300, loss=1.5),
        row("flatwing + densify", 4_000, loss=1.5),
    ]
    assert better_choice(rows, "bytes", "flatwing + int8") is None, "int8 alone is three times as large"
    rows[0]["bytes"] = 305
    sentence = better_choice(rows, "bytes", "flatwing + int8")
    assert sentence is not None
    assert sentence.endswith("loss 1.4000 in 305 B, against 1.5000 in 300 B.")
    for goal in ("bytes", "flops"):
        sentence = better_choice(rows, goal, "flatwing + densify")
        assert sentence is not None
        assert "against 1.5000 in 4 kB" in sentence
        assert "saves no arithmetic" not in sentence
