"""Every row of a batch is computed once, by one rank, in one micro-batch, and weighs the same."""

from collections import namedtuple

import pytest
import torch

from flatwing.train.portions import portions, rows_of, take_rows, to_device


@pytest.mark.parametrize("rows", [8, 11, 16])
@pytest.mark.parametrize("micro", [None, 1, 3, 100])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_rows_are_taken_once_with_equal_weight(rows: int, micro: int | None, ranks: int) -> None:
    batch = torch.arange(rows)
    if rows == 11 and micro == 1 and ranks > 1:
        pytest.skip("a rank with fewer rows than the others would have an empty micro-batch, which is refused")
    parts = [portions(batch, micro, rank, ranks) for rank in range(ranks)]
    assert sorted(int(row) for own in parts for part, _ in own for row in part) == list(range(rows))
    assert len({len(own) for own in parts}) == 1  # ranks talk to each other in every micro-batch
    assert all(weight == pytest.approx(len(part) / rows) for own in parts for part, weight in own)
    assert all(len(part) <= (micro or rows) for own in parts for part, _ in own)


def test_pairs_dicts_and_named_tuples_are_cut_alike() -> None:
    Pair = namedtuple("Pair", "x y")
    batch = {"a": torch.arange(4), "b": [Pair(torch.arange(4) * 2, torch.arange(8).view(4, 2))], "name": "kept"}
    taken = take_rows(batch, torch.tensor([3, 1]))
    assert taken["a"].tolist() == [3, 1]
    assert taken["b"][0].x.tolist() == [6, 2]
    assert taken["b"][0].y.tolist() == [[6, 7], [2, 3]]
    assert taken["name"] == "kept"
    assert type(taken["b"][0]) is Pair
    assert to_device((torch.ones(2),), torch.device("meta"))[0].is_meta


def test_what_is_not_cut_may_be_anything() -> None:
    assert portions("text") == [("text", 1.0)]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.ones(2), torch.ones(3)), "rows .*'2', '3'"),
        (torch.tensor(1.0), "Rule: tensors with one row per sample"),
        ("text", "a batch of type str"),
    ],
)
def test_batches_without_rows_are_refused(batch: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(batch)


def test_too_few_rows_are_refused_with_the_number_needed() -> None:
    with pytest.raises(ValueError, match=r"3 rows for 4 ranks .* Nearest good value: a batch of 4"):
        portions(torch.arange(3), None, 0, 4)
    with pytest.raises(ValueError, match=r"5 rows for 2 ranks with 3 micro-batches .* a batch of 6"):
        portions(torch.arange(5), 1, 0, 2)
