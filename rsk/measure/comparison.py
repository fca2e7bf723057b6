"""What records say: speed-ups over the baseline, run-to-run differences, times in words."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rsk.measure.records import Point, Record

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


def duration(microseconds: float) -> str:
    """A time in the unit that reads best: 18.4 µs, 7.99 ms, 1.20 s."""
    for unit, factor in (("µs", 1.0), ("ms", 1e3)):
        if microseconds / factor < 999.5:
            return f"{digits(microseconds / factor)} {unit}"
    return f"{digits(microseconds / 1e6)} s"


def megabytes(n_bytes: float) -> str:
    """A number of bytes in the decimal unit that reads best: 832 kB, 14.9 MB."""
    for unit, factor in (("B", 1.0), ("kB", 1e3), ("MB", 1e6)):
        if n_bytes < 999.5 * factor:
            return f"{digits(n_bytes / factor)} {unit}"
    return f"{digits(n_bytes / 1e9)} GB"


def plural(number: int, noun: str) -> str:
    """A count with its noun: 1 launch, 168 operators, 2 passes."""
    ending = "" if number == 1 else "es" if noun.endswith(("ch", "sh", "s", "x", "z")) else "s"
    return f"{number:,} {noun}{ending}"


def digits(value: float, significant: int = 3) -> str:
    """A number with so many significant digits, and never in powers of ten."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{significant - 1}e}")
    return f"{rounded:.{max(0, significant - 1 - math.floor(math.log10(abs(rounded))))}f}"


def roof_share(record: Record, decimals: int = 0) -> str:
    """The share of the memory roof that a record reached, as a percentage.

    A roof that other processes disturbed is too slow, and a share of it says nothing: it is then
    "an unknown share". A share that would be rounded to 0 is "under" the smallest one shown.
    """
    if record.roof.busy:
        return "an unknown share"
    smallest = 10.0 ** -(2 + decimals)
    if record.roof_share < smallest / 2:
        return f"under {smallest:.{decimals}%}"
    return f"{record.roof_share:.{decimals}%}"


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


def repeated_points(records: Sequence[Record]) -> str:
    """In words: the points at which two runs can be compared; the second may have ended early."""
    runs: dict[Point, set[int]] = defaultdict(set)
    for record in records:
        runs[record.point].add(record.run)
    repeated = sum(len(found) > 1 for found in runs.values())
    if repeated == len(runs):
        return "all points"
    return f"the {repeated} of {len(runs)} points that both runs reached"


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
