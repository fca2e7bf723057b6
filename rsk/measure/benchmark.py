"""``rsk benchmark``: measure the implementations over a sweep, and keep what was measured.

The record is written while it grows. A run that was interrupted goes on behind the last point that
its file holds: with the same settings, on the same machine, with the same sources.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from rsk.base import machine, terminal
from rsk.measure import implementations, peers, provenance
from rsk.measure.implementations import Implementation
from rsk.measure.records import SCHEMA, Benchmark, Operations, Point, Record, RecordError
from rsk.measure.run_files import place, unfinished
from rsk.measure.sweep import OUT_OF_TIME, Sweep, pool_of
from rsk.measure.timing import MeasurementError, measure, operations
from rsk.measure.workload import ATTEMPTS, Pool, Workload, WorkloadError
from rsk.sampler import registry
from rsk.sampler.build import BuildError

LEAST_BUDGET_S = 0.05
SAVE_EVERY_S = 10.0
"""So much of a run is lost at most where it is killed."""


class Interrupted(KeyboardInterrupt):
    """A run was interrupted (Ctrl+C); :attr:`benchmark` is what it had measured and saved."""

    def __init__(self, benchmark: Benchmark, path: Path | None) -> None:
        super().__init__("interrupted" + (f"; {path} is gone on with next time" if path else ""))
        self.benchmark = benchmark


def choose(
    device: torch.device | str, chosen: Sequence[str] | None = None
) -> tuple[list[Implementation], dict[str, str], list[str]]:
    """What there is to measure on a device.

    Args:
        device: where.
        chosen: names, or ``None`` for all.

    Returns:
        The implementations, the versions of the peers' packages, and a line for each
        implementation that is not there.

    Raises:
        ValueError: a name that is unknown, or of what is not there.
    """
    device = torch.device(device)
    known, missing = implementations.ours(device)
    versions: dict[str, str] = {}
    if chosen is not None:
        known += [implementations.rival(name) for name in registry.RIVALS if name in chosen]
    names = None if chosen is None else [name for name in peers.MAKERS if name in chosen]
    if names is None or names:
        found, versions, absent = peers.find(device, names)
        known += found
        missing += absent
    if chosen is None:
        return known, versions, missing
    by_name = {one.name: one for one in known}
    for name in chosen:
        if name in by_name:
            continue
        if why := [line for line in missing if line.startswith(f"{name}: ")]:
            raise ValueError(f"implementation: {why[0]}")
        there = ", ".join(dict.fromkeys([*by_name, *registry.RIVALS, *peers.MAKERS]))
        raise ValueError(f"implementation: expected one of {there}, got {name!r}")
    return [one for one in known if one.name in chosen], versions, []


def run(
    sweep: Sweep,
    *,
    device: torch.device | str = "cpu",
    chosen: Sequence[str] | None = None,
    threads: int | None = None,
    budget_s: float = 0.3,
    time_limit_s: float | None = None,
    save: str | os.PathLike[str] | None = None,
    console: Console | None = None,
) -> Benchmark:
    """Measure a sweep.

    The end of the time ends it early, with what was measured; so does an interruption (Ctrl+C),
    which is passed on once that is saved.

    Args:
        sweep: what to measure.
        device: as for :func:`rsk.base.machine.device`.
        chosen: names of implementations, or ``None`` for all there are.
        threads: PyTorch threads, or ``None`` for as many as it would use.
        budget_s: seconds for each time.
        time_limit_s: seconds for everything. The budgets shrink to meet it, unless the run is
            saved: then it can be gone on with, and each time gets what it would without a limit.
        save: file to write while measuring, or a folder: see
            :func:`rsk.measure.run_files.place`. An unfinished run of the same sweep that is there
            is gone on with.
        console: where to show progress and the file's name, or ``None`` for nowhere.

    Raises:
        ValueError: an unknown device or implementation.
        Interrupted: holds what was measured.
    """
    device = machine.device(device)
    with machine.pinned_threads(threads):
        known, versions, skipped = choose(device, chosen)
        fresh = Benchmark(
            schema=SCHEMA,
            provenance=provenance.provenance(device, versions),
            settings={
                **sweep.settings,
                "implementations": [one.name for one in known],
                "budget_s": budget_s,
            },
            complete=False,
            records=(),
            operations=(),
            skipped=tuple(skipped),
            refused=(),
        )
        path = None if save is None else place(save, fresh)
        begun = (None if path is None else unfinished(path, fresh)) or fresh
        if console is not None and begun.records:
            console.print(f"going on with {path}: {len(begun.records)} times", soft_wrap=True)
        steps = _Steps(begun, known, budget_s, time_limit_s, shrinks=path is None)
        saved_at = time.perf_counter()
        with _progress(console) as progress:
            task = progress.add_task("", total=len(sweep.points()) * len(known) * sweep.runs)
            try:
                for done, doing in steps.take(sweep, device):
                    progress.update(task, completed=done, description=doing)
                    if path is not None and time.perf_counter() - saved_at > SAVE_EVERY_S:
                        steps.benchmark.save(path)
                        saved_at = time.perf_counter()
                steps.benchmark = dataclasses.replace(steps.benchmark, complete=not steps.late)
            except KeyboardInterrupt:
                steps.skip("interrupted: the rest of the sweep was not measured")
                raise Interrupted(steps.benchmark, path) from None
            finally:
                if path is not None:
                    steps.benchmark.save(path)
                    progress.console.print(f"saved to {path}", soft_wrap=True)
    return steps.benchmark


class _Steps:
    """Walks a sweep and gathers the results in :attr:`benchmark`, which may hold some already."""

    def __init__(
        self,
        benchmark: Benchmark,
        known: list[Implementation],
        budget_s: float,
        time_limit_s: float | None,
        *,
        shrinks: bool,
    ) -> None:
        self.benchmark = benchmark
        self.done = {(r.run, r.point, r.implementation) for r in benchmark.records}
        self.counted = {(c.batch_size, c.implementation) for c in benchmark.operations}
        self.known = known
        self.budget_s = budget_s
        self.begin = time.perf_counter()
        self.time_limit_s = time_limit_s
        self.shrinks = shrinks
        self.late = False

    def take(self, sweep: Sweep, device: torch.device) -> Iterator[tuple[int, str]]:
        """Measure point by point; yields how many times are done and what comes next."""
        points = sweep.points()
        total = len(points) * len(self.known) * sweep.runs
        done = 0
        for run in range(sweep.runs):
            pool, made_for = None, None
            for point in points:
                wanted = [one for one in self.known if _takes(one, point)]
                missing = [one for one in wanted if (run, point, one.name) not in self.done]
                done += len(self.known) - len(missing)
                if not missing:
                    continue
                if self._is_late():
                    self.skip(OUT_OF_TIME)
                    return
                yield done, _shape(point)
                try:
                    if pool is None or made_for != pool_of(point):
                        pool = None  # free the old one first
                        pool = _make_pool(points, point, device, sweep.seed)
                        made_for = pool_of(point)
                    workload = pool.quiet_workload(point.batch_size, point.spec_len, point.cache)
                except WorkloadError as error:
                    self.skip(f"{point.cache} cache: {error}")
                    done += len(missing)
                    continue
                for one in missing:
                    yield done, f"{_shape(point)} {one.name}"
                    # What costs time of its own is done along the line of batch sizes alone.
                    on_line = point == sweep.usual._replace(batch_size=point.batch_size)
                    self._measure(one, workload, pool, run, total - done, isolated=on_line)
                    if on_line:
                        self._count(one, workload)
                    done += 1
        yield done, "done"

    def _measure(
        self,
        one: Implementation,
        workload: Workload,
        pool: Pool,
        run: int,
        remaining: int,
        *,
        isolated: bool,
    ) -> None:
        options = {"budget_s": self._budget(remaining), "run": run, "isolated": isolated}
        try:
            record = self._least_disturbed(one, workload, pool, options)
        except (BuildError, torch.OutOfMemoryError) as error:
            self.skip(f"{one.name}: {str(error).splitlines()[0]}")
        except Exception as error:  # of ours MeasurementError and RecordError; of peers, any
            is_ours = isinstance(error, MeasurementError | RecordError)
            said = str(error) if is_ours else f"{one.name}: {terminal.error_line(error)}"
            where = f"B={workload.batch_size} K={workload.spec_len} V={workload.vocab_size}"
            self.refuse(f"{where} {workload.dtype}: {said}")
        else:
            self.done.add((run, record.point, one.name))
            records = (*self.benchmark.records, record)
            self.benchmark = dataclasses.replace(self.benchmark, records=records)

    def _least_disturbed(
        self, one: Implementation, workload: Workload, pool: Pool, options: dict[str, Any]
    ) -> Record:
        """By what the operating system tells of other processes; the times have no say in it."""
        found: list[Record] = []
        for attempt in range(1, ATTEMPTS + 1):
            try:
                found.append(measure(one, workload, **options))
            except RecordError:
                if attempt == ATTEMPTS and not found:
                    raise
                # Perhaps the roof was taken in a noisy moment.
                workload = pool.workload(workload.batch_size, workload.spec_len, workload.cache)
            else:
                if not found[-1].device.busy:
                    break
        return min(found, key=lambda record: record.device.disturbed)

    def _count(self, one: Implementation, workload: Workload) -> None:
        """Count operations, once for each batch size, of what could be measured."""
        at = workload.batch_size, one.name
        if at in self.counted or not any(name == one.name for _, _, name in self.done):
            return
        self.counted.add(at)
        counts: tuple[Operations, ...] = (*self.benchmark.operations, operations(one, workload))
        self.benchmark = dataclasses.replace(self.benchmark, operations=counts)

    def skip(self, line: str) -> None:
        """Remember, once, what was not measured."""
        if line not in self.benchmark.skipped:
            lines = (*self.benchmark.skipped, line)
            self.benchmark = dataclasses.replace(self.benchmark, skipped=lines)

    def refuse(self, line: str) -> None:
        """Remember a result that cannot be true."""
        lines = (*self.benchmark.refused, line)
        self.benchmark = dataclasses.replace(self.benchmark, refused=lines)

    def _budget(self, remaining: int) -> float:
        if self.time_limit_s is None or not self.shrinks:
            return self.budget_s
        left = self.time_limit_s - (time.perf_counter() - self.begin)
        # Half: making inputs and checking results take about as long as the timing.
        return max(LEAST_BUDGET_S, min(self.budget_s, left / remaining / 2))

    def _is_late(self) -> bool:
        spent = time.perf_counter() - self.begin
        self.late = self.time_limit_s is not None and spent > self.time_limit_s
        return self.late


def _takes(one: Implementation, point: Point) -> bool:
    return one.max_batch_size is None or point.batch_size <= one.max_batch_size


def _shape(point: Point) -> str:
    return f"B={point.batch_size} K={point.spec_len} V={point.vocab_size} {point.dtype}"


def _make_pool(points: Sequence[Point], point: Point, device: torch.device, seed: int) -> Pool:
    sharing = [other for other in points if pool_of(other) == pool_of(point)]
    return Pool(
        [(other.batch_size, other.cache) for other in sharing],
        max(other.spec_len for other in sharing),
        point.vocab_size,
        dtype=point.dtype,
        acceptance=point.acceptance,
        device=device,
        seed=seed,
    )


def _progress(console: Console | None) -> Progress:
    return Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=console is None,
    )
