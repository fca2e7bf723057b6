"""What records say: the usual ones along an axis, speed-ups, differences from run to run."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rsk.measure.records import Benchmark, Point, Record

BASELINE = "baseline"


@dataclass(frozen=True)
class SpeedUp:
    """How much faster than the baseline one implementation is, over several points."""

    implementation: str
    points: int
    mean: float
    """Arithmetic mean of the ratios, as the earlier work reported it."""
    geometric_mean: float
    least: float
    most: float
    most_at: Record
    """The point of the largest speed-up."""


@dataclass(frozen=True)
class Repeatability:
    """How much two whole runs differ, beside the spread that one run states."""

    implementation: str
    points: int
    stated: float
    """Median interquartile range within a run, over the median time."""
    between: float
    """Median difference of the runs' medians, over their mean."""
    between_most: float
    most_at: Record

    @property
    def understated(self) -> bool:
        """Whether two runs differ by more than one run states."""
        return self.between > self.stated


def roof_share(record: Record) -> float | None:
    """Fraction of the memory roof that a record reached; ``None`` if that roof was disturbed.

    Such a roof is too slow, and a share of it says nothing.
    """
    return None if record.roof.busy else record.roof_share


def merged(records: Iterable[Record]) -> dict[Point, dict[str, Record]]:
    """Records by point and implementation; of several runs, the one with the median time
    (of two, the faster).
    """
    groups: dict[Point, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[record.point][record.implementation].append(record)
    return {
        point: {
            name: sorted(runs, key=lambda r: r.call.median_us)[(len(runs) - 1) // 2]
            for name, runs in by_name.items()
        }
        for point, by_name in groups.items()
    }


def usual(settings: Mapping[str, Any]) -> Point:
    """The point that the others of a sweep vary; its batch size is the middle one.

    Args:
        settings: of the sweep, as in a :class:`rsk.measure.records.Benchmark`.
    """
    sizes = sorted(settings["batch_sizes"])
    names = ("spec_lens", "vocab_sizes", "dtypes", "acceptances", "caches")
    return Point(sizes[len(sizes) // 2], *(settings[name][0] for name in names))


def along(benchmark: Benchmark, axis: str) -> dict[int, dict[str, Record]]:
    """By value of an axis, the records with all else at the sweep's usual values.

    Args:
        benchmark: measured or loaded.
        axis: ``"batch_size"``, ``"spec_len"`` or ``"vocab_size"``.
    """
    middle = usual(benchmark.settings)
    found = {
        getattr(point, axis): by_name
        for point, by_name in merged(benchmark.records).items()
        if point._replace(**{axis: getattr(middle, axis)}) == middle
    }
    return dict(sorted(found.items()))


def usual_line(benchmark: Benchmark) -> dict[int, dict[str, Record]]:
    """By batch size, the records at the usual values where the baseline was measured."""
    found = along(benchmark, "batch_size")
    return {size: by_name for size, by_name in found.items() if BASELINE in by_name}


class Sizes(NamedTuple):
    """Batch sizes of the usual line at which an implementation beats the baseline, or does not."""

    won: list[int]
    lost: list[int]


def against_baseline(benchmark: Benchmark, name: str) -> Sizes:
    """Where an implementation is faster than the baseline, and where it is not."""
    line = {size: r for size, r in usual_line(benchmark).items() if name in r}
    won = [size for size, r in line.items() if ratio(r[BASELINE], r[name]) > 1]
    return Sizes(won, [size for size in line if size not in won])


def ratio(baseline: Record, other: Record, time: str = "call") -> float:
    """How many times faster than ``baseline`` a record is.

    Args:
        baseline: the slower one, usually.
        other: the record to judge.
        time: ``"call"`` (until the result is there), ``"device"`` or ``"host"``.
    """
    return float(getattr(baseline, time).median_us / getattr(other, time).median_us)


def speed_ups(records: Iterable[Record], time: str = "call") -> list[SpeedUp]:
    """Mean, least and largest speed-up of each implementation over the baseline.

    Only points at which the baseline was measured too count. ``time`` as for :func:`ratio`.
    """
    ratios: dict[str, list[tuple[float, Record]]] = defaultdict(list)
    for by_name in merged(records).values():
        if BASELINE not in by_name:
            continue
        for name, record in by_name.items():
            if name != BASELINE:
                ratios[name].append((ratio(by_name[BASELINE], record, time), record))
    result = []
    for name, pairs in ratios.items():
        values = [value for value, _ in pairs]
        most, most_at = max(pairs, key=lambda pair: pair[0])
        result.append(
            SpeedUp(
                implementation=name,
                points=len(values),
                mean=statistics.fmean(values),
                geometric_mean=statistics.geometric_mean(values),
                least=min(values),
                most=most,
                most_at=most_at,
            )
        )
    return result


class Repeated(NamedTuple):
    """How many points two runs can be compared at; the second may have ended early."""

    points: int
    of: int


def repeated(records: Sequence[Record]) -> Repeated:
    """Count the points that were measured in more than one run."""
    runs: dict[Point, set[int]] = defaultdict(set)
    for record in records:
        runs[record.point].add(record.run)
    return Repeated(sum(len(found) > 1 for found in runs.values()), len(runs))


def repeatability(records: Sequence[Record]) -> list[Repeatability]:
    """Compare the whole runs of a sweep: empty if there was only one."""
    groups: dict[tuple[str, Point], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.implementation, record.point].append(record)
    differences: dict[str, list[tuple[float, float, Record]]] = defaultdict(list)
    for (name, _), runs in groups.items():
        if len(runs) > 1:
            medians = [record.device.median_us for record in runs]
            between = (max(medians) - min(medians)) / statistics.fmean(medians)
            stated = statistics.median(record.device.relative for record in runs)
            differences[name].append((between, stated, runs[0]))
    result = []
    for name, rows in differences.items():
        most, _, most_at = max(rows, key=lambda row: row[0])
        result.append(
            Repeatability(
                implementation=name,
                points=len(rows),
                stated=statistics.median(stated for _, stated, _ in rows),
                between=statistics.median(between for between, _, _ in rows),
                between_most=most,
                most_at=most_at,
            )
        )
    return result
