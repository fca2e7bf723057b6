"""Where latency ends and bandwidth begins, and what a faster sampler saves of a decoding step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rsk.base.machine import last_level_cache
from rsk.measure import roof
from rsk.measure.over_runs import Series


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


def crossover(found: Sequence[Series]) -> Crossover | None:
    """Fit latency and bandwidth of one implementation.

    A weighted least-squares line: every time counts by its relative error, so that a small batch
    weighs as much as a large one.

    Returns:
        The fit, or ``None`` if the times are on no line with a positive latency and bandwidth.
    """
    weights = [one.device.median**-2 for one in found]
    x = [one.bytes_moved for one in found]
    y = [one.device.median for one in found]
    if len(set(x)) < 2:
        return None
    x_mean, y_mean = (statistics.fmean(values, weights) for values in (x, y))
    over = statistics.fmean(
        [(a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)], weights
    )
    slope = over / statistics.fmean([(a - x_mean) ** 2 for a in x], weights)
    latency = y_mean - slope * x_mean
    return Crossover(latency, 1 / slope) if slope > 0 and latency > 0 else None


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


def memory_bandwidth(device: torch.device, *, budget_s: float = 0.3) -> float:
    """Bytes per microsecond that can be read from memory, past the last-level cache.

    Args:
        device: whose memory.
        budget_s: seconds to spend.
    """
    touched = min(max(2 * last_level_cache(device), 1 << 27), 1 << 30)
    n_bytes = touched // 4
    return n_bytes / roof.measure(n_bytes, 4, device, budget_s=budget_s).time.median_us
