"""A factorization as a picture: the matrix, a sign of equality, and one panel per factor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
CELLS = 256  # cells along the longer side of a panel; finer ones could not be told apart in print
LOG_FROM = 1e3  # magnitudes that span more than this are coloured on a logarithmic scale
FLOOR = 1e-6  # smallest magnitude, relative to the largest, that a logarithmic scale tells apart
FAINTEST = 0.25  # how much colour the smallest entry gets: it must not be mistaken for an absent one
INK, GREY = "#1b2733", "#7b8794"
# colours of the phases 0 (positive), 90, 180 (negative) and 270 degrees
PHASES = np.array([[0.09, 0.29, 0.50], [0.20, 0.55, 0.38], [0.80, 0.36, 0.16], [0.50, 0.27, 0.62]])


def draw_factors(
    factors: Iterable[np.ndarray],
    path: str | os.PathLike[str],
    *,
    matrix: np.ndarray | None = None,
    exact: bool = False,
    titles: Sequence[str] = (),
    suptitle: str = "",
) -> None:
    """Draw `matrix` = (or, unless `exact`, approximately) the product of `factors` into a PNG or SVG file.

    Colour is the sign (or phase), depth of colour the magnitude relative to the largest of the panel. Masked entries
    of a factor (`numpy.ma`), and zeros of arrays without a mask, are outside the support and stay white; entries of
    the support are coloured even if they are zero. Panels larger than `CELLS` show the largest entry of each cell, so
    that none disappears. `titles` are printed below the panels, first that of the matrix if there is one. `factors`
    may be a generator: one dense factor is held at a time.

    Raises `ValueError` for another suffix, an unwritable path, wrong numbers of titles or arrays that are not
    matrices; a file appears whole or not at all.
    """
    require_picture(path)
    with replacing(path) as temporary:
        arrays = factors if matrix is None else (array for part in ((matrix,), factors) for array in part)
        panels = [_Panel(array) for array in arrays]
        if titles and len(titles) != len(panels):
            raise ValueError(f"{len(panels)} panels have {len(titles)} titles. Rule: one title per panel, or none.")
        figure = _compose(panels, list(titles) or [""] * len(panels), suptitle, matrix is not None, exact)
        figure.savefig(temporary, format=temporary.suffix[1:].lower(), dpi=200, facecolor="white")


def require_picture(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` unless the suffix of `path` is one that `draw_factors` writes."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"cannot draw {str(path)!r}: its suffix is {Path(path).suffix!r}. Rule: {' or '.join(SUFFIXES)}. "
            f"Write for example {str(Path(path).with_suffix('.png'))!r}."
        )


class _Panel:
    """A matrix in at most CELLS x CELLS cells: entries divided by the largest magnitude, NaN outside the support."""

    def __init__(self, array: np.ndarray) -> None:
        if array.ndim != 2 or array.size == 0:
            raise ValueError(f"a panel shows a matrix, got an array of shape {array.shape}.")
        self.shape = array.shape
        if isinstance(array, np.ma.MaskedArray):
            array, inside = array.data, ~np.ma.getmaskarray(array)
        else:
            inside = array != 0
        step = -(-max(array.shape) // CELLS)
        values, inside = _tiles(np.where(inside, array, 0), step), _tiles(inside, step)
        # an entry of the support that is zero must win against the zeros beside it, hence the tiny bonus
        strongest = (np.abs(values) + inside * np.finfo(float).tiny).argmax(-1)[..., None]
        values = np.take_along_axis(values, strongest, -1)[..., 0]
        self.cells = np.where(inside.any(-1), values / (np.abs(values).max() or 1.0), np.nan)

    def colours(self) -> np.ndarray:
        """RGB of each cell; the scale is logarithmic if the magnitudes span more than `LOG_FROM`."""
        outside = np.isnan(self.cells)
        cells = np.where(outside, 0, self.cells)
        depth = np.abs(cells)
        if (positive := depth[depth > 0]).size and (low := float(positive.min())) * LOG_FROM < 1:
            low = max(low, FLOOR)
            depth = 1 - np.log(np.maximum(depth, low)) / np.log(low)
        turn = (np.angle(cells) / (np.pi / 2)) % 4
        start, part = np.floor(turn).astype(int) % 4, (turn % 1)[..., None]
        hue = (1 - part) * PHASES[start] + part * PHASES[(start + 1) % 4]
        depth = (FAINTEST + (1 - FAINTEST) * depth) * ~outside
        return 1 - depth[..., None] * (1 - hue)


def _tiles(array: np.ndarray, step: int) -> np.ndarray:
    """Cells of step x step entries as (rows, columns, step * step), padded with zeros."""
    rows, columns = (-(-size // step) for size in array.shape)
    padded = np.pad(array, ((0, rows * step - array.shape[0]), (0, columns * step - array.shape[1])))
    return padded.reshape(rows, step, columns, step).swapaxes(1, 2).reshape(rows, columns, step * step)


def _compose(panels: list[_Panel], titles: list[str], suptitle: str, equation: bool, exact: bool) -> Figure:
    """Lay the panels out in one row, in inches: panels, signs between them, titles below, a legend at the foot."""
    from matplotlib.figure import Figure

    side, gap, margin, below, above = 1.75, 0.34, 0.25, 0.78, 0.55 if suptitle else 0.2
    tallest = max(size for panel in panels for size in panel.shape)
    # one scale for all panels, so that inner sizes are seen to fit; slivers are widened to stay visible
    sizes = [[max(side * size / tallest, 0.16) for size in panel.shape] for panel in panels]
    slots = [max(wide, 0.95 if title else 0.0) for (_, wide), title in zip(sizes, titles, strict=True)]
    width = max(2 * margin + sum(slots) + gap * (len(panels) - 1), 4.0)
    height = above + max(tall for tall, _ in sizes) + below
    figure = Figure(figsize=(width, height))

    def write(x: float, y: float, text: str, size: float, colour: str = INK, va: str = "top") -> None:
        figure.text(x / width, y / height, text, ha="center", va=va, fontsize=size, color=colour, parse_math=False)

    middle = below + (height - above - below) / 2
    left = (width - sum(slots) - gap * (len(panels) - 1)) / 2
    for i, (panel, (tall, wide), slot) in enumerate(zip(panels, sizes, slots, strict=True)):
        corner = left + (slot - wide) / 2, middle - tall / 2
        axes = figure.add_axes((corner[0] / width, corner[1] / height, wide / width, tall / height))
        axes.imshow(panel.colours(), aspect="auto", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=GREY, linewidth=0.6)
        write(left + slot / 2, corner[1] - 0.09, titles[i], 7.5)
        if i + 1 < len(panels):
            sign = ("=" if exact else "≈") if equation and i == 0 else "\N{MULTIPLICATION SIGN}"
            write(left + slot + gap / 2, middle, sign, 13.0, va="center")
        left += slot + gap
    write(width / 2, height - 0.17, suptitle, 10.5)
    sign = "colour: phase" if any(np.iscomplexobj(p.cells) for p in panels) else "blue: positive, orange: negative"
    write(width / 2, 0.22, f"{sign}; deeper: larger, relative to the panel; white: outside the support", 6.0, GREY)
    return figure
