"""The tables of the report and the course, as data frames; their captions are in ``exhibits.md``.

A notebook publishes one with ``publish.table(**tables.repeatability(benchmark)._asdict())``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from rsk.base.numbers import DASH, byte_size, duration, percent, quartiles
from rsk.base.templates import LANGUAGE, phrases
from rsk.measure import comparison, latency
from rsk.measure.comparison import BASELINE, roof_share, usual_line
from rsk.measure.records import Benchmark, Provenance, Quoted, Record
from rsk.sampler import registry
from rsk.sampler.api import BACKENDS

if TYPE_CHECKING:
    from pandas import DataFrame


class Table(NamedTuple):
    """A table with all that it needs to be published."""

    frame: DataFrame
    label: str
    values: Mapping[str, object]
    """What its caption may name."""
    formats: Mapping[str, str | Callable[[Any], str]] | None = None


def _frame(rows: Any) -> DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def last_on_line(benchmark: Benchmark) -> dict[str, Record]:
    """The records at the largest batch size of the usual line, by implementation."""
    line = usual_line(benchmark)
    return line[max(line)]


def solutions(benchmark: Benchmark, run: object) -> Table:
    """The three solutions at the largest batch: work, time, and both relative numbers.

    Args:
        benchmark: in which all were measured and counted there.
        run: where it is from, for the caption.
    """
    records = last_on_line(benchmark)
    base = records[BASELINE]
    rows = []
    for count in benchmark.operations:
        if count.batch_size == base.batch_size and count.implementation in BACKENDS:
            record, share = records[count.implementation], roof_share(records[count.implementation])
            on_gpu = count.launches is not None
            rows.append(
                {
                    "implementation": count.implementation,
                    "launches" if on_gpu else "operators": count.launches
                    if on_gpu
                    else count.operators,
                    "waits": count.synchronizations,
                    "allocated": byte_size(count.allocated_bytes),
                    "median": duration(record.call.median_us),
                    "quartiles": quartiles(record.call),
                    "× baseline": comparison.ratio(base, record),
                    "of the roof": DASH if share is None else percent(share, 1),
                }
            )
    return Table(_frame(rows), "tab-solutions", {"record": base, "run": run})


def times(benchmark: Benchmark, run: object) -> Table:
    """Time of a call with half the interquartile range, by batch size and implementation."""
    rows = []
    for size, by_name in usual_line(benchmark).items():
        row: dict[str, object] = {"B": size}
        for name, record in by_name.items():
            row[name] = f"{duration(record.call.median_us)} ± {record.call.relative / 2:.0%}"
        rows.append(row)
    record = last_on_line(benchmark)[BASELINE]
    return Table(_frame(rows), "tab-times", {"record": record, "run": run})


def kernels(benchmark: Benchmark, run: object, language: str = LANGUAGE) -> Table:
    """The kernels, what each adds to the one before, and its time on a GPU; a dash without one."""
    records = last_on_line(benchmark)
    translated = phrases(language).get("ideas", {})
    rows = [
        {
            "kernel": name,
            "its idea": translated.get(name, entry.idea),
            "time on the device": duration(records[name].device.median_us)
            if name in records
            else DASH,
            "of the roof": percent(records[name].roof_share) if name in records else DASH,
        }
        for name, entry in registry.KERNELS.items()
    ]
    return Table(_frame(rows), "tab-kernels", {"record": records[BASELINE], "run": run})


def beside_earlier(benchmark: Benchmark, quoted: Quoted) -> Table:
    """Times in milliseconds by batch size, quoted and ours; a dash where not measured."""
    line = usual_line(benchmark)
    theirs = {row.batch_size: row for row in quoted.times}

    def ours(size: int, name: str) -> float | None:
        record = line.get(size, {}).get(name)
        return None if record is None else record.call.median_us / 1e3

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
    record = last_on_line(benchmark)[BASELINE]
    values = {"record": record, "quoted": quoted, "label": benchmark.provenance.label}
    return Table(_frame(rows), "tab-earlier", values)


def environment(runs: Mapping[str, Provenance]) -> Table:
    """Where and with what everything was measured: a row for each fact, a column for each run.

    Args:
        runs: by heading.
    """
    facts: dict[str, Callable[[Provenance], object]] = {
        "date (UTC)": lambda p: p.date[:16].replace("T", " "),
        "processor": lambda p: f"{p.cpu}, {p.instructions}",
        "cores, threads": lambda p: f"{p.cores}, {p.threads}",
        "last-level cache": lambda p: byte_size(p.cache_bytes),
        "GPU (compute capability)": lambda p: (
            f"{p.gpu} ({p.compute_capability})" if p.gpu else DASH
        ),
        "driver, CUDA": lambda p: f"{p.driver}, {p.cuda}" if p.driver else DASH,
        "system": lambda p: p.os,
        "Python, PyTorch": lambda p: f"{p.python}, {p.torch}",
        "rsk, commit": lambda p: f"{p.rsk}, {p.commit}",
        "checksum of the sources": lambda p: p.sources[:12],
    }
    rows = [
        {"fact": fact, **{name: read(run) for name, run in runs.items()}}
        for fact, read in facts.items()
    ]
    return Table(_frame(rows), "tab-environment", {})


def speed_ups(benchmark: Benchmark, quoted: Quoted) -> DataFrame:
    """Average and maximum speed-up over the baseline, ours and the quoted ones, one row each."""
    rows: list[dict[str, object]] = [
        {
            "implementation": row.implementation,
            "from": benchmark.provenance.machine,
            "points": row.points,
            "average": row.mean,
            "geometric": row.geometric_mean,
            "least": row.least,
            "most": row.most,
        }
        for row in comparison.speed_ups(benchmark.records)
    ]
    by_name = {
        "PyTorch, quoted": [row.baseline_ms / row.vectorized_ms for row in quoted.times],
        "CUDA, quoted": [row.fused_speedup for row in quoted.times],
    }
    for name, ratios in by_name.items():
        fused = name.startswith("CUDA")
        rows.append(
            {
                "implementation": name,
                "from": quoted.source,
                "points": len(ratios),
                "average": quoted.fused_mean_speedup if fused else quoted.vectorized_mean_speedup,
                "geometric": statistics.geometric_mean(ratios),
                "least": min(ratios),
                "most": quoted.fused_max_speedup if fused else max(ratios),
            }
        )
    return _frame(rows)


def repeatability(benchmark: Benchmark) -> Table:
    """How much two whole runs differ, beside the spread that one run states, in percent."""
    rows = [
        {
            "implementation": row.implementation,
            "points": row.points,
            "stated spread (%)": 100 * row.stated,
            "between runs (%)": 100 * row.between,
            "largest (%)": 100 * row.between_most,
            "largest at": f"B={row.most_at.batch_size} K={row.most_at.spec_len} "
            f"V={row.most_at.vocab_size:,}",
        }
        for row in comparison.repeatability(benchmark.records)
    ]
    columns = ("stated spread (%)", "between runs (%)", "largest (%)")
    return Table(
        _frame(rows),
        "tab-repeatability",
        {"repeated": comparison.repeated(benchmark.records)},
        dict.fromkeys(columns, ".1f"),
    )


def crossovers(benchmark: Benchmark) -> DataFrame:
    """Latency, bandwidth and the bytes at which they cost the same, one row an implementation.

    Fitted over the batch sizes of the usual line; missing where the times are on no such line.
    """
    line = usual_line(benchmark)
    rows = []
    for name in BACKENDS:
        records = [by_name[name] for by_name in line.values() if name in by_name]
        fit = latency.crossover(records)
        if records:
            request = statistics.fmean(r.bytes_moved / r.batch_size for r in records)
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


def yardsticks(benchmark: Benchmark) -> DataFrame:
    """The fused sampler against three yardsticks, by batch size."""
    rows = []
    for size, by_name in usual_line(benchmark).items():
        if "fused" in by_name:
            fused, share = by_name["fused"], roof_share(by_name["fused"])
            rows.append(
                {
                    "B": size,
                    "× baseline": comparison.ratio(by_name[BASELINE], fused),
                    "× vectorized": comparison.ratio(by_name["vectorized"], fused)
                    if "vectorized" in by_name
                    else None,
                    "% of the memory roof": None if share is None else 100 * share,
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
            sampler = by_name[name].call.median_us
            before = by_name[BASELINE].call.median_us
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
