"""The figures of a benchmark's records, in the style of :mod:`rsk.figures.plotting`.

Each function returns a :class:`rsk.figures.plotting.Picture`: the figure, the values for its words,
which are in ``captions.md``, and the numbers as a table. A notebook publishes it with
``publish.figure(**benchmarks.latency_by_batch(benchmark)._asdict())``. What is drawn of a time or a
ratio is its median over the runs, with a bar from the least to the most of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

from rsk.base.numbers import digits, run_range
from rsk.figures import curves, plotting
from rsk.figures.curves import Lines
from rsk.figures.plotting import CLOCKS, ROOF, Picture
from rsk.measure import comparison
from rsk.measure.comparison import BASELINE
from rsk.measure.over_runs import OverRuns, Series, comparable, ratio
from rsk.measure.quoted import Quoted
from rsk.measure.records import Benchmark, Operations
from rsk.sampler.api import BACKENDS
from rsk.sampler.kernels import KERNELS


class Wins(NamedTuple):
    """Where the fused sampler is the fastest, and its speed-ups over the best PyTorch version."""

    at: int
    """Batch sizes at which it is faster than every other implementation in every run."""
    of: int
    gains: Sequence[OverRuns]
    """By batch size; none where no PyTorch version was timed by the same clock."""


def latency_by_batch(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against batch size, for each implementation.

    Args:
        benchmark: measured or loaded.
        time: ``"call"`` (until the result is there), ``"device"`` or ``"host"``.

    Raises:
        ValueError: the benchmark has no times at its usual values.
    """
    wins = _wins(comparison.along(benchmark, "batch_size"), time)
    return curves.latency(benchmark, "batch_size", "fig-latency", time=time, wins=wins)


def _wins(line: Mapping[int, Mapping[str, Series]], time: str) -> Wins | None:
    """``None`` without the fused sampler, or without another by the same clock."""
    gains, won, sizes = [], 0, 0
    for by_name in line.values():
        fused = by_name.get("fused")
        # The kernels one by one do not compete: fused picks among them.
        names = [name for name in by_name if name not in KERNELS and name != "fused"]
        rivals = [one for name in names if fused and comparable(one := by_name[name], fused, time)]
        if fused is None or not rivals:
            continue
        sizes += 1
        won += all(ratio(one, fused, time).least > 1 for one in rivals)
        if (best := comparison.best_pytorch(by_name, time)) is not None:
            gains.append(ratio(best, fused, time))
    return Wins(won, sizes, gains) if sizes else None


def speed_up(benchmark: Benchmark, time: str = "call") -> Picture:
    """How many times faster than the best PyTorch version, against batch size.

    Args:
        benchmark: measured or loaded.
        time: as for :func:`latency_by_batch`; only times of the best PyTorch version's clock count.

    Raises:
        ValueError: no times at the usual values, or none of a PyTorch version.
    """
    lines = curves.lines(benchmark, "batch_size")
    bases = {
        size: best
        for size, by_name in comparison.along(benchmark, "batch_size").items()
        if (best := comparison.best_pytorch(by_name, time)) is not None
    }
    if not bases:
        raise ValueError("speed_up: the benchmark has no times of a PyTorch version beside fused")
    names = sorted({best.implementation for best in bases.values()}, key=plotting.rank)
    label = f"speed-up over {names[0] if len(names) == 1 else 'the best PyTorch version'}"
    return _ratios(benchmark, lines, bases, time, label, {"bases": names}, "fig-speed-up")


def speed_up_over_loop(
    benchmark: Benchmark, quoted: Quoted | None = None, time: str = "call"
) -> Picture:
    """How many times faster than the baseline, against batch size: as the earlier work drew it.

    Args:
        benchmark: measured or loaded.
        quoted: the earlier work's table, drawn faintly and labelled as quoted.
        time: as for :func:`latency_by_batch`.

    Raises:
        ValueError: no times at the usual values, or none of the baseline.
    """
    lines = curves.lines(benchmark, "batch_size")
    bases = {one.batch_size: one for one in lines.get(BASELINE, [])}
    if not bases:
        raise ValueError("speed_up_over_loop: the benchmark has no times of the baseline")
    means = {row.implementation: row for row in comparison.speed_ups(benchmark.records, time)}
    more = {"means": {name: means[name] for name in BACKENDS if name in means}, "quoted": quoted}
    label = "speed-up over the baseline"
    return _ratios(benchmark, lines, bases, time, label, more, "fig-speed-up-over-loop", quoted)


def _ratios(
    benchmark: Benchmark,
    lines: Lines,
    bases: Mapping[int, Series],
    time: str,
    what: str,
    more: Mapping[str, object],
    label: str,
    quoted: Quoted | None = None,
) -> Picture:
    import pandas as pd

    found: dict[str, dict[int, OverRuns]] = {}
    for name, line in lines.items():
        for one in line:
            base = bases.get(one.batch_size)
            if base is not None and base is not one and comparable(base, one, time):
                found.setdefault(name, {})[one.batch_size] = ratio(base, one, time)
    shown = CLOCKS[next(iter(bases.values())).time(time).clock]
    with plotting.axes() as (fig, ax):
        for name, by_size in found.items():
            plotting.draw_over_runs(ax, name, list(by_size), list(by_size.values()))
        if quoted is not None:
            sizes = [row.batch_size for row in quoted.times]
            for name, attribute in (("vectorized", "vectorized_ms"), ("fused", "fused_ms")):
                values = [row.baseline_ms / getattr(row, attribute) for row in quoted.times]
                style = {**plotting.style(name), "linestyle": ":", "alpha": 0.45, "markersize": 4}
                ax.plot(sizes, values, label=f"{name}, quoted", **style)
        ax.axhline(1, color=ROOF, linewidth=1)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        ax.yaxis.set_minor_locator(plotting.no_ticks())
        theirs = [row.batch_size for row in quoted.times] if quoted else []
        plotting.ticks(ax, sorted({*bases, *theirs}))
        ax.set_xlabel("batch size B (requests)")
        ax.set_ylabel(f"{what} ({shown})")
    columns: dict[str, dict[int, object]] = {}
    for name, by_size in found.items():
        for size, value in by_size.items():
            columns.setdefault(name, {})[size] = value.median
            columns.setdefault(f"{name} range", {})[size] = run_range(
                value, lambda number: digits(number, 2)
            )
    named: dict[str, object] = {
        "ratios": found,
        "time": time,
        "conditions": curves.conditions(benchmark, lines, time),
        **more,
    }
    data = pd.DataFrame(columns).sort_index().rename_axis("B").reset_index()
    return Picture(fig, label, named, data)


def latency_by_shape(benchmark: Benchmark, time: str = "call") -> Picture:
    """Time of a call against speculation length and vocabulary size.

    Arguments as :func:`latency_by_batch`.
    """
    return curves.latency_by_shape(benchmark, "fig-shapes", time=time)


def operation_counts(benchmark: Benchmark, batch_size: int | None = None) -> Picture:
    """Operators (or kernel launches) and synchronisations of one call, from the profiler.

    Args:
        benchmark: measured or loaded.
        batch_size: which; the largest that was counted by default.

    Raises:
        ValueError: nothing was counted at that batch size.
    """
    import pandas as pd
    import seaborn as sns
    from matplotlib.figure import Figure

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
        height = 1.35 + 0.25 * len(here)
        fig = Figure(figsize=(plotting.WIDTH, height), layout=plotting.layout())
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
    counted.sort(key=lambda count: (plotting.rank(count.implementation), count.batch_size))
    data = pd.DataFrame([asdict(count) for count in counted]).drop(
        columns=["spec_len", "vocab_size"] + ([] if on_gpu else ["launches"])
    )
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


def only(benchmark: Benchmark, names: Collection[str]) -> Benchmark:
    """The same run, with a few of its implementations."""
    return replace(
        benchmark,
        records=tuple(r for r in benchmark.records if r.implementation in names),
        operations=tuple(c for c in benchmark.operations if c.implementation in names),
    )
