"""Tables of a benchmark for the terminal: times, speed-ups, differences from run to run, files."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from rsk.base.numbers import DASH, digits, duration, over_runs, percent, share, times
from rsk.measure import comparison
from rsk.measure.comparison import BASELINE, usual_line
from rsk.measure.over_runs import Series, comparable, ratio
from rsk.measure.quoted import Quoted
from rsk.measure.records import Benchmark, Point
from rsk.sampler.api import BACKENDS

_HEADINGS = ("B", "K", "V", "dtype", "acceptance", "cache")
_LEFT = ("", "at", "clock")


def show(benchmark: Benchmark, console: Console, quoted: Quoted | None = None) -> None:
    """Print a benchmark: the times, the speed-ups, and what was not measured.

    Args:
        benchmark: what :func:`rsk.measure.benchmark.run` returned or a file held.
        console: where to print.
        quoted: the earlier work's table, to print beside it.
    """
    console.print(f"[bold]Measured on[/] {benchmark.provenance.label}")
    if benchmark.records:
        console.print(times_table(benchmark))
        console.print(speed_up_table(benchmark, quoted))
    if quoted is not None and (beside := quoted_table(benchmark, quoted)) is not None:
        console.print(beside)
    if comparison.runs_of(benchmark.records) > 1:
        console.print(repeatability_table(benchmark))
    for line in benchmark.skipped:
        console.print(f"[yellow]not measured[/] {line}", highlight=False)
    for line in benchmark.refused:
        console.print(f"[red]refused[/] {line}", highlight=False)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _LEFT else "right")
    return table


def times_table(benchmark: Benchmark) -> Table:
    """Time until the result is there for every point, × the speed-up over the baseline."""
    found = comparison.by_point(benchmark.records)
    names = list(dict.fromkeys(record.implementation for record in benchmark.records))
    points = list(found)
    varied = [
        i for i in range(len(Point._fields)) if i == 0 or len({point[i] for point in points}) > 1
    ]
    table = _table(
        "Time of a call until its result is there (wall clock), and × the speed-up",
        *(_HEADINGS[i] for i in varied),
        *names,
        "of the roof",
    )
    for point, by_name in found.items():
        base = by_name.get(BASELINE)
        nearest = max(
            (one for one in by_name.values() if one.roof_share),
            key=lambda one: one.roof_share.median if one.roof_share else 0.0,
            default=None,
        )
        table.add_row(
            *(str(point[i]) for i in varied),
            *(_cell(by_name.get(name), base) for name in names),
            DASH if nearest is None else f"{share(nearest.roof_share)} {nearest.implementation}",
        )
    fixed = (f"{_HEADINGS[i]} {points[0][i]}" for i in range(len(_HEADINGS)) if i not in varied)
    notes = [", ".join(fixed), spread_note(comparison.runs_of(benchmark.records))]
    if any(record.call.busy for record in benchmark.records):
        notes.append("busy: other processes took the processor in most samples")
    table.caption = "; ".join(note for note in notes if note)
    return table


def spread_note(runs: int) -> str:
    """What stands beside a time."""
    if runs > 1:
        return f"the median over {runs} whole runs, and their range"
    return "one run; ± half the interquartile range of its samples"


def _cell(one: Series | None, base: Series | None) -> str:
    if one is None:
        return DASH
    text = over_runs(one.call)
    if one.call.runs == 1:
        text += f" ±{one.call.within / 2:.1%}"
    if base is not None and one is not base and comparable(base, one):
        text += f" {times(ratio(base, one))}×"
    return text + (" (busy)" if one.call.busy else "")


def speed_up_table(benchmark: Benchmark, quoted: Quoted | None = None) -> Table:
    """Mean and largest speed-up over the baseline, as the earlier work reported them."""
    table = _table(
        "Speed-up over the baseline, over all points, call to result",
        *("", "points", "mean", "geometric", "least", "most", "at"),
    )
    for row in comparison.speed_ups(benchmark.records):
        table.add_row(
            row.implementation,
            str(row.points),
            *(f"{times(x)}×" for x in (row.mean, row.geometric_mean, row.least, row.most)),
            _where(row.most_at),
        )
    if quoted is not None:
        table.add_section()
        earlier = str(len(quoted.times))
        mean = f"{quoted.vectorized_mean_speedup}×"
        table.add_row("PyTorch, quoted", earlier, mean, "", "", "", quoted.source)
        mean, most = f"{quoted.fused_mean_speedup}×", f"{quoted.fused_max_speedup}×"
        table.add_row("CUDA, quoted", earlier, mean, "", "", most, quoted.source)
    return table


def quoted_table(benchmark: Benchmark, quoted: Quoted) -> Table | None:
    """The earlier work's times beside ours at the same batch sizes; ``None`` if there are none."""
    line = usual_line(benchmark)
    rows = [row for row in quoted.times if row.batch_size in line]
    if not rows:
        return None
    usual = next(iter(line.values()))[BASELINE]
    table = _table(f"Beside {quoted.source}", "B")
    table.caption = (
        f"ours: {benchmark.provenance.label}, K={usual.spec_len}, V={usual.vocab_size}, "
        f"{usual.dtype}; call to result"
    )
    for heading in ("baseline", "PyTorch", "CUDA", "speed-up"):
        table.add_column(heading, justify="right", style="dim")
    for heading in (*BACKENDS, "speed-up"):
        table.add_column(heading, justify="right")
    for row in rows:
        ours = line[row.batch_size]
        quoted_times = (row.baseline_ms, row.vectorized_ms, row.fused_ms)
        gain = ratio(ours[BASELINE], ours["fused"]) if "fused" in ours else None
        table.add_row(
            str(row.batch_size),
            *(duration(ms * 1e3) for ms in quoted_times),
            f"{row.fused_speedup}×",
            *(over_runs(ours[name].call) if name in ours else DASH for name in BACKENDS),
            DASH if gain is None else f"{times(gain)}×",
        )
    return table


def repeatability_table(benchmark: Benchmark) -> Table:
    """How far whole runs differ, for each clock, beside the spread within one."""
    points, of = comparison.repeated(benchmark.records)
    table = _table(
        f"Whole runs beside each other, at {points} of {of} points",
        *("", "clock", "runs", "within a run", "between runs", "largest", "at"),
    )
    for time in ("call", "device"):
        for row in comparison.repeatability(benchmark.records, time):
            if time == "device" and row.clock == "wall":
                continue  # the same measurement
            table.add_row(
                row.implementation,
                row.clock,
                str(row.runs),
                f"{row.within:.1%}",
                f"{row.between:.1%}",
                percent(row.between_most),
                _where(row.most_at),
            )
    return table


def compare(benchmarks: Sequence[Benchmark], labels: Sequence[str]) -> Table:
    """Set the times of several files side by side, with the ratio of the medians to the first.

    Args:
        benchmarks: as loaded.
        labels: one for each, such as the file names.
    """
    columns = [comparison.by_point(benchmark.records) for benchmark in benchmarks]
    table = _table(
        "Time of a call; × is the first file's median over this one's",
        *_HEADINGS,
        "implementation",
    )
    for label, benchmark in zip(labels, benchmarks, strict=True):
        table.add_column(f"{label}\n[dim]{benchmark.provenance.label}[/]", justify="right")
    keys = dict.fromkeys(
        (point, name) for column in columns for point, by_name in column.items() for name in by_name
    )
    for point, name in keys:
        found = [column.get(point, {}).get(name) for column in columns]
        first, cells = found[0], []
        for one in found:
            cell = _cell(one, None)
            if first is not None and one is not None and one is not first:
                cell += f" {digits(first.call.median / one.call.median, 2)}×"
            cells.append(cell)
        table.add_row(*map(str, point), name, *cells)
    return table


def _where(point: Point) -> str:
    return " ".join(
        (
            f"B={point.batch_size} K={point.spec_len} V={point.vocab_size}",
            point.dtype,
            point.cache,
        )
    )
