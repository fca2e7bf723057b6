"""What notebook 05 concludes is computed from the records, and changes with them."""

from __future__ import annotations

import dataclasses

import pytest
from measured import benchmark, record, spread, story

pytest.importorskip("pandas")
from rsk.report import findings


def test_the_quoted_rows_are_the_quoted_figures():
    frame = findings.speed_up_frame(story(), findings.earlier_work()).set_index("implementation")
    cuda = frame.loc["CUDA, quoted"]
    assert (cuda.average, cuda.most, cuda.least) == (11.95, 35.57, 3.41)
    assert cuda.geometric == pytest.approx(11.5, abs=0.05)
    assert frame.loc["PyTorch, quoted"].average == 9.5
    assert frame.loc["fused"].points == 6


def test_times_stand_beside_the_quoted_ones_where_both_are():
    frame = findings.beside_quoted(story(), findings.earlier_work()).set_index("B")
    assert list(frame.index) == [1, 4, 16, 64]
    assert frame.loc[1, "quoted CUDA"] == 0.04 and frame.loc[1, "fused"] == 0.012
    assert frame["fused"].isna().tolist() == [False, False, False, True]


def on_a_line(latency: float, bandwidth: float, **changes: object):
    return [
        record(
            "fused",
            latency + n / bandwidth,
            batch_size=b,
            bytes_moved=n,
            roof=spread(n / bandwidth),
            **changes,
        )
        for b, n in ((1, 10**5), (4, 4 * 10**5), (16, 16 * 10**5))
    ]


def test_latency_and_bandwidth_are_found_again():
    fit = findings.crossover(on_a_line(7.0, 4000.0))
    assert fit.latency_us == pytest.approx(7) and fit.bandwidth == pytest.approx(4000)
    assert fit.bytes == pytest.approx(28000)
    both = [*on_a_line(7.0, 4000.0), *(record("baseline", 99, batch_size=b) for b in (1, 4, 16))]
    frame = findings.crossover_frame(benchmark(both)).set_index("implementation")
    assert frame.loc["fused", "equal at B"] == pytest.approx(0.28)
    assert frame.loc["fused", "bandwidth (GB/s)"] == pytest.approx(4)
    assert frame.loc["baseline"].isna().all(), "equal bytes are no line"


def test_times_on_no_line_have_no_crossover():
    falling = [
        record("fused", 50.0 - b, batch_size=b, bytes_moved=10**5 * b, roof=spread(5.0))
        for b in (1, 4, 16)
    ]
    assert findings.crossover(falling) is None
    assert findings.crossover(falling[:1]) is None


def test_yardsticks():
    frame = findings.ratio_frame(story()).set_index("B")
    assert frame.loc[1, "× baseline"] == pytest.approx(40 / 12)
    assert frame.loc[1, "× vectorized"] == pytest.approx(200 / 12)
    assert frame.loc[1, "% of the memory roof"] == pytest.approx(100 * 2.5 / 12)


def test_a_roof_taken_on_a_busy_machine_is_left_out():
    busy = spread(900.0, disturbed=0.9)
    frame = findings.ratio_frame(
        benchmark([record("baseline", 50.0), record("fused", 9.0, roof=busy)])
    )
    assert frame["% of the memory roof"].isna().all()


def test_a_step_gains_less_than_its_sampler():
    assert findings.step_saving(100, 25, 0) == 1.25
    assert findings.step_saving(0, 30, 10) == 3
    with pytest.raises(ValueError, match="before_us: expected a time, got nan"):
        findings.step_saving(1, float("nan"), 1)
    frame = findings.decoding_steps(story(), weight_bytes=4e6, bandwidth=1e5)
    fused = frame[(frame.B == 1) & (frame.implementation == "fused")].iloc[0]
    assert fused["target pass (ms)"] == pytest.approx(0.04)
    assert fused["step, × with baseline"] == pytest.approx((40 + 40) / (40 + 12))
    assert fused["sampler's share (%)"] == pytest.approx(100 * 12 / 52)


def test_verdicts_follow_the_numbers():
    assert len({findings.step_verdict(x) for x in (1.5, 1.05, 1.001)}) == 3
    assert "run once" in findings.trust(story())


def test_trust_names_what_repeats_badly():
    steady = [record("fused", 20.0), record("fused", 20.4, run=1)]
    assert "No implementation" in findings.trust(benchmark(steady))
    wild = [record("fused", 20.0), record("fused", 30.0, run=1)]
    said = findings.trust(benchmark(wild))
    assert "fused (40.0% against 10.0%)" in said and "Nothing was refused" in said
    late = dataclasses.replace(benchmark(wild), complete=False, refused=("one",))
    assert "Refused: 1 result." in findings.trust(late) and "ran out" in findings.trust(late)
    frame = findings.repeatability_frame(benchmark(wild))
    assert frame["between runs (%)"].tolist() == [pytest.approx(40)]


def test_where_the_vectorised_version_wins():
    alone = benchmark([record("baseline", 99.0)])
    assert findings.catching_up(alone) == "The vectorised version was not measured."
    said = findings.catching_up(story())
    assert "faster than the baseline at B = 16 and slower at B = 1, 4" in said
    assert "10.0 MB of intermediates, 2.5 times the 4.00 MB" in said


def test_the_bandwidth_of_the_memory_is_measured():
    import torch

    assert 100 < findings.memory_bandwidth(torch.device("cpu"), budget_s=0.05) < 10**7
