"""What all figures share: one style, words by label, and saving.

Colours are from Okabe and Ito's palette, which the colour-blind can tell apart, of different
lightness, so that they survive a grey printer; with a marker and a line style for each.
"""

from __future__ import annotations

import base64
import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rsk.base import fonts, templates
from rsk.base.numbers import duration
from rsk.base.templates import Exhibit
from rsk.measure import peers
from rsk.measure.over_runs import OverRuns
from rsk.sampler import registry

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import LayoutEngine
    from matplotlib.ticker import Locator

WIDTH, HEIGHT = 6.8, 3.0
"""Of a figure, in inches, with one row of legend: as wide as the text of a printed page."""
LEGEND_ROW = 0.2
PNG_DPI = 200
TITLE_WIDTH, LABEL_WIDTH = 65, 19
"""Bold letters of a title, and of the label of an upright axis, on one line."""

STYLES: dict[str, dict[str, Any]] = {
    name: entry.style
    for name, entry in {**registry.OURS, **registry.RIVALS, **peers.ENTRIES}.items()
}
"""Of the implementations, as matplotlib's keyword arguments, in the order of the story."""
ROOF = "#555555"
"""Colour of the memory roof and other limits."""
_OTHER = {"color": "#777777", "marker": "P", "linestyle": "-."}

TIMES = {
    "call": "call time",
    "device": "device time",
    "host": "time until the call returns",
}
CLOCKS = {
    "wall": TIMES["call"],
    "graph replay": TIMES["device"],
    "isolated launch": "isolated launch",
}
"""Times as axes and columns name them, and what each clock measures: on a CPU all is call time."""


class Picture(NamedTuple):
    """A figure with all that it needs to be published."""

    fig: Figure
    label: str
    values: Mapping[str, object]
    """What its title, caption and alt text may name."""
    data: pd.DataFrame
    """The numbers behind it."""
    block: str = ""
    """The block of ``captions.md`` that holds its words, if not the one called like the label."""
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


def save(fig: Figure, path: Path) -> None:
    """Write a figure to a file, of the kind that its name says."""
    _with_glyphs(fig)
    fig.savefig(path, dpi=PNG_DPI)


def svg(fig: Figure) -> tuple[str, tuple[float, float]]:
    """A figure as SVG, the same bytes every time, and its width and height in points."""
    import matplotlib as mpl

    _with_glyphs(fig)
    buffer = io.StringIO()
    # Text as outlines: the same picture in every reader. A fixed salt and no date: the same bytes.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "rsk"}):
        fig.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    # Hundredths of a point are enough, and half as many bytes.
    text = re.sub(r' d="[^"]+"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), buffer.getvalue())
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


def layout() -> LayoutEngine:
    """Room for all labels, and between plots for the numbers at the ends of their axes."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(wspace=0.08)


@contextlib.contextmanager
def axes(height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """An empty plot in the common style; the legend is added at the end.

    Args:
        height: in inches, with one row of legend; more rows make the figure higher.
    """
    with panels(1, height) as (fig, (ax,)):
        yield fig, ax


@contextlib.contextmanager
def panels(count: int, height: float = HEIGHT) -> Iterator[tuple[Figure, list[Axes]]]:
    """Several plots side by side, of one height and with the legend of the first."""
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.05):
        fig = Figure(figsize=(WIDTH, height), layout=layout())
        plots = list(fig.subplots(1, count, sharey=True, squeeze=False)[0])
        yield fig, plots
        for ax in plots:
            sns.despine(ax=ax)
            ax.set_ylabel("\n".join(wrap(ax.get_ylabel(), LABEL_WIDTH)))
        handles, labels = plots[0].get_legend_handles_labels()
        if labels:
            fig.set_figheight(height + LEGEND_ROW * (_legend(fig, handles, labels) - 1))


def _legend(fig: Figure, handles: Sequence[Any], labels: Sequence[str]) -> int:
    """Put a legend below a figure, in as few rows as it has room for; how many these are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(fig)
    renderer = canvas.get_renderer()
    for columns in range(len(labels), 0, -1):
        legend = fig.legend(
            handles, labels, loc="outside lower center", ncols=columns, frameon=False
        )
        if columns == 1 or legend.get_window_extent(renderer).width <= fig.bbox.width:
            break
        legend.remove()
    return -(-len(labels) // columns)


def entitle(fig: Figure, title: str) -> None:
    """Put a sentence above a figure, on as many lines as it needs."""
    title = title.replace(" = ", "\u00a0=\u00a0")  # never broken at the equals sign
    wrapped = "\n".join(wrap(title, TITLE_WIDTH))
    fig.suptitle(wrapped, x=0.01, ha="left", fontsize=10.5, fontweight="bold")


def translate(fig: Figure, language: str) -> None:
    """Name what a figure shows in a language; ticks, which show names and numbers, stay."""
    from matplotlib.text import Text

    label = templates.labels(language)
    for text in fig.findobj(Text):
        text.set_text(label(text.get_text()))
    for ax in fig.axes:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            handle.set_label(label(name))
        if fonts.is_needed(ax.get_ylabel()):
            ax.set_ylabel("\n".join(wrap(ax.get_ylabel(), LABEL_WIDTH)))


def wrap(text: str, width: float) -> list[str]:
    """Lines of a text, of about one length; between Chinese letters any line may end.

    Args:
        text: whose own line breaks stay if it has Chinese letters, and do not count otherwise.
        width: of a line, in bold Latin letters.
    """
    if fonts.is_needed(text):
        return fonts.wrap(text, width)
    return [line.rstrip(" ") for line in fonts.wrap(re.sub("[ \n]+", " ", text), width)]


def _with_glyphs(fig: Figure) -> None:
    """Let texts with letters that matplotlib's own font lacks be drawn with one that has them.

    Raises:
        FontError: it is missing.
    """
    from matplotlib.font_manager import fontManager
    from matplotlib.patheffects import PathPatchEffect
    from matplotlib.text import Text

    for text in fig.findobj(Text):
        if fonts.is_needed(text.get_text()):
            if fonts.CHINESE not in fontManager.get_font_names():
                fontManager.addfont(fonts.face())
            if text.get_fontweight() == "bold":  # it has one weight: an outline makes it heavier
                color = text.get_color()
                outlined = PathPatchEffect(facecolor=color, edgecolor=color, linewidth=0.3)
                text.set_path_effects([outlined])
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
    """A formatter of round ticks: 10 ms, where ``write`` gives 10.0 ms."""

    def label(value: float, _: float) -> str:
        number, unit = write(value).split()
        return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"

    return label


def draw_over_runs(
    ax: Axes, name: str, at: Sequence[float], values: Sequence[OverRuns], **changes: object
) -> None:
    """Draw an implementation's numbers, their median over runs, with bars from least to most."""
    ax.errorbar(
        at,
        [value.median for value in values],
        yerr=[
            [value.median - value.least for value in values],
            [value.most - value.median for value in values],
        ],
        label=name,
        capsize=3,
        elinewidth=1,
        **{**style(name), **changes},
    )
