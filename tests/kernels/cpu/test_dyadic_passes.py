import numpy as np
import pytest

from flatwing.kernels.cpu.dyadic_passes import (
    ASCENDING,
    DESCENDING,
    FACTOR,
    KIND,
    OFFSET,
    RADIX_2,
    RADIX_4,
    SORTED,
    STRIDE,
    passes,
)


def kinds(depths: tuple[int, ...], n: int, lanes: int, radix: int = 4) -> list[int]:
    return passes(depths, n, lanes, radix).table[:, KIND].tolist()


def test_usual_chain_goes_up() -> None:
    found = passes((512, 256, 128, 64, 32, 16, 8, 4, 2, 1), 1024, lanes=16)
    assert found.table[:, KIND].tolist() == [ASCENDING, RADIX_4, RADIX_4, RADIX_4]
    assert found.table[0, FACTOR : FACTOR + 4].tolist() == [9, 8, 7, 6], "the last factor is applied first"
    assert found.table[0, STRIDE : STRIDE + 4].tolist() == [1, 2, 4, 8]
    assert found.table[1:, STRIDE : STRIDE + 2].tolist() == [[16, 32], [64, 128], [256, 512]]


def test_dual_chain_goes_down() -> None:
    found = passes((1, 2, 4, 8, 16, 32), 64, lanes=16).table
    assert found[:, KIND].tolist() == [RADIX_4, DESCENDING]
    assert found[0, STRIDE : STRIDE + 2].tolist() == [32, 16]
    assert found[0, SORTED : SORTED + 2].tolist() == [16, 32]
    assert found[1, STRIDE : STRIDE + 4].tolist() == [8, 4, 2, 1]


def test_absent_strides_multiply_by_one() -> None:
    row = passes((8, 2), 16, lanes=16).table[0]
    assert row[FACTOR : FACTOR + 4].tolist() == [-1, 1, -1, 0]


def test_a_run_ends_where_the_direction_turns_or_a_stride_repeats() -> None:
    assert kinds((1, 2, 1), 16, 16) == [ASCENDING, ASCENDING]
    assert kinds((1, 2, 4, 2), 16, 16) == [ASCENDING, DESCENDING]
    assert kinds((2, 2), 16, 16) == [ASCENDING, ASCENDING]


def test_strides_that_span_no_grid_are_not_paired() -> None:
    assert kinds((32, 32), 64, 16) == [RADIX_2, RADIX_2]
    assert kinds((48, 32), 192, 16) == [RADIX_2, RADIX_2]
    assert kinds((48, 16), 96, 16) == [RADIX_2, RADIX_2]
    assert kinds((96, 16), 192, 16) == [RADIX_4]
    assert kinds((64, 32, 16), 128, 16) == [RADIX_4, RADIX_2]
    assert kinds((32, 16), 64, 16, radix=2) == [RADIX_2, RADIX_2]


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
@pytest.mark.parametrize("radix", [2, 4])
@pytest.mark.parametrize("depths", [(32, 16, 8, 4, 2, 1), (1, 16, 2, 4, 4, 32, 8, 16), (32,), (1,)])
def test_every_factor_has_a_place_and_weights_of_its_own(depths: tuple[int, ...], lanes: int, radix: int) -> None:
    n = 64
    table, size = passes(depths, n, lanes, radix)
    seen, end = [], 0
    slots = lanes.bit_length() - 1
    for row in table:
        count = {RADIX_2: 1, RADIX_4: 2}.get(int(row[KIND]), slots)
        factors, strides = row[FACTOR : FACTOR + count], row[STRIDE : STRIDE + count]
        assert all(depths[f] == s for f, s in zip(factors, strides, strict=True) if f >= 0)
        seen += [int(f) for f in factors if f >= 0]
        assert row[OFFSET] == end
        assert sorted(strides) == row[SORTED : SORTED + count].tolist()
        end += 2 * n * count
    assert seen == list(range(len(depths)))[::-1]
    assert end == size


def test_table_is_shared_and_cannot_be_changed() -> None:
    table = passes((2, 1), 16, 16).table
    assert table is passes((2, 1), 16, 16).table
    assert table.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        table[0, 0] = 1
