"""The ladder: each notebook's step with its time, times the baseline, share of the memory roof."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsk.base.numbers import number
from rsk.course import beginning, publish
from rsk.course.beginning import LessonError
from rsk.course.results import load_result, results_dir, save_result
from rsk.measure.comparison import BASELINE, ratio
from rsk.measure.records import Benchmark, Provenance, Record, RecordError, check_schema
from rsk.sampler import registry

if TYPE_CHECKING:
    from pandas import DataFrame

    from rsk.measure.workload import Pool

LADDER = "ladder"
ROOF = "memory roof"
LADDER_SCHEMA = "rsk-ladder/1"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One row of the ladder: a time, the baseline's on the same inputs, and where both are from."""

    name: str
    record: Record
    baseline: Record | None
    machine: str
    recorded: bool

    def __post_init__(self) -> None:
        if self.baseline is not None and self.baseline.point != self.record.point:
            raise RecordError(
                f"baseline: expected the same point as {self.name}, {self.record.point}, "
                f"got {self.baseline.point}"
            )

    @property
    def where(self) -> str:
        """Where the time is from, and whether other processes disturbed it."""
        place = f"{'recorded' if self.recorded else 'here'}, {self.machine}"
        disturbed = self.record.device.busy or self.record.roof.busy
        return f"{place} (disturbed by other programs)" if disturbed else place


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The steps so far, in the order of the story."""

    SCHEMA = LADDER_SCHEMA
    schema: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        check_schema(self.schema, LADDER_SCHEMA)

    def with_step(self, step: Step) -> Ladder:
        """The ladder with this step, which takes the place of an older one of its kind."""
        others = [s for s in self.steps if (s.name, s.recorded) != (step.name, step.recorded)]
        return Ladder(
            schema=self.schema, steps=tuple(sorted([*others, step], key=lambda s: _rank(s.name)))
        )

    def times_baseline(self, step: Step) -> float | None:
        """How many times faster than the baseline a step is, if that was measured beside it."""
        if step.baseline is not None:
            return ratio(step.baseline, step.record, "device")
        for other in self.steps:  # in another notebook of this run, on the same inputs
            if (
                other.name == BASELINE
                and other.record.point == step.record.point
                and (other.machine, other.recorded) == (step.machine, step.recorded)
            ):
                return ratio(other.record, step.record, "device")
        return None

    def frame(self) -> DataFrame:
        """One row a step: time on the device, times the baseline, share of the memory roof."""
        import pandas as pd

        return pd.DataFrame(
            {
                "step": step.name,
                "B": step.record.batch_size,
                "K": step.record.spec_len,
                "V": step.record.vocab_size,
                "time (µs)": step.record.device.median_us,
                "× baseline": self.times_baseline(step),
                "% of the memory roof": None
                if step.record.roof.busy  # too slow a roof: a share of it says nothing
                else 100 * step.record.roof_share,
                "measured": step.where,
            }
            for step in self.steps
        )


def ladder_row(
    name: str,
    record: Record,
    *,
    baseline: Record | None = None,
    machine: Provenance | None = None,
) -> None:
    """Add a notebook's row to the ladder, and show the ladder so far.

    Args:
        name: of the step: an implementation of ``rsk.BACKENDS`` or ``rsk.KERNELS``, or ``ROOF``.
        record: its time.
        baseline: the baseline's time at the same point in the same run; not needed for its own.
        machine: where it was recorded; if not given, here and now, on the device that
            :func:`rsk.course.beginning.begin` chose.

    Raises:
        RecordError: the two were not measured at the same point, or the ladder's file is damaged.
        LessonError: measured here, and :func:`rsk.course.beginning.begin` was not called.
    """
    where = beginning.here() if machine is None else machine
    step = Step(
        name=name,
        record=record,
        baseline=record if name == BASELINE else baseline,
        machine=where.machine,
        recorded=machine is not None,
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
        formats=dict.fromkeys(["× baseline", "% of the memory roof"], number),
    )


def roof_record(pool: Pool, batch_size: int, spec_len: int) -> Record:
    """The memory roof as a record: the time to read what has to be read, and do nothing else.

    Measured again, up to three times, when other processes disturb it.

    Args:
        pool: of the inputs.
        batch_size: B, one of those that the pool was made for.
        spec_len: K, at most the pool's.
    """
    from rsk.measure.benchmark import ATTEMPTS

    cases = [pool.case(batch_size, spec_len)]
    while cases[-1].roof.busy and len(cases) < ATTEMPTS:
        cases.append(pool.case(batch_size, spec_len))
    case = min(cases, key=lambda case: case.roof.disturbed)
    accepted = [float(samples.num_accepted.double().mean()) for samples in case.expected]
    return Record(
        implementation=ROOF,
        run=0,
        batch_size=case.batch_size,
        spec_len=case.spec_len,
        vocab_size=case.vocab_size,
        dtype=case.dtype,
        acceptance=case.acceptance,
        accepted=statistics.fmean(accepted),
        cache=case.cache,
        device=case.roof,
        host=case.roof,
        call=case.roof,
        bytes_moved=case.bytes_moved,
        roof=case.roof,
        floor_us=case.floor_us,
    )


def _rank(name: str) -> int:
    order = [ROOF, *registry.OURS]
    return order.index(name) if name in order else len(order)


def pick(found: Benchmark, name: str, batch_size: int) -> Record:
    """The record of an implementation at a batch size, all else at the sweep's usual values.

    Raises:
        LessonError: it was not measured; says what was skipped or refused.
    """
    from rsk.measure.comparison import usual_line

    by_name: Mapping[str, Record] = usual_line(found).get(batch_size, {})
    if name in by_name:
        return by_name[name]
    reasons = "; ".join((*found.refused, *found.skipped)) or "it was not asked for"
    raise LessonError(f"there is no time of {name} at B={batch_size}: {reasons}")
