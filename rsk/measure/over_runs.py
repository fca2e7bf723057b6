"""One implementation at one point over whole runs: each clock with a range of its own.

Nothing here picks a run. A number over runs is shown as its median and its range, least to most; a
ratio is formed within each run, of two times of one clock, and then treated the same way.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from rsk.measure.records import Point, Record, RecordError, Spread

TIMES = ("call", "device", "host")
"""The times of a record: until the result is there, on the device, until the call returns."""


@dataclass(frozen=True)
class OverRuns:
    """A number in each of several whole runs."""

    by_run: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.by_run:
            raise ValueError("by_run: expected a number of at least one run, got none")

    @property
    def median(self) -> float:
        """Over the runs; of two, the mean."""
        return statistics.median(self.by_run.values())

    @property
    def least(self) -> float:
        """Of the runs."""
        return min(self.by_run.values())

    @property
    def most(self) -> float:
        """Of the runs."""
        return max(self.by_run.values())

    @property
    def runs(self) -> int:
        """How many there are."""
        return len(self.by_run)

    @property
    def between(self) -> float:
        """The range over the median; 0 of a single run, which says nothing."""
        return (self.most - self.least) / self.median

    @property
    def inverse(self) -> OverRuns:
        """The reciprocal, run by run."""
        return OverRuns({run: 1 / value for run, value in self.by_run.items()})

    def over(self, other: OverRuns) -> OverRuns:
        """This divided by another, in each run that both have.

        Raises:
            ValueError: there is none.
        """
        shared = sorted(self.by_run.keys() & other.by_run.keys())
        return OverRuns({run: self.by_run[run] / other.by_run[run] for run in shared})


@dataclass(frozen=True)
class Time(OverRuns):
    """A time of one clock, in microseconds."""

    spreads: Mapping[int, Spread]

    @classmethod
    def of(cls, spreads: Mapping[int, Spread]) -> Time:
        """The time whose samples in each run these are.

        Raises:
            RecordError: they are of different clocks.
        """
        clocks = sorted({spread.clock for spread in spreads.values()})
        if len(clocks) > 1:
            raise RecordError(f"clock: expected one over all runs, got {' and '.join(clocks)}")
        return cls({run: one.median_us for run, one in spreads.items()}, spreads)

    @property
    def median_us(self) -> float:
        """Over the runs, of each run's median."""
        return self.median

    @property
    def clock(self) -> str:
        """One of :data:`rsk.measure.records.CLOCKS`."""
        return next(iter(self.spreads.values())).clock

    @property
    def busy(self) -> bool:
        """Whether other programs disturbed most samples of one of the runs."""
        return any(spread.busy for spread in self.spreads.values())

    @property
    def within(self) -> float:
        """Interquartile range of a run's samples over their median; the median over the runs."""
        return statistics.median(spread.relative for spread in self.spreads.values())


@dataclass(frozen=True)
class Series:
    """The records of one implementation at one point, one of each run."""

    records: tuple[Record, ...]

    def __post_init__(self) -> None:
        kinds = {(record.implementation, record.point) for record in self.records}
        runs = {record.run for record in self.records}
        if len(kinds) != 1 or len(runs) != len(self.records):
            raise ValueError(
                "records: expected one implementation at one point, each run once, got "
                f"{len(kinds)} kinds in {len(runs)} runs of {len(self.records)} records"
            )

    @property
    def implementation(self) -> str:
        """Its name."""
        return self.records[0].implementation

    @property
    def point(self) -> Point:
        """What was measured."""
        return self.records[0].point

    @property
    def batch_size(self) -> int:
        """B."""
        return self.point.batch_size

    @property
    def spec_len(self) -> int:
        """K."""
        return self.point.spec_len

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.point.vocab_size

    @property
    def dtype(self) -> str:
        """Of the probabilities."""
        return self.point.dtype

    @property
    def acceptance(self) -> float:
        """The acceptance rate that the inputs were made for."""
        return self.point.acceptance

    @property
    def cache(self) -> str:
        """Its state: warm or cold."""
        return self.point.cache

    @property
    def bytes_moved(self) -> int:
        """Bytes to move in one call: all runs have the same inputs."""
        return self.records[0].bytes_moved

    @property
    def floor_us(self) -> float:
        """Time of the smallest operation, the median over the runs."""
        return statistics.median(record.floor_us for record in self.records)

    @functools.cached_property
    def call(self) -> Time:
        """Time until the results of a call are there."""
        return self._time("call")

    @functools.cached_property
    def device(self) -> Time:
        """Time on the device."""
        return self._time("device")

    @functools.cached_property
    def host(self) -> Time:
        """Time until the call returns."""
        return self._time("host")

    @functools.cached_property
    def roof(self) -> Time:
        """Time to read as many bytes and do nothing else."""
        return self._time("roof")

    @functools.cached_property
    def isolated(self) -> Time | None:
        """Time of one launch on an idle device, of the runs in which it was taken, if any."""
        taken = {one.run: one.isolated for one in self.records if one.isolated is not None}
        return Time.of(taken) if taken else None

    def _time(self, name: str) -> Time:
        return Time.of({record.run: getattr(record, name) for record in self.records})

    def time(self, name: str) -> Time:
        """One of :data:`TIMES` by its name.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in TIMES:
            raise ValueError(f"time: expected one of {', '.join(TIMES)}, got {name!r}")
        time: Time = getattr(self, name)
        return time

    @property
    def roof_share(self) -> OverRuns | None:
        """Fraction of the memory roof that was reached in each run in which that can be said.

        See :attr:`rsk.measure.records.Record.roof_share`; ``None`` if it can be said of no run.
        """
        shares = {record.run: record.roof_share for record in self.records}
        known = {run: share for run, share in shares.items() if share is not None}
        return OverRuns(known) if known else None


def comparable(one: Series, other: Series, time: str = "call") -> bool:
    """Whether :func:`ratio` can be formed: in one run at least, by one clock."""
    runs = one.time(time).by_run.keys() & other.time(time).by_run.keys()
    return bool(runs) and one.time(time).clock == other.time(time).clock


def ratio(slower: Series, faster: Series, time: str = "call") -> OverRuns:
    """How many times as fast one implementation is as another, formed within each run.

    Args:
        slower: what the other is compared with.
        faster: the one to judge; if it is not faster, the ratio is below 1.
        time: one of :data:`TIMES`.

    Raises:
        ValueError: they share no run, or the times are of different clocks, such as a wall clock
            and a share of a replayed graph.
    """
    one, other = slower.time(time), faster.time(time)
    names = f"{slower.implementation} and {faster.implementation} at {slower.point}"
    if one.clock != other.clock:
        raise ValueError(
            f"{names}: expected {time} times of one clock, got {one.clock} and {other.clock}"
        )
    if one.by_run.keys().isdisjoint(other.by_run):
        raise ValueError(f"{names}: expected a run in which both were measured, got none")
    return one.over(other)
