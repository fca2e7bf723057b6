"""The figures of a benchmark's records, in the style of :mod:`rsk.figures.plotting`.

Each function returns a :class:`rsk.figures.plotting.Picture`: the figure, the values for its words,
which are in ``exhibits.md``, and the numbers as a table. A notebook publishes it with
``publish.figure(**benchmarks.latency_by_batch(benchmark)._asdict())``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rsk.base.numbers import DASH, byte_size, digits, duration, percent, quartiles
from rsk.figures import plotting
from rsk.figures.plotting import ROOF, Lines, Picture
from rsk.measure import comparison
from rsk.measure.comparison import BASELINE, roof_share
from rsk.measure.records import Benchmark, Operations, Quoted, Record
from rsk.sampler.api import BACKENDS
from rsk.sampler.kernels import KERNELS


class Wins(NamedTuple):
    """Where the fused sampler is the fastest, and its speed-ups over the baseline."""

    at: int
    """Batch sizes at which it is."""
    of: int
    least: float
    most: float


def latency_by_batch(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against batch size, for each implementation.

    Args:
        benchmark: measured or loaded.
        time: ``"call"`` (until the result is there), ``"device"`` or ``"host"``.

    Raises:
        ValueError: the benchmark has no times at its usual values.
    """
    wins = _wins(plotting.lines(benchmark, "batch_size"), time)
    return plotting.latency(benchmark, "batch_size", "fig-latency", time=time, wins=wins)


def _wins(lines: Lines, time: str) -> Wins | None:
    """``None`` without the fused sampler or the baseline."""
    if not {BASELINE, "fused"} <= set(lines):
        return None
    # The kernels one by one do not compete: fused picks among them.
    rivals = [line for name, line in lines.items() if name not in KERNELS]

    def fastest(size: int) -> Record:
        here = [record for line in rivals for record in line if record.batch_size == size]
        return min(here, key=lambda record: float(getattr(record, time).median_us))

    sizes = sorted({record.batch_size for line in lines.values() for record in line})
    base = {record.batch_size: record for record in lines[BASELINE]}
    ratios = [
        comparison.ratio(base[record.batch_size], record, time)
        for record in lines["fused"]
        if record.batch_size in base
    ]
    wins = sum(fastest(size).implementation == "fused" for size in sizes)
    return Wins(wins, len(sizes), min(ratios), max(ratios)) if ratios else None


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

    lines = plotting.lines(benchmark, "batch_size")
    base = {record.batch_size: record for record in lines.get(BASELINE, [])}
    if not base:
        raise ValueError("speed_up: the benchmark has no times of the baseline")
    ratios = {
        name: {
            record.batch_size: comparison.ratio(base[record.batch_size], record, time)
            for record in line
            if record.batch_size in base
        }
        for name, line in lines.items()
        if name != BASELINE
    }
    with plotting.axes() as (fig, ax):
        for name, by_size in ratios.items():
            style = plotting.style(name)
            ax.plot(list(by_size), list(by_size.values()), label=name, **style)
        if quoted is not None:
            sizes = [row.batch_size for row in quoted.times]
            for name, attribute in (("vectorized", "vectorized_ms"), ("fused", "fused_ms")):
                values = [row.baseline_ms / getattr(row, attribute) for row in quoted.times]
                style = {**plotting.style(name), "linestyle": ":", "alpha": 0.45, "markersize": 4}
                ax.plot(sizes, values, label=f"{name}, quoted", **style)
        ax.axhline(1, color=ROOF, linewidth=1)
        ax.text(1.01, 1, "baseline", transform=ax.get_yaxis_transform(), va="center", fontsize=8)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        theirs = [row.batch_size for row in quoted.times] if quoted else []
        plotting.ticks(ax, sorted({*base, *theirs}))
        ax.set_xlabel("batch size B (requests)")
        ax.set_ylabel("speed-up over the baseline")
    spans = {name: list(by_size.values()) for name, by_size in ratios.items() if by_size}
    named: dict[str, object] = {
        "mean": {name: statistics.fmean(spans[name]) for name in BACKENDS[1:] if name in spans},
        "least": {name: min(span) for name, span in spans.items()},
        "most": {name: max(span) for name, span in spans.items()},
        "conditions": plotting.conditions(benchmark, lines, time),
        "quoted": quoted,
    }
    data = pd.DataFrame(ratios).rename_axis("B").reset_index()
    return Picture(fig, "fig-speed-up", named, data)


def latency_by_spec_len(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against speculation length. Arguments as :func:`latency_by_batch`."""
    return plotting.latency(benchmark, "spec_len", "fig-spec-len", time=time)


def latency_by_vocab(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against vocabulary size. Arguments as :func:`latency_by_batch`."""
    return plotting.latency(benchmark, "vocab_size", "fig-vocab", time=time)


def roofline(benchmark: Benchmark) -> Picture:
    """Device time against the bytes that have to move, with the memory roof and launch floor.

    All float32 points with a warm cache are drawn. Each is judged by its own roof, measured over
    as many bytes in the same cache state, unless other processes disturbed that one. The title is
    about the point that moves the most bytes: where few bytes move, latency decides, not memory.

    Raises:
        ValueError: there are none.
    """
    import pandas as pd

    records = [
        record
        for by_name in comparison.merged(benchmark.records).values()
        for record in by_name.values()
        if record.dtype == "float32" and record.cache == "warm"
    ]
    if not records:
        raise ValueError("roofline: the benchmark has no float32 times with a warm cache")
    names = sorted({record.implementation for record in records}, key=plotting.rank)
    judged = [record for record in records if not record.roof.busy]
    roof = sorted({(r.bytes_moved, r.roof.median_us) for r in judged})
    with plotting.axes() as (fig, ax):
        for name in names:
            chosen = [r for r in records if r.implementation == name]
            ax.plot(
                [r.bytes_moved for r in chosen],
                [r.device.median_us for r in chosen],
                label=name,
                **{**plotting.style(name), "linestyle": "", "alpha": 0.8},
            )
        if roof:
            ax.plot(*zip(*roof, strict=True), color=ROOF, linewidth=2, label="only reading")
        floor = min(r.floor_us for r in records)
        ax.axhline(floor, color=ROOF, linestyle=":", label="smallest operation")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter(plotting.round_label(byte_size))
        ax.yaxis.set_major_formatter(plotting.round_label(duration))
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
            "share of the roof": roof_share(r),
        }
        for r in sorted(records, key=lambda r: (names.index(r.implementation), r.bytes_moved))
    )
    ours = [r for r in judged if r.implementation == "fused"] or judged
    values = {
        "best": max(ours, key=lambda r: (r.bytes_moved, r.roof_share), default=None),
        "shares": {
            name: max(shares)
            for name in names
            if (shares := [r.roof_share for r in judged if r.implementation == name])
        },
        "unjudged": len(records) - len(judged),
        "clocks": sorted({r.device.clock for r in records}),
        "label": benchmark.provenance.label,
    }
    return Picture(fig, "fig-roofline", values, data)


def ladder(benchmark: Benchmark, batch_size: int | None = None) -> Picture:
    """The steps from the baseline to the fastest kernel: time, times faster, share of the roof.

    Args:
        benchmark: measured or loaded.
        batch_size: which; the largest by default.

    Raises:
        ValueError: no times at that batch size and the usual values.
    """
    import pandas as pd

    lines = plotting.lines(benchmark, "batch_size")
    size = batch_size or max(record.batch_size for line in lines.values() for record in line)
    steps = [record for line in lines.values() for record in line if record.batch_size == size]
    if not steps:
        raise ValueError(f"ladder: the benchmark has no times at batch size {size}")
    first, last = steps[0], min(steps, key=lambda r: r.device.median_us)
    with plotting.axes(height=1.4 + 0.45 * len(steps)) as (fig, ax):
        rows = range(len(steps))
        for row, record in zip(rows, steps, strict=True):
            ax.errorbar(  # a dot: the length of a bar says nothing on this axis
                record.device.median_us,
                row,
                color=plotting.style(record.implementation)["color"],
                xerr=[
                    [record.device.median_us - record.device.q25_us],
                    [record.device.q75_us - record.device.median_us],
                ],
                ecolor="#888888",
                fmt="o",
                markersize=9,
            )
            share = roof_share(record)
            text = (
                f" {duration(record.device.median_us)}, "
                f"{digits(first.device.median_us / record.device.median_us)}×, "
                f"{DASH if share is None else percent(share, 1)} of the roof"
            )
            ax.text(1.6 * record.device.q75_us, row, text, va="center", fontsize=9)
        low, high = last.device.median_us, max(r.device.q75_us for r in steps)
        if not last.roof.busy:
            low = last.roof.median_us
            ax.axvline(low, color=ROOF, linewidth=2, label="memory roof")
        ax.set_xscale("log")
        ax.set_xlim(low / 2, high * (high / low) ** 0.75)  # room for the text beside the bars
        ax.set_yticks(list(rows), [record.implementation for record in steps])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_formatter(plotting.round_label(duration))
        ax.set_xlabel("time on the device (logarithmic)")
    data = pd.DataFrame(
        {
            "implementation": record.implementation,
            "time (µs)": record.device.median_us,
            "quartiles": quartiles(record.device),
            "clock": record.device.clock,
            "× baseline": first.device.median_us / record.device.median_us,
            "share of the roof": roof_share(record),
        }
        for record in steps
    )
    values = {
        "steps": steps,
        "first": first,
        "last": last,
        "share": roof_share(last),
        "conditions": plotting.conditions(benchmark, lines, "device"),
    }
    return Picture(fig, "fig-ladder", values, data)


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

    from rsk.measure.records import operations_frame

    counted = list(benchmark.operations)
    size = batch_size or max((count.batch_size for count in counted), default=0)
    here = [count for count in counted if count.batch_size == size]
    if not here:
        raise ValueError(f"operation_counts: nothing was counted at batch size {size}")
    here.sort(key=lambda count: plotting.rank(count.implementation))
    on_gpu = here[0].launches is not None

    def launches(count: Operations) -> int:
        return count.operators if count.launches is None else count.launches

    what = "kernels, copies and fills put on the GPU" if on_gpu else "operators called"
    panels: list[tuple[str, Callable[[Operations], int]]] = [
        (what, launches),
        ("values that the host waits for", lambda count: count.synchronizations),
    ]
    with sns.axes_style("white"), sns.plotting_context("paper", font_scale=1.05):
        fig = Figure(figsize=(plotting.WIDTH, 1.5 + 0.4 * len(here)), layout="constrained")
        for ax, (heading, number) in zip(fig.subplots(1, 2, sharey=True), panels, strict=True):
            values = [number(count) for count in here]
            colors = [plotting.style(count.implementation)["color"] for count in here]
            rows = range(len(here))
            ax.scatter(values, rows, color=colors, s=60, zorder=3)
            for row, value in zip(rows, values, strict=True):
                ax.text(max(1.4 * value, 0.25), row, f" {value:,}", va="center", fontsize=9)
            ax.set_xscale("symlog", linthresh=1)
            ax.set_xlim(-0.2, max(10, *values) * 12)
            ax.set_yticks(list(rows), [count.implementation for count in here])
            ax.set_xlabel(heading, fontsize=9)
            tens = [0, *(10**power for power in range(0, len(str(max(values))) + 1, 2))]
            ax.set_xticks(tens, [f"{ten:,}" for ten in tens])
            ax.grid(visible=True, axis="x")
            ax.xaxis.set_minor_locator(plotting.no_ticks())
            sns.despine(ax=ax)
        fig.axes[0].invert_yaxis()
    data = operations_frame(
        sorted(counted, key=lambda c: (plotting.rank(c.implementation), c.batch_size))
    ).drop(columns=["spec_len", "vocab_size"] + ([] if on_gpu else ["launches"]))
    data = data.rename(
        columns={
            "batch_size": "B",
            "synchronizations": "waits",
            "allocated_bytes": "bytes allocated",
        }
    )
    counts = [count for count in here if count.implementation in BACKENDS]
    named = {"counts": counts, "first": here[0], "label": benchmark.provenance.label}
    return Picture(fig, "fig-operations", named, data)


def only(benchmark: Benchmark, names: Sequence[str]) -> Benchmark:
    """The same run, with a few of its implementations."""
    from dataclasses import replace

    return replace(
        benchmark,
        records=tuple(r for r in benchmark.records if r.implementation in names),
        operations=tuple(c for c in benchmark.operations if c.implementation in names),
    )
