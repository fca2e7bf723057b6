"""Samples of a time: when there are enough of them, which are set aside, what is told of them.

After a warm-up, samples are taken until the median is known to 2 % (95 % confidence, from order
statistics, which assume no distribution), or until the time is up. Where the operating system tells
that another process took the processor during a sample, the sample is set aside and the share of
such samples is recorded.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rsk.measure.records import RecordError, Spread

MIN_SAMPLES, MAX_SAMPLES = 5, 2000
PRECISION = 0.02
"""Half-width of the median's confidence interval, over the median, at which sampling stops."""
DISTURBED = 0.02
"""A sample in which threads waited for a processor for longer than this part of it is disturbed."""


class Samples(NamedTuple):
    """Repeated samples of one or more times that are taken together."""

    times_us: list[tuple[float, ...]]
    disturbed: float
    """Share of all samples in which other processes took the processor."""

    def spread(self, clock: str, column: int = 0) -> Spread:
        """Summarise one of the times.

        Raises:
            RecordError: a sample is NaN, infinite, zero or negative.
        """
        times = [row[column] for row in self.times_us]
        for sample in times:  # one bad sample would vanish in a median
            if not (math.isfinite(sample) and sample > 0):
                raise RecordError(f"samples: expected positive, finite times, got {sample} us")
        q25, median, q75 = (float(q) for q in np.percentile(times, (25, 50, 75)))
        return Spread(
            median_us=median,
            q25_us=q25,
            q75_us=q75,
            samples=len(times),
            disturbed=self.disturbed,
            clock=clock,
        )


def sample_until_settled(
    sample: Callable[[], tuple[float, ...]], budget_s: float, *, watch: bool = True
) -> Samples:
    """Warm up, then sample until the first time's median is settled or the time is up.

    Args:
        sample: takes one sample, in microseconds.
        budget_s: seconds to spend, twice that if too few samples are undisturbed; at least
            ``MIN_SAMPLES`` are taken however long they last.
        watch: set aside the samples in which other processes took the processor; if that leaves
            fewer than ``MIN_SAMPLES``, the least disturbed make up the number.
    """
    begin = time.perf_counter()
    for _ in range(3):
        sample()
        if time.perf_counter() - begin > budget_s / 4:
            break
    clean: list[tuple[float, ...]] = []
    disturbed: list[tuple[float, tuple[float, ...]]] = []
    begin = time.perf_counter()
    check_at = 4 * MIN_SAMPLES
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a sample is not the sampler's time
    try:
        while len(clean) < MAX_SAMPLES:
            waited, start = _waited_ns() if watch else 0, time.perf_counter_ns()
            row = sample()
            lasted = time.perf_counter_ns() - start
            share = (_waited_ns() - waited) / lasted if watch else 0.0
            if share > DISTURBED:
                disturbed.append((share, row))
            else:
                clean.append(row)
                if len(clean) == check_at:
                    if _precision([first for first, *_ in clean]) < PRECISION:
                        break
                    check_at *= 2
            spent = time.perf_counter() - begin
            if spent > budget_s and len(clean) >= MIN_SAMPLES:
                break
            if spent > 2 * budget_s and len(clean) + len(disturbed) >= MIN_SAMPLES:
                break
    finally:
        if collecting:
            gc.enable()
    missing = max(0, MIN_SAMPLES - len(clean))
    least_disturbed = [row for _, row in sorted(disturbed)[:missing]]
    return Samples(clean + least_disturbed, len(disturbed) / (len(clean) + len(disturbed)))


def _waited_ns() -> int:
    """How long this process's threads were ready but had no processor; 0 if that is not told."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, IndexError):  # the thread ended
            continue
    return total


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """The ends of the 95 % confidence interval of the median of samples in rising order.

    The number of samples below the true median is binomial, so two order statistics bound it.
    """
    n = len(ordered)
    reach = 1.96 * math.sqrt(n) / 2
    low, high = math.floor(n / 2 - reach), math.ceil(n / 2 + reach)
    return ordered[max(low, 0)], ordered[min(high, n - 1)]


def _precision(samples: Sequence[float]) -> float:
    """Half the median's interval, over the median."""
    ordered = sorted(samples)
    low, high = median_interval(ordered)
    return (high - low) / 2 / ordered[len(ordered) // 2]
