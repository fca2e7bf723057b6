"""What a sweep means: tables beside the earlier work's, where latency ends, what a step saves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rsk.base.folders import data_dir
from rsk.base.machine import last_level_cache
from rsk.course import publish
from rsk.measure import comparison
from rsk.measure.benchmark import usual_line
from rsk.measure.clocks import memory_roof
from rsk.measure.comparison import BASELINE
from rsk.measure.records import Benchmark, Quoted, Record
from rsk.sampler.api import BACKENDS

if TYPE_CHECKING:
    import pandas as pd


def earlier_work() -> Quoted:
    """The table of the work that this course continues."""
    return Quoted.load(data_dir() / "benchmarks" / "earlier-work.json")


def speed_up_frame(benchmark: Benchmark, quoted: Quoted) -> pd.DataFrame:
    """Average and maximum speed-up over the baseline, ours and the quoted ones, one row each."""
    import pandas as pd

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
    return pd.DataFrame(rows)


def beside_quoted(benchmark: Benchmark, quoted: Quoted) -> pd.DataFrame:
    """Times in milliseconds by batch size, quoted and ours; ours are missing where not measured."""
    import pandas as pd

    line = usual_line(benchmark)
    sizes = sorted({row.batch_size for row in quoted.times} | set(line))
    theirs = {row.batch_size: row for row in quoted.times}

    def ours(size: int, name: str) -> float | None:
        record = line.get(size, {}).get(name)
        return None if record is None else record.call.median_us / 1e3

    return pd.DataFrame(
        {
            "B": size,
            "quoted baseline": theirs[size].baseline_ms if size in theirs else None,
            "quoted PyTorch": theirs[size].vectorized_ms if size in theirs else None,
            "quoted CUDA": theirs[size].fused_ms if size in theirs else None,
            **{name: ours(size, name) for name in BACKENDS},
        }
        for size in sizes
    )


def repeatability_frame(benchmark: Benchmark) -> pd.DataFrame:
    """How much two whole runs differ, beside the spread that one run states, in percent."""
    import pandas as pd

    return pd.DataFrame(
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
    )


@dataclass(frozen=True)
class Crossover:
    """Time on the device as a line over the bytes that move: latency + bytes / bandwidth."""

    latency_us: float
    bandwidth: float
    """bytes per microsecond"""

    @property
    def bytes(self) -> float:
        """Where the two parts are equal: fewer bytes are bound by latency, more by bandwidth."""
        return self.latency_us * self.bandwidth


def crossover(records: Sequence[Record]) -> Crossover | None:
    """Fit latency and bandwidth of one implementation.

    A weighted least-squares line: every time counts by its relative error, so that a small batch
    weighs as much as a large one.

    Returns:
        The fit, or ``None`` if the times are on no line with a positive latency and bandwidth.
    """
    weights = [record.device.median_us**-2 for record in records]
    x = [record.bytes_moved for record in records]
    y = [record.device.median_us for record in records]
    if len(set(x)) < 2:
        return None
    x_mean, y_mean = (statistics.fmean(values, weights) for values in (x, y))
    over = statistics.fmean(
        [(a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)], weights
    )
    slope = over / statistics.fmean([(a - x_mean) ** 2 for a in x], weights)
    latency = y_mean - slope * x_mean
    return Crossover(latency, 1 / slope) if slope > 0 and latency > 0 else None


def crossover_frame(benchmark: Benchmark) -> pd.DataFrame:
    """Latency, bandwidth and the bytes at which they cost the same, one row an implementation.

    Fitted over the batch sizes of the usual line; missing where the times are on no such line.
    """
    import pandas as pd

    line = usual_line(benchmark)
    rows = []
    for name in BACKENDS:
        records = [by_name[name] for by_name in line.values() if name in by_name]
        fit = crossover(records)
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
    return pd.DataFrame(rows)


def ratio_frame(benchmark: Benchmark) -> pd.DataFrame:
    """The fused sampler against three yardsticks, by batch size."""
    import pandas as pd

    return pd.DataFrame(
        {
            "B": size,
            "× baseline": comparison.ratio(by_name[BASELINE], by_name["fused"]),
            "× vectorized": comparison.ratio(by_name["vectorized"], by_name["fused"])
            if "vectorized" in by_name
            else None,
            "% of the memory roof": None
            if by_name["fused"].roof.busy  # such a roof is too slow, and says nothing
            else 100 * by_name["fused"].roof_share,
        }
        for size, by_name in usual_line(benchmark).items()
        if "fused" in by_name
    )


def step_saving(step_us: float, before_us: float, after_us: float) -> float:
    """Speed-up of a whole decoding step when its sampler takes ``after`` instead of ``before``.

    Args:
        step_us: the rest of the step: draft and target.
        before_us: the sampler that is replaced.
        after_us: the one that replaces it.

    Raises:
        ValueError: a time that is negative or not finite.
    """
    for name, value in (("step", step_us), ("before", before_us), ("after", after_us)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}_us: expected a time, got {value}")
    return (step_us + before_us) / (step_us + after_us)


def decoding_steps(benchmark: Benchmark, weight_bytes: float, bandwidth: float) -> pd.DataFrame:
    """What a sampler is of a decoding step, by batch size and implementation.

    The target's pass is taken as the time to read its weights once, which is its least: a larger
    pass makes the sampler matter less.

    Args:
        benchmark: the sweep.
        weight_bytes: of the target model.
        bandwidth: bytes per microsecond of the memory that holds it.
    """
    import pandas as pd

    step_us = weight_bytes / bandwidth
    rows = []
    for size, by_name in usual_line(benchmark).items():
        for name in BACKENDS:
            if name not in by_name:
                continue
            sampler = by_name[name].call.median_us
            rows.append(
                {
                    "B": size,
                    "implementation": name,
                    "sampler (ms)": sampler / 1e3,
                    "target pass (ms)": step_us / 1e3,
                    "sampler's share (%)": 100 * sampler / (sampler + step_us),
                    "step, × with baseline": step_saving(
                        step_us, by_name[BASELINE].call.median_us, sampler
                    ),
                }
            )
    return pd.DataFrame(rows)


def memory_bandwidth(device: torch.device, *, budget_s: float = 0.3) -> float:
    """Bytes per microsecond that reductions read from memory, past the last-level cache.

    Args:
        device: whose memory.
        budget_s: seconds to spend.
    """
    touched = min(max(2 * last_level_cache(device), 1 << 27), 1 << 30)
    n_bytes = touched // 4
    return n_bytes / memory_roof(n_bytes, 4, device, budget_s=budget_s).median_us


def trust(benchmark: Benchmark) -> str:
    """In words: do two runs differ by more than a run states, and was anything refused?"""
    rows = comparison.repeatability(benchmark.records)
    if not rows:
        text = "The sweep was run once only, or did not come to its second run in the time it had."
    elif worse := [row for row in rows if row.between > row.stated]:
        names = ", ".join(
            f"{row.implementation} ({row.between:.1%} against {row.stated:.1%})" for row in worse
        )
        text = f"The runs differ by more than a run states for {names}: trust the larger number."
    else:
        text = "No implementation's runs differ, in the median, by more than a run states."
    busy = sum(record.call.busy for record in benchmark.records)
    if busy:
        text += (
            f" Other programs took the processor in {busy} of {len(benchmark.records)} times, "
            "which are too long, if anything."
        )
    refused = len(benchmark.refused)
    text += (
        f" Refused: {comparison.plural(refused, 'result')}." if refused else " Nothing was refused."
    )
    if not benchmark.complete:
        text += " The time for the sweep ran out before its end."
    return text


def show_trust(benchmark: Benchmark, label: str = "tab-repeatability") -> None:
    """Publish :func:`repeatability_frame`, if the sweep was run twice, and :func:`trust`."""
    frame = repeatability_frame(benchmark)
    if len(frame):
        publish.table(
            frame,
            label=label,
            caption="Two runs of the sweep: the spread that a run states (interquartile range over "
            "median) and the difference between the two runs' medians; both are medians over "
            f"{comparison.repeated_points(benchmark.records)}.",
            formats=dict.fromkeys(("stated spread (%)", "between runs (%)", "largest (%)"), ".1f"),
        )
    publish.prose("{{text}}", text=trust(benchmark))


def catching_up(benchmark: Benchmark) -> str:
    """In words: at which batch sizes the vectorised version beats the baseline, and its traffic."""
    line = usual_line(benchmark)
    sizes = [size for size, by_name in line.items() if "vectorized" in by_name]
    if not sizes:
        return "The vectorised version was not measured."
    wins = [
        size
        for size in sizes
        if comparison.ratio(line[size][BASELINE], line[size]["vectorized"]) > 1
    ]
    if len(wins) == len(sizes):
        text = "Here the vectorised version is faster than the baseline at every batch size."
    elif not wins:
        text = "Here the vectorised version is slower than the baseline at every batch size."
    else:
        lost = [size for size in sizes if size not in wins]
        text = (
            "Here the vectorised version is faster than the baseline at "
            f"B = {', '.join(map(str, wins))} and slower at B = {', '.join(map(str, lost))}."
        )
    counted = [count for count in benchmark.operations if count.implementation == "vectorized"]
    if counted:
        most = max(counted, key=lambda count: count.batch_size)
        needed = line[most.batch_size]["vectorized"].bytes_moved
        text += (
            f" At B = {most.batch_size} it allocates {comparison.megabytes(most.allocated_bytes)} "
            f"of intermediates, {comparison.digits(most.allocated_bytes / needed, 2)} times the "
            f"{comparison.megabytes(needed)} that have to move."
        )
    return text


def step_verdict(speed_up: float) -> str:
    """In words: what a faster step is worth."""
    if speed_up >= 1.1:
        return "That is a gain that users notice: here the sampler was a real part of the step."
    if speed_up >= 1.01:
        return "A few percent: worth having, and far from what the sampler's own speed-up suggests."
    return "On such a step the sampler hardly matters, however fast it is."
