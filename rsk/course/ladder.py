"""The ladder: each notebook's step with its time, times the baseline, share of the memory roof.

The rows are of different notebooks, and so of different minutes: each is dated, and what it is
compared with was measured beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsk.base.numbers import number
from rsk.course import beginning, publish
from rsk.course.beginning import LessonError
from rsk.course.results import load_result, results_dir, save_result
from rsk.measure.comparison import BASELINE
from rsk.measure.over_runs import Series
from rsk.measure.records import Benchmark, Provenance, Record, RecordError, check_schema
from rsk.sampler import registry

if TYPE_CHECKING:
    from pandas import DataFrame


LADDER = "ladder"
ROOF = "memory roof"
LADDER_SCHEMA = "rsk-ladder/1"


@dataclass(frozen=True, kw_only=True)
class LadderStep:
    """One row of the ladder: a time, the baseline's on the same inputs, and where both are from."""

    name: str
    record: Record
    baseline: Record | None
    machine: str
    recorded: bool
    date: str = ""
    """When the notebook began, or when it was recorded: UTC, ISO 8601."""

    def __post_init__(self) -> None:
        if self.baseline is not None and self.baseline.point != self.record.point:
            raise RecordError(
                f"baseline: expected the same point as {self.name}, {self.record.point}, "
                f"got {self.baseline.point}"
            )

    @property
    def where(self) -> str:
        """Where the time is from, of when, and whether other processes disturbed it."""
        place = f"{'recorded' if self.recorded else 'here'}, {self.machine}"
        if self.date:
            place += f", {self.date[:16].replace('T', ' ')} UTC"
        disturbed = self.record.device.busy or self.record.roof.busy
        return f"{place} (disturbed by other programs)" if disturbed else place

    @property
    def times_baseline(self) -> float | None:
        """How many times as fast as the baseline its result is there; ``None`` without one."""
        if self.baseline is None:
            return None
        return self.baseline.call.median_us / self.record.call.median_us


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The steps so far, in the order of the story."""

    SCHEMA = LADDER_SCHEMA
    schema: str
    steps: tuple[LadderStep, ...]

    def __post_init__(self) -> None:
        check_schema(self.schema, LADDER_SCHEMA)

    def with_step(self, step: LadderStep) -> Ladder:
        """The ladder with this step, which takes the place of an older one of its kind."""
        others = [s for s in self.steps if (s.name, s.recorded) != (step.name, step.recorded)]
        return Ladder(
            schema=self.schema, steps=tuple(sorted([*others, step], key=lambda s: _rank(s.name)))
        )

    def frame(self) -> DataFrame:
        """One row a step: time on the device with its clock, times the baseline, share of its roof.

        A step that was measured in several runs is shown as in the first of them.
        """
        import pandas as pd

        return pd.DataFrame(
            {
                "step": step.name,
                "B": step.record.batch_size,
                "K": step.record.spec_len,
                "V": step.record.vocab_size,
                "device (µs)": step.record.device.median_us,
                "clock": step.record.device.clock,
                "× baseline": step.times_baseline,
                "its roof (µs)": share and step.record.roof.median_us,
                "% of the memory roof": share and 100 * share,
                "measured": step.where,
            }
            for step in self.steps
            for share in [step.record.roof_share]
        )


def _of_one_run(
    found: Record | Series, baseline: Record | Series | None
) -> tuple[Record, Record | None]:
    """A time and the baseline's in the first run that has both, if there is one."""
    mine, theirs = ({one.run: one for one in _records(each)} for each in (found, baseline))
    run = min(mine.keys() & theirs.keys(), default=min(mine))
    return mine[run], theirs.get(run)


def _records(found: Record | Series | None) -> tuple[Record, ...]:
    if found is None:
        return ()
    return (found,) if isinstance(found, Record) else found.records


def ladder_row(
    name: str,
    found: Record | Series,
    *,
    baseline: Record | Series | None = None,
    machine: Provenance | None = None,
) -> None:
    """Add a notebook's row to the ladder, and show the ladder so far.

    Args:
        name: of the step: an implementation of ``rsk.BACKENDS`` or ``rsk.KERNELS``, or ``ROOF``.
        found: its time; of several runs the first that has the baseline too is kept.
        baseline: the baseline's time at the same point in the same run; not needed for its own.
        machine: where it was recorded; if not given, here and now, on the device that
            :func:`rsk.course.beginning.begin` chose.

    Raises:
        RecordError: the two were not measured at the same point, or the ladder's file is damaged.
        LessonError: measured here, and :func:`rsk.course.beginning.begin` was not called.
    """
    where = beginning.here() if machine is None else machine
    record, base = _of_one_run(found, baseline)
    step = LadderStep(
        name=name,
        record=record,
        baseline=record if name == BASELINE else base,
        machine=where.machine,
        recorded=machine is not None,
        date=where.date,
    )
    ladder = load_ladder().with_step(step)
    save_result(LADDER, ladder)
    show_ladder(ladder)


def load_ladder() -> Ladder:
    """The ladder of this run, which may have no steps yet.

    Raises:
        RecordError: its file is damaged; names the file and the field.
    """
    if not (results_dir() / f"{LADDER}.json").is_file():
        return Ladder(schema=LADDER_SCHEMA, steps=())
    return load_result(LADDER, Ladder)


def show_ladder(ladder: Ladder, label: str = "tab-ladder") -> None:
    """Publish the ladder as a table."""
    publish.table(
        ladder.frame(),
        label=label,
        values={},
        formats=dict.fromkeys(["× baseline", "its roof (µs)", "% of the memory roof"], number),
    )


def _rank(name: str) -> int:
    order = [ROOF, *registry.OURS]
    return order.index(name) if name in order else len(order)


def pick(found: Benchmark, name: str, batch_size: int) -> Series:
    """All runs of an implementation at a batch size, all else at the sweep's usual values.

    Raises:
        LessonError: it was not measured; says what was skipped or refused.
    """
    from rsk.measure.comparison import usual_line

    by_name: Mapping[str, Series] = usual_line(found).get(batch_size, {})
    if name in by_name:
        return by_name[name]
    reasons = "; ".join((*found.refused, *found.skipped)) or "it was not asked for"
    raise LessonError(f"there is no time of {name} at B={batch_size}: {reasons}")
