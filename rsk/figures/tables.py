"""The tables of the report and the course, as data frames; their captions are in ``captions.md``.

A notebook publishes one with ``publish.table(**tables.times(benchmark, run)._asdict())``.
"""

from __future__ import annotations

import statistics
import string
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rsk.base import numbers
from rsk.base.numbers import DASH, byte_size, digits, over_runs, share
from rsk.measure import comparison, latency
from rsk.measure.comparison import BASELINE, usual_line
from rsk.measure.over_runs import Series, ratio
from rsk.measure.quoted import Quoted
from rsk.measure.records import CACHES, Benchmark, Provenance
from rsk.sampler import registry
from rsk.sampler.api import BACKENDS

if TYPE_CHECKING:
    from pandas import DataFrame


class DataTable(NamedTuple):
    """A table with all that it needs to be published."""

    frame: DataFrame
    label: str
    values: Mapping[str, object]
    """What its caption may name."""
    formats: Mapping[str, str | Callable[[Any], str]] | None = None


def _frame(rows: Any) -> DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def last_on_line(benchmark: Benchmark) -> dict[str, Series]:
    """What was measured at the largest batch size of the usual line, by implementation."""
    line = usual_line(benchmark)
    return line[max(line)]


def solutions(benchmark: Benchmark, run: object) -> DataTable:
    """The three solutions at the largest batch: work, time, and share of the memory roof.

    Args:
        benchmark: in which all were measured and counted there.
        run: where it is from, for the caption.
    """
    found = last_on_line(benchmark)
    base = found[BASELINE]
    rows = []
    for count in benchmark.operations:
        if count.batch_size == base.batch_size and count.implementation in BACKENDS:
            one, on_gpu = found[count.implementation], count.launches is not None
            rows.append(
                {
                    "implementation": count.implementation,
                    "launches" if on_gpu else "operators": count.launches
                    if on_gpu
                    else count.operators,
                    "waits": count.synchronizations,
                    "allocated": byte_size(count.allocated_bytes),
                    "call time": over_runs(one.call),
                    "of the roof": share(one.roof_share),
                }
            )
    return DataTable(_frame(rows), "tab-solutions", {"at": base, "run": run})


def times(benchmark: Benchmark, run: object) -> DataTable:
    """Time of a call with its range over runs, by batch size and implementation.

    What was timed at one size alone is left out where others were at several.
    """
    line = usual_line(benchmark)
    sizes = Counter(name for by_name in line.values() for name in by_name)
    names = [name for name in sizes if sizes[name] > 1 or len(line) == 1]
    rows = [
        {"B": size, **{name: over_runs(by_name[name].call) for name in names if name in by_name}}
        for size, by_name in line.items()
    ]
    values = {"at": last_on_line(benchmark)[BASELINE], "run": run}
    return DataTable(_frame(rows), "tab-times", values)


def caches(runs: Mapping[str, Benchmark]) -> DataTable:
    """How many times as long a call takes with a cold cache as with a warm one.

    A row for each batch size at which both were measured; last, what the fused sampler takes then.

    Args:
        runs: by heading.
    """
    rows = []
    clocks: dict[str, dict[str, list[str]]] = {}
    for where, benchmark in runs.items():
        found = comparison.by_point(benchmark.records)
        middle = comparison.usual(benchmark.settings)
        for size in sorted({point.batch_size for point in found}):
            warm, cold = (
                found.get(middle._replace(batch_size=size, cache=cache), {}) for cache in CACHES
            )
            both = [name for name in BACKENDS if name in warm and name in cold]
            if not both:
                continue
            row: dict[str, Any] = {"on": where, "B": size}
            for name in both:
                row[name] = numbers.times(ratio(cold[name], warm[name], "device"))
                named = clocks.setdefault(where, {}).setdefault(cold[name].device.clock, [])
                if name not in named:
                    named.append(name)
            if "fused" in both:
                row["fused, cold"] = over_runs(cold["fused"].device)
                row["of the cold roof"] = share(cold["fused"].roof_share)
            rows.append(row)
    labels = [run.provenance.label for run in runs.values()]
    values = {"at": middle, "labels": labels, "clocks": clocks}
    return DataTable(_one_place(rows), "tab-caches", values)


def _one_place(rows: list[dict[str, Any]]) -> DataFrame:
    """Rows of several runs, without the column that names them if there is only one."""
    places = {row["on"] for row in rows}
    return _frame(rows) if len(places) > 1 else _frame(rows).drop(columns="on", errors="ignore")


def kernels(benchmark: Benchmark, run: object) -> DataTable:
    """The kernels, what each adds to the one before, and its time on a GPU; a dash without one."""
    found = last_on_line(benchmark)
    rows = [
        {
            "kernel": name,
            "its idea": entry.idea,
            "device time": over_runs(found[name].device) if name in found else DASH,
            "of the roof": share(found[name].roof_share) if name in found else DASH,
        }
        for name, entry in registry.KERNELS.items()
    ]
    return DataTable(_frame(rows), "tab-kernels", {"at": found[BASELINE], "run": run})


def beside_earlier(benchmark: Benchmark, quoted: Quoted) -> DataTable:
    """Times in milliseconds by batch size, quoted and ours; a dash where not measured."""
    line = usual_line(benchmark)
    theirs = {row.batch_size: row for row in quoted.times}

    def ours(size: int, name: str) -> float | None:
        one = line.get(size, {}).get(name)
        return None if one is None else one.call.median / 1e3

    rows = [
        {
            "B": size,
            "quoted baseline": theirs[size].baseline_ms if size in theirs else None,
            "quoted PyTorch": theirs[size].vectorized_ms if size in theirs else None,
            "quoted CUDA": theirs[size].fused_ms if size in theirs else None,
            **{name: ours(size, name) for name in BACKENDS},
        }
        for size in sorted({*theirs, *line})
    ]
    values = {
        "at": last_on_line(benchmark)[BASELINE],
        "quoted": quoted,
        "label": benchmark.provenance.label,
    }
    quotes = ("quoted baseline", "quoted PyTorch", "quoted CUDA")
    return DataTable(_frame(rows), "tab-earlier", values, dict.fromkeys(quotes, "g"))


def yardsticks(benchmark: Benchmark) -> DataTable:
    """The fused sampler against the best PyTorch version, the best peer and the memory roof.

    A row for each batch size; a ratio is of two times of one clock, call to result or on the
    device, and a dash stands where a rival was not timed by it.
    """
    rows = []
    for size, by_name in usual_line(benchmark).items():
        if "fused" not in by_name:
            continue
        row: dict[str, object] = {"B": size}
        for time in ("call", "device"):
            if time == "device" and by_name["fused"].device.clock == by_name["fused"].call.clock:
                continue  # one measurement
            for what, best in (
                ("PyTorch", comparison.best_pytorch(by_name, time)),
                ("peer", comparison.best_peer(by_name, time)),
            ):
                row[f"× {what}, {time}"] = DASH if best is None else _against(best, by_name, time)
        row["of the roof"] = share(by_name["fused"].roof_share)
        rows.append(row)
    frame = _frame(rows)
    nothing = [name for name in frame if (frame[name] == DASH).all()]
    values = {
        "at": last_on_line(benchmark)[BASELINE],
        "runs": comparison.runs_of(benchmark.records),
        "label": benchmark.provenance.label,
    }
    return DataTable(frame.drop(columns=nothing), "tab-yardsticks", values)


def _against(rival: Series, by_name: Mapping[str, Series], time: str) -> str:
    gain = numbers.times(ratio(rival, by_name["fused"], time))
    return gain if rival.implementation == "vectorized" else f"{gain} {rival.implementation}"


def environment(runs: Mapping[str, Provenance]) -> DataTable:
    """When and from which sources everything was measured, one row each.

    Args:
        runs: by what was measured.
    """
    letters = _letters(runs)
    rows = [
        {
            "run": name,
            "date (UTC)": made.date[:16].replace("T", " "),
            "machine": letters[_machine(made)],
            "threads": made.threads,
            "commit": made.commit,
            "checksum of the sources": made.sources[:12],
        }
        for name, made in runs.items()
    ]
    return DataTable(_frame(rows), "tab-environment", {})


def machines(runs: Mapping[str, Provenance]) -> DataTable:
    """The machines of :func:`environment` with their software, one row each; arguments alike."""
    rows = [{"machine": letter, **dict(machine)} for machine, letter in _letters(runs).items()]
    return DataTable(_frame(rows), "tab-machines", {})


_Machine = tuple[tuple[str, str], ...]


def _letters(runs: Mapping[str, Provenance]) -> dict[_Machine, str]:
    """A, B and so on for what differs in hardware or software."""
    different = dict.fromkeys(map(_machine, runs.values()))
    return dict(zip(different, string.ascii_uppercase, strict=False))


def _machine(made: Provenance) -> _Machine:
    return (
        ("processor", f"{made.cpu}, {made.instructions}"),
        ("cores", str(made.cores)),
        (
            "GPU (compute capability)",
            f"{made.gpu} ({made.compute_capability})" if made.gpu else DASH,
        ),
        ("driver, CUDA", f"{made.driver}, {made.cuda}" if made.driver else DASH),
        ("Python, PyTorch", f"{made.python}, {made.torch}"),
    )


def speed_ups(benchmark: Benchmark, quoted: Quoted) -> DataFrame:
    """Average and maximum speed-up over the baseline, ours and the quoted ones, one row each."""
    rows: list[dict[str, object]] = [
        {
            "implementation": row.implementation,
            "from": benchmark.provenance.machine,
            "points": row.points,
            "average": numbers.times(row.mean),
            "geometric": numbers.times(row.geometric_mean),
            "least": numbers.times(row.least),
            "most": numbers.times(row.most),
        }
        for row in comparison.speed_ups(benchmark.records)
    ]
    by_name = {
        "PyTorch, quoted": [row.baseline_ms / row.vectorized_ms for row in quoted.times],
        "CUDA, quoted": [row.fused_speedup for row in quoted.times],
    }
    for name, ratios in by_name.items():
        fused = name.startswith("CUDA")
        mean = quoted.fused_mean_speedup if fused else quoted.vectorized_mean_speedup
        rows.append(
            {
                "implementation": name,
                "from": quoted.source,
                "points": len(ratios),
                "average": f"{mean:g}",
                "geometric": digits(statistics.geometric_mean(ratios), 2),
                "least": digits(min(ratios), 2),
                "most": f"{quoted.fused_max_speedup:g}" if fused else digits(max(ratios), 2),
            }
        )
    return _frame(rows)


def repeatability(runs: Mapping[str, Benchmark]) -> DataTable:
    """How far whole runs differ by each clock, beside the spread within one, in percent.

    A row for each implementation; for each run and time the columns are the spread within a run,
    the difference between runs, and the largest difference.

    Args:
        runs: by heading.
    """
    found: dict[str, dict[str, float]] = {}
    for where, benchmark in runs.items():
        for time in ("call", "device"):
            for row in comparison.repeatability(benchmark.records, time):
                if time == "device" and row.clock == "wall":
                    continue  # the same measurement
                named = time if len(runs) == 1 else f"{where} {time}"
                found.setdefault(row.implementation, {}).update(
                    {
                        f"{named}: within": 100 * row.within,
                        f"{named}: between": 100 * row.between,
                        f"{named}: largest": 100 * row.between_most,
                    }
                )
    columns = dict.fromkeys(name for row in found.values() for name in row)
    frame = _frame([{"implementation": name, **row} for name, row in found.items()])
    values = {
        "runs": [comparison.runs_of(run.records) for run in runs.values()],
        "repeated": [comparison.repeated(run.records) for run in runs.values()],
    }
    return DataTable(frame, "tab-repeatability", values, dict.fromkeys(columns, ".1f"))


def crossovers(benchmark: Benchmark) -> DataFrame:
    """Latency, bandwidth and the bytes at which they cost the same, one row an implementation.

    Fitted over the batch sizes of the usual line; missing where the times are on no such line.
    """
    line = usual_line(benchmark)
    rows = []
    for name in BACKENDS:
        found = [by_name[name] for by_name in line.values() if name in by_name]
        fit = latency.crossover(found)
        if found:
            request = statistics.fmean(one.bytes_moved / one.batch_size for one in found)
            rows.append(
                {
                    "implementation": name,
                    "latency (µs)": None if fit is None else fit.latency_us,
                    "bandwidth (GB/s)": None if fit is None else fit.bandwidth / 1e3,
                    "equal at (MB)": None if fit is None else fit.bytes / 1e6,
                    "equal at B": None if fit is None else fit.bytes / request,
                }
            )
    return _frame(rows)


def decoding_steps(benchmark: Benchmark, weight_bytes: float, bandwidth: float) -> DataFrame:
    """What a sampler is of a decoding step, by batch size and implementation.

    The target's pass is taken as the time to read its weights once, which is its least: a larger
    pass makes the sampler matter less.

    Args:
        benchmark: the sweep.
        weight_bytes: of the target model.
        bandwidth: bytes per microsecond of the memory that holds it.
    """
    step_us = weight_bytes / bandwidth
    rows = []
    for size, by_name in usual_line(benchmark).items():
        for name in (name for name in BACKENDS if name in by_name):
            sampler = by_name[name].call.median
            before = by_name[BASELINE].call.median
            rows.append(
                {
                    "B": size,
                    "implementation": name,
                    "sampler (ms)": sampler / 1e3,
                    "target pass (ms)": step_us / 1e3,
                    "sampler's share (%)": 100 * sampler / (sampler + step_us),
                    "step, × with baseline": latency.step_saving(step_us, before, sampler),
                }
            )
    return _frame(rows)
