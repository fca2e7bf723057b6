"""The tables hold what the records say, and change with them."""

from __future__ import annotations

import pytest
from measured import CPU_PROVENANCE, GPU_PROVENANCE, benchmark, record, spread, story

pytest.importorskip("pandas")
import rsk
from rsk.figures import tables
from rsk.measure.recorded_runs import earlier_work


def test_the_quoted_rows_are_the_quoted_figures():
    frame = tables.speed_ups(story(), earlier_work()).set_index("implementation")
    cuda = frame.loc["CUDA, quoted"]
    assert (cuda.average, cuda.most, cuda.least) == (11.95, 35.57, 3.41)
    assert cuda.geometric == pytest.approx(11.5, abs=0.05)
    assert frame.loc["PyTorch, quoted"].average == 9.5
    assert frame.loc["fused"].points == 6


def test_times_stand_beside_the_quoted_ones_where_both_are():
    frame = tables.beside_earlier(story(), earlier_work()).frame.set_index("B")
    assert list(frame.index) == [1, 4, 16, 64]
    assert frame.loc[1, "quoted CUDA"] == 0.04 and frame.loc[1, "fused"] == 0.012
    assert frame["fused"].isna().tolist() == [False, False, False, True]


def test_yardsticks():
    frame = tables.yardsticks(story()).set_index("B")
    assert frame.loc[1, "× baseline"] == pytest.approx(40 / 12)
    assert frame.loc[1, "× vectorized"] == pytest.approx(200 / 12)
    assert frame.loc[1, "% of the memory roof"] == pytest.approx(100 * 2.5 / 12)


def test_a_roof_taken_on_a_busy_machine_is_left_out():
    busy = spread(900.0, disturbed=0.9)
    frame = tables.yardsticks(
        benchmark([record("baseline", 50.0), record("fused", 9.0, roof=busy)])
    )
    assert frame["% of the memory roof"].isna().all()


def test_what_a_sampler_is_of_a_decoding_step():
    frame = tables.decoding_steps(story(), weight_bytes=4e6, bandwidth=1e5)
    fused = frame[(frame.B == 1) & (frame.implementation == "fused")].iloc[0]
    assert fused["target pass (ms)"] == pytest.approx(0.04)
    assert fused["step, × with baseline"] == pytest.approx((40 + 40) / (40 + 12))
    assert fused["sampler's share (%)"] == pytest.approx(100 * 12 / 52)


def test_latency_and_bandwidth_where_the_times_are_on_a_line():
    fused = [
        record("fused", 7 + n / 4000, batch_size=b, bytes_moved=n, roof=spread(n / 4000))
        for b, n in ((1, 10**5), (4, 4 * 10**5), (16, 16 * 10**5))
    ]
    both = [*fused, *(record("baseline", 99, batch_size=b) for b in (1, 4, 16))]
    frame = tables.crossovers(benchmark(both)).set_index("implementation")
    assert frame.loc["fused", "equal at B"] == pytest.approx(0.28)
    assert frame.loc["fused", "bandwidth (GB/s)"] == pytest.approx(4)
    assert frame.loc["baseline"].isna().all(), "equal bytes are no line"


def test_runs_are_compared():
    wild = [record("fused", 20.0), record("fused", 30.0, run=1)]
    table = tables.repeatability(benchmark(wild))
    assert table.frame["between runs (%)"].tolist() == [pytest.approx(40)]
    assert table.values["repeated"] == (1, 1)


def test_the_solutions_and_the_times():
    frame = tables.solutions(story(), None).frame.set_index("implementation")
    assert list(frame.index) == ["baseline", "vectorized", "fused"]
    assert (
        frame.loc["fused", "median"] == "30.0 µs" and frame.loc["fused", "of the roof"] == "33.3%"
    )
    assert frame.loc["baseline", "operators"] == 960 and frame.loc["baseline", "waits"] == 192
    assert "launches" in tables.solutions(story(gpu=True), None).frame
    times = tables.times(story(), None).frame
    assert times["B"].tolist() == [1, 4, 16] and times["baseline"][0] == "40.0 µs ± 5%"


def test_the_kernels_have_their_ideas_and_a_dash_without_a_time():
    frame = tables.kernels(story(gpu=True), None).frame.set_index("kernel")
    assert list(frame.index) == list(rsk.KERNELS)
    assert frame.loc["cluster", "time on the device"] == "28.8 µs"
    assert frame.loc["split_vocabulary", "time on the device"] == "–"
    assert frame["its idea"].str.len().min() > 20


def test_the_environment_names_every_run():
    frame = tables.environment({"CPU": CPU_PROVENANCE, "GPU": GPU_PROVENANCE}).frame
    row = frame.set_index("fact").loc["GPU (compute capability)"]
    assert (row["CPU"], row["GPU"]) == ("–", "a GPU (9.0)")
