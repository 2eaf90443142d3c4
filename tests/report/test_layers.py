"""Each layer has its bar, the worst first; layers that were not replaced are named with the reason."""

import re
from pathlib import Path
from typing import Any

import pytest

from flatwing.report.folder import read_run
from flatwing.report.layers import FAMILIES, draw_bar, draw_strip, extremes, view_layers
from flatwing.report.record import Layer
from report.sample import EVIL, layer, result, write_run


@pytest.fixture
def read(tmp_path: Path):  # type: ignore[no-untyped-def]
    def layers(entries: list[dict[str, Any]]) -> tuple[Layer, ...]:
        return read_run(write_run(tmp_path, result(1) | {"layers": entries}, bare=True)).record.layers

    return layers


def entry(name: str, **change: Any) -> dict[str, Any]:
    return layer(name, 128, 128, 10.0, 1) | change


def test_worst_first_and_unknown_last(read: Any) -> None:
    errors = {"a": 0.1, "b": None, "c": 0.3, "d": 0.2}
    view = view_layers(read([entry(name, error=error) for name, error in errors.items()]))
    assert [bar.layer.name for bar in view.bars] == ["c", "d", "a", "b"]


def test_bar_in_proportion(read: Any) -> None:
    (only,) = read([entry("a", error=0.2, heldout_error=0.25, lower_bound=0.1)])
    svg = draw_bar(only, 0.4)
    assert re.search(r'width="50" height="12" class="fill"', svg)
    assert re.search(r'x1="25" [^>]*class="bound"', svg)
    assert re.search(r'x1="62.5" [^>]*class="heldout"', svg)
    assert 'aria-label="a: error 20.0\N{NARROW NO-BREAK SPACE}%, lower bound 10.0' in svg


def test_bar_of_unknown_numbers_is_empty(read: Any) -> None:
    (only,) = read([entry(EVIL, error=None, heldout_error=None, lower_bound=None)])
    svg = draw_bar(only, 1.0)
    assert [name in svg for name in ("fill", "bound", "heldout", "<script")] == [False] * 4


@pytest.mark.parametrize(
    ("error", "top"), [(0.34, 0.4), (0.05, 0.06), (1.0, 1.0), (1e-7, 1e-7), (0.0, 1.0), (3.3, 4.0)]
)
def test_all_bars_end_at_a_round_number(read: Any, error: float, top: float) -> None:
    view = view_layers(read([entry("a", error=error, heldout_error=error / 2, lower_bound=None)]))
    assert view.top == pytest.approx(top)


def test_largest_of_all_three_numbers_fits(read: Any) -> None:
    view = view_layers(read([entry("a", error=0.1, heldout_error=0.5, lower_bound=0.05)]))
    assert view.top >= 0.5


def test_strip_has_a_column_per_layer_in_order(read: Any) -> None:
    entries = [entry("a", error=0.1), entry("b", action="kept"), entry("c", error=0.4), entry("d", error=None)]
    svg = draw_strip(read(entries), 0.4)
    columns = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="0.8" height="([\d.]+)" class="(\w+)">', svg)
    assert columns == [("0.1", "12", "fill"), ("1.1", "3", "stub"), ("2.1", "48", "fill"), ("3.1", "3", "stub")]
    assert view_layers(read([entry("a")])).strip is None
    assert view_layers(read([])).strip is None


def test_untouched_layers_by_reason(read: Any) -> None:
    kept = [entry(f"k{i}", action="kept", reason="too small") for i in range(3)]
    other = [entry("h", action="skipped", reason="tied"), entry("m", action="skipped", reason=None)]
    view = view_layers(read([*kept, *other]))
    assert view.bars == ()
    assert view.untouched == (
        ("kept", "too small", ("k0", "k1", "k2")),
        ("skipped", "tied", ("h",)),
        ("skipped", "no reason was recorded", ("m",)),
    )


def test_each_structure_is_drawn_once(read: Any) -> None:
    view = view_layers(read(result(4)["layers"]))
    assert [(family.structure, family.layers) for family in view.families] == [
        ("blast(blocks=8, rank=24)", 4),
        ("blast(blocks=8, rank=32)", 4),
        ("monarch(blocks=8)", 4),
    ], "equally frequent ones in the order of their worst layers"
    many = [entry(f"l{i}", structure=f"s{i}") for i in range(FAMILIES + 3)]
    view = view_layers(read(many))
    assert (len(view.families), view.hidden_families) == (FAMILIES, 3)


def test_extremes_of_spectra(read: Any) -> None:
    spectra = {"flat": [1, 1, 1, 1], "steep": [1, 0.1, 0.01, 0], "mid": [5, 2.5, 2, 1], "zero": [0, 0], "none": None}
    layers = read([entry(name, spectrum=spectrum) for name, spectrum in spectra.items()])
    most, least = extremes(layers, 1)
    assert ([x.name for x in most], [x.name for x in least]) == (["steep"], ["flat"])
    most, least = extremes(layers[:1], 2)
    assert ([x.name for x in most], [x.name for x in least]) == (["flat"], [])
    chart = view_layers(layers).spectra
    assert chart is not None
    assert {name for name, _ in chart.legend} == {"steep", "mid", "flat"}, "each once"
    assert view_layers(layers[3:]).spectra is None
