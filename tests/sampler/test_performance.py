"""The speed that the fused CPU kernel promises, as ratios measured in one run."""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import rsk
from rsk.base import machine
from rsk.check.synthetic import make_batch

pytestmark = [pytest.mark.alone, pytest.mark.slow]
ATTEMPTS = 5  # another process may disturb one; none can make a slow kernel fast


def median_time(function, repeats):
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.fixture
def two_threads():
    with machine.pinned_threads(2):
        yield


@pytest.fixture(scope="module")
def batch():
    batch = make_batch(64, 4, 32000, acceptance=0.8)
    accepted = rsk.rejection_sample(*batch, seed=0).num_accepted.double().mean().item()
    assert 2 <= accepted <= 3
    return batch


@pytest.mark.usefixtures("two_threads")
def test_thirty_times_the_baseline(batch):
    ratios = []
    for _ in range(ATTEMPTS):
        baseline = median_time(lambda: rsk.rejection_sample(*batch, seed=0, backend="baseline"), 5)
        fused = median_time(lambda: rsk.rejection_sample(*batch, seed=0, backend="fused"), 50)
        ratios.append(baseline / fused)
        if ratios[-1] >= 30:
            return
    pytest.fail(f"fused is {max(ratios):.1f} times as fast as the baseline; expected 30")


@pytest.mark.usefixtures("two_threads")
def test_vectorized_is_faster_than_the_loop():
    batch = make_batch(64, 4, 32000, acceptance=0.7)
    ratios = []
    for _ in range(ATTEMPTS):
        loop, whole = (
            median_time(partial(rsk.rejection_sample, *batch, seed=0, backend=name), 15)
            for name in ("baseline", "vectorized")
        )
        ratios.append(loop / whole)
        if ratios[-1] > 1:
            return
    pytest.fail(f"vectorized is {max(ratios):.2f} times as fast as the loop; expected more than 1")


@pytest.mark.usefixtures("two_threads")
def test_as_fast_as_a_plain_reduction_of_the_same_rows(batch):
    try:
        has_avx512 = "avx512f" in Path("/proc/cpuinfo").read_text()
    except OSError:
        has_avx512 = False
    if not has_avx512:
        pytest.skip("bounded on processors with AVX-512 only")
    p, q = batch.target_probs[:, 0].contiguous(), batch.draft_probs[:, 0].contiguous()
    ratios = []
    for _ in range(ATTEMPTS):
        plain = median_time(lambda: (p - q).clamp_min_(0).sum(-1), 50)
        fused = median_time(lambda: rsk.rejection_sample(*batch, seed=0, backend="fused"), 50)
        ratios.append(fused / plain)
        if ratios[-1] <= 1.25:
            return
    pytest.fail(f"fused takes {min(ratios):.2f} times the plain reduction; expected at most 1.25")


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_from_logits_in_half_the_time_of_a_softmax(batch):
    """With all filters; the softmax of the same tensors is what a float sampler begins with."""
    draft, target = batch.draft_probs.log() - 3, batch.target_probs.log() + 5
    filters = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "backend": "fused"}
    tokens = torch.stack(
        [rsk.sample_from_logits(draft[:, k], seed=0, position=k, **filters) for k in range(4)], 1
    )
    ratios = []
    for _ in range(ATTEMPTS):
        softmax = median_time(lambda: (draft.softmax(-1), target.softmax(-1)), 15)
        fused = median_time(
            lambda: rsk.rejection_sample_from_logits(tokens, draft, target, seed=0, **filters), 15
        )
        ratios.append(fused / softmax)
        if ratios[-1] <= 0.5:
            return
    pytest.fail(f"fused takes {min(ratios):.2f} times the softmax; expected at most 0.5")
