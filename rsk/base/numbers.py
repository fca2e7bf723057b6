"""Numbers as readers see them: significant digits, units, shares.

The same in every language: what needs words, such as "3 times faster", is in the templates.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

DASH = "–"
"""Stands for a number that is missing."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: object, significant: int = 3) -> str:
    """Write a value of any kind: 32,000; 0.0425; 1.20 × 10⁻⁷; a dash for what is missing.

    Args:
        value: a number, or anything else, which is turned into text.
        significant: digits of a number that is not whole.
    """
    if value is None:
        return DASH
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}".replace("-", "−")
    if not isinstance(value, numbers.Real):
        return DASH if type(value).__name__ in ("NAType", "NaTType") else str(value)
    x = float(value)
    if math.isnan(x):
        return DASH
    if math.isinf(x):
        return "∞" if x > 0 else "−∞"
    if x == 0:
        return "0"
    mantissa, exponent = f"{x:.{significant - 1}e}".split("e")
    power = int(exponent)
    if -5 < power < 9:
        text = f"{x:,.{max(0, significant - 1 - power)}f}"
    else:
        text = f"{mantissa}\u00a0×\u00a010{str(power).translate(_SUPERSCRIPTS)}"
    return text.replace("-", "−")


def digits(value: Any, significant: int = 3) -> str:
    """A number with so many significant digits, and never in powers of ten."""
    value = middle(value)
    if value == 0:
        return "0"
    rounded = float(f"{value:.{significant - 1}e}")
    return f"{rounded:,.{max(0, significant - 1 - math.floor(math.log10(abs(rounded))))}f}"


def duration(microseconds: float) -> str:
    """A time in the unit that reads best: 18.4 µs, 7.99 ms, 1.20 s."""
    return _in_unit(microseconds, (("µs", 1.0), ("ms", 1e3), ("s", 1e6)))


def byte_size(count: float) -> str:
    """A number of bytes in the decimal unit that reads best: 832 kB, 14.9 MB."""
    return _in_unit(count, (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)))


def _in_unit(value: float, units: Sequence[tuple[str, float]]) -> str:
    for unit, factor in units[:-1]:
        if value < 999.5 * factor:
            return f"{digits(value / factor)} {unit}"
    unit, factor = units[-1]
    return f"{digits(value / factor)} {unit}"


def percent(share: Any, decimals: int = 0) -> str:
    """A share as a percentage; below the smallest one that is shown, "<1%"."""
    share = middle(share)
    smallest = 10.0 ** -(2 + decimals)
    return f"<{smallest:.{decimals}%}" if 0 < share < smallest / 2 else f"{share:.{decimals}%}"


def change(before: float, after: float, decimals: int = 0) -> str:
    """By how much a number grew or fell: +50%, −20%."""
    return f"{after / before - 1:+.{decimals}%}".replace("-", "−")


def fixed(value: Any, decimals: int) -> str:
    """A number with so many digits behind the point."""
    return f"{middle(value):.{decimals}f}"


def general(value: float) -> str:
    """A number as it was given: 0.7, 1, 2.5."""
    return f"{value:g}"


def grouped(value: float) -> str:
    """The same with thousands separators."""
    return f"{value:,g}"


def us(time: Any) -> str:
    """A time in microseconds, or the median of a measured one, as :func:`duration` writes it."""
    return duration(getattr(time, "median_us", time))


def quartiles(time: Any) -> str:
    """The quartiles of a measured time: 17.9 – 18.8 µs."""
    return between(time.q25_us, time.q75_us, duration)


def between(low: float, high: float, write: Callable[[float], str]) -> str:
    """From a number to another, the unit only once: 17.9 – 18.8 µs; one of them if they are alike.

    Args:
        low: the smaller number.
        high: the larger one.
        write: how each is written.
    """
    first, last = write(low), write(high)
    if first == last:
        return first
    number, _, unit = first.partition(" ")
    return f"{number} – {last}" if unit and last.endswith(f" {unit}") else f"{first} – {last}"


def middle(value: Any) -> float:
    """The median of a number over several runs, or a number itself."""
    return float(getattr(value, "median", value))


def run_range(value: Any, write: Callable[[float], str] = duration) -> str:
    """The range of a number over runs, least to most; a dash for a single run, which has none."""
    return between(value.least, value.most, write) if value.runs > 1 else DASH


def over_runs(value: Any, write: Callable[[float], str] = duration) -> str:
    """A number over runs, its median and its range: 18.4 µs (17.9 – 18.8 µs)."""
    text, span = write(value.median), run_range(value, write)
    return text if span in (DASH, text) else f"{text} ({span})"


def times(ratio: Any) -> str:
    """A ratio over runs, in two digits: 21 (19 – 23)."""
    return over_runs(ratio, lambda value: digits(value, 2))


def share(value: Any) -> str:
    """A share over runs: 63% (61% – 65%); a dash for one that is not known."""
    return DASH if value is None else over_runs(value, percent)


FILTERS: Mapping[str, Callable[..., str]] = {
    "us": us,
    "bytes": byte_size,
    "digits": digits,
    "fixed": fixed,
    "general": general,
    "grouped": grouped,
    "percent": percent,
    "change": change,
    "number": number,
    "quartiles": quartiles,
    "over_runs": over_runs,
    "run_range": run_range,
    "times": times,
    "share": share,
}
"""What the templates may put behind a value, as in ``{{ gpu.largest.fused.call | us }}``."""


class Span(NamedTuple):
    """The least and the most of several numbers."""

    least: float
    most: float


def span(values: Sequence[float]) -> Span:
    """Of some numbers."""
    return Span(min(values), max(values))
