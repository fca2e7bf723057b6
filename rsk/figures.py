"""The figures of the report, drawn from a benchmark's records.

Each function returns a :class:`Picture`: the figure, whose title says what was found (computed
from the data), a caption with the conditions, alt text, and the numbers as a table. A notebook
publishes it with ``publish.figure(**figures.latency_by_batch(benchmark)._asdict())``.

One style for all: colours from Okabe and Ito's palette, which the colour-blind can tell apart, of
different lightness, so that they survive a grey printer; and a marker and a line style for each.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rsk import summary
from rsk.kernels import KERNELS
from rsk.records import Benchmark, Operations, Point, Quoted, Record
from rsk.sampler import BACKENDS
from rsk.summary import BASELINE, digits, duration, megabytes, plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 6.8, 4.0
TITLE_WIDTH = 70

STYLES: dict[str, dict[str, Any]] = {
    "baseline": {"color": "#1a1a1a", "marker": "o", "linestyle": "-"},
    "vectorized": {"color": "#e69f00", "marker": "s", "linestyle": "--"},
    "fused": {"color": "#0072b2", "marker": "D", "linestyle": "-"},
    "thread_per_sequence": {"color": "#d55e00", "marker": "v", "linestyle": ":"},
    "block_per_sequence": {"color": "#cc79a7", "marker": "^", "linestyle": ":"},
    "split_vocabulary": {"color": "#009e73", "marker": "<", "linestyle": ":"},
    "cluster": {"color": "#56b4e9", "marker": ">", "linestyle": ":"},
    "transformers": {"color": "#999999", "marker": "X", "linestyle": "-."},
}
_OTHER = {"color": "#777777", "marker": "P", "linestyle": "-."}
_ROOF = "#555555"


class Picture(NamedTuple):
    """A figure with all that it needs to be published."""

    fig: Figure
    label: str
    caption: str
    alt: str
    data: pd.DataFrame


def latency_by_batch(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against batch size, for each implementation.

    Args:
        benchmark: measured or loaded.
        time: ``"call"`` (until the result is there), ``"device"`` or ``"host"``.

    Raises:
        ValueError: the benchmark has no times at its usual values.
    """
    lines = _lines(benchmark, "batch_size")
    sizes = sorted({record.batch_size for line in lines.values() for record in line})
    wins = [size for size in sizes if _fastest(lines, size, time) == "fused"]
    title = _fused_summary(lines, sizes, wins, time)
    with _axes(title) as (fig, ax):
        _draw_lines(ax, lines, "batch_size", time)
        ax.set_xlabel("batch size B (requests)")
    return Picture(
        fig,
        "fig-latency",
        f"{_what(time)} against batch size. {_conditions(benchmark, lines)}",
        _alt("Logarithmic line chart of time against batch size", lines, "batch_size", time),
        _wide(lines, "batch_size", "B", time),
    )


def speed_up(benchmark: Benchmark, quoted: Quoted | None = None, time: str = "call") -> Picture:
    """How many times faster than the baseline, against batch size.

    Args:
        benchmark: measured or loaded.
        quoted: the earlier work's table, drawn faintly and labelled as quoted.
        time: as for :func:`latency_by_batch`.

    Raises:
        ValueError: no times at the usual values, or none of the baseline.
    """
    import pandas as pd

    lines = _lines(benchmark, "batch_size")
    base = {record.batch_size: record for record in lines.get(BASELINE, [])}
    if not base:
        raise ValueError("speed_up: the benchmark has no times of the baseline")
    ratios = {
        name: {
            record.batch_size: summary.ratio(base[record.batch_size], record, time)
            for record in line
            if record.batch_size in base
        }
        for name, line in lines.items()
        if name != BASELINE
    }
    found = []
    for name in BACKENDS[1:]:
        if values := list(ratios.get(name, {}).values()):
            mean = sum(values) / len(values)
            found.append(f"{name} {digits(mean)} times on average, {digits(max(values))} at most")
    title = "Faster than the baseline: " + "; ".join(found)
    with _axes(title) as (fig, ax):
        for name, by_size in ratios.items():
            style = _style(name)
            ax.plot(list(by_size), list(by_size.values()), label=name, **style)
        if quoted is not None:
            sizes = [row.batch_size for row in quoted.times]
            for name, attribute in (("vectorized", "vectorized_ms"), ("fused", "fused_ms")):
                values = [row.baseline_ms / getattr(row, attribute) for row in quoted.times]
                style = {**_style(name), "linestyle": ":", "alpha": 0.45, "markersize": 4}
                ax.plot(sizes, values, label=f"{name}, quoted", **style)
        ax.axhline(1, color=_ROOF, linewidth=1)
        ax.text(1.01, 1, "baseline", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        _ticks(ax, sorted({*base, *([row.batch_size for row in quoted.times] if quoted else [])}))
        ax.set_xlabel("batch size B (requests)")
        ax.set_ylabel("speed-up over the baseline")
    caption = f"Time of the baseline over the time of each other. {_conditions(benchmark, lines)}"
    if quoted is not None:
        caption += f" Dotted: quoted from {quoted.source}, not measured here."
    data = pd.DataFrame(ratios).rename_axis("B").reset_index()
    ranges = "; ".join(
        f"{name} from {digits(min(r.values()))} to {digits(max(r.values()))}"
        for name, r in ratios.items()
        if r
    )
    alt = f"Logarithmic line chart of speed-up over the baseline against batch size: {ranges}."
    return Picture(fig, "fig-speed-up", caption, alt, data)


def latency_by_spec_len(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against speculation length. Arguments as :func:`latency_by_batch`."""
    lines = _lines(benchmark, "spec_len")
    growth = _growth(lines, "spec_len", time)
    title = f"{growth}: early exit makes long drafts cheap" if _flat(lines, time) else growth
    with _axes(title) as (fig, ax):
        _draw_lines(ax, lines, "spec_len", time)
        ax.set_xlabel("speculation length K (draft tokens)")
    return Picture(
        fig,
        "fig-spec-len",
        f"{_what(time)} against speculation length. {_conditions(benchmark, lines)}",
        _alt("Logarithmic line chart of time against speculation length", lines, "spec_len", time),
        _wide(lines, "spec_len", "K", time),
    )


def latency_by_vocab(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against vocabulary size. Arguments as :func:`latency_by_batch`."""
    lines = _lines(benchmark, "vocab_size")
    with _axes(_growth(lines, "vocab_size", time)) as (fig, ax):
        _draw_lines(ax, lines, "vocab_size", time)
        ax.set_xlabel("vocabulary size V (tokens)")
    return Picture(
        fig,
        "fig-vocab",
        f"{_what(time)} against vocabulary size. {_conditions(benchmark, lines)}",
        _alt("Logarithmic line chart of time against vocabulary size", lines, "vocab_size", time),
        _wide(lines, "vocab_size", "V", time),
    )


def roofline(benchmark: Benchmark) -> Picture:
    """Device time against the bytes that have to move, with the memory roof and launch floor.

    All float32 points with a warm cache are drawn.

    Raises:
        ValueError: there are none.
    """
    import pandas as pd

    records = [
        record
        for by_name in summary.merged(benchmark.records).values()
        for record in by_name.values()
        if record.dtype == "float32" and record.cache == "warm"
    ]
    if not records:
        raise ValueError("roofline: the benchmark has no float32 times with a warm cache")
    names = _ordered({record.implementation for record in records})
    best = max(
        (r for r in records if r.implementation == "fused"),
        key=lambda r: r.roof_share,
        default=max(records, key=lambda r: r.roof_share),
    )
    title = (
        f"The {best.implementation} sampler reaches {best.roof_share:.0%} of the memory roof at "
        f"{megabytes(best.bytes_moved)} (B = {best.batch_size}, V = {best.vocab_size:,})"
    )
    with _axes(title) as (fig, ax):
        for name in names:
            chosen = sorted(
                (r for r in records if r.implementation == name), key=lambda r: r.bytes_moved
            )
            ax.plot(
                [r.bytes_moved for r in chosen],
                [r.device.median_us for r in chosen],
                label=name,
                **{**_style(name), "linestyle": "", "alpha": 0.8},
            )
        roof = sorted({(r.bytes_moved, r.roof.median_us) for r in records})
        ax.plot(*zip(*roof, strict=True), color=_ROOF, linewidth=2, label="only reading the bytes")
        floor = min(r.floor_us for r in records)
        ax.axhline(floor, color=_ROOF, linestyle=":", label="smallest operation")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter(_power_of_ten(megabytes))
        ax.yaxis.set_major_formatter(_power_of_ten(duration))
        ax.set_xlabel("bytes that the algorithm has to move in one call")
        ax.set_ylabel("time on the device")
    data = pd.DataFrame(
        {
            "implementation": r.implementation,
            "B": r.batch_size,
            "K": r.spec_len,
            "V": r.vocab_size,
            "bytes": r.bytes_moved,
            "time (µs)": r.device.median_us,
            "roof (µs)": r.roof.median_us,
            "share of the roof": r.roof_share,
        }
        for r in sorted(records, key=lambda r: (names.index(r.implementation), r.bytes_moved))
    )
    clocks = " and ".join(sorted({r.device.clock for r in records}))
    caption = (
        "Median time on the device against the bytes that have to move: the row pair of the "
        "rejected position or the bonus row, the coins and the output. The line is the time of a "
        "read-only reduction over as many bytes, measured in the same run and cache state; the "
        f"dotted line is the time to write one element. float32, warm cache; clock: {clocks}. "
        f"{benchmark.provenance.label}."
    )
    shares = "; ".join(
        f"{name} up to {max(r.roof_share for r in records if r.implementation == name):.0%}"
        for name in names
    )
    alt = (
        "Logarithmic scatter chart of time against bytes. All points lie above the rising line of "
        f"only reading the bytes. Largest share of that speed: {shares}."
    )
    return Picture(fig, "fig-roofline", caption, alt, data)


def ladder(benchmark: Benchmark, batch_size: int | None = None) -> Picture:
    """The steps from the baseline to the fastest kernel: time, times faster, share of the roof.

    Args:
        benchmark: measured or loaded.
        batch_size: which; the largest by default.

    Raises:
        ValueError: no times at that batch size and the usual values.
    """
    import pandas as pd

    lines = _lines(benchmark, "batch_size")
    size = batch_size or max(record.batch_size for line in lines.values() for record in line)
    steps = [record for line in lines.values() for record in line if record.batch_size == size]
    if not steps:
        raise ValueError(f"ladder: the benchmark has no times at batch size {size}")
    first, last = steps[0], min(steps, key=lambda r: r.device.median_us)
    title = (
        f"From {duration(first.device.median_us)} to {duration(last.device.median_us)}: "
        f"{last.implementation} is {digits(first.device.median_us / last.device.median_us)} times "
        f"faster than {first.implementation} and at {last.roof_share:.0%} of the memory roof"
    )
    with _axes(title, height=1.4 + 0.45 * len(steps)) as (fig, ax):
        rows = range(len(steps))
        for row, record in zip(rows, steps, strict=True):
            ax.barh(
                row,
                record.device.median_us,
                color=_style(record.implementation)["color"],
                xerr=[
                    [record.device.median_us - record.device.q25_us],
                    [record.device.q75_us - record.device.median_us],
                ],
                ecolor="#888888",
                height=0.62,
            )
            text = (
                f" {duration(record.device.median_us)}, "
                f"{digits(first.device.median_us / record.device.median_us)}×, "
                f"{record.roof_share:.1%} of the roof"
            )
            ax.text(record.device.q75_us, row, text, va="center", fontsize=9)
        ax.axvline(last.roof.median_us, color=_ROOF, linewidth=2, label="memory roof")
        ax.set_xscale("log")
        low, high = last.roof.median_us, max(r.device.q75_us for r in steps)
        ax.set_xlim(low / 2, high * (high / low) ** 0.75)  # room for the text beside the bars
        ax.set_yticks(list(rows), [record.implementation for record in steps])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_formatter(_power_of_ten(duration))
        ax.set_xlabel("time on the device (logarithmic)")
    data = pd.DataFrame(
        {
            "implementation": record.implementation,
            "time (µs)": record.device.median_us,
            "quartiles (µs)": f"{digits(record.device.q25_us)} to {digits(record.device.q75_us)}",
            "clock": record.device.clock,
            "× baseline": first.device.median_us / record.device.median_us,
            "share of the roof": record.roof_share,
        }
        for record in steps
    )
    caption = (
        f"Median time on the device at B = {size}, with the quartiles; the line is the memory "
        f"roof. {_conditions(benchmark, lines)}"
    )
    alt = "Bar chart, one bar a step: " + "; ".join(
        f"{record.implementation} {duration(record.device.median_us)}" for record in steps
    )
    return Picture(fig, "fig-ladder", caption, alt + ".", data)


def operation_counts(benchmark: Benchmark, batch_size: int | None = None) -> Picture:
    """Operators (or kernel launches) and synchronisations of one call, from the profiler.

    Args:
        benchmark: measured or loaded.
        batch_size: which; the largest that was counted by default.

    Raises:
        ValueError: nothing was counted at that batch size.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    from rsk.records import operations_frame

    counted = list(benchmark.operations)
    size = batch_size or max((count.batch_size for count in counted), default=0)
    here = [count for count in counted if count.batch_size == size]
    if not here:
        raise ValueError(f"operation_counts: nothing was counted at batch size {size}")
    here.sort(key=lambda count: _rank(count.implementation))
    on_gpu = here[0].launches is not None

    def launches(count: Operations) -> int:
        return count.operators if count.launches is None else count.launches

    what = "kernels, copies and fills put on the GPU" if on_gpu else "operators called"
    title = f"One call at B = {size}: " + "; ".join(
        f"{count.implementation} {plural(launches(count), 'launch' if on_gpu else 'operator')}, "
        f"{plural(count.synchronizations, 'wait')}"
        for count in here
        if count.implementation in BACKENDS
    )
    panels: list[tuple[str, Callable[[Operations], int]]] = [
        (what, launches),
        ("values that the host waits for", lambda count: count.synchronizations),
    ]
    with sns.axes_style("white"), sns.plotting_context("paper", font_scale=1.05):
        fig = Figure(figsize=(WIDTH, 1.5 + 0.4 * len(here)), layout="constrained")
        _entitle(fig, title)
        for ax, (heading, number) in zip(fig.subplots(1, 2, sharey=True), panels, strict=True):
            values = [number(count) for count in here]
            colors = [_style(count.implementation)["color"] for count in here]
            rows = range(len(here))
            ax.barh(rows, values, color=colors, height=0.62)
            for row, value in zip(rows, values, strict=True):
                ax.text(max(value, 0.6), row, f" {value:,}", va="center", fontsize=9)
            ax.set_xscale("symlog", linthresh=1)
            ax.set_xlim(0, max(10, *values) * 8)
            ax.set_yticks(list(rows), [count.implementation for count in here])
            ax.set_xlabel(heading, fontsize=9)
            ax.set_xticks([])  # the numbers are beside the bars
            ax.xaxis.set_minor_locator(_nothing())
            sns.despine(ax=ax)
        fig.axes[0].invert_yaxis()
    first = here[0]
    caption = (
        f"Counted by PyTorch's profiler during one call, K = {first.spec_len}, "
        f"V = {first.vocab_size:,}; logarithmic scales. {benchmark.provenance.label}."
    )
    alt = f"Two bar charts. {title}."
    data = operations_frame(
        sorted(counted, key=lambda c: (_rank(c.implementation), c.batch_size))
    ).drop(columns=["spec_len", "vocab_size"] + ([] if on_gpu else ["launches"]))
    data = data.rename(
        columns={
            "batch_size": "B",
            "synchronizations": "waits",
            "allocated_bytes": "bytes allocated",
        }
    )
    return Picture(fig, "fig-operations", caption, alt, data)


def _rank(name: str) -> int:
    """Where an implementation comes in the story."""
    order = list(STYLES)
    order.remove("fused")  # after the kernels that it picks from
    order.insert(order.index("transformers"), "fused")
    return order.index(name) if name in order else len(order)


def _ordered(names: set[str]) -> list[str]:
    return sorted(names, key=_rank)


def _style(name: str) -> dict[str, Any]:
    return STYLES.get(name, _OTHER)


def _lines(benchmark: Benchmark, axis: str) -> dict[str, list[Record]]:
    """By implementation, the records along one axis, all else at the sweep's usual values."""
    settings = benchmark.settings
    sizes = sorted(settings["batch_sizes"])
    usual = Point(
        sizes[len(sizes) // 2],
        *(
            settings[name][0]
            for name in ("spec_lens", "vocab_sizes", "dtypes", "acceptances", "caches")
        ),
    )
    lines: dict[str, list[Record]] = {}
    for point, by_name in summary.merged(benchmark.records).items():
        if point._replace(**{axis: getattr(usual, axis)}) == usual:
            for name, record in by_name.items():
                lines.setdefault(name, []).append(record)
    if not lines:
        raise ValueError(f"the benchmark has no times along {axis} at its usual values")
    return {
        name: sorted(lines[name], key=lambda record: int(getattr(record, axis)))
        for name in _ordered(set(lines))
    }


def _fastest(lines: dict[str, list[Record]], size: int, time: str) -> str:
    # The kernels one by one do not compete: fused picks among them.
    rivals = [line for name, line in lines.items() if name not in KERNELS]
    here = [r for line in rivals for r in line if r.batch_size == size]
    return min(here, key=lambda r: float(getattr(r, time).median_us)).implementation


def _fused_summary(
    lines: dict[str, list[Record]], sizes: Sequence[int], wins: Sequence[int], time: str
) -> str:
    if "fused" not in lines:
        return _growth(lines, "batch_size", time)
    if len(wins) == len(sizes):
        opening = "The fused sampler is the fastest at every batch size"
    else:
        opening = f"The fused sampler is the fastest at {len(wins)} of {len(sizes)} batch sizes"
    base = {record.batch_size: record for record in lines.get(BASELINE, [])}
    ratios = [
        summary.ratio(base[record.batch_size], record, time)
        for record in lines.get("fused", [])
        if record.batch_size in base
    ]
    if not ratios:
        return opening
    low, high = digits(min(ratios), 2), digits(max(ratios), 2)
    span = f"{low} times" if low == high else f"{low} to {high} times"
    return f"{opening}: {span} faster than the baseline"


def _growth(lines: dict[str, list[Record]], axis: str, time: str) -> str:
    letter = {"spec_len": "K", "vocab_size": "V", "batch_size": "B"}[axis]
    parts, ends = [], (0, 0)
    for name in BACKENDS:
        if len(line := lines.get(name, [])) > 1:
            ends = getattr(line[0], axis), getattr(line[-1], axis)
            grown = getattr(line[-1], time).median_us / getattr(line[0], time).median_us
            parts.append(f"{digits(grown, 2)} ({name})")
    if not parts:
        return f"Only one value of {letter} was measured"
    return (
        f"From {letter} = {ends[0]:,} to {ends[1]:,} the time is multiplied by {', '.join(parts)}"
    )


def _flat(lines: dict[str, list[Record]], time: str) -> bool:
    """Whether the fused sampler's time grows by less than half as K does."""
    line = lines.get("fused", [])
    return (
        len(line) > 1 and getattr(line[-1], time).median_us < 1.5 * getattr(line[0], time).median_us
    )


def _what(time: str) -> str:
    names = {
        "call": "Median time until a call's result is there",
        "device": "Median time on the device",
        "host": "Median time until the call returns",
    }
    return f"{names[time]}, with the quartiles as bars,"


def _conditions(benchmark: Benchmark, lines: dict[str, list[Record]]) -> str:
    """The fixed conditions of a figure, and how sure its numbers are."""
    records = [record for line in lines.values() for record in line]
    letters = {
        "batch_size": "B",
        "spec_len": "K",
        "vocab_size": "V",
        "acceptance": "acceptance rate",
    }
    fixed = []
    for name, letter in letters.items():
        values = {getattr(record, name) for record in records}
        if len(values) == 1:
            value = values.pop()
            fixed.append(f"{letter} = {value:,}" if isinstance(value, int) else f"{letter} {value}")
    fixed += [records[0].dtype, f"{records[0].cache} cache"]
    clocks = sorted({record.call.clock for record in records})
    text = f"{', '.join(fixed)}; {' and '.join(clocks)} clock. {benchmark.provenance.label}."
    repeats = summary.repeatability(benchmark.records)
    if repeats:
        parts = (f"{r.implementation} {r.between:.1%} (stated: {r.stated:.1%})" for r in repeats)
        text += f" Two whole runs differ, in the median over all points, by: {', '.join(parts)}."
    if any(record.call.busy for record in records):
        text += " Other processes disturbed some of these times."
    return text


def _alt(kind: str, lines: dict[str, list[Record]], axis: str, time: str) -> str:
    parts = []
    for name, line in lines.items():
        first, last = line[0], line[-1]
        text = f"{name} {duration(getattr(first, time).median_us)} at {getattr(first, axis):,}"
        if last is not first:
            text += f", {duration(getattr(last, time).median_us)} at {getattr(last, axis):,}"
        parts.append(text)
    return f"{kind}. {'; '.join(parts)}."


def _wide(lines: dict[str, list[Record]], axis: str, letter: str, time: str) -> pd.DataFrame:
    """One row per value of the axis; two columns per implementation."""
    import pandas as pd

    columns: dict[str, dict[int, object]] = {}
    for name, line in lines.items():
        for record in line:
            spread, at = getattr(record, time), getattr(record, axis)
            columns.setdefault(f"{name} (µs)", {})[at] = spread.median_us
            quartiles = f"{digits(spread.q25_us)} to {digits(spread.q75_us)}"
            columns.setdefault(f"{name} quartiles (µs)", {})[at] = quartiles
    return pd.DataFrame(columns).sort_index().rename_axis(letter).reset_index()


@contextlib.contextmanager
def _axes(title: str, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """An empty plot in the common style; the legend is added at the end."""
    import seaborn as sns
    from matplotlib.figure import Figure

    with sns.axes_style("whitegrid"), sns.plotting_context("paper", font_scale=1.05):
        fig = Figure(figsize=(WIDTH, height), layout="constrained")
        _entitle(fig, title)
        ax = fig.add_subplot()
        yield fig, ax
        sns.despine(ax=ax)
        labels = ax.get_legend_handles_labels()[1]
        columns = 3 if max(map(len, labels)) > 12 else 4
        fig.legend(loc="outside lower center", ncols=min(len(labels), columns), frameon=False)


def _entitle(fig: Figure, title: str) -> None:
    title = title.replace(" = ", "\u00a0=\u00a0")  # never broken at the equals sign
    wrapped = "\n".join(textwrap.wrap(title, TITLE_WIDTH))
    fig.suptitle(wrapped, x=0.01, ha="left", fontsize=10.5, fontweight="bold")


def _draw_lines(ax: Axes, lines: dict[str, list[Record]], axis: str, time: str) -> None:
    for name, line in lines.items():
        x = [getattr(record, axis) for record in line]
        spreads = [getattr(record, time) for record in line]
        ax.errorbar(
            x,
            [spread.median_us for spread in spreads],
            yerr=[
                [spread.median_us - spread.q25_us for spread in spreads],
                [spread.q75_us - spread.median_us for spread in spreads],
            ],
            label=name,
            capsize=3,
            elinewidth=1,
            **_style(name),
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    _ticks(ax, sorted({getattr(record, axis) for line in lines.values() for record in line}))
    ax.yaxis.set_major_formatter(_power_of_ten(duration))
    ax.set_ylabel("time")


def _ticks(ax: Axes, values: Sequence[int]) -> None:
    """Ticks at the measured values and nowhere else."""
    ax.set_xticks(values, [f"{value:,}" for value in values])
    ax.xaxis.set_minor_locator(_nothing())


def _power_of_ten(write: Callable[[float], str]) -> Callable[[float, float], str]:
    """A tick's label, without the digits after the point: 10 ms, not 10.0 ms."""

    def label(value: float, _: float) -> str:
        number, unit = write(value).split()
        return f"{float(number):g} {unit}"

    return label


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
