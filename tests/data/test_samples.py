"""A batch is a function of numbers: parts of it are the same wherever they are taken."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing.data import Rows, Samples, Windows, visits
from flatwing.data.samples import cut

MAKERS: dict[str, Callable[[], Samples]] = {
    "rows": lambda: Rows(torch.randn(50, 2, 3), torch.arange(50)),
    "windows": lambda: Windows([np.arange(60)], length=6),
    "pieces": lambda: Windows([np.arange(31), np.arange(31, 60)], length=6, stride=2),
}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_ranks_take_disjoint_parts_of_one_batch(name: str, ranks: int) -> None:
    samples = MAKERS[name]()
    indices = samples.indices(step=2, batch_size=9, seed=1)
    x, y = samples.take(indices)
    for rank in range(ranks):
        mine = samples.take(indices[rank::ranks])
        assert torch.equal(mine[0], x[rank::ranks])
        assert torch.equal(mine[1], y[rank::ranks])


@pytest.mark.parametrize("name", MAKERS)
def test_steps_follow_each_other_without_gap(name: str) -> None:
    samples = MAKERS[name]()
    steps = torch.cat([samples.indices(step, 7, seed=4) for step in range(12)])
    assert torch.equal(steps, visits(0, 84, len(samples), seed=4))
    assert sorted(steps[: len(samples)].tolist()) == list(range(len(samples)))


@pytest.mark.parametrize("name", MAKERS)
def test_each_gives_all_in_order_and_a_limit_spreads(name: str) -> None:
    samples = MAKERS[name]()
    everything = samples.take(torch.arange(len(samples)))
    parts = list(samples.each(8))
    assert [len(y) for _, y in parts[:-1]] == [8] * (len(parts) - 1)
    for whole, joined in zip(everything, zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(joined))
    few = torch.cat([y for _, y in samples.each(2, limit=3)])
    n = len(samples)
    assert torch.equal(few, samples.take(torch.tensor([0, n // 3, 2 * n // 3]))[1])
    assert len(torch.cat([y for _, y in samples.each(8, limit=10**6)])) == n


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("index", [-1, 10**6])
def test_numbers_out_of_range_are_refused(name: str, index: int) -> None:
    with pytest.raises(ValueError, match=f"there is no sample {index}"):
        MAKERS[name]().take(torch.tensor([0, index]))


def test_senseless_sizes_are_refused() -> None:
    samples = MAKERS["rows"]()
    with pytest.raises(ValueError, match="step is -1"):
        samples.indices(-1, 4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        samples.indices(0, 0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        samples.each(0)
    with pytest.raises(ValueError, match="limit is 0"):
        samples.each(1, limit=0)
    with pytest.raises(ValueError, match="x has 2 rows, y has 3"):
        Rows(torch.zeros(2, 1), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"length is 5 for 5 tokens.*Nearest good value: 4"):
        Windows([np.arange(5)], length=5)
    with pytest.raises(ValueError, match="stride is 0"):
        Windows([np.arange(5)], length=2, stride=0)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    length=st.integers(1, 8),
    stride=st.integers(1, 5),
    dtype=st.sampled_from(["uint8", "uint16", ">u2", "int64"]),
)
def test_windows_over_pieces_are_windows_over_the_whole(
    lengths: list[int], length: int, stride: int, dtype: str
) -> None:
    whole = np.arange(sum(lengths)).astype(dtype)
    if len(whole) <= length:
        return
    pieces = np.split(whole, np.cumsum(lengths)[:-1])
    samples = Windows(pieces, length, stride)
    x, y = samples.take(torch.arange(len(samples)))
    assert len(samples) == len(range(0, len(whole) - length, stride))
    want = torch.arange(len(samples))[:, None] * stride + torch.arange(length)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x, want)
    assert torch.equal(y, want + 1)


def test_side_by_side_each_token_is_predicted_once() -> None:
    samples = Windows([np.arange(25)], length=6, stride=6)
    assert samples.take(torch.arange(len(samples)))[1].flatten().tolist() == list(range(1, 25))


def test_bytes_beyond_the_vocabulary_are_its_last() -> None:
    x, _ = Windows([np.array([65, 127, 128, 255, 0], dtype=np.uint8)], length=4, vocab=128).take(torch.tensor([0]))
    assert x.tolist() == [[65, 127, 127, 127]]


@given(lengths=st.lists(st.integers(0, 9), max_size=6), start=st.integers(0, 30), more=st.integers(0, 30))
def test_cut_is_a_slice_of_the_whole(lengths: list[int], start: int, more: int) -> None:
    whole = np.arange(sum(lengths))
    parts = cut(np.split(whole, np.cumsum(lengths)[:-1]) if lengths else [], start, start + more)
    assert np.concatenate([np.arange(0), *parts]).tolist() == whole[start : start + more].tolist()
