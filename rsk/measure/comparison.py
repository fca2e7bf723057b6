"""What records say: the usual ones along an axis, speed-ups, differences from run to run.

No run is picked: what is compared is a :class:`rsk.measure.over_runs.Series`, all runs of one
implementation at one point, and a ratio is formed within each run.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rsk.measure.implementations import BASELINE as BASELINE
from rsk.measure.implementations import PYTORCH, is_peer
from rsk.measure.over_runs import OverRuns, Series, comparable
from rsk.measure.over_runs import ratio as ratio
from rsk.measure.records import Benchmark, Point, Record


def by_point(records: Iterable[Record]) -> dict[Point, dict[str, Series]]:
    """Records by point and implementation, in the order in which they were measured."""
    groups: dict[Point, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[record.point][record.implementation].append(record)
    return {
        point: {name: Series(tuple(runs)) for name, runs in by_name.items()}
        for point, by_name in groups.items()
    }


# --- points ---------------------------------------------------------------------------------------


def usual(settings: Mapping[str, Any]) -> Point:
    """The point that the others of a sweep vary; its batch size is the middle one.

    Args:
        settings: of the sweep, as in a :class:`rsk.measure.records.Benchmark`.
    """
    sizes = sorted(settings["batch_sizes"])
    names = ("spec_lens", "vocab_sizes", "dtypes", "acceptances", "caches")
    return Point(sizes[len(sizes) // 2], *(settings[name][0] for name in names))


def along(benchmark: Benchmark, axis: str) -> dict[int, dict[str, Series]]:
    """By value of an axis, what was measured with all else at the sweep's usual values.

    Args:
        benchmark: measured or loaded.
        axis: ``"batch_size"``, ``"spec_len"`` or ``"vocab_size"``.
    """
    middle = usual(benchmark.settings)
    found = {
        getattr(point, axis): by_name
        for point, by_name in by_point(benchmark.records).items()
        if point._replace(**{axis: getattr(middle, axis)}) == middle
    }
    return dict(sorted(found.items()))


def usual_line(benchmark: Benchmark) -> dict[int, dict[str, Series]]:
    """By batch size, at the usual values, what was measured in one run with the baseline."""
    found = {}
    for size, by_name in along(benchmark, "batch_size").items():
        if BASELINE in by_name:
            base = by_name[BASELINE]
            found[size] = {name: one for name, one in by_name.items() if comparable(base, one)}
    return found


# --- rivals ---------------------------------------------------------------------------------------


def best_of(rivals: Iterable[Series], time: str) -> Series | None:
    """The implementation that takes the least time, by its median over all of its runs.

    That chooses a rival, not a run: the ratio to it is formed in each run of both.
    """
    return min(rivals, key=lambda one: one.time(time).median, default=None)


def best_pytorch(by_name: Mapping[str, Series], time: str = "call") -> Series | None:
    """The fastest one made of PyTorch's operators that ``fused`` can be compared with."""
    return _best_rival(by_name, [name for name in by_name if name in PYTORCH], time)


def best_peer(by_name: Mapping[str, Series], time: str = "call") -> Series | None:
    """The fastest of other projects' samplers that ``fused`` can be compared with."""
    return _best_rival(by_name, filter(is_peer, by_name), time)


def _best_rival(by_name: Mapping[str, Series], names: Iterable[str], time: str) -> Series | None:
    ours = by_name.get("fused")
    rivals = [by_name[name] for name in names]
    return best_of((one for one in rivals if ours and comparable(one, ours, time)), time)


# --- speed-ups ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpeedUp:
    """How much faster than another one implementation is, over several points."""

    implementation: str
    points: int
    mean: OverRuns
    """Arithmetic mean of the points' ratios, as the earlier work reported it."""
    geometric_mean: OverRuns
    least: OverRuns
    """At the point of the smallest median."""
    most: OverRuns
    most_at: Point


def speed_ups(records: Iterable[Record], time: str = "call", base: str = BASELINE) -> list[SpeedUp]:
    """Mean, least and largest speed-up of each implementation over another.

    Only points at which both were measured, by one clock, in one run count; means are formed within
    each run, of the runs that have all of these points.

    Args:
        records: of one file.
        time: one of :data:`rsk.measure.over_runs.TIMES`.
        base: what the others are compared with.
    """
    ratios: dict[str, dict[Point, OverRuns]] = defaultdict(dict)
    for point, by_name in by_point(records).items():
        for name, one in by_name.items():
            if name != base and base in by_name and comparable(by_name[base], one, time):
                ratios[name][point] = ratio(by_name[base], one, time)
    return [_speed_up(name, found) for name, found in ratios.items()]


def _speed_up(name: str, found: Mapping[Point, OverRuns]) -> SpeedUp:
    whole = set.intersection(*(set(one.by_run) for one in found.values()))
    # A run that ended early has fewer points than the others; if there is no whole one, as in a
    # sweep whose points were measured in different runs, each point counts with its median.
    by_run = {run: [one.by_run[run] for one in found.values()] for run in sorted(whole)}
    by_run = by_run or {0: [one.median for one in found.values()]}
    most_at = max(found, key=lambda point: found[point].median)
    return SpeedUp(
        implementation=name,
        points=len(found),
        mean=OverRuns({run: statistics.fmean(values) for run, values in by_run.items()}),
        geometric_mean=OverRuns(
            {run: statistics.geometric_mean(values) for run, values in by_run.items()}
        ),
        least=min(found.values(), key=lambda one: one.median),
        most=found[most_at],
        most_at=most_at,
    )


class Sizes(NamedTuple):
    """Batch sizes of the usual line at which an implementation beats the baseline, or does not."""

    won: list[int]
    lost: list[int]
    open: list[int]
    """Where it depends on the run."""


def against_baseline(benchmark: Benchmark, name: str) -> Sizes:
    """Where an implementation is faster than the baseline in all runs, and where in none."""
    found = Sizes([], [], [])
    for size, by_name in usual_line(benchmark).items():
        if name in by_name:
            gain = ratio(by_name[BASELINE], by_name[name])
            place = found.won if gain.least > 1 else found.lost if gain.most <= 1 else found.open
            place.append(size)
    return found


# --- from run to run ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repeatability:
    """How much one clock's time differs from run to run, beside the spread within a run."""

    implementation: str
    clock: str
    runs: int
    """The most of any point."""
    points: int
    within: float
    """Median interquartile range within a run, over the median time."""
    between: float
    """Median range of the runs' medians, over their median."""
    between_most: float
    most_at: Point

    @property
    def understated(self) -> bool:
        """Whether runs differ by more than one run states."""
        return self.between > self.within


class Repeated(NamedTuple):
    """How many points runs can be compared at; the last may have ended early."""

    points: int
    of: int


def repeated(records: Sequence[Record]) -> Repeated:
    """Count the points that were measured in more than one run."""
    runs: dict[Point, set[int]] = defaultdict(set)
    for record in records:
        runs[record.point].add(record.run)
    return Repeated(sum(len(found) > 1 for found in runs.values()), len(runs))


def runs_of(records: Iterable[Record]) -> int:
    """How many whole runs the records are of, the last of which may have ended early."""
    return len({record.run for record in records})


def repeatability(records: Sequence[Record], time: str = "call") -> list[Repeatability]:
    """Compare the whole runs of a sweep by one clock: empty if there was only one.

    Args:
        records: of one file.
        time: one of :data:`rsk.measure.over_runs.TIMES`.
    """
    found: dict[str, list[Series]] = defaultdict(list)
    for by_name in by_point(records).values():
        for name, one in by_name.items():
            if len(one.records) > 1:
                found[name].append(one)
    result = []
    for name, series in found.items():
        times = [one.time(time) for one in series]
        most = max(range(len(times)), key=lambda i: times[i].between)
        result.append(
            Repeatability(
                implementation=name,
                clock=times[0].clock,
                runs=max(one.runs for one in times),
                points=len(series),
                within=statistics.median(one.within for one in times),
                between=statistics.median(one.between for one in times),
                between_most=times[most].between,
                most_at=series[most].point,
            )
        )
    return result
