"""What all figures share: one style, words by label, saving, and lines along one axis.

Colours are from Okabe and Ito's palette, which the colour-blind can tell apart, of different
lightness, so that they survive a grey printer; with a marker and a line style for each.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rsk.base import fonts, templates
from rsk.base.numbers import duration, quartiles
from rsk.base.templates import Exhibit
from rsk.measure import comparison, peers
from rsk.measure.comparison import Repeatability, Repeated
from rsk.measure.records import Benchmark, Record
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
PNG_DPI = 200
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
    values: Mapping[str, object]
    """What its title, caption and alt text may name."""
    data: pd.DataFrame
    """The numbers behind it."""
    block: str = ""
    """The block of ``exhibits.md`` that holds its words, if not the one called like the label."""
    interactive: str = ""
    """The script in ``report/style`` that takes its place on a page, if there is one."""

    def relabelled(self, label: str) -> Picture:
        """The same figure under another label, where one document shows it twice."""
        return self._replace(label=label, block=self.block or self.label)


def exhibit(picture: Picture, language: str = templates.LANGUAGE) -> Exhibit:
    """The title, caption and alt text of a figure.

    Raises:
        TemplateError: its block is missing, or names a value that the figure does not have.
    """
    return templates.exhibit(picture.block or picture.label, picture.values, language)


def png(fig: Figure) -> str:
    """A figure as PNG, in base64."""
    _with_glyphs(fig)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=PNG_DPI, bbox_inches="tight", metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def svg(fig: Figure) -> tuple[str, tuple[float, float]]:
    """A figure as SVG, the same bytes every time, and its width and height in points."""
    import matplotlib as mpl

    _with_glyphs(fig)
    buffer = io.StringIO()
    # Text as outlines: the same picture in every reader. A fixed salt and no date: the same bytes.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "rsk"}):
        fig.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    width = re.search(r'\bwidth="([\d.]+)pt"', text)
    height = re.search(r'\bheight="([\d.]+)pt"', text)
    assert width and height, "matplotlib writes the size of an SVG in points"
    return text, (float(width[1]), float(height[1]))


# --- style ----------------------------------------------------------------------------------------


def style(name: str) -> dict[str, Any]:
    """How an implementation is drawn, one without a style of its own included."""
    return STYLES.get(name, _OTHER)


def rank(name: str) -> int:
    """Where an implementation comes in the story."""
    order = list(STYLES)
    return order.index(name) if name in order else len(order)


@contextlib.contextmanager
def axes(height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """An empty plot in the common style; the legend is added at the end.

    Args:
        height: in inches, with one row of legend; more rows make the figure higher.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.05):
        fig = Figure(figsize=(WIDTH, height), layout="constrained")
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
    wrapped = "\n".join(_wrapped(title))
    fig.suptitle(wrapped, x=0.01, ha="left", fontsize=10.5, fontweight="bold")


def _wrapped(title: str) -> list[str]:
    """Lines of a title: Chinese letters are two wide, and a line may end after any of them."""
    if not fonts.is_needed(title):
        return textwrap.wrap(title, TITLE_WIDTH)
    lines, width = [""], 0
    for piece in re.findall(r"[\x21-\x7e]+\s*|.", title):
        wide = 2 * len(piece) if fonts.is_needed(piece) else len(piece)
        if width + wide > TITLE_WIDTH and piece not in "，。；：、）」":
            lines, width = [*lines, ""], 0
        lines[-1] += piece
        width += wide
    return lines


def _with_glyphs(fig: Figure) -> None:
    """Let texts with letters that matplotlib's own font lacks be drawn with one that has them.

    Raises:
        FontError: it is missing.
    """
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text

    for text in fig.findobj(Text):
        if fonts.is_needed(text.get_text()):
            if fonts.CHINESE not in fontManager.get_font_names():
                fontManager.addfont(fonts.face())
            text.set(fontfamily=["DejaVu Sans", fonts.CHINESE], fontweight="normal")


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
        axis: as for :func:`rsk.measure.comparison.along`.

    Raises:
        ValueError: there are none.
    """
    found: dict[str, list[Record]] = {}
    for by_name in comparison.along(benchmark, axis).values():
        for name, record in by_name.items():
            found.setdefault(name, []).append(record)
    if not found:
        raise ValueError(f"the benchmark has no times along {axis} at its usual values")
    return {name: found[name] for name in sorted(found, key=rank)}


def latency(
    benchmark: Benchmark, axis: str, label: str, *, time: str = "call", **values: object
) -> Picture:
    """The time of a call along one axis, a line for each implementation.

    Args:
        benchmark: measured or loaded.
        axis: as for :func:`lines`.
        label: of the figure.
        time: ``"call"`` (until the result is there), ``"device"`` or ``"host"``.
        values: more for the figure's words than all figures of this kind have.

    Raises:
        ValueError: the benchmark has no times along the axis.
    """
    found = lines(benchmark, axis)
    letter, name, unit = _AXES[axis]
    with axes() as (fig, ax):
        draw_lines(ax, found, axis, time)
        ax.set_xlabel(f"{name} {letter} ({unit})")
    usual: dict[str, object] = {
        "time": time,
        "ends": ends(found, axis, time),
        "growth": growth(found, axis, time),
        "conditions": conditions(benchmark, found, time),
        "repeatability": RunToRun.of(benchmark),
    }
    return Picture(fig, label, {**usual, **values}, _wide(found, axis, time))


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


# --- values that the words of figures name --------------------------------------------------------


class Growth(NamedTuple):
    """By how much times grow along an axis."""

    first: int
    last: int
    factors: Mapping[str, float]
    """By backend; those with more than one value."""


def growth(found: Lines, axis: str, time: str = "call") -> Growth:
    """By how much each backend's time is multiplied from the first value to the last."""
    longer = {name: line for name in BACKENDS if len(line := found.get(name, [])) > 1}
    values = sorted({getattr(r, axis) for line in (longer or found).values() for r in line})
    return Growth(
        values[0],
        values[-1],
        {
            name: getattr(line[-1], time).median_us / getattr(line[0], time).median_us
            for name, line in longer.items()
        },
    )


class Ends(NamedTuple):
    """The first and the last time of a line, for those who cannot see it."""

    name: str
    first: int
    first_us: float
    last: int
    last_us: float


def ends(found: Lines, axis: str, time: str) -> list[Ends]:
    """The ends of all lines."""
    return [
        Ends(
            name,
            getattr(line[0], axis),
            getattr(line[0], time).median_us,
            getattr(line[-1], axis),
            getattr(line[-1], time).median_us,
        )
        for name, line in found.items()
    ]


class Conditions(NamedTuple):
    """What is the same for all times of a figure."""

    fixed: Mapping[str, int | float]
    """By letter: B, K, V, and "a" for the acceptance rate."""
    dtype: str
    cache: str
    clocks: Sequence[str]
    busy: bool
    """Whether other programs disturbed one of them."""
    label: str
    """Of the machine."""


def conditions(benchmark: Benchmark, found: Lines, time: str = "call") -> Conditions:
    """The fixed conditions of a figure; ``time`` as for :func:`latency`."""
    records = [record for line in found.values() for record in line]
    names = {**{axis: letter for axis, (letter, _, _) in _AXES.items()}, "acceptance": "a"}
    values = {letter: {getattr(r, name) for r in records} for name, letter in names.items()}
    return Conditions(
        fixed={letter: found.pop() for letter, found in values.items() if len(found) == 1},
        dtype=records[0].dtype,
        cache=records[0].cache,
        clocks=sorted({getattr(record, time).clock for record in records}),
        busy=any(getattr(record, time).busy for record in records),
        label=benchmark.provenance.label,
    )


class RunToRun(NamedTuple):
    """How far whole runs of a sweep differ; no rows if there was one."""

    rows: Sequence[Repeatability]
    repeated: Repeated

    @classmethod
    def of(cls, benchmark: Benchmark) -> RunToRun:
        """Of the runs in a file."""
        records = benchmark.records
        return cls(comparison.repeatability(records), comparison.repeated(records))


# --- tables ---------------------------------------------------------------------------------------


def _wide(found: Lines, axis: str, time: str) -> pd.DataFrame:
    """One row per value of the axis; two columns per implementation."""
    import pandas as pd

    columns: dict[str, dict[int, object]] = {}
    for name, line in found.items():
        for record in line:
            spread, at = getattr(record, time), getattr(record, axis)
            columns.setdefault(f"{name} (µs)", {})[at] = spread.median_us
            columns.setdefault(f"{name} quartiles", {})[at] = quartiles(spread)
    letter, _, _ = _AXES[axis]
    return pd.DataFrame(columns).sort_index().rename_axis(letter).reset_index()
