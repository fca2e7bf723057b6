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
from rsk.measure.records import EARLIER_WORK, Benchmark, Quoted, RecordError, recorded
from rsk.sampler.api import BACKENDS

MOST_DISTURBED = 0.01
"""Share of a run's times that other programs may have disturbed, none of them on a line that is
drawn."""
LEAST_RUNS = 2
"""Whole runs of a sweep, without which nothing says how a time varies from run to run."""
SIMPLE_KERNEL = "thread_per_sequence"
"""The kernel that the others are compared with."""
AXES = ("batch_size", "spec_len", "vocab_size")


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
    reasons = [f"; left out: {line}" for line in recorded()[1]]
    for run in reversed(all_runs(device)):
        reason = refusal(run)
        if not reason:
            return run
        reasons.append(f"; refused: {run.provenance.label}: {reason}")
    raise RecordError(
        f"data/benchmarks: expected a run on {device} that may be published; make measure makes "
        f"one{''.join(reasons)}"
    )


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
    lines = {axis: comparison.along(run, axis) for axis in AXES}
    needed = [*BACKENDS, *([SIMPLE_KERNEL] if provenance.device == "cuda" else [])]
    for axis, line in lines.items():
        if len(line) < 2:
            yield f"{axis}: expected several values, got {', '.join(map(str, line)) or 'none'}"
        for value, by_name in line.items():
            names = needed if axis == "batch_size" else BACKENDS
            if missing := [name for name in names if name not in by_name]:
                yield f"{missing[0]} was not measured at {axis} {value}"
    counted = {count.implementation for count in run.operations}
    if missing := [name for name in BACKENDS if name not in counted]:
        yield f"the operations of {missing[0]} were not counted"
    if not {count.batch_size for count in run.operations} & set(lines["batch_size"]):
        yield "no operations were counted at a batch size that was measured"
    if (runs := 1 + max(record.run for record in run.records)) < LEAST_RUNS:
        yield f"it is {runs} run of the sweep, of {LEAST_RUNS} at least"
    disturbed = [record for record in run.records if record.call.busy or record.roof.busy]
    if len(disturbed) > MOST_DISTURBED * len(run.records):
        yield f"other programs disturbed {len(disturbed)} of {len(run.records)} times"
    for line in lines.values():
        for by_name in line.values():
            if found := [r for r in by_name.values() if r in disturbed]:
                yield f"other programs disturbed {found[0].implementation} at {found[0].point}"
