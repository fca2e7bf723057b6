"""Times on the device beside the memory roof: the roofline, and the ladder of implementations.

Each function returns a :class:`rsk.figures.plotting.Picture`, as those of
:mod:`rsk.figures.benchmarks` do.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rsk.base.numbers import byte_size, duration, run_range, share
from rsk.figures import curves, plotting
from rsk.figures.curves import Lines
from rsk.figures.plotting import CLOCKS, ROOF, Picture
from rsk.measure import comparison
from rsk.measure.comparison import BASELINE
from rsk.measure.implementations import PYTORCH
from rsk.measure.over_runs import Series, comparable, ratio
from rsk.measure.records import Benchmark

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def roofline(benchmark: Benchmark) -> Picture:
    """Device time against the bytes that have to move, with the memory roof and launch floor.

    All float32 points with a warm cache are drawn. Each is judged by its own roof, measured over
    as many bytes in the same cache state by the same clock, unless other processes disturbed that
    one. The title is about the point that moves the most bytes: where few bytes move, latency
    decides, not memory.

    Raises:
        ValueError: there are none.
    """
    found = [
        one
        for by_name in comparison.by_point(benchmark.records).values()
        for one in by_name.values()
        if one.dtype == "float32" and one.cache == "warm"
    ]
    if not found:
        raise ValueError("roofline: the benchmark has no float32 times with a warm cache")
    names = sorted({one.implementation for one in found}, key=plotting.rank)
    found.sort(key=lambda one: (names.index(one.implementation), one.bytes_moved))
    shares = {one: known for one in found if (known := one.roof_share) is not None}
    lines = {name: [one for one in found if one.implementation == name] for name in names}
    largest = {
        name: max(judged, key=lambda one: one.bytes_moved)
        for name, line in lines.items()
        if (judged := [one for one in line if one in shares])
    }
    values = {
        "best": largest.get("fused") or next(iter(largest.values()), None),
        "shares": {name: shares[one] for name, one in largest.items()},
        "unjudged": sum(one.roof.busy for one in found),
        "conditions": curves.conditions(benchmark, lines, "device"),
    }
    return Picture(_draw_roofline(lines), "fig-roofline", values, _roofline_data(found))


def _draw_roofline(lines: Lines) -> Figure:
    found = [one for line in lines.values() for one in line]
    roof = sorted({(one.bytes_moved, one.roof.median) for one in found if not one.roof.busy})
    with plotting.axes() as (fig, ax):
        for name, line in lines.items():
            at = [one.bytes_moved for one in line]
            times = [one.device for one in line]
            plotting.draw_over_runs(ax, name, at, times, linestyle="", alpha=0.8)
        if roof:
            ax.plot(*zip(*roof, strict=True), color=ROOF, linewidth=2, label="only reading")
        floor = statistics.median(one.floor_us for one in found)
        ax.axhline(floor, color=ROOF, linestyle=":", label="smallest operation")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter(plotting.round_label(byte_size))
        ax.yaxis.set_major_formatter(plotting.round_label(duration))
        ax.set_xlabel("bytes that the algorithm has to move in one call")
        ax.set_ylabel(curves.name_of_time(lines, "device"))
    return fig


def _roofline_data(found: Sequence[Series]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "implementation": one.implementation,
            "B": one.batch_size,
            "K": one.spec_len,
            "V": one.vocab_size,
            "bytes": one.bytes_moved,
            "device (µs)": one.device.median,
            "device range": run_range(one.device),
            "clock": one.device.clock,
            "roof (µs)": one.roof.median,
            "roof range": run_range(one.roof),
            "share of the roof": _median_share(one),
        }
        for one in found
    )


def ladder(benchmark: Benchmark, batch_size: int | None = None) -> Picture:
    """The steps from the baseline to the fastest kernel: time on the device, share of the roof.

    Args:
        benchmark: measured or loaded.
        batch_size: which; the largest by default.

    Raises:
        ValueError: no times at that batch size and the usual values.
    """
    lines = curves.lines(benchmark, "batch_size")
    size = batch_size or max(one.batch_size for line in lines.values() for one in line)
    names = dict.fromkeys((*PYTORCH, *lines))
    steps = [one for name in names for one in lines.get(name, []) if one.batch_size == size]
    if not steps:
        raise ValueError(f"ladder: the benchmark has no times at batch size {size}")
    fastest = min(steps, key=lambda one: one.device.median)
    by_name = {one.implementation: one for one in steps}
    rival, base = comparison.best_pytorch(by_name, "device") or fastest, by_name.get(BASELINE)
    graphs = {n: [one] for n, one in by_name.items() if comparable(one, fastest, "device")}
    values = {
        "steps": steps,
        "rival": rival,
        "last": fastest,
        "gain": ratio(rival, fastest, "device"),
        "conditions": curves.conditions(benchmark, graphs, "device"),
    }
    return Picture(_draw_ladder(steps, fastest), "fig-ladder", values, _ladder_data(steps, base))


def _draw_ladder(steps: Sequence[Series], fastest: Series) -> Figure:
    with plotting.axes(height=1.3 + 0.33 * len(steps)) as (fig, ax):
        for row, one in enumerate(steps):
            time = one.device
            ax.errorbar(  # a dot: the length of a bar says nothing on this axis
                time.median,
                row,
                color=plotting.style(one.implementation)["color"],
                xerr=[[time.median - time.least], [time.most - time.median]],
                ecolor="#888888",
                fmt="o",
                markersize=9,
            )
            text = f" {duration(time.median)}"
            if one.roof_share is not None:
                text += f", {share(one.roof_share)} of the roof"
            if time.clock != fastest.device.clock:
                text += f", {CLOCKS[time.clock]}"
            ax.text(1.6 * time.most, row, text, va="center", fontsize=9)
        low, high = fastest.device.least, max(one.device.most for one in steps)
        if not fastest.roof.busy:
            low = fastest.roof.median
            ax.axvline(low, color=ROOF, linewidth=2, label="memory roof")
        ax.set_xscale("log")
        ax.set_xlim(low / 2, high * (high / low) ** 0.6)  # room for the text beside the bars
        ax.set_yticks(range(len(steps)), [one.implementation for one in steps])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_formatter(plotting.round_label(duration))
        ax.set_xlabel(f"{CLOCKS[fastest.device.clock]} (logarithmic)")
    return fig


def _ladder_data(steps: Sequence[Series], base: Series | None) -> DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "implementation": one.implementation,
            "device (µs)": one.device.median,
            "device range": run_range(one.device),
            "clock": one.device.clock,
            "call (µs)": one.call.median,
            "call range": run_range(one.call),
            "× baseline, call": ratio(base, one).median
            if base is not None and comparable(base, one)
            else None,
            "share of the roof": _median_share(one),
        }
        for one in steps
    )


def _median_share(one: Series) -> float | None:
    return None if one.roof_share is None else one.roof_share.median
