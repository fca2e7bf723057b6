"""``rsk benchmark``: measure the implementations over a sweep, save it, and compare files."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from rich.table import Table

from rsk.base import machine
from rsk.base.numbers import DASH, digits, duration, percent
from rsk.measure import comparison, peers, provenance
from rsk.measure.comparison import usual_line
from rsk.measure.records import (
    CACHES,
    DTYPES,
    SCHEMA,
    Benchmark,
    Operations,
    Point,
    Provenance,
    Quoted,
    Record,
    RecordError,
)
from rsk.measure.timing import measure, operations
from rsk.measure.workload import Case, CaseError, Implementation, Pool, backend, kernel
from rsk.sampler import registry
from rsk.sampler.api import BACKENDS
from rsk.sampler.build import BuildError
from rsk.sampler.kernels import runs_on

LEAST_BUDGET_S = 0.05
GRIDS = ("", "BV", "BKV")
ATTEMPTS = 3
"""How often a time is taken that other processes disturb, before the best of them is kept."""


class Interrupted(KeyboardInterrupt):
    """A run was interrupted (Ctrl+C); :attr:`benchmark` is what it had measured."""

    def __init__(self, benchmark: Benchmark) -> None:
        super().__init__("interrupted")
        self.benchmark = benchmark


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What to measure. The first value of each list but the batch sizes is the usual one.

    Every batch size is measured at the usual values, with every dtype and in every cache state;
    every speculation length, vocabulary and acceptance rate at the middle batch size. With
    ``grid`` "BV", every batch size is measured with every vocabulary, dtype and cache state; with
    "BKV", with every speculation length and vocabulary too.
    """

    batch_sizes: tuple[int, ...] = (1, 4, 16, 64)
    spec_lens: tuple[int, ...] = (4, 1, 8)
    vocab_sizes: tuple[int, ...] = (32000, 1000, 128256)
    dtypes: tuple[str, ...] = ("float32",)
    acceptances: tuple[float, ...] = (0.7,)
    caches: tuple[str, ...] = ("warm",)
    grid: str = ""
    runs: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) and field.name not in ("grid", "seed"):
                raise ValueError(f"{field.name}: expected at least one value, got none")
        for name, least in (("batch_sizes", 1), ("spec_lens", 0), ("vocab_sizes", 1)):
            for value in getattr(self, name):
                if value < least:
                    raise ValueError(f"{name}: expected at least {least}, got {value}")
        for name, known in (("dtypes", DTYPES), ("caches", CACHES)):
            for value in getattr(self, name):
                if value not in known:
                    raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if self.grid not in GRIDS:
            raise ValueError(f"grid: expected one of {', '.join(GRIDS[1:])}, got {self.grid!r}")
        for value in self.acceptances:
            if not 0 <= value <= 1:
                raise ValueError(f"acceptances: expected rates in [0, 1], got {value}")

    @property
    def usual(self) -> Point:
        """The point that the others vary; its batch size is the middle one."""
        return comparison.usual(dataclasses.asdict(self))

    def points(self) -> list[Point]:
        """All points, without repetition; those that share a pool of inputs follow each other."""
        usual = self.usual
        chosen = [usual._replace(batch_size=b) for b in self.batch_sizes]
        chosen += [usual._replace(spec_len=k) for k in self.spec_lens]
        chosen += [usual._replace(vocab_size=v) for v in self.vocab_sizes]
        vocab_sizes = self.vocab_sizes if self.grid else self.vocab_sizes[:1]
        for point in [
            usual._replace(batch_size=b, vocab_size=v)
            for v in vocab_sizes
            for b in self.batch_sizes
        ]:
            if "K" in self.grid:
                chosen += [point._replace(spec_len=k) for k in self.spec_lens]
            chosen += [point._replace(dtype=dtype) for dtype in self.dtypes]
            chosen += [point._replace(cache=cache) for cache in self.caches]
        chosen += [usual._replace(acceptance=a) for a in self.acceptances]
        pools = {pool: i for i, pool in enumerate(dict.fromkeys(map(_pool_of, chosen)))}
        return sorted(dict.fromkeys(chosen), key=lambda point: pools[_pool_of(point)])


def full_sweep(device: torch.device | str) -> Sweep:
    """What a recorded run measures: the whole grid, twice, and every other axis."""
    on_gpu = torch.device(device).type == "cuda"
    return Sweep(
        batch_sizes=(1, 4, 16, 64, 256, 1024) if on_gpu else (1, 4, 16, 64, 256),
        dtypes=DTYPES,
        acceptances=(0.7, 0.3, 0.5, 0.9, 1.0),
        caches=CACHES,
        grid="BKV",
        runs=2,
    )


def _pool_of(point: Point) -> tuple[int, str, float]:
    return point.vocab_size, point.dtype, point.acceptance


def implementations(
    device: torch.device | str, chosen: Sequence[str] | None = None
) -> tuple[list[Implementation], dict[str, str], list[str]]:
    """What there is to measure on a device.

    Args:
        device: where. The kernels one by one are measured on a GPU only: on a CPU they run in an
            emulator.
        chosen: names, or ``None`` for all.

    Returns:
        The implementations, the versions of the peers' packages, and a line for each peer that
        is not there.

    Raises:
        ValueError: an unknown name.
    """
    device = torch.device(device)
    known = [backend(name) for name in BACKENDS]
    versions: dict[str, str] = {}
    missing: list[str] = []
    if device.type == "cuda":
        for entry in registry.KERNELS.values():
            if runs_on(entry.name, device):
                known.append(kernel(entry.name))
            else:
                missing.append(f"{entry.name}: needs {entry.needs}")
    if chosen is None or set(chosen) - {one.name for one in known}:
        found, versions, absent = peers.find(device)
        known += found
        missing += absent
    if chosen is None:
        return known, versions, missing
    by_name = {one.name: one for one in known}
    for name in chosen:
        if name not in by_name:
            raise ValueError(f"implementation: expected one of {', '.join(by_name)}, got {name!r}")
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
        device: ``"cpu"`` or ``"cuda"``.
        chosen: names of implementations, or ``None`` for all there are.
        threads: PyTorch threads, or ``None`` for as many as it would use.
        budget_s: seconds for each time.
        time_limit_s: seconds for everything; the budgets shrink to meet it.
        save: file to write after every case, or a folder: see :func:`save_path`.
        console: where to show progress, or ``None`` for nowhere.

    Raises:
        ValueError: an unknown device or implementation.
        Interrupted: holds what was measured.
    """
    device = check_device(device)
    with machine.pinned_threads(threads):
        known, versions, skipped = implementations(device, chosen)
        found = Benchmark(
            schema=SCHEMA,
            provenance=provenance.provenance(device, versions),
            settings={
                **{
                    name: list(value) if isinstance(value, tuple) else value
                    for name, value in dataclasses.asdict(sweep).items()
                },
                "implementations": [one.name for one in known],
                "budget_s": budget_s,
            },
            complete=False,
            records=(),
            operations=(),
            skipped=tuple(skipped),
            refused=(),
        )
        path = None if save is None else save_path(save, found.provenance)
        steps = _Steps(found, known, budget_s, time_limit_s)
        with _progress(console) as progress:
            task = progress.add_task("", total=len(sweep.points()) * len(known) * sweep.runs)
            try:
                for done, doing in steps.take(sweep, device):
                    progress.update(task, completed=done, description=doing)
                    if path is not None:
                        steps.benchmark.save(path)
                steps.benchmark = dataclasses.replace(steps.benchmark, complete=not steps.late)
            except KeyboardInterrupt:
                steps.skip("interrupted: the rest of the sweep was not measured")
                raise Interrupted(steps.benchmark) from None
            finally:
                if path is not None:
                    steps.benchmark.save(path)
    return steps.benchmark


class _Steps:
    """Walks a sweep and gathers the results in :attr:`benchmark`."""

    def __init__(
        self,
        benchmark: Benchmark,
        known: list[Implementation],
        budget_s: float,
        time_limit_s: float | None,
    ) -> None:
        self.benchmark = benchmark
        self.known = known
        self.budget_s = budget_s
        self.begin = time.perf_counter()
        self.time_limit_s = time_limit_s
        self.late = False

    def take(self, sweep: Sweep, device: torch.device) -> Iterator[tuple[int, str]]:
        """Measure case by case; yields how many times are done and what comes next."""
        points = sweep.points()
        total = len(points) * len(self.known) * sweep.runs
        done = 0
        for index in range(sweep.runs):
            pool, made_for = None, None
            for point in points:
                if self._is_late():
                    self.skip("out of time: the rest of the sweep was not measured")
                    return
                name = f"B={point.batch_size} K={point.spec_len} V={point.vocab_size} {point.dtype}"
                yield done, name
                try:
                    if pool is None or made_for != _pool_of(point):
                        pool = None  # free the old one first
                        pool = _make_pool(points, point, device, sweep.seed)
                        made_for = _pool_of(point)
                    case = _quiet_case(pool, point)
                except CaseError as error:
                    self.skip(f"{point.cache} cache: {error}")
                    done += len(self.known)
                    continue
                for one in self.known:
                    yield done, f"{name} {one.name}"
                    self._measure(one, case, pool, index, total - done)
                    on_usual_line = point == sweep.usual._replace(batch_size=point.batch_size)
                    if index == 0 and on_usual_line:
                        self._count(one, case)
                    done += 1
        yield done, "done"

    def _measure(
        self, one: Implementation, case: Case, pool: Pool, index: int, remaining: int
    ) -> None:
        if one.max_batch_size is not None and case.batch_size > one.max_batch_size:
            return
        try:
            record = self._least_disturbed(one, case, pool, index, self._budget(remaining))
        except (BuildError, torch.OutOfMemoryError) as error:
            self.skip(f"{one.name}: {str(error).splitlines()[0]}")
        except (RecordError, RuntimeError) as error:  # MeasurementError is one
            where = f"B={case.batch_size} K={case.spec_len} V={case.vocab_size} {case.dtype}"
            self.refuse(f"{where}: {error}")
        else:
            records = (*self.benchmark.records, record)
            self.benchmark = dataclasses.replace(self.benchmark, records=records)

    def _least_disturbed(
        self, one: Implementation, case: Case, pool: Pool, index: int, budget: float
    ) -> Record:
        found: list[Record] = []
        for attempt in range(1, ATTEMPTS + 1):
            try:
                found.append(measure(one, case, budget_s=budget, run=index))
            except RecordError:
                if attempt == ATTEMPTS and not found:
                    raise
                # Perhaps the roof was taken in a noisy moment.
                case = pool.case(case.batch_size, case.spec_len, case.cache)
            else:
                if not found[-1].device.busy:
                    break
        return min(found, key=lambda record: record.device.disturbed)

    def _count(self, one: Implementation, case: Case) -> None:
        if not any(record.implementation == one.name for record in self.benchmark.records):
            return
        if one.max_batch_size is not None and case.batch_size > one.max_batch_size:
            return
        counts: tuple[Operations, ...] = (*self.benchmark.operations, operations(one, case))
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
        if self.time_limit_s is None:
            return self.budget_s
        left = self.time_limit_s - (time.perf_counter() - self.begin)
        # Half: making inputs and checking results take about as long as the timing.
        return max(LEAST_BUDGET_S, min(self.budget_s, left / remaining / 2))

    def _is_late(self) -> bool:
        spent = time.perf_counter() - self.begin
        self.late = self.time_limit_s is not None and spent > self.time_limit_s
        return self.late


def _make_pool(points: Sequence[Point], point: Point, device: torch.device, seed: int) -> Pool:
    sharing = [other for other in points if _pool_of(other) == _pool_of(point)]
    return Pool(
        [(other.batch_size, other.cache) for other in sharing],
        max(other.spec_len for other in sharing),
        point.vocab_size,
        dtype=point.dtype,
        acceptance=point.acceptance,
        device=device,
        seed=seed,
    )


def _quiet_case(pool: Pool, point: Point) -> Case:
    """The case of a point, with the least disturbed of several measurements of its roof."""
    cases = [pool.case(point.batch_size, point.spec_len, point.cache)]
    while cases[-1].roof.busy and len(cases) < ATTEMPTS:
        cases.append(pool.case(point.batch_size, point.spec_len, point.cache))
    return min(cases, key=lambda case: case.roof.disturbed)


def check_device(device: torch.device | str) -> torch.device:
    """The device, if it is one that can be measured on.

    Raises:
        ValueError: it is another, or there is none.
    """
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: expected 'cpu' or 'cuda', got {str(device)!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected 'cpu' or 'cuda', got {str(device)!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' was asked for, but PyTorch finds no NVIDIA GPU")
    return device


def save_path(save: str | os.PathLike[str], provenance: Provenance) -> Path:
    """The file to write: ``save``, or one inside it that is named for machine and date.

    In a folder no file is overwritten: the second of a day ends in ``-2``, and so on.
    """
    path = Path(save)
    if path.suffix == ".json":
        return path
    name = provenance.gpu if provenance.device == "cuda" else f"cpu {provenance.cpu}"
    slug = re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")
    stem = f"{slug}-{provenance.date[:10]}"
    names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    return next(file for file in (path / f"{name}.json" for name in names) if not file.exists())


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


def show(benchmark: Benchmark, console: Console, quoted: Quoted | None = None) -> None:
    """Print a benchmark: the times, the speed-ups, and what was not measured.

    Args:
        benchmark: what :func:`run` returned or a file held.
        console: where to print.
        quoted: the earlier work's table, to print beside it.
    """
    console.print(f"[bold]Measured on[/] {benchmark.provenance.label}")
    if benchmark.records:
        console.print(times_table(benchmark))
        console.print(speed_up_table(benchmark, quoted))
    if quoted is not None and (beside := quoted_table(benchmark, quoted)) is not None:
        console.print(beside)
    if repeats := comparison.repeatability(benchmark.records):
        points, of = comparison.repeated(benchmark.records)
        table = Table(title=f"Two runs, at {points} of {of} points", title_justify="left")
        for heading in ("", "stated spread", "between runs", "largest", "at"):
            table.add_column(heading, justify="left" if heading in ("", "at") else "right")
        for row in repeats:
            table.add_row(
                row.implementation,
                f"{row.stated:.1%}",
                f"{row.between:.1%}",
                f"{row.between_most:.0%}",
                _where(row.most_at),
            )
        console.print(table)
    for line in benchmark.skipped:
        console.print(f"[yellow]not measured[/] {line}", highlight=False)
    for line in benchmark.refused:
        console.print(f"[red]refused[/] {line}", highlight=False)


def times_table(benchmark: Benchmark) -> Table:
    """Time until the result is there, with the interquartile range, for every point."""
    merged = comparison.merged(benchmark.records)
    names = list(dict.fromkeys(record.implementation for record in benchmark.records))
    points = list(merged)
    varied = [
        i for i in range(len(Point._fields)) if i == 0 or len({point[i] for point in points}) > 1
    ]
    fixed = ", ".join(
        f"{_HEADINGS[i]} {points[0][i]}" for i in range(len(Point._fields)) if i not in varied
    )
    table = Table(
        title="Median time of a call ± half its interquartile range, and × the speed-up",
        title_justify="left",
        caption_justify="left",
    )
    for i in varied:
        table.add_column(_HEADINGS[i], justify="right")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("of the roof", justify="right")
    for point, by_name in merged.items():
        base = by_name.get(comparison.BASELINE)
        cells = [_cell(by_name.get(name), base) for name in names]
        best = max(by_name.values(), key=lambda record: record.roof_share)
        known = comparison.roof_share(best)
        share = f"{DASH if known is None else percent(known)} {best.implementation}"
        table.add_row(*(str(point[i]) for i in varied), *cells, share)
    notes = [fixed] if fixed else []
    if any(record.call.busy for record in benchmark.records):
        notes.append("busy: other processes took the processor in most samples")
    table.caption = "; ".join(notes)
    return table


_HEADINGS = ("B", "K", "V", "dtype", "acceptance", "cache")


def _cell(record: Record | None, base: Record | None) -> str:
    if record is None:
        return "–"
    text = f"{duration(record.call.median_us)} ±{record.call.relative / 2:.1%}"
    if base is not None and record is not base:
        text += f" {digits(comparison.ratio(base, record))}×"
    return text + (" (busy)" if record.call.busy else "")


def speed_up_table(benchmark: Benchmark, quoted: Quoted | None = None) -> Table:
    """Mean and largest speed-up over the baseline, as the earlier work reported them."""
    table = Table(title="Speed-up over the baseline, over all points", title_justify="left")
    for heading in ("", "points", "mean", "geometric", "least", "most", "at"):
        table.add_column(heading, justify="left" if heading in ("", "at") else "right")
    for row in comparison.speed_ups(benchmark.records):
        table.add_row(
            row.implementation,
            str(row.points),
            *(f"{digits(x)}×" for x in (row.mean, row.geometric_mean, row.least, row.most)),
            _where(row.most_at),
        )
    if quoted is not None:
        table.add_section()
        earlier = len(quoted.times)
        mean = f"{quoted.vectorized_mean_speedup}×"
        table.add_row("PyTorch, quoted", str(earlier), mean, "", "", "", quoted.source)
        mean, most = f"{quoted.fused_mean_speedup}×", f"{quoted.fused_max_speedup}×"
        table.add_row("CUDA, quoted", str(earlier), mean, "", "", most, quoted.source)
    return table


def quoted_table(benchmark: Benchmark, quoted: Quoted) -> Table | None:
    """The earlier work's times beside ours at the same batch sizes; ``None`` if there are none."""
    by_size = usual_line(benchmark)
    rows = [row for row in quoted.times if row.batch_size in by_size]
    if not rows:
        return None
    usual = next(iter(by_size.values()))[comparison.BASELINE]
    table = Table(title=f"Beside {quoted.source}", title_justify="left")
    table.caption = (
        f"ours: {benchmark.provenance.label}, K={usual.spec_len}, V={usual.vocab_size}, "
        f"{usual.dtype}"
    )
    table.add_column("B", justify="right")
    for heading in ("baseline", "PyTorch", "CUDA", "speed-up"):
        table.add_column(heading, justify="right", style="dim")
    for heading in (*BACKENDS, "speed-up"):
        table.add_column(heading, justify="right")
    for row in rows:
        ours = by_size[row.batch_size]
        fused = ours.get("fused")
        times = (row.baseline_ms, row.vectorized_ms, row.fused_ms)
        table.add_row(
            str(row.batch_size),
            *(duration(ms * 1e3) for ms in times),
            f"{row.fused_speedup}×",
            *(duration(ours[n].call.median_us) if n in ours else "–" for n in BACKENDS),
            f"{digits(comparison.ratio(ours[comparison.BASELINE], fused))}×" if fused else "–",
        )
    return table


def compare(benchmarks: Sequence[Benchmark], labels: Sequence[str]) -> Table:
    """Set the times of several files side by side, with the ratio to the first.

    Args:
        benchmarks: as loaded.
        labels: one for each, such as the file names.
    """
    columns = [comparison.merged(benchmark.records) for benchmark in benchmarks]
    table = Table(
        title="Time of a call; × is the first file's time over this one's", title_justify="left"
    )
    for heading in (*_HEADINGS, "implementation"):
        table.add_column(heading, justify="right")
    for label, benchmark in zip(labels, benchmarks, strict=True):
        table.add_column(f"{label}\n[dim]{benchmark.provenance.label}[/]", justify="right")
    keys = dict.fromkeys(
        (point, name) for column in columns for point, by_name in column.items() for name in by_name
    )
    for point, name in keys:
        records = [column.get(point, {}).get(name) for column in columns]
        cells = [_cell(record, records[0]) for record in records]
        table.add_row(*map(str, point), name, *cells)
    return table


def _where(record: Record) -> str:
    return " ".join(
        (
            f"B={record.batch_size} K={record.spec_len} V={record.vocab_size}",
            record.dtype,
            record.cache,
        )
    )
