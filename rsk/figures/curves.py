"""Times along one axis, a line for each implementation: drawn, and as values for the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rsk.base.numbers import run_range
from rsk.figures import plotting
from rsk.figures.plotting import CLOCKS, TIMES, Picture
from rsk.measure import comparison
from rsk.measure.over_runs import OverRuns, Series, ratio
from rsk.measure.records import Benchmark
from rsk.sampler.api import BACKENDS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

AXES = {
    "batch_size": ("B", "batch size", "requests"),
    "spec_len": ("K", "speculation length", "draft tokens"),
    "vocab_size": ("V", "vocabulary size", "tokens"),
}
"""Letter, name and unit of what times are drawn against."""

Lines = Mapping[str, Sequence[Series]]
"""By implementation, what was measured along one axis, in order."""


def lines(benchmark: Benchmark, axis: str) -> Lines:
    """By implementation, what was measured along one axis, all else at the sweep's usual values.

    Args:
        benchmark: measured or loaded.
        axis: as for :func:`rsk.measure.comparison.along`.

    Raises:
        ValueError: there are none.
    """
    found: dict[str, list[Series]] = {}
    for by_name in comparison.along(benchmark, axis).values():
        for name, one in by_name.items():
            found.setdefault(name, []).append(one)
    if not found:
        raise ValueError(f"the benchmark has no times along {axis} at its usual values")
    return {name: found[name] for name in sorted(found, key=plotting.rank)}


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
    letter, name, unit = AXES[axis]
    with plotting.axes() as (fig, ax):
        draw_lines(ax, found, axis, time)
        ax.set_xlabel(f"{name} {letter} ({unit})")
    usual: dict[str, object] = {
        "time": time,
        "ends": ends(found, axis, time),
        "growth": growth(found, axis, time),
        "conditions": conditions(benchmark, found, time),
    }
    return Picture(fig, label, {**usual, **values}, frame(found, axis, time))


def latency_by_shape(benchmark: Benchmark, label: str, *, time: str = "call") -> Picture:
    """The time of a call against speculation length and vocabulary size, in one picture.

    Args:
        benchmark: measured or loaded.
        label: of the figure.
        time: as for :func:`latency`.

    Raises:
        ValueError: the benchmark has no times along one of these.
    """
    import pandas as pd

    found = {axis: lines(benchmark, axis) for axis in ("spec_len", "vocab_size")}
    with plotting.panels(len(found)) as (fig, plots):
        for ax, (axis, drawn) in zip(plots, found.items(), strict=True):
            letter, name, unit = AXES[axis]
            draw_lines(ax, drawn, axis, time)
            ax.set_xlabel(f"{name} {letter} ({unit})")
        plots[1].set_ylabel("")
    both = {name: [one for drawn in found.values() for one in drawn.get(name, [])]
            for name in found["spec_len"]}  # fmt: skip
    values = {
        "time": time,
        "middle": comparison.usual(benchmark.settings),
        "ends": {AXES[axis][0]: ends(drawn, axis, time) for axis, drawn in found.items()},
        "growth": {AXES[axis][0]: growth(drawn, axis, time) for axis, drawn in found.items()},
        "conditions": conditions(benchmark, both, time),
    }
    frames = [frame(drawn, axis, time) for axis, drawn in found.items()]
    data = pd.concat(frames, ignore_index=True)
    return Picture(fig, label, values, data[["K", "V", *data.columns.drop(["K", "V"])]])


def draw_lines(ax: Axes, found: Lines, axis: str, time: str) -> None:
    """Draw times with their range over runs on logarithmic axes; arguments as :func:`latency`."""
    for name, line in found.items():
        at = [getattr(one, axis) for one in line]
        plotting.draw_over_runs(ax, name, at, [one.time(time) for one in line])
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    plotting.ticks(ax, sorted({getattr(one, axis) for line in found.values() for one in line}))
    plotting.ticks_of_times(ax)
    ax.set_ylabel(name_of_time(found, time))


def clocks_of(found: Lines, time: str) -> dict[str, list[str]]:
    """By clock, the implementations that it timed."""
    by_clock: dict[str, list[str]] = {}
    for name, line in found.items():
        for clock in sorted({one.time(time).clock for one in line}):
            by_clock.setdefault(clock, []).append(name)
    return by_clock


def name_of_time(found: Lines, time: str) -> str:
    """What some times are; if they are of several clocks, of most of them, and what others are."""
    if time == "host":
        return TIMES[time]
    by_clock = clocks_of(found, time)
    first, *others = sorted(by_clock, key=lambda clock: len(by_clock[clock]), reverse=True)
    named = [f"{', '.join(by_clock[clock])}: {CLOCKS[clock]}" for clock in others]
    return CLOCKS[first] + (f" ({'; '.join(named)})" if named else "")


class Growth(NamedTuple):
    """By how much times grow along an axis."""

    first: int
    last: int
    factors: Mapping[str, OverRuns]
    """By backend; those with more than one value."""


def growth(found: Lines, axis: str, time: str = "call") -> Growth:
    """By how much each backend's time is multiplied from the first value to the last."""
    longer = {name: line for name in BACKENDS if len(line := found.get(name, [])) > 1}
    values = sorted({getattr(one, axis) for line in (longer or found).values() for one in line})
    return Growth(
        values[0],
        values[-1],
        {name: ratio(line[-1], line[0], time) for name, line in longer.items()},
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
            line[0].time(time).median,
            getattr(line[-1], axis),
            line[-1].time(time).median,
        )
        for name, line in found.items()
    ]


class Conditions(NamedTuple):
    """What is the same for all times of a figure."""

    fixed: Mapping[str, int | float]
    """By letter: B, K, V, and "a" for the acceptance rate."""
    dtype: str
    cache: str
    clocks: Mapping[str, Sequence[str]]
    """By clock, the implementations that it timed."""
    runs: Sequence[int]
    """The least and the most runs that a time is of."""
    busy: int
    """How many of them other programs disturbed."""
    times: int
    """How many there are."""
    label: str
    """Of the machine."""


def conditions(benchmark: Benchmark, found: Lines, time: str = "call") -> Conditions:
    """The fixed conditions of a figure; ``time`` as for :func:`latency`."""
    series = [one for line in found.values() for one in line]
    names = {**{axis: letter for axis, (letter, _, _) in AXES.items()}, "acceptance": "a"}
    values = {letter: {getattr(one, name) for one in series} for name, letter in names.items()}
    runs = [one.time(time).runs for one in series]
    return Conditions(
        fixed={letter: some.pop() for letter, some in values.items() if len(some) == 1},
        dtype=series[0].dtype,
        cache=series[0].cache,
        clocks=clocks_of(found, time),
        runs=(min(runs), max(runs)),
        busy=sum(one.time(time).busy for one in series),
        times=len(series),
        label=benchmark.provenance.label,
    )


def frame(found: Lines, axis: str, time: str) -> pd.DataFrame:
    """One row per value of the axis; median, range over runs and clock of each implementation."""
    import pandas as pd

    columns: dict[str, dict[int, object]] = {}
    for name, line in found.items():
        for one in line:
            measured, at = one.time(time), getattr(one, axis)
            columns.setdefault(f"{name} (µs)", {})[at] = measured.median
            columns.setdefault(f"{name} range", {})[at] = run_range(measured)
            columns.setdefault(f"{name} clock", {})[at] = measured.clock
    letter, _, _ = AXES[axis]
    return pd.DataFrame(columns).sort_index().rename_axis(letter).reset_index()
