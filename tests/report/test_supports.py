"""Pictures of supports: the blocks of each pattern, at one scale."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatwing.report.folder import read_run
from flatwing.report.record import Layer
from flatwing.report.supports import SIDE, THINNEST, draw_supports, patterns, size, support
from flatwing.structure import Pattern
from report.sample import EVIL, write_run


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Layer, ...]:
    return read_run(write_run(tmp_path)).record.layers


def dense(pattern: tuple[int, ...]) -> np.ndarray:
    a, b, c, d = pattern
    return np.kron(np.kron(np.eye(a), np.ones((b, c))), np.eye(d))


def raster(svg: str, rows: int, columns: int) -> np.ndarray:
    """Entries whose middle lies in a rectangle or on a diagonal of a path that was drawn at one unit per entry."""
    cells = np.zeros((rows, columns), bool)
    for x, y, wide, tall in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)", svg):
        left, top = round(float(x)), round(float(y))
        cells[top : top + round(float(tall)), left : left + round(float(wide))] = True
    for x, y, dx, dy in re.findall(r"M([\d.]+) ([\d.]+)l([\d.]+) ([\d.]+)", svg):
        steps = np.arange(round(float(dx)))
        assert round(float(dx)) == round(float(dy))
        cells[round(float(y)) + steps, round(float(x)) + steps] = True
    return cells


@pytest.mark.parametrize(
    "pattern", [(1, 3, 5, 1), (4, 2, 3, 1), (1, 2, 3, 5), (2, 3, 2, 4), (6, 1, 1, 1), (1, 1, 1, 6), (3, 2, 2, 3)]
)
def test_support_is_that_of_the_pattern(pattern: tuple[int, ...]) -> None:
    rows, columns = size(pattern)
    assert size(pattern) == dense(pattern).shape == Pattern(*pattern).shape
    drawn = raster(support(pattern, float(columns), float(rows)), rows, columns)
    np.testing.assert_array_equal(drawn, dense(pattern) > 0)


def test_what_is_too_fine_is_a_shade_as_deep_as_its_density() -> None:
    assert 'class="block" fill-opacity="0.25"' in support((1, 64, 64, 4), 100.0, 100.0)
    assert 'class="diagonal"' in support((1, 8, 8, 8), 100.0, 100.0)
    assert support((4096, 4, 4, 1), 100.0, 100.0).count("M") == 1, "a band instead of 4096 blocks"
    assert len(support((1, 2048, 2048, 4), 100.0, 100.0)) < 200


def test_shared_bases_are_a_chain_of_three(layers: tuple[Layer, ...]) -> None:
    layer = layers[0]
    chain = patterns(layer)
    assert chain == ((8, 48, 24, 1), (1, 8, 8, 24), (8, 24, 16, 1))
    left, coupling, right = map(dense, chain)
    assert (left @ coupling @ right).shape == layer.shape
    assert (left @ coupling @ right > 0).all(), "every entry is reached"
    assert layer.parameters == sum(a * b * c * d for a, b, c, d in chain)


NO_PRODUCT: list[dict[str, Any]] = [
    {"blocks": None},
    {"rank": None},
    {"rank": 0},
    {"shape": ()},
    {"blocks": (7, 8)},
    {"blocks": (8,)},
    {"kind": "sum"},
]


@pytest.mark.parametrize("change", NO_PRODUCT)
def test_structure_that_is_no_product_has_no_patterns(layers: tuple[Layer, ...], change: dict[str, Any]) -> None:
    assert patterns(replace(layers[0], **change)) is None


def test_panels_have_one_scale_and_fit() -> None:
    svg = draw_supports("k", EVIL, [(1, 64, 4, 1), (1, 4, 32, 1)])
    boxes = re.findall(r'<rect width="([\d.]+)" height="([\d.]+)" class="frame"/>', svg)
    sizes = [(float(w), float(h)) for w, h in boxes]
    assert sizes[0] == (SIDE / 2, SIDE)
    assert sizes[1] == (pytest.approx(SIDE / 16), SIDE)
    assert sizes[2] == (SIDE / 2, pytest.approx(SIDE / 16))
    assert re.findall(r'class="sign">(.)<', svg) == ["\N{ALMOST EQUAL TO}", "\N{MULTIPLICATION SIGN}"]
    assert "<script" not in svg
    sliver = draw_supports("k", "s", [(1, 512, 1, 1), (1, 1, 512, 1)])
    assert f'width="{THINNEST:g}"' in sliver


def test_many_factors_become_smaller() -> None:
    svg = draw_supports("k", "butterfly", [(2**i, 2, 2, 2 ** (7 - i)) for i in range(8)])
    wide = float(re.findall(r'viewBox="0 0 ([\d.]+)', svg)[0])
    assert wide <= 445
    assert svg.count('class="frame"') == 9
