"""Line charts show each value where it belongs, and say the same in words."""

import re

import pytest

from flatwing.report.charts import BOTTOM, HEIGHT, LEFT, MOST, RIGHT, WIDTH, Chart, Series, line_chart
from report.sample import EVIL


def chart(*series: Series, **options: object) -> Chart:
    made = line_chart("k", "title", series, x_label="x", y_label="y", **options)  # type: ignore[arg-type]
    assert made is not None
    return made


def series(*points: tuple[float, float], name: str = "a", error: float | None = None, marks: bool = True) -> Series:
    return Series(name, "accent", tuple((float(x), float(y), error) for x, y in points), marks)


def circles(made: Chart) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', made.svg)]


def test_points_are_drawn_in_proportion() -> None:
    (x0, y0), (x1, y1), (x2, y2) = circles(chart(series((0, 0), (1, 1), (2, 4))))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02)
    assert (y0 - y2) == pytest.approx(4 * (y0 - y1), abs=0.05)
    assert min(x0, LEFT) == LEFT
    assert x2 < WIDTH - RIGHT
    assert y0 < HEIGHT - BOTTOM


def test_logarithmic_axes() -> None:
    points = circles(chart(series((1, 1), (10, 100), (100, 10_000)), x_log=True, y_log=True))
    assert points[1] == pytest.approx(((points[0][0] + points[2][0]) / 2, (points[0][1] + points[2][1]) / 2), abs=0.02)


def test_logarithm_leaves_out_what_it_cannot_show() -> None:
    assert len(circles(chart(series((1, 0.0), (2, -1.0), (3, 5.0), (4, 6.0)), y_log=True))) == 2
    assert line_chart("k", "t", [series((0, 1))], x_label="x", y_label="y", x_log=True) is None
    assert chart(series((1, 5.0)), y_log=True, level=("dense", 0.0)).legend == (("a", "accent"),)


def test_nothing_to_show_is_none() -> None:
    assert line_chart("k", "t", [], x_label="x", y_label="y") is None
    assert line_chart("k", "t", [series()], x_label="x", y_label="y", level=("dense", 1.0)) is None


def test_one_point_and_equal_points() -> None:
    assert len(circles(chart(series((3, 2), marks=False)))) == 1, "a line of one point is a mark"
    assert len(circles(chart(series((1, 2), (2, 2))))) == 2


def test_level_is_inside_and_named() -> None:
    made = chart(series((0, 5), (1, 6)), level=("dense", 1.0))
    (y,) = re.findall(r'y1="([\d.]+)" x2="[\d.]+" y2="\1" class="level"', made.svg)
    assert max(point[1] for point in circles(made)) < float(y) < HEIGHT - BOTTOM
    assert made.legend == (("a", "accent"), ("dense", "level"))


def test_standard_errors_are_whiskers() -> None:
    made = chart(series((0, 5), (1, 6), error=0.5))
    ends = [
        (float(a), float(b)) for a, b in re.findall(r'y1="([\d.]+)" x2="[\d.]+" y2="([\d.]+)" class="whisker', made.svg)
    ]
    for (low, high), (_, middle) in zip(ends, circles(made), strict=True):
        assert (low + high) / 2 == pytest.approx(middle, abs=0.02)
    assert ends[0][0] - ends[0][1] == pytest.approx(circles(made)[0][1] - circles(made)[1][1], abs=0.03)


def test_long_lines_are_thinned_but_keep_their_ends() -> None:
    made = chart(series(*((float(i), float(i)) for i in range(10_000))))
    places = circles(made)
    assert len(places) == MOST
    short = circles(chart(series((0, 0), (9999, 9999))))
    assert (places[0], places[-1]) == (short[0], short[-1])


def test_ticks_do_not_touch() -> None:
    made = chart(series((1, 1), (1.01, 1), (50, 2)), x_ticks=[1.0, 1.01, 50.0])
    labels = re.findall(r'<text x="([\d.]+)" y="227" text-anchor="middle"', made.svg)
    assert len(labels) == 2


def test_the_description_says_what_is_drawn() -> None:
    made = chart(series((0, 5), (1, 6), name="ours"), level=("dense", 1.5))
    assert '<desc id="k-desc">y against x. ours: 2 points from 5.000 to 6.000; dense: 1.500.</desc>' in made.svg


def test_names_are_escaped() -> None:
    assert "<script" not in chart(series((0, 1), (1, 2), name=EVIL)).svg


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e3, 1e9])
def test_labels_fit_into_the_margin(scale: float) -> None:
    made = chart(series((0, 0.13 * scale), (1, 0.9 * scale)))
    labels = re.findall(r'text-anchor="end" class="tick">([^<]*)<', made.svg)
    assert len(labels) >= 2
    assert len(set(labels)) == len(labels), "ticks can be told apart"
    assert max(map(len, labels)) <= 6
