"""The tables hold what the records say, and change with them."""

from __future__ import annotations

import dataclasses
import math

import pytest
from measured import (
    CPU_PROVENANCE,
    GPU_PROVENANCE,
    benchmark,
    record,
    spread,
    story,
    twice,
    with_cold,
)

pytest.importorskip("pandas")
import rsk
from rsk.figures import record_tables, tables
from rsk.measure.publishable_runs import earlier_work


def test_the_quoted_rows_are_the_quoted_figures():
    frame = tables.speed_ups(story(), earlier_work()).set_index("implementation")
    cuda = frame.loc["CUDA, quoted"]
    assert (cuda.average, cuda.most, cuda.least) == ("11.95", "35.57", "3.4")
    assert cuda.geometric == "12"
    assert frame.loc["PyTorch, quoted"].average == "9.5"
    assert frame.loc["fused"].points == 6


def test_times_stand_beside_the_quoted_ones_where_both_are():
    frame = tables.beside_earlier(story(), earlier_work()).frame.set_index("B")
    assert list(frame.index) == [1, 4, 16, 64]
    assert frame.loc[1, "quoted CUDA"] == 0.04 and frame.loc[1, "fused"] == 0.012
    assert frame["fused"].isna().tolist() == [False, False, False, True]


def test_yardsticks():
    frame = tables.yardsticks(story()).frame.set_index("B")
    assert list(frame) == ["× PyTorch, call", "of the roof"], "no peer, one clock"
    assert (
        frame.loc[1, "× PyTorch, call"] == "3.3 baseline" and frame.loc[1, "of the roof"] == "21%"
    )
    assert frame.loc[16, "× PyTorch, call"] == "17"


def test_yardsticks_have_the_range_of_their_runs_and_the_peers():
    both = twice(story(gpu=True), call=1.0, device=2.0)
    peers = [record("a peer", 36.0 * (1 + run), run=run, batch_size=1) for run in (0, 1)]
    both = dataclasses.replace(both, records=(*both.records, *peers))
    frame = tables.yardsticks(both).frame.set_index("B")
    assert frame.loc[1, "× peer, call"] == "4.5 (3.0 – 6.0) a peer"
    assert frame.loc[16, "× peer, call"] == "–"
    assert "× peer, device" not in frame, "its only clock is the wall clock"
    assert frame.loc[1, "× PyTorch, device"] == "17", "both are twice as slow in the second run"
    assert frame.loc[1, "of the roof"] == "16% (10% – 21%)"


def test_a_roof_taken_on_a_busy_machine_is_left_out():
    busy = spread(900.0, disturbed=0.9)
    table = tables.yardsticks(
        benchmark([record("baseline", 50.0), record("fused", 9.0, roof=busy)])
    )
    assert "of the roof" not in table.frame


def test_an_isolated_launch_stands_beside_the_graph_share_where_it_was_taken():
    before = story(gpu=True)
    taken = [
        dataclasses.replace(one, isolated=spread(99.0, "isolated launch"))
        if (one.implementation, one.batch_size) == ("cluster", 1)
        else one
        for one in before.records
    ]
    after = dataclasses.replace(before, records=tuple(taken))
    column = "B = 1, isolated launch"
    old, new = (record_tables.rungs(found, None) for found in (before, after))
    assert column not in old.frame and not old.values["is_isolated"]
    cells = new.frame.set_index("kernel")[column]
    assert cells["cluster"] == "99.0 µs" and cells["thread_per_sequence"] == "–"
    assert new.values["is_isolated"]


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
    table = tables.repeatability({"here": benchmark(wild)})
    assert table.frame["call: between"].tolist() == [pytest.approx(40)]
    assert table.values["repeated"] == [(1, 1)]


def test_each_clock_is_compared_with_itself():
    both = twice(story(gpu=True), call=1.5, device=2.0)
    table = tables.repeatability({"CPU": twice(story(), call=1.2), "GPU": both})
    frame = table.frame.set_index("implementation")
    assert frame.loc["fused", "GPU call: between"] == pytest.approx(100 * 0.5 / 1.25)
    assert frame.loc["fused", "GPU device: between"] == pytest.approx(100 / 1.5)
    assert frame.loc["fused", "CPU call: between"] == pytest.approx(100 * 0.2 / 1.1)
    assert math.isnan(frame.loc["baseline", "GPU device: between"])
    assert "CPU device: between" not in frame


def test_cold_caches_stand_beside_warm_ones():
    runs = {"CPU": with_cold(twice(story(), device=2.0)), "GPU": story(gpu=True)}
    table = tables.caches(runs)
    frame = table.frame.set_index("B")
    assert set(frame.index) == {1, 4, 16} and "on" not in frame
    assert frame.loc[1, "fused"] == "2.0"
    assert frame.loc[1, "fused, cold"] == "36.0 µs (24.0 – 48.0 µs)"
    assert frame.loc[1, "of the cold roof"] == "23% (16% – 31%)"
    assert table.values["clocks"] == {"CPU": {"wall": ["baseline", "vectorized", "fused"]}}


def test_the_solutions_and_the_times():
    frame = tables.solutions(story(), None).frame.set_index("implementation")
    assert list(frame.index) == ["baseline", "vectorized", "fused"]
    assert frame.loc["fused", "call time"] == "30.0 µs"
    assert frame.loc["fused", "of the roof"] == "33%"
    assert frame.loc["baseline", "operators"] == 960 and frame.loc["baseline", "waits"] == 192
    assert "launches" in tables.solutions(story(gpu=True), None).frame
    times = tables.times(story(), None).frame
    assert times["B"].tolist() == [1, 4, 16] and times["baseline"][0] == "40.0 µs"
    times = tables.times(twice(story(), call=1.5), None).frame
    assert times["baseline"][0] == "50.0 µs (40.0 – 60.0 µs)"
    once = dataclasses.replace(story(), records=(*story().records, record("one", 50.0)))
    assert "one" not in tables.times(once, None).frame


def test_the_kernels_have_their_ideas_and_a_dash_without_a_time():
    frame = tables.kernels(story(gpu=True), None).frame.set_index("kernel")
    assert list(frame.index) == list(rsk.KERNELS)
    assert frame.loc["cluster", "device time"] == "28.8 µs"
    assert frame.loc["split_vocabulary", "device time"] == "–"
    assert frame["its idea"].str.len().min() > 20


def test_the_environment_names_every_run():
    runs = {"CPU": CPU_PROVENANCE, "GPU": GPU_PROVENANCE, "another": CPU_PROVENANCE}
    frame = tables.environment(runs).frame.set_index("run")
    assert frame["machine"].tolist() == ["A", "B", "A"]
    column = tables.machines(runs).frame.set_index("machine")["GPU (compute capability)"]
    assert column.to_dict() == {"A": "–", "B": "a GPU (9.0)"}
