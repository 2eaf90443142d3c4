"""Small parts of SVG pictures: elements, scales and ticks. Colours are classes, so that themes can change them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log10
from typing import final

from markupsafe import Markup, escape

from .words import Real


def decimal(value: Real) -> str:
    """A coordinate with at most two decimals.

    >>> decimal(3.0), decimal(0.125), decimal(-0.001)
    ('3', '0.12', '0')
    """
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def element(tag: str, *content: str, **attributes: str | Real | None) -> Markup:
    """One SVG element; content and attributes are escaped unless they are `Markup`.

    `class_` is written class, `stroke_width` stroke-width; an attribute that is `None` is left out.

    >>> element("text", "a < b", x=1.5, class_="note")
    Markup('<text x="1.5" class="note">a &lt; b</text>')
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(value if isinstance(value, str) else decimal(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(part) for part in content)
    return Markup(f"<{tag}{written}>{inside}</{tag}>" if inside else f"<{tag}{written}/>")


def picture(
    key: str, width: Real, height: Real, title: str, description: str, *parts: Markup, look: str = "chart"
) -> Markup:
    """A whole SVG picture with the words that a screen reader says; `key` is unique in the page."""
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
        *parts,
        viewBox=f"0 0 {decimal(width)} {decimal(height)}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
        class_=look,
    )


@final
@dataclass(frozen=True, slots=True)
class Scale:
    """Maps [low, high] onto [start, end], linear or logarithmic.

    >>> Scale(0, 10, 100, 200)(5), Scale(1, 100, 0, 1, log=True)(10)
    (150.0, 0.5)
    """

    low: Real
    high: Real
    start: Real
    end: Real
    log: bool = False

    def __call__(self, value: Real) -> float:
        """Where `value` is drawn."""
        low, high, at = (log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (self.end - self.start) * (at - low) / ((high - low) or 1.0)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the scale: steps of 1, 2 or 5, or powers of ten (1, 2, 5 times those on short scales).

        >>> Scale(0, 0.9, 0, 1).ticks(), Scale(0.002, 1, 0, 1, log=True).ticks()
        ([0.0, 0.2, 0.4, 0.6, 0.8], [0.01, 0.1, 1.0])
        """
        return log_ticks(self.low, self.high, wanted) if self.log else linear_ticks(self.low, self.high, wanted)


def linear_ticks(low: Real, high: Real, wanted: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high], about `wanted` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]


def log_ticks(low: Real, high: Real, wanted: int = 5) -> list[float]:
    """Powers of ten in [low, high], fewer if there are many, and 2 and 5 times those if there are less than three."""
    first, last = floor(log10(low)), ceil(log10(high))
    every = max(1, ceil((last - first) / (wanted + 2)))
    factors = (1,) if log10(high / low) >= 2 else (1, 2, 5)
    values = [float(f"{factor}e{power}") for power in range(first, last + 1, every) for factor in factors]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def padded(values: list[float], *, log: bool = False, part: Real = 0.06) -> tuple[float, float]:
    """Least and largest value with a margin of this part of the range on both sides; never an empty range.

    >>> padded([0.0, 10.0], part=0.1), padded([3.0])
    ((-1.0, 11.0), (2.7, 3.3))
    """
    low, high = min(values), max(values)
    if log:
        margin = max((high / low) ** part, 1.05)
        return low / margin, high * margin
    margin = (high - low) * part or abs(high) * 0.1 or 1.0
    return float(f"{low - margin:.12g}"), float(f"{high + margin:.12g}")
