"""The row that wins is named, whichever it is; rows that lose stay."""

import re
from pathlib import Path
from typing import Any

import pytest

from flatwing.report.compare import (
    ACCURACY,
    KL,
    LOSS,
    Landmarks,
    measure_of,
    view_cards,
    view_landmarks,
    view_latency,
    view_stages,
)
from flatwing.report.folder import read_run
from flatwing.report.record import Record, Value
from report.sample import bare, result, value, write_run


@pytest.fixture
def read(tmp_path: Path):  # type: ignore[no-untyped-def]
    return lambda record: read_run(write_run(tmp_path, record, bare=True)).record


def landmarks(read: Any, **losses: Any) -> Landmarks:
    """The table of methods with (loss, bytes) or (loss, bytes, standard error)."""
    record = result(1)
    record["landmarks"] = [
        {"name": name.replace("_", " "), "loss": value(loss, *error), "bytes": size}
        for name, (loss, size, *error) in losses.items()
    ]
    table = view_landmarks(read(record))
    assert table is not None
    return table


def winners(table: Landmarks) -> list[str]:
    return [row.landmark.name for row in table.rows if row.winner]


def test_winner_at_the_same_bytes_may_be_another_method(read: Any) -> None:
    table = landmarks(read, dense=(1.0, 400), int8=(1.01, 100), unstructured=(1.005, 300), flatwing=(1.2, 100))
    assert winners(table) == ["int8"]
    assert table.verdict.startswith("In at most 100\N{NARROW NO-BREAK SPACE}B, the size of flatwing without quant")
    assert "int8 does best: held-out loss 1.010 in 100" in table.verdict
    assert "against 1.200 for flatwing alone" in table.verdict


def test_winner_may_be_flatwing(read: Any) -> None:
    table = landmarks(read, dense=(1.0, 400), int8=(1.01, 101.99e6), flatwing=(1.2, 100), plain_SVD=(3.0, 100))
    assert winners(table) == ["flatwing"]
    assert "against" not in table.verdict
    assert [row.ours for row in table.rows] == [False, False, True, False]


def test_a_header_of_the_file_does_not_decide(read: Any) -> None:
    assert winners(landmarks(read, int8=(1.0, 1019), flatwing=(1.2, 1000))) == ["int8"]
    assert winners(landmarks(read, int8=(1.0, 1021), flatwing=(1.2, 1000))) == ["flatwing"]


def test_dense_never_wins(read: Any) -> None:
    assert winners(landmarks(read, dense=(0.5, 10), flatwing=(1.2, 100))) == ["flatwing"]


def test_equal_quality_goes_to_the_smaller_file(read: Any) -> None:
    assert winners(landmarks(read, int8=(1.2, 100), int4=(1.2, 50), flatwing=(1.2, 100))) == ["int4"]


def test_close_values_are_said_to_be_close(read: Any) -> None:
    near = landmarks(read, int8=(1.00, 90, 0.03), int4=(1.08, 50, 0.03), flatwing=(1.2, 100, 0.03))
    assert "Within two standard errors of it: int4." in near.verdict, "0.08 < 2 * sqrt(2) * 0.03 = 0.085"
    assert "Within" not in landmarks(read, int8=(1.0, 90), int4=(1.0001, 50), flatwing=(1.2, 100)).verdict


def test_accuracy_is_better_when_higher(read: Any) -> None:
    record = result(1) | {"task": "classification"}
    rows = (("int8", 0.97), ("flatwing", 0.95), ("flatwing + heal", 0.975))
    record["landmarks"] = [{"name": name, "accuracy": value(x), "bytes": 100, "flops": 7} for name, x in rows]
    record["metrics"]["compressed"]["accuracy"] = value(0.95, 0.01)
    table = view_landmarks(read(record))
    assert table is not None
    assert winners(table) == ["flatwing + heal"]
    assert table.measures == (ACCURACY,)
    assert "With at most its 7 FLOP, flatwing + heal does best: 97.50 %." in table.verdict
    assert [sorted(row.best & {"accuracy"}) for row in table.rows] == [[], [], ["accuracy"]]


def test_arithmetic_is_compared_at_ours(read: Any) -> None:
    record = result(1)
    rows = (("plain SVD", 3.0, 90), ("int8", 1.0, 400), ("flatwing", 1.2, 100))
    record["landmarks"] = [{"name": name, "loss": value(x), "bytes": 9, "flops": flops} for name, x, flops in rows]
    table = view_landmarks(read(record))
    assert table is not None
    assert winners(table) == ["int8"]
    assert table.verdict.endswith("With at most its 100 FLOP, flatwing does best: 1.200.")


def test_best_of_each_column(read: Any) -> None:
    table = view_landmarks(read(result(1)))
    assert table is not None
    best = {row.landmark.name: sorted(row.best) for row in table.rows if row.best}
    assert best["int8"] == ["loss"]
    assert "bytes" in best["flatwing + int8"]
    assert "dense" not in best
    assert next(name for name, columns in best.items() if "flops" in columns) == "plain SVD"


def test_without_us_or_without_values_nobody_wins(read: Any) -> None:
    table = landmarks(read, int8=(1.0, 100))
    assert winners(table) == []
    assert table.verdict == "There is no row of flatwing to compare at the same bytes."
    record = result(1)
    record["landmarks"] = [{"name": "flatwing", "bytes": 100}, {"name": "int8", "bytes": 50}]
    table = view_landmarks(read(record))
    assert table is not None
    assert winners(table) == []
    assert "Held-out loss was not measured for methods of at most 100" in table.verdict
    assert view_landmarks(read(bare())) is None


def test_dots_lie_on_one_scale(read: Any) -> None:
    table = landmarks(read, int8=(1.0, 100, 0.1), int4=(2.0, 50), flatwing=(3.0, 100))
    places = [float(re.findall(r'cx="([\d.]+)"', str(row.dot))[0]) for row in table.rows]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.02)
    assert ["whisker" in str(row.dot) for row in table.rows] == [True, False, False]


@pytest.mark.parametrize(
    ("dense", "ours", "verdict"),
    [
        ((10, 9.5, 10.5), (5, 4.8, 5.2), "faster"),
        ((10, 9.5, 10.5), (20, 19, 21), "slower"),
        ((10, 9.5, 10.5), (9.8, 9.4, 10.2), "undecided"),
        ((10, None, None), (5, None, None), "faster"),
        ((10, None, None), (20, 19, 21), "slower"),
        ((10, None, None), (10, None, None), "equal"),
    ],
)
def test_race(read: Any, dense: tuple[Any, ...], ours: tuple[Any, ...], verdict: str) -> None:
    record = result(1)
    record["metrics"]["quantized"] = None
    for stage, times in (("before", dense), ("compressed", ours)):
        keys = ("ms", "low", "high")
        record["metrics"][stage]["latency"] = [{"batch": 8, **dict(zip(keys, times, strict=True))}]
    (race,) = view_latency(read(record).metrics)
    assert (race.batch, race.verdict) == (8, verdict)
    assert race.ratio == pytest.approx(dense[0] / ours[0])
    assert f"race {verdict}" in race.svg


def test_rows_that_lose_are_kept(read: Any) -> None:
    races = view_latency(read(result(1)).metrics)
    assert [(race.batch, race.stage, race.verdict) for race in races] == [
        (1, "structured", "slower"),
        (8, "structured", "undecided"),
        (64, "structured", "faster"),
        (1, "structured + int8", "slower"),
        (8, "structured + int8", "undecided"),
        (64, "structured + int8", "faster"),
    ]
    assert races[0].low == pytest.approx(races[0].dense.low / races[0].other.high)  # type: ignore[operator]


def test_race_needs_both_times(read: Any) -> None:
    record = result(1)
    record["metrics"]["before"]["latency"] = [{"batch": 3, "ms": 1.0}, {"batch": 8, "ms": 0}, {"batch": 64, "ms": None}]
    assert view_latency(read(record).metrics) == ()


def test_change_in_words() -> None:
    assert LOSS.change(Value(2.0), Value(2.5)) == "+0.500 (+25 %)"
    assert LOSS.change(Value(0.0), Value(0.5)) == "+0.500"
    assert ACCURACY.change(Value(0.98), Value(0.97)) == "\N{MINUS SIGN}1.0 points"
    assert ACCURACY.change(Value(0.98), Value(0.98)) == "±0 points"
    assert LOSS.change(None, Value(1.0)) is None


def test_measure_follows_the_task(read: Any) -> None:
    record = result(1)
    assert measure_of(read(record)) is LOSS
    record["metrics"]["compressed"]["accuracy"] = value(0.9)
    assert measure_of(read(record)) is LOSS
    assert measure_of(read(record | {"task": "classification"})) is ACCURACY
    record["metrics"]["compressed"] |= {"loss": None, "accuracy": None}
    assert measure_of(read(record)) is KL
    assert measure_of(read(bare())) is LOSS


def test_cards_and_stages(read: Any) -> None:
    record: Record = read(result(1))
    cards = view_cards(record)
    assert [card.title for card in cards] == ["Before", "Compressed", "Healed", "With int8"]
    assert (cards[0].value, cards[0].stderr, cards[0].change) == ("1.383", "0.011", None)
    assert cards[2].change == "+0.162 (+12 %)"
    assert [size[0] for size in cards[0].sizes] == ["File", "FLOP"]
    assert cards[0].sizes[0][2] is None
    titles, rows = view_stages(record)
    table = dict(rows)
    assert titles == ("Before", "Compressed", "Healed", "With int8")
    assert "Accuracy" not in table, "what was not measured has no row"
    assert [share for _, share in table["in linear layers"]][1:] == ["25.0\N{NARROW NO-BREAK SPACE}%"] * 3
    without = view_cards(read(result(1) | {"metrics": result(1)["metrics"] | {"healed": None, "quantized": None}}))
    assert [card.title for card in without] == ["Before", "Compressed"]
    assert view_stages(read(bare())) == (("Before", "Compressed"), ())
