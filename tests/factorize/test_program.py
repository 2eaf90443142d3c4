"""Programs: where nodes lie, and that nothing is written over while it is needed."""

import pytest

from flatwing import Chain
from flatwing.factorize import program
from flatwing.factorize.order import split_order


@pytest.mark.parametrize("orthonormalize", [True, False])
@pytest.mark.parametrize("order", ["l2r", "r2l", "balanced"])
def test_no_step_writes_over_what_is_read_later(order: str, orthonormalize: bool) -> None:
    chain = Chain.from_radices((2, 3, 4, 2, 2), (3, 2, 2, 4, 2), (1, 1, 1, 1), 2, 3)
    steps = program.attempt(chain.patterns, split_order(order, len(chain)), orthonormalize)
    owner: dict[int, tuple[int, ...]] = {}  # entry -> the step that wrote it last, and which of its parts it is
    factors = dict(steps.factors)

    def write(step: int, part: int, place: int, size: int) -> None:
        owner.update(dict.fromkeys(range(place, place + size), (step, part)))

    def read(place: int, size: int) -> None:
        written = {owner[entry] for entry in range(place, place + size)}
        assert len(written) == 1, "one part, whole"

    for i, step in enumerate(steps.steps):
        split, parts = step.split, ((step.left, step.split.left.nnz), (step.right, step.split.right.nnz))
        if step.kind == program.CUT:
            if step.node != program.VALUES:
                read(step.node, split.pattern.nnz)
            source = range(step.node, step.node + split.pattern.nnz) if step.node != program.VALUES else range(0)
            for part, (place, size) in enumerate(parts):
                assert not set(source) & set(range(place, place + size)), "a cut reads while it writes"
                write(i, part, place, size)
            assert abs(step.left - step.right) >= min(size for _, size in parts)
            continue
        for part, (place, size) in enumerate(parts):
            read(place, size)
            if step.kind in (program.SIGNS, program.TO_LEFT, program.TO_RIGHT):
                write(i, part, place, size)
        if step.kind == program.MULTIPLY:
            write(i, 2, step.node, split.pattern.nnz)
    for place, pattern in factors.items():
        read(place, pattern.nnz)
    assert max(owner) < steps.entries


def test_memory_of_nodes_is_used_again() -> None:
    """From left to right two nodes live at a time, of a half and a quarter of the matrix at first."""
    chain = Chain.butterfly(256)
    steps = program.attempt(chain.patterns, split_order("l2r", 8), True)
    assert steps.entries <= 3 / 4 * 256**2 + chain.nnz
    assert steps.entries % program.ALIGNED == 0


def test_blocks_side_by_side_are_one_cut() -> None:
    steps = program.blockwise(5, 3, 7, 2)
    assert [step.kind for step in steps.steps] == [program.CUT]
    assert steps.steps[0].split.grid[:3] == (5, 1, 1)
    assert steps.steps[0].split.rank == 2
    assert steps.table.shape == (1, 13)
