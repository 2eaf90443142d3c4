"""Which factors go together in one launch, and what that should take."""

import torch

from flatwing.kernels.backend import Task
from flatwing.kernels.gpu.device import Device
from flatwing.kernels.gpu.groups import backward_seconds, grouped, merges, runs
from flatwing.structure import Chain, Pattern

H100 = Device()


def sizes(chain: Chain, rows: int = 4096, last: bool = False) -> tuple[int, ...]:
    return grouped(chain.patterns, rows, "half", last, H100)[1]


def test_a_monarch_pair_is_one_launch() -> None:
    assert sizes(Chain.parse("(1,32,32,32)(32,32,32,1)")) == (2,)
    assert sizes(Chain.parse("(1,32,32,32)(32,32,32,1)").T) == (2,)


def test_a_pair_too_large_for_a_chip_is_two() -> None:
    assert sizes(Chain.parse("(1,256,256,256)(256,256,256,1)")) == (1, 1)


def test_only_the_right_end_reads_in_runs() -> None:
    chain = Chain.from_radices((16, 16, 16), (16, 16, 16), (1, 1))
    assert sizes(chain) == (2, 1)
    assert sum(sizes(chain, last=True)) == 3


def test_fusing_saves_a_pass_over_memory() -> None:
    chain, rows = Chain.parse("(1,32,32,32)(32,32,32,1)"), 65536
    fused = grouped(chain.patterns, rows, "half", False, H100)[0]
    apart = sum(grouped((p,), rows, "half", False, H100)[0] for p in chain)
    assert fused < 0.8 * apart


def test_backward_costs_more_than_forward() -> None:
    chain = Chain.parse("(1,32,32,32)(32,32,32,1)").patterns
    assert backward_seconds(chain, 4096, "half", False, H100) > 2 * grouped(chain, 4096, "half", False, H100)[0]


def test_runs_cover_the_chain_from_the_right() -> None:
    assert list(runs((1, 2, 1), 4)) == [(3, 3), (1, 2), (0, 0)]


def test_one_factor_is_one_launch() -> None:
    assert grouped((Pattern(1, 3, 5, 7),), 1, "single", False, H100)[1] == (1,)


def merged(chain: Chain, rows: int) -> tuple[int, ...]:
    return merges(Task(chain, rows, torch.bfloat16, "cuda"), H100)


def test_tiny_blocks_are_merged_to_a_pair_for_many_rows() -> None:
    chain, rows = Chain.butterfly(4096), 1 << 16
    short = chain.merged(merged(chain, rows))
    assert len(short) <= 4
    assert sizes(short, rows)[0] == 2
    assert (
        grouped(short.patterns, rows, "half", False, H100)[0]
        < grouped(chain.patterns, rows, "half", False, H100)[0] / 5
    )
    assert len(chain.T) - len(merged(chain.T, rows)) <= 4, "the dual flavour, too"
    assert merged(chain, 16) == (), "merging costs more than it saves"


def test_large_blocks_stay() -> None:
    assert merged(Chain.parse("(1,32,32,32)(32,32,32,1)"), 4096) == ()


def test_what_is_not_chainable_stays() -> None:
    assert merged(Chain.parse("(1,6,6,6)(4,9,9,1)"), 4096) == ()
