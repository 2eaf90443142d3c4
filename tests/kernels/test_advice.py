"""What an advice says: first of the batches that were asked for, then of the others, and never more than is known."""

from dataclasses import replace

import pytest
import torch

from flatwing import Chain
from flatwing.kernels.advice import Advice, Row

TRIED = (1, 2, 4, 8, 16)
KINDS = {"s": "structure", "e": "equal", "d": "dense"}
SPEEDUPS = {"s": 2.5, "e": 1.2, "d": 0.046}


def row(batch: int, speedup: float, *, rows: int = 0, measured: bool = False, spread: float = 0.0) -> Row:
    """A row of a chain that takes a second; with a spread, its times and those of dense lie so far around."""
    intervals = [(t * (1 - spread), t * (1 + spread)) if spread else None for t in (1.0, speedup)]
    return Row(batch, rows or batch, "bmm", 1.0, speedup, measured, intervals[0], intervals[1], (("bmm", 1.0),))


def made(outcomes: str, *asked: int, chain: Chain = Chain.butterfly(256)) -> Advice:  # noqa: B008
    """The advice for the batches asked where those of `TRIED`, or only those asked, have these outcomes."""
    tried = TRIED if len(outcomes) == len(TRIED) else asked
    found = dict(zip(tried, outcomes, strict=True))
    rows = tuple(row(batch, SPEEDUPS[found[batch]]) for batch in asked)
    told = tuple((batch, KINDS[kind]) for batch, kind in found.items())
    return Advice(chain, "as given", torch.float32, "cpu", 1, False, False, rows, told)


ALL = " So it is at all powers of two from 1 to 16."
OF = " Of the powers of two from 1 to 16,"
LOSES = (
    "Keep dense: at batches 1 and 4 it is predicted to be faster than this chain "
    "(0.046x at batch 1, 0.046x at batch 4)."
)
WINS = "Use the chain: at batch 4 it is predicted to be faster than dense (2.5x), with 6.2% of the parameters."
EQUAL = (
    "About equal: at batches 1 and 2 neither is predicted to be faster (1.2x at batch 1, 1.2x at batch 2), "
    "with 6.2% of the parameters. No reason to change for speed."
)
PARTLY = (
    "Keep dense: at batches 1 and 4 it is predicted to be faster than this chain, at batch 8 about as fast "
    "(0.046x at batch 1, 1.2x at batch 8)."
)
DEPENDS = (
    "Use the chain at batches 2 and 16, where it is predicted to be faster, with 6.2% of the parameters; "
    "keep dense at batch 1; about equal at batch 8 (0.046x at batch 1, 2.5x at batch 16)."
)
WINS_PARTLY = (
    "Use the chain at batch 2, where it is predicted to be faster, with 6.2% of the parameters; "
    "about equal at batch 1 (1.2x at batch 1, 2.5x at batch 2)."
)


@pytest.mark.parametrize(
    ("advice", "verdict", "break_even", "sentence"),
    [
        (made("ddddd", 1, 4), "dense", None, LOSES + ALL),
        (made("ddd", 1, 2, 4), "dense", None, LOSES.replace("1 and 4 it", "1, 2 and 4 it")),
        (made("dddss", 1, 4), "dense", 8, f"{LOSES}{OF} the chain wins from 8 to 16, dense wins from 1 to 4."),
        (made("dddes", 1, 4), "dense", 16, f"{LOSES}{OF} the chain wins at 16, the two are about equal at 8, "
         "dense wins from 1 to 4."),
        (made("ddded", 1, 4, 8), "dense", None, f"{PARTLY}{OF} the two are about equal at 8, "
         "dense wins from 1 to 4 and at 16."),
        (made("eeeee", 1, 2), "equal", None, EQUAL + ALL),
        (made("eesss", 1, 2), "equal", 4, f"{EQUAL}{OF} the chain wins from 4 to 16, "
         "the two are about equal from 1 to 2."),
        (made("sssss", 4), "structure", 1, WINS + ALL),
        (made("s", 4), "structure", 4, WINS),
        (made("dddsd", 8), "structure", 8, WINS.replace("batch 4", "batch 8") + f"{OF} the chain wins at 8, "
         "dense wins from 1 to 4 and at 16."),
        (made("dsdes", 1, 2, 8, 16), "depends", 2, f"{DEPENDS}{OF} the chain wins at 2 and at 16, the two are about "
         "equal at 8, dense wins at 1 and at 4."),
        (made("es", 1, 2), "depends", 2, WINS_PARTLY),
        (made("sssss", 1, chain=Chain.low_rank(4, 4, rank=4)), "dense", None,
         "Keep dense: the chain has 200% of its parameters (2.5x)."),
    ],
)  # fmt: skip
def test_sentence(advice: Advice, verdict: str, break_even: int | None, sentence: str) -> None:
    assert (advice.verdict, advice.break_even, advice.sentence) == (verdict, break_even, sentence)
    assert str(advice) == sentence


def test_how_times_are_known_is_said() -> None:
    one = replace(made("s", 4), source="measured")
    assert one.sentence.startswith("Use the chain: at batch 4 it was measured to be faster than dense (2.5x)")
    assert "it is predicted, in part measured, to be faster" in replace(one, source="in part measured").sentence


def test_batches_that_count_as_others_are_told() -> None:
    rows = row(3, 2.5, rows=4), row(5, 2.5, rows=8)
    advice = replace(made("ss", 4, 8), rows=rows)
    assert advice.sentence.startswith("Use the chain: at batches 3 and 5 it is")
    assert advice.sentence.endswith("Batches 3 and 5 count as 4 and 8, as plans are made for powers of two.")
    assert "Batch 3 counts as 4, as plans" in replace(made("s", 4), rows=rows[:1]).sentence


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (row(1, 1.31), "structure"),
        (row(1, 1.29), "equal"),
        (row(1, 0.78), "equal"),
        (row(1, 0.76), "dense"),
        (row(1, 1.15, measured=True), "structure"),
        (row(1, 0.95, measured=True), "equal"),
        (row(1, 1.1, measured=True, spread=0.01), "structure"),
        (row(1, 1.5, measured=True, spread=0.3), "equal"),
        (row(1, 0.9, measured=True, spread=0.01), "dense"),
    ],
)
def test_what_is_within_the_errors_is_about_equal(found: Row, outcome: str) -> None:
    assert found.outcome == found.as_dict()["outcome"] == outcome
