"""Which factors go together in one launch, and what that should take."""

import torch

from flatwing.kernels.backend import Task
from flatwing.kernels.gpu.device import Device
from flatwing.kernels.gpu.groups import backward_grouped, grouped, merges, runs
from flatwing.kernels.gpu.model import Choice, factor_choices, weights_choices
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
    assert backward_grouped(chain, 4096, "half", False, H100)[0] > 2 * grouped(chain, 4096, "half", False, H100)[0]


def backward_sizes(text: str, rows: int = 1 << 16, last: bool = False) -> tuple[int, ...]:
    return backward_grouped(Chain.parse(text).patterns, rows, "half", last, H100)[1]


def test_the_values_of_a_small_pair_get_their_gradients_together() -> None:
    assert backward_sizes("(1,16,16,16)(16,16,16,1)") == (2,)
    assert backward_sizes("(2,2,2,256)(4,16,16,16)(64,16,16,1)") == (2, 1)


def test_the_values_of_a_pair_get_their_gradients_apart_where_that_is_faster() -> None:
    assert backward_sizes("(1,32,32,32)(32,32,32,1)") == (1, 1), "h and dh would be computed again for each tile"
    assert backward_sizes("(1,64,64,64)(64,64,64,1)") == (1, 1), "the sums do not fit a chip"
    assert backward_sizes("(1,15,16,16)(16,16,17,1)") == (1, 1), "addresses of odd sizes do not fit it either"
    assert backward_sizes("(1,16,16,32)(16,16,16,2)") == (1, 1), "features that are not neighbours"
    assert backward_sizes("(1,16,16,32)(16,16,16,2)", last=True) == (2,)


def test_the_gradients_of_a_pair_save_passes_over_memory() -> None:
    chain, rows = Chain.parse("(1,16,16,16)(16,16,16,1)").patterns, 1 << 16
    apart = sum(choices[0].seconds for p in chain for choices in each_of(p, rows))
    assert backward_grouped(chain, rows, "half", False, H100)[0] < 0.9 * (
        apart + factor_choices(chain[1], rows, "half", False, H100)[0].seconds
    )


def each_of(pattern: Pattern, rows: int) -> list[tuple[Choice, ...]]:
    """What the gradients of one factor take: of its values, and of its input."""
    setup = (rows, "half", False, H100)
    return [weights_choices(pattern, *setup), factor_choices(pattern.T, *setup)]  # type: ignore[arg-type]


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
