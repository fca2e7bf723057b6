"""What all figures share: one style, axes with a finding as title, and lines along one axis.

Colours are from Okabe and Ito's palette, which the colour-blind can tell apart, of different
lightness, so that they survive a grey printer; with a marker and a line style for each.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rsk.measure import comparison, peers
from rsk.measure.comparison import digits, duration
from rsk.measure.records import Benchmark, Point, Record
from rsk.sampler import registry
from rsk.sampler.api import BACKENDS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

WIDTH, HEIGHT = 6.8, 3.5
"""Of a figure, in inches, with one row of legend: as wide as the text of a printed page."""
LEGEND_ROW = 0.2
TITLE_WIDTH = 70
"""Characters of a title on one line."""

STYLES: dict[str, dict[str, Any]] = {
    name: entry.style for name, entry in {**registry.OURS, **peers.ENTRIES}.items()
}
"""Of the implementations, as matplotlib's keyword arguments, in the order of the story."""
ROOF = "#555555"
"""Colour of the memory roof and other limits."""
_OTHER = {"color": "#777777", "marker": "P", "linestyle": "-."}

_AXES = {
    "batch_size": ("B", "batch size", "requests"),
    "spec_len": ("K", "speculation length", "draft tokens"),
    "vocab_size": ("V", "vocabulary size", "tokens"),
}
"""Letter, name and unit of what times are drawn against."""

Lines = Mapping[str, Sequence[Record]]
"""By implementation, its records along one axis, in order."""


class Picture(NamedTuple):
    """A figure with all that it needs to be published."""

    fig: Figure
    label: str
    caption: str
    alt: str
    data: pd.DataFrame


# --- style ----------------------------------------------------------------------------------------


def style(name: str) -> dict[str, Any]:
    """How an implementation is drawn, one without a style of its own included."""
    return STYLES.get(name, _OTHER)


def rank(name: str) -> int:
    """Where an implementation comes in the story."""
    order = list(STYLES)
    return order.index(name) if name in order else len(order)


@contextlib.contextmanager
def axes(title: str, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """An empty plot in the common style; the legend is added at the end.

    Args:
        title: what the figure shows, in a sentence.
        height: in inches, with one row of legend; more rows make the figure higher.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.05):
        fig = Figure(figsize=(WIDTH, height), layout="constrained")
        entitle(fig, title)
        ax = fig.add_subplot()
        yield fig, ax
        sns.despine(ax=ax)
        labels = ax.get_legend_handles_labels()[1]
        if labels:
            columns = min(len(labels), 3 if max(map(len, labels)) > 12 else 4)
            fig.legend(loc="outside lower center", ncols=columns, frameon=False)
            fig.set_figheight(height + LEGEND_ROW * ((len(labels) - 1) // columns))


def entitle(fig: Figure, title: str) -> None:
    """Put a sentence above a figure, on as many lines as it needs."""
    title = title.replace(" = ", "\u00a0=\u00a0")  # never broken at the equals sign
    wrapped = "\n".join(textwrap.wrap(title, TITLE_WIDTH))
    fig.suptitle(wrapped, x=0.01, ha="left", fontsize=10.5, fontweight="bold")


def ticks(ax: Axes, values: Sequence[int]) -> None:
    """Ticks at the measured values and nowhere else."""
    ax.set_xticks(values, [f"{value:,}" for value in values])
    ax.xaxis.set_minor_locator(no_ticks())


def ticks_of_times(ax: Axes) -> None:
    """Readable times on a logarithmic axis, at more than powers of ten where it spans little."""
    from matplotlib.ticker import LogLocator

    low, high = ax.get_ylim()
    if high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(round_label(duration))
    ax.yaxis.set_minor_locator(no_ticks())


def no_ticks() -> Locator:
    """For an axis, or its minor ticks."""
    from matplotlib.ticker import NullLocator

    return NullLocator()


def round_label(write: Callable[[float], str]) -> Callable[[float, float], str]:
    """A formatter of ticks at powers of ten: 10 ms, where ``write`` gives 10.0 ms."""

    def label(value: float, _: float) -> str:
        number, unit = write(value).split()
        return f"{float(number):g} {unit}"

    return label


# --- lines along one axis -------------------------------------------------------------------------


def lines(benchmark: Benchmark, axis: str) -> Lines:
    """By implementation, the records along one axis, all else at the sweep's usual values.

    Args:
        benchmark: measured or loaded.
        axis: ``"batch_size"``, ``"spec_len"`` or ``"vocab_size"``.

    Raises:
        ValueError: there are none.
    """
    settings = benchmark.settings
    sizes = sorted(settings["batch_sizes"])
    usual = Point(
        sizes[len(sizes) // 2],
        *(
            settings[name][0]
            for name in ("spec_lens", "vocab_sizes", "dtypes", "acceptances", "caches")
        ),
    )
    found: dict[str, list[Record]] = {}
    for point, by_name in comparison.merged(benchmark.records).items():
        if point._replace(**{axis: getattr(usual, axis)}) == usual:
            for name, record in by_name.items():
                found.setdefault(name, []).append(record)
    if not found:
        raise ValueError(f"the benchmark has no times along {axis} at its usual values")
    return {
        name: sorted(found[name], key=lambda record: int(getattr(record, axis)))
        for name in sorted(found, key=rank)
    }


def latency(
    benchmark: Benchmark, axis: str, title: str, *, label: str, time: str = "call"
) -> Picture:
    """The time of a call along one axis, a line for each implementation.

    Args:
        benchmark: measured or loaded.
        axis: as for :func:`lines`.
        title: what is found.
        label: of the figure.
        time: ``"call"`` (until the result is there), ``"device"`` or ``"host"``.

    Raises:
        ValueError: the benchmark has no times along the axis.
    """
    found = lines(benchmark, axis)
    letter, name, unit = _AXES[axis]
    with axes(title) as (fig, ax):
        draw_lines(ax, found, axis, time)
        ax.set_xlabel(f"{name} {letter} ({unit})")
    what = {
        "call": "Median time until a call's result is there",
        "device": "Median time on the device",
        "host": "Median time until the call returns",
    }[time]
    caption = f"{what}, with the quartiles as bars, against {name}."
    alt = f"Logarithmic line chart of time against {name}. {_ends(found, axis, time)}."
    caption += f" {conditions(benchmark, found, time)}"
    if axis == "batch_size":  # said once, for all the figures of a run
        caption += run_to_run(benchmark)
    return Picture(fig, label, caption, alt, _wide(found, axis, time))


def draw_lines(ax: Axes, found: Lines, axis: str, time: str) -> None:
    """Draw times with their quartiles on logarithmic axes; arguments as :func:`latency`."""
    for name, line in found.items():
        spreads = [getattr(record, time) for record in line]
        ax.errorbar(
            [getattr(record, axis) for record in line],
            [spread.median_us for spread in spreads],
            yerr=[
                [spread.median_us - spread.q25_us for spread in spreads],
                [spread.q75_us - spread.median_us for spread in spreads],
            ],
            label=name,
            capsize=3,
            elinewidth=1,
            **style(name),
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ticks(ax, sorted({getattr(record, axis) for line in found.values() for record in line}))
    ticks_of_times(ax)
    ax.set_ylabel("time")


def growth(found: Lines, axis: str, time: str = "call") -> str:
    """By how much each backend's time is multiplied from the first value to the last."""
    letter, _, _ = _AXES[axis]
    parts, ends = [], (0, 0)
    for name in BACKENDS:
        if len(line := found.get(name, [])) > 1:
            ends = getattr(line[0], axis), getattr(line[-1], axis)
            grown = getattr(line[-1], time).median_us / getattr(line[0], time).median_us
            parts.append(f"{digits(grown, 2)} ({name})")
    if not parts:
        return f"Only one value of {letter} was measured"
    return (
        f"From {letter} = {ends[0]:,} to {ends[1]:,} the time is multiplied by {', '.join(parts)}"
    )


def conditions(benchmark: Benchmark, found: Lines, time: str = "call") -> str:
    """The fixed conditions of a figure; ``time`` as for :func:`latency`."""
    records = [record for line in found.values() for record in line]
    letters = {axis: letter for axis, (letter, _, _) in _AXES.items()}
    fixed = []
    for name, letter in {**letters, "acceptance": "acceptance rate"}.items():
        values = {getattr(record, name) for record in records}
        if len(values) == 1:
            value = values.pop()
            fixed.append(f"{letter} = {value:,}" if isinstance(value, int) else f"{letter} {value}")
    fixed += [records[0].dtype, f"{records[0].cache} cache"]
    clocks = sorted({getattr(record, time).clock for record in records})
    text = f"{', '.join(fixed)}; {' and '.join(clocks)} clock. {benchmark.provenance.label}."
    if any(getattr(record, time).busy for record in records):
        text += " Other processes disturbed some of these times."
    return text


def run_to_run(benchmark: Benchmark) -> str:
    """A sentence on how far two whole runs differ, after a blank; empty if there was only one."""
    repeats = comparison.repeatability(benchmark.records)
    if not repeats:
        return ""
    parts = (f"{r.implementation} {r.between:.1%} (stated: {r.stated:.1%})" for r in repeats)
    where = comparison.repeated_points(benchmark.records)
    return f" Two runs differ, in the median over {where}, by: {', '.join(parts)}."


def _ends(found: Lines, axis: str, time: str) -> str:
    """The first and the last time of each line, for those who cannot see it."""
    parts = []
    for name, line in found.items():
        first, last = line[0], line[-1]
        text = f"{name} {duration(getattr(first, time).median_us)} at {getattr(first, axis):,}"
        if last is not first:
            text += f", {duration(getattr(last, time).median_us)} at {getattr(last, axis):,}"
        parts.append(text)
    return "; ".join(parts)


def _wide(found: Lines, axis: str, time: str) -> pd.DataFrame:
    """One row per value of the axis; two columns per implementation."""
    import pandas as pd

    columns: dict[str, dict[int, object]] = {}
    for name, line in found.items():
        for record in line:
            spread, at = getattr(record, time), getattr(record, axis)
            columns.setdefault(f"{name} (µs)", {})[at] = spread.median_us
            quartiles = f"{digits(spread.q25_us)} to {digits(spread.q75_us)}"
            columns.setdefault(f"{name} quartiles (µs)", {})[at] = quartiles
    letter, _, _ = _AXES[axis]
    return pd.DataFrame(columns).sort_index().rename_axis(letter).reset_index()
