"""Choice of tiles: there always is one, it fits the device, and it is the kind that memory likes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwing.kernels.gpu.device import Device, device_of
from flatwing.kernels.gpu.geometry import geometry
from flatwing.kernels.gpu.model import (
    cuts,
    factor_choices,
    pair_choices,
    pair_weights_choices,
    splits_for,
    weights_choices,
)
from flatwing.kernels.gpu.tiles import Arithmetic, Tile, pieces
from flatwing.structure import Pattern

H100 = Device()
NUMBERS = ("half", "single", "tf32")
SMALLEST = replace(H100, capability=(7, 5), shared=64 * 1024)


@given(
    pattern=st.builds(Pattern, *[st.sampled_from([1, 2, 3, 7, 16, 37, 64, 300])] * 4),
    rows=st.sampled_from([1, 16, 1024, 1 << 20]),
    numbers=st.sampled_from(NUMBERS),
    last=st.booleans(),
)
def test_there_always_is_a_tile(pattern: Pattern, rows: int, numbers: Arithmetic, last: bool) -> None:
    for choices in (factor_choices, weights_choices):
        found = choices(pattern, rows, numbers, last, SMALLEST)
        assert found
        assert all(0 < choice.seconds < 1e4 for choice in found)
        assert [choice.seconds for choice in found] == sorted(choice.seconds for choice in found)
        assert max(choice.tile.shared for choice in found) <= SMALLEST.shared


@pytest.mark.parametrize("choices", [factor_choices, weights_choices])
@pytest.mark.parametrize("numbers", NUMBERS)
def test_which_kernel(choices: object, numbers: Arithmetic) -> None:
    def kernel(pattern: Pattern, last: bool = False) -> str:
        return choices(pattern, 4096, numbers, last, H100)[0].tile.kernel  # type: ignore[operator]

    assert kernel(Pattern(64, 64, 64, 1)) == "flat"
    assert kernel(Pattern(1, 64, 64, 64)) == "deep"  # runs of neighbouring k
    assert kernel(Pattern(1, 64, 64, 64), last=True) == "flat"  # vectors are neighbours already
    columns = choices(Pattern(1, 64, 64, 64), 4096, numbers, True, H100)  # type: ignore[operator]
    assert "deep" not in {choice.tile.kernel for choice in columns}, "the table was not made for that"
    assert kernel(Pattern(1, 2, 2, 2048)) == "tiny"  # a tensor core would multiply zeros


def test_rows_take_time() -> None:
    seconds = [
        factor_choices(Pattern(1, 64, 64, 64), rows, "half", False, H100)[0].seconds for rows in (1, 4096, 65536)
    ]
    assert seconds[0] < seconds[1] < seconds[2]
    # far from the launch itself the limit is memory: 2 bytes read and written per number
    assert seconds[2] >= 65536 * 4096 * 4 / H100.memory


def test_a_pair_is_fused_only_where_it_reads_in_runs() -> None:
    left, right = Pattern(1, 32, 32, 64), Pattern(32, 32, 32, 2)
    assert pair_choices(left, right, 4096, "half", False, H100) == ()
    assert pair_choices(left, right, 4096, "half", True, H100)
    assert pair_choices(Pattern(3, 2, 2, 2), Pattern(2, 3, 2, 2), 4096, "half", False, H100) == ()


def test_a_pair_holds_all_of_its_middle() -> None:
    for blocks in (2, 16, 32, 64):
        chosen = pair_choices(Pattern(1, 32, blocks, 32), Pattern(blocks, 32, 32, 1), 4096, "half", False, H100)
        assert chosen
        assert all(blocks <= choice.tile.middle < max(2 * blocks, 17) for choice in chosen)
    assert pair_choices(Pattern(1, 32, 512, 32), Pattern(512, 32, 32, 1), 4096, "half", False, H100) == ()


def test_the_gradients_of_a_pair_take_tiles_that_hold_its_middle_and_do_not_spill() -> None:
    for blocks, last in ((16, False), (32, False), (16, True)):
        pair = (Pattern(1, 32, blocks, 32), Pattern(blocks, 32, 32, 1))
        chosen = pair_weights_choices(*pair, 4096, "half", last, H100)
        assert chosen
        assert all(blocks <= choice.tile.middle < 2 * blocks for choice in chosen)
        assert [choice.seconds for choice in chosen] == sorted(choice.seconds for choice in chosen)
        longer = pair_weights_choices(*pair, 65536, "half", last, H100)
        assert longer[0].seconds > max(chosen[0].seconds, 65536 * 32 * (blocks + 32) * 2 / H100.memory)
    for last in (False, True):
        odd = pair_weights_choices(Pattern(1, 31, 16, 32), Pattern(16, 32, 32, 1), 4096, "half", last, H100)
        assert not any(choice.tile.even for choice in odd)
    assert pair_weights_choices(Pattern(3, 2, 2, 2), Pattern(2, 3, 2, 2), 4096, "half", False, H100) == ()


def test_cuts_of_a_pair_are_programs() -> None:
    pair = (Pattern(1, 64, 16, 32), Pattern(16, 32, 32, 1))
    shape = geometry(*pair)
    assert shape is not None
    tile = Tile("pair_weights", 16, 16, 16, 8, 16)
    assert cuts(shape, tile) == 4, "64 outputs; the inputs would be two"
    # 4 tiles of groups, 4 cuts
    assert splits_for(pair, 1 << 16, tile, H100) == pieces(4 * H100.processors, 16)


def test_odd_sizes_take_no_tile_that_would_spill() -> None:
    odd = factor_choices(Pattern(3, 67, 53, 1), 4096, "half", False, H100)
    even = factor_choices(Pattern(3, 64, 64, 1), 4096, "half", False, H100)
    assert not any(choice.tile.even for choice in odd)
    assert any(choice.tile.even for choice in even)


def test_splits_fill_the_device_and_stay_cheap() -> None:
    tile = Tile("flat", 64, 64, 64)
    pattern = Pattern(64, 64, 64, 1)
    splits = splits_for((pattern,), 65536, tile, H100)
    assert 64 * splits >= 4 * H100.processors
    assert splits_for((pattern,), 64, tile, H100) == 1  # one tile of rows
    # the parts, in float32, are at most a quarter of what is read anyway
    assert splits_for((Pattern(1, 4096, 4096, 1),), 4096, tile, H100) == 1


def test_without_a_gpu_the_model_speaks_of_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device_of.cache_clear()
    assert device_of(None) == H100
    device_of.cache_clear()


def test_rates_follow_what_the_device_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "major": 9,
        "minor": 0,
        "multi_processor_count": 132,
        "clock_rate": 1_980_000,
        "memory_clock_rate": 2_619_000,
        "memory_bus_width": 5120,
        "shared_memory_per_block_optin": 227 * 1024,
    }
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**said))
    device_of.cache_clear()
    found = device_of(0)
    assert found.memory == pytest.approx(H100.memory, rel=0.02)
    assert found.half == pytest.approx(H100.half, rel=0.1)
    assert found.single == pytest.approx(H100.single, rel=0.1)
    assert (found.capability, found.shared, found.cache) == (H100.capability, H100.shared, pytest.approx(H100.cache))
    said |= {"major": 12, "clock_rate": 0, "memory_bus_width": 0}  # newer than the table, and it says nothing
    device_of.cache_clear()
    assert device_of(0).memory == H100.memory
    assert device_of(0).half > 0
    device_of.cache_clear()
