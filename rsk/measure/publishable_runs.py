"""The runs in ``data/benchmarks``: which there are, and which of them may be published.

A run that other programs disturbed, that was not finished or that found something wrong is refused
with the reason, as is a file in the format of another version: nothing is worded around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from rsk.base import folders
from rsk.measure import comparison
from rsk.measure.provenance import sources
from rsk.measure.quoted import EARLIER_WORK, Quoted
from rsk.measure.records import Benchmark, RecordError
from rsk.sampler.api import BACKENDS

MOST_DISTURBED = 0.01
"""Share of a run's times that other programs may have disturbed, none of them on a line that is
drawn."""
LEAST_RUNS = 2
"""Whole runs of a sweep, without which nothing says how a time varies from run to run. What is
recorded now has :data:`rsk.measure.sweep.RECORDED_RUNS`."""
SIMPLE_KERNEL = "thread_per_sequence"
"""The kernel that the others are compared with."""
AXES = ("batch_size", "spec_len", "vocab_size")


def recorded() -> tuple[list[Benchmark], list[str]]:
    """The runs in ``data/benchmarks``; one bad file does not keep the others from being used.

    Returns:
        The runs, oldest first; and for each file that is none a line that says which, and why.
    """
    found, refused = [], []
    for path in sorted((folders.data_dir() / "benchmarks").glob("*.json")):
        if path.name == EARLIER_WORK:
            continue
        try:
            found.append(Benchmark.load(path))
        except (RecordError, OSError) as error:
            refused.append(str(error))
    return sorted(found, key=lambda one: one.provenance.date), refused


@cache
def earlier_work() -> Quoted:
    """The table of the work that this one continues: quoted, never measured here.

    Raises:
        RecordError: the file is damaged; names it and the field.
    """
    return Quoted.load(folders.data_dir() / "benchmarks" / EARLIER_WORK)


def all_runs(device: str) -> list[Benchmark]:
    """The recorded runs on ``"cpu"`` or ``"cuda"``, oldest first; bad files are left out."""
    return [run for run in recorded()[0] if run.provenance.device == device]


def newest(device: str) -> Benchmark:
    """The newest recorded run on ``"cpu"`` or ``"cuda"`` that may be published.

    Raises:
        RecordError: there is none; says why each was refused.
    """
    runs, left_out = recorded()
    reasons = [f"; left out: {line}" for line in left_out]
    for run in reversed([run for run in runs if run.provenance.device == device]):
        reason = refusal(run)
        if not reason:
            return run
        reasons.append(f"; refused: {run.provenance.label}: {reason}")
    raise RecordError(
        f"data/benchmarks: expected a run on {device} that may be published; make measure makes "
        f"one{''.join(reasons)}"
    )


def of_other_instructions(run: Benchmark) -> Benchmark | None:
    """The newest whole recorded run on the same CPU with other vector instructions, if any."""
    made = run.provenance
    found = [
        one
        for one in all_runs("cpu")
        if one.provenance.cpu == made.cpu and one.provenance.instructions != made.instructions
        if one.complete and not one.refused and comparison.usual_line(one)
    ]
    return found[-1] if found else None


def refusal(run: Benchmark, *, here: bool = False) -> str:
    """Why a run may not be published; empty if it may.

    Args:
        run: measured or loaded.
        here: whether it was measured by the installation in hand, and thus has to be of its
            sources.
    """
    return next(_reasons(run, here), "")


def _reasons(run: Benchmark, here: bool) -> Iterator[str]:
    provenance = run.provenance
    if not re.fullmatch(r"[0-9a-f]{64}", provenance.sources):
        yield f"sources: expected a SHA-256, got {provenance.sources!r}"
    if here and provenance.sources != sources(provenance.device):
        yield "the samplers have changed since"
    if not run.complete:
        yield "the sweep was not finished"
    if run.refused:
        yield f"it holds a result that is wrong or impossible: {run.refused[0]}"
    if (runs := comparison.runs_of(run.records)) < LEAST_RUNS:
        yield f"it is {runs} run of the sweep, of {LEAST_RUNS} at least"
    lines = {axis: comparison.along(run, axis) for axis in AXES}
    needed = [*BACKENDS, *([SIMPLE_KERNEL] if provenance.device == "cuda" else [])]
    for axis, line in lines.items():
        if len(line) < 2:
            yield f"{axis}: expected several values, got {', '.join(map(str, line)) or 'none'}"
        for value, by_name in line.items():
            names = needed if axis == "batch_size" else BACKENDS
            if missing := [name for name in names if name not in by_name]:
                yield f"{missing[0]} was not measured at {axis} {value}"
            for name in names:
                if name in by_name and len(by_name[name].records) < runs:
                    yield f"{name} was not measured in every run at {axis} {value}"
    counted = {count.implementation for count in run.operations}
    if missing := [name for name in BACKENDS if name not in counted]:
        yield f"the operations of {missing[0]} were not counted"
    if not {count.batch_size for count in run.operations} & set(lines["batch_size"]):
        yield "no operations were counted at a batch size that was measured"
    disturbed = [record for record in run.records if record.call.busy or record.roof.busy]
    if len(disturbed) > MOST_DISTURBED * len(run.records):
        yield f"other programs disturbed {len(disturbed)} of {len(run.records)} times"
    for line in lines.values():
        for by_name in line.values():
            for one in by_name.values():
                if one.call.busy or one.roof.busy:
                    yield f"other programs disturbed {one.implementation} at {one.point}"
