"""Scales, ticks and elements: what is drawn lies where it should, and no text becomes markup."""

from itertools import pairwise
from math import log10

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from flatwing.report.svg import Scale, decimal, element, linear_ticks, log_ticks, padded, picture
from report.sample import EVIL

finite = st.floats(-1e9, 1e9).map(lambda x: float(f"{x:.6g}"))


def test_content_and_attributes_are_escaped() -> None:
    svg = element("text", EVIL, Markup("<b/>"), title=EVIL, x=1.0, fill=None)
    assert "<script" not in svg
    assert svg.count("&lt;script&gt;") == 2
    assert "<b/>" in svg
    assert "fill" not in svg
    assert svg.count('"') == 4, "no attribute is left early"


def test_names_of_attributes() -> None:
    assert element("rect", class_="a", stroke_width=2, viewBox="0 0 1 1") == (
        '<rect class="a" stroke-width="2" viewBox="0 0 1 1"/>'
    )


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1.0, "1"), (-0.001, "0"), (12.345, "12.35"), (-2.5, "-2.5"), (100, "100")]
)
def test_decimal(value: float, text: str) -> None:
    assert decimal(value) == text


def test_picture_speaks() -> None:
    svg = picture("k", 100, 50, "Title", "What it shows", element("rect", width=1))
    assert '<title id="k-title">Title</title><desc id="k-desc">What it shows</desc>' in svg
    assert 'aria-labelledby="k-title k-desc"' in svg
    assert 'viewBox="0 0 100 50"' in svg


@given(finite, finite)
def test_linear_ticks_are_round_and_inside(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = linear_ticks(low, high)
    slack = 1e-6 * (high - low)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    if high - low > 1e-3 * max(abs(low), abs(high), 1e-6):
        assert 2 <= len(ticks) <= 7
        step = min(b - a for a, b in pairwise(ticks))
        assert f"{step:.0e}"[0] in "125"


@given(st.floats(-8, 8), st.floats(0.05, 14))
def test_log_ticks_are_inside_and_few(start: float, decades: float) -> None:
    ticks = log_ticks(10**start, 10 ** (start + decades))
    assert all(start - 0.01 <= log10(tick) <= start + decades + 0.01 for tick in ticks)
    assert len(ticks) <= 9
    assert len(ticks) >= 2 or decades < 1


@given(st.lists(st.floats(1e-6, 1e6), min_size=1), st.booleans())
def test_padding_leaves_room_around_all_values(values: list[float], log: bool) -> None:
    low, high = padded(values, log=log)
    assert low < min(values) <= max(values) < high
    scale = Scale(low, high, 10.0, 20.0, log=log)
    assert all(10 < scale(value) < 20 for value in values)
    assert scale(low) == pytest.approx(10)
    assert scale(high) == pytest.approx(20)


def test_scale_that_goes_down() -> None:
    assert [Scale(0, 4, 100, 0)(value) for value in (0, 1, 4)] == [100, 75, 0]
