"""The model of the block kernels: cores divide the work, not the traffic with memory."""

import pytest
import torch

from flatwing import Chain
from flatwing.kernels.cost import TOGETHER
from flatwing.kernels.cpu import blocks_rows, workers
from flatwing.kernels.cpu.blocks_cost import seconds

CHAIN = Chain.monarch(1024, 1024, blocks=32)


def speedup(rows: int, threads: int, train: bool = False) -> float:
    one, many = (seconds(CHAIN, rows, torch.float32, False, train, t) for t in (1, threads))
    return one / many


@pytest.mark.parametrize("train", [False, True])
def test_threads_divide_what_stays_in_the_caches(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1e-5)  # whether they are worth waking is another question
    assert speedup(512, 2, train) == pytest.approx(2, rel=0.02)  # each packs the weights
    assert speedup(512, 4, train) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("train", [False, True])
def test_threads_share_the_memory(train: bool) -> None:
    assert 1 < speedup(1 << 16, 2, train) < speedup(1 << 16, 64, train)
    assert speedup(1 << 16, 1 << 10, train) < 4 * TOGETHER, "more than a quarter of the time is traffic"


def test_rows_that_are_not_transposed_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_rows, "REGISTERS", True)
    rows, columns = (seconds(CHAIN, 256, torch.float32, last, False, 1) for last in (False, True))
    assert seconds(CHAIN, 256, torch.float32, False, True, 1) > 2 * rows
    monkeypatch.setattr(blocks_rows, "REGISTERS", False)
    assert rows < 0.95 * seconds(CHAIN, 256, torch.float32, False, False, 1)
    assert columns == seconds(CHAIN, 256, torch.float32, True, False, 1), "as columns they never are transposed"
