"""Where latency ends and bandwidth begins, and what a faster sampler saves of a step."""

from __future__ import annotations

import pytest
import torch
from measured import record, series, spread

from rsk.measure import latency


def on_a_line(microseconds: float, bandwidth: float):
    return [
        record(
            "fused",
            microseconds + n / bandwidth,
            batch_size=b,
            bytes_moved=n,
            roof=spread(n / bandwidth),
        )
        for b, n in ((1, 10**5), (4, 4 * 10**5), (16, 16 * 10**5))
    ]


def test_latency_and_bandwidth_are_found_again():
    fit = latency.crossover([series(one) for one in on_a_line(7.0, 4000.0)])
    assert fit.latency_us == pytest.approx(7) and fit.bandwidth == pytest.approx(4000)
    assert fit.bytes == pytest.approx(28000)


def test_times_on_no_line_have_no_crossover():
    falling = [
        record("fused", 50.0 - b, batch_size=b, bytes_moved=10**5 * b, roof=spread(5.0))
        for b in (1, 4, 16)
    ]
    assert latency.crossover([series(one) for one in falling]) is None
    assert latency.crossover([series(falling[0])]) is None


def test_a_step_gains_less_than_its_sampler():
    assert latency.step_saving(100, 25, 0) == 1.25
    assert latency.step_saving(0, 30, 10) == 3
    with pytest.raises(ValueError, match="before_us: expected a time, got nan"):
        latency.step_saving(1, float("nan"), 1)


def test_the_bandwidth_of_the_memory_is_measured():
    assert 100 < latency.memory_bandwidth(torch.device("cpu"), budget_s=0.05) < 10**7
