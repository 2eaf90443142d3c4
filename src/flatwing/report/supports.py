"""Where the factors of a structure may be non-zero, and how large they are there, as a row of panels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from markupsafe import Markup

from .record import Layer
from .svg import decimal, element, picture

Pattern = tuple[int, ...]  # (a, b, c, d): the support I_a (x) ones(b, c) (x) I_d

SIDE: Final = 112.0  # of the longest panel of a support
LARGE: Final = 168.0  # and of magnitudes, which have more to tell
WIDEST: Final = 440.0
THINNEST: Final = 5.0  # slivers are widened to stay visible
GAP: Final = 22.0
TIMES: Final = "\N{MULTIPLICATION SIGN}"
RESOLVED: Final = 3.0  # closer lines run into each other: a shade as deep as the density is drawn instead
MOST: Final = 600  # shapes of one panel


def patterns(layer: Layer) -> tuple[Pattern, ...] | None:
    """The factors of a layer as patterns (a, b, c, d), or `None` if its structure is not a product.

    A layer of A x B blocks with shared bases of rank r is block-diagonal (A blocks), coupled (A x B diagonal blocks)
    and block-diagonal (B blocks) one after the other.
    """
    if layer.chain:
        return layer.chain
    if layer.kind != "blast" or layer.blocks is None or not layer.rank:
        return None
    if len(layer.blocks) != 2 or len(layer.shape) != 2:
        return None
    (rows, columns), (m, n), rank = layer.blocks, layer.shape, layer.rank
    if m % rows or n % columns:
        return None
    return (rows, m // rows, rank, 1), (1, rows, columns, rank), (columns, rank, n // columns, 1)


def size(pattern: Pattern) -> tuple[int, int]:
    """Rows and columns of a factor.

    >>> size((2, 3, 4, 5))
    (30, 40)
    """
    a, b, c, d = pattern
    return a * b * d, a * c * d


def draw_supports(key: str, name: str, chain: Sequence[Pattern]) -> Markup:
    """The matrix, a sign of equality, and the support of each factor, at one scale."""
    (rows, _), (_, columns) = size(chain[0]), size(chain[-1])
    sizes = [(rows, columns), *map(size, chain)]
    said = "; ".join(f"{r} by {c}, pattern {p}" for p, (r, c) in zip(chain, sizes[1:], strict=True))

    def fill(i: int, wide: float, tall: float) -> Markup:
        if i == 0:
            return element("rect", width=wide, height=tall, class_="whole")
        return support(chain[i - 1], wide, tall)

    return _row(key, f"Supports of {name}", f"{rows} by {columns}, about equal to {said}.", sizes, fill)


def draw_magnitudes(key: str, name: str, chain: Sequence[Pattern], images: Sequence[str]) -> Markup:
    """One panel per factor with its magnitudes; `images` are data URIs of pictures."""
    sizes = [size(pattern) for pattern in chain]
    said = f"{len(images)} factors; deeper colour is larger, relative to the largest entry of the factor."

    def fill(i: int, wide: float, tall: float) -> Markup:
        return element("image", width=wide, height=tall, href=images[i], preserveAspectRatio="none", class_="cells")

    return _row(key, f"Magnitudes of {name}", said, sizes, fill, sign=TIMES, side=LARGE)


def support(pattern: Pattern, wide: float, tall: float) -> Markup:
    """The support of one factor in a box: a diagonal of a blocks, each of b x c diagonals of length d."""
    a, b, c, d = pattern
    x, y = wide / a, tall / a
    if a > MOST or max(x, y) < 1:  # blocks too small to be told apart: a diagonal band
        part = [f"M0 0H{decimal(max(x, 1))}L{decimal(wide)} {decimal(tall - max(y, 1))}V{decimal(tall)}"]
        part.append(f"H{decimal(wide - max(x, 1))}L0 {decimal(max(y, 1))}Z")
        return element("path", d="".join(part), class_="block", fill_opacity=max(1 / d, 0.2))
    if d == 1:
        path = "".join(f"M{decimal(i * x)} {decimal(i * y)}h{decimal(x)}v{decimal(y)}h{decimal(-x)}z" for i in range(a))
        return element("path", d=path, class_="block")
    step_x, step_y = x / c, y / b
    if min(step_x, step_y) < RESOLVED or a * b * c > MOST:
        path = "".join(f"M{decimal(i * x)} {decimal(i * y)}h{decimal(x)}v{decimal(y)}h{decimal(-x)}z" for i in range(a))
        return element("path", d=path, class_="block", fill_opacity=max(1 / d, 0.15))
    path = "".join(
        f"M{decimal(i * x + q * step_x)} {decimal(i * y + p * step_y)}l{decimal(step_x)} {decimal(step_y)}"
        for i in range(a)
        for p in range(b)
        for q in range(c)
    )
    # as thick as one entry of the matrix, where that can be seen
    thick = min(max(min(step_x, step_y) / d, 0.9), min(step_x, step_y) * 0.7)
    return element("path", d=path, class_="diagonal", stroke_width=thick)


def _row(
    key: str,
    title: str,
    description: str,
    sizes: Sequence[tuple[int, int]],
    fill: Callable[[int, float, float], Markup],
    sign: str | None = None,
    side: float = SIDE,
) -> Markup:
    """Panels side by side, middles level; `sign` between them, or "≈" first and then signs of multiplication."""
    longest = max(length for rows_columns in sizes for length in rows_columns)
    room = WIDEST - GAP * (len(sizes) - 1)
    scale = min(side / longest, room / sum(columns for _, columns in sizes))
    boxes = [(max(columns * scale, THINNEST), max(rows * scale, THINNEST)) for rows, columns in sizes]
    height = max(tall for _, tall in boxes) + 2
    left, parts = 1.0, []
    for i, (wide, tall) in enumerate(boxes):
        top = (height - tall) / 2
        frame = element("rect", width=wide, height=tall, class_="frame")
        where = f"translate({decimal(left)} {decimal(top)})"
        parts.append(element("g", fill(i, wide, tall), frame, transform=where))
        left += wide
        if i + 1 < len(boxes):
            between = sign or ("≈" if i == 0 else TIMES)
            parts.append(
                element("text", between, x=left + GAP / 2, y=height / 2 + 5, text_anchor="middle", class_="sign")
            )
            left += GAP
    return picture(key, left + 1, height, title, description, *parts, look="panels")
