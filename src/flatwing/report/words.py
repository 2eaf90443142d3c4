"""Numbers as a person reads them; "–" is a number that is not known."""

from __future__ import annotations

from math import floor, log10

from markupsafe import Markup, escape

from .record import Value

Real = float | int  # beartype does not take one for the other
NONE = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
THIN = "\N{NARROW NO-BREAK SPACE}"


def count(value: Real | None) -> str:
    """A whole number in groups of three digits.

    >>> count(1234567).replace(THIN, " "), count(None)
    ('1 234 567', '–')
    """
    return NONE if value is None else f"{value:,.0f}".replace(",", THIN)


def short(value: Real | None, unit: str = "") -> str:
    """A number of any size with three digits and a decimal prefix.

    >>> [short(value, "B").replace(THIN, " ") for value in (30864, 999.9, 12, 1.5e6)], short(12)
    (['30.9 kB', '1.00 kB', '12 B', '1.50 MB'], '12')
    """
    if value is None:
        return NONE
    power = 0 if abs(value) < 1000 else min(floor(log10(abs(float(f"{value:.2e}")))) // 3, 5)
    if float(f"{abs(value):.2e}") >= 1000 and power == 0:
        power = 1
    prefix = ("", "k", "M", "G", "T", "P")[power]
    scaled = value / 1000**power
    digits = f"{scaled:.0f}" if power == 0 and value == round(value) else significant(scaled)
    return f"{digits}{THIN}{prefix}{unit}" if prefix or unit else digits


def significant(value: Real | None, digits: int = 3) -> str:
    """`value` with this many digits, without an exponent where that stays readable.

    >>> significant(0.012345), significant(98.76), significant(1234.5), significant(1.2e-9), significant(-0.5)
    ('0.0123', '98.8', '1234', '1.20e-09', '−0.500')
    """
    if value is None:
        return NONE
    if value == 0:
        return "0"
    size = floor(log10(abs(float(f"{value:.{digits - 1}e}"))))
    text = f"{value:.{max(digits - 1 - size, 0)}f}" if -4 <= size < 7 else f"{value:.{digits - 1}e}"
    return text.replace("-", MINUS, 1) if value < 0 else text


def plain(value: Real | None) -> str:
    """A number that somebody chose, as it was written.

    >>> plain(0.001), plain(200.0), plain(None)
    ('0.001', '200', '–')
    """
    return NONE if value is None else f"{value:.6g}"


def percent(share: Real | None, digits: int = 3) -> str:
    """A share of one in percent.

    >>> percent(0.2137).replace(THIN, " "), percent(1.0).replace(THIN, " "), percent(0.0).replace(THIN, " ")
    ('21.4 %', '100 %', '0 %')
    """
    return NONE if share is None else f"{significant(100 * share, digits)}{THIN}%"


def measured(value: Value | None, scale: Real = 1, unit: str = "") -> str:
    """A number with its standard error, both to the second digit of the error; four digits without one.

    >>> measured(Value(1.38271, 0.0123)), measured(Value(0.9796, 0.0061), 100), measured(Value(2.0)), measured(None)
    ('1.383 ± 0.012', '97.96 ± 0.61', '2.000', '–')
    >>> measured(Value(1.65e-5, 5.7e-6)), measured(Value(1.0, 1e-8))
    ('(1.65 ± 0.57) · 10⁻⁵', '1.000')
    """
    if value is None:
        return NONE
    centre, error = value.value * scale, (value.stderr or 0.0) * scale
    if error <= 1e-6 * abs(centre):  # none is known, or only that of rounding
        return significant(centre, 4) + unit
    if max(abs(centre), error) < 1e-3:
        power = floor(log10(max(abs(centre), error)))
        mantissa = measured(Value(centre / 10.0**power, error / 10.0**power))
        return f"({mantissa}) · 10{str(power).translate(RAISED)}{unit}"
    places = min(max(1 - floor(log10(error)), 0), 8)
    return f"{centre:.{places}f} ± {error:.{places}f}".replace("-", MINUS) + unit


def signed(value: Real | None, digits: int = 3, unit: str = "") -> str:
    """A difference with its sign.

    >>> signed(0.0518), signed(-0.6), signed(0.0)
    ('+0.0518', '−0.600', '±0')
    """
    if value is None:
        return NONE
    return ("+" if value > 0 else "±" if value == 0 else "") + significant(value, digits) + unit


def times(ratio: Real | None) -> str:
    """A ratio.

    >>> times(1.234), times(0.05), times(12.3)
    ('1.23×', '0.050×', '12.3×')
    """
    return NONE if ratio is None else f"{significant(ratio, 3 if ratio >= 1 else 2)}\N{MULTIPLICATION SIGN}"


def duration(seconds: Real | None) -> str:
    """Seconds as a person says them.

    >>> [duration(s).replace(THIN, " ") for s in (0.0123, 12.3, 75.0, 7300.0)]
    ['12 ms', '12.3 s', '1 min 15 s', '2 h 2 min']
    """
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{1000 * seconds:.0f}{THIN}ms"
    if seconds < 60:
        return f"{significant(seconds)}{THIN}s"
    whole, small = (round(seconds), "min s") if seconds < 3600 else (round(seconds / 60), "h min")
    large, rest = divmod(whole, 60)
    first, second = small.split()
    return f"{large}{THIN}{first} {rest}{THIN}{second}"


def breakable(name: str) -> Markup:
    """The name of a layer, escaped, that may be broken after its dots.

    >>> breakable("blocks.0.<b>")
    Markup('blocks.<wbr>0.<wbr>&lt;b&gt;')
    """
    return escape(name).replace(".", Markup(".<wbr>"))
