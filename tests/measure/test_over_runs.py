"""Whole runs that differ: both are seen, by each clock for itself, and none is picked."""

from __future__ import annotations

import dataclasses

import pytest
from measured import record, series, spread

from rsk.base import numbers
from rsk.measure import comparison
from rsk.measure.over_runs import OverRuns, Series, comparable, ratio
from rsk.measure.records import RecordError


def two_clocks(name: str, runs: dict[int, tuple[float, float]]) -> Series:
    """By run, the time of a call and that on the device of a GPU."""
    return series(
        *(
            record(
                name,
                call,
                run=run,
                device=spread(device, "graph replay"),
                roof=spread(5.0, "graph replay"),
            )
            for run, (call, device) in runs.items()
        )
    )


FUSED = two_clocks("fused", {0: (20.0, 10.0), 1: (40.0, 11.0)})
OTHER = two_clocks("vectorized", {0: (200.0, 50.0), 1: (100.0, 66.0)})


def test_each_clock_has_a_range_of_its_own() -> None:
    assert (FUSED.call.median_us, FUSED.call.least, FUSED.call.most) == (30, 20, 40)
    assert (FUSED.device.median_us, FUSED.device.least, FUSED.device.most) == (10.5, 10, 11)
    assert (FUSED.call.clock, FUSED.device.clock) == ("wall", "graph replay")
    assert FUSED.call.between == pytest.approx(2 / 3)
    assert FUSED.device.between == pytest.approx(1 / 10.5)
    assert FUSED.call.within == pytest.approx(0.1), "of the samples within a run"
    shares = FUSED.roof_share
    assert shares is not None and shares.by_run == {0: 0.5, 1: pytest.approx(5 / 11)}


def test_a_ratio_is_formed_within_each_run() -> None:
    gain = ratio(OTHER, FUSED)
    assert gain.by_run == {0: 10, 1: 2.5}, "not 200 / 40 nor 100 / 20"
    assert (gain.median, gain.least, gain.most) == (6.25, 2.5, 10)
    assert ratio(OTHER, FUSED, "device").by_run == {0: 5, 1: 6}
    assert numbers.times(gain) == "6.2 (2.5 – 10)"
    assert gain.inverse.by_run == {0: 0.1, 1: 0.4}


def test_the_median_of_several_runs_is_of_all_of_them() -> None:
    assert OverRuns({0: 1.0, 1: 9.0, 2: 2.0, 3: 3.0, 4: 8.0}).median == 3
    assert OverRuns({0: 1.0, 1: 9.0}).median == 5, "of two, neither is picked"
    with pytest.raises(ValueError, match="at least one run"):
        OverRuns({})


def test_two_clocks_are_not_divided() -> None:
    loop = series(record("baseline", 900.0))
    assert comparable(loop, FUSED) and not comparable(loop, FUSED, "device")
    with pytest.raises(
        ValueError, match="expected device times of one clock, got wall and graph replay"
    ):
        ratio(loop, FUSED, "device")
    with pytest.raises(ValueError, match="time: expected one of call, device, host, got 'gpu'"):
        ratio(loop, FUSED, "gpu")


def test_runs_that_are_not_shared_are_not_divided() -> None:
    late = two_clocks("vectorized", {1: (100.0, 60.0), 2: (9.0, 9.0)})
    assert ratio(late, FUSED).by_run == {1: 2.5}
    later = two_clocks("vectorized", {2: (100.0, 60.0)})
    assert not comparable(later, FUSED)
    with pytest.raises(ValueError, match="expected a run in which both were measured, got none"):
        ratio(later, FUSED)


def test_what_is_no_series_is_refused() -> None:
    one = record("fused", 20.0)
    for others in ([record("baseline", 20.0)], [one], [record("fused", 20.0, batch_size=9, run=1)]):
        with pytest.raises(ValueError, match="expected one implementation at one point, each run"):
            series(one, *others)
    graph = dataclasses.replace(one, run=1, device=spread(20.0, "graph replay"))
    with pytest.raises(RecordError, match="clock: expected one over all runs, got graph replay an"):
        _ = series(one, graph).device


def test_the_best_rival_is_chosen_over_all_runs_and_the_ratio_within_each() -> None:
    """``lucky`` has the fastest single run; ``steady`` is the faster one in the median."""
    lucky = two_clocks("lucky", {0: (10.0, 10.0), 1: (90.0, 90.0)})
    steady = two_clocks("steady", {0: (30.0, 30.0), 1: (32.0, 32.0)})
    by_name = {"fused": FUSED, "lucky": lucky, "steady": steady, "vectorized": OTHER}
    best = comparison.best_peer(by_name)
    assert best is steady and ratio(best, FUSED).by_run == {0: 1.5, 1: 0.8}
    assert comparison.best_pytorch(by_name) is OTHER
    loop = series(record("baseline", 25.0), record("baseline", 25.0, run=1))
    assert comparison.best_pytorch({**by_name, "baseline": loop}) is loop
    assert comparison.best_pytorch({**by_name, "baseline": loop}, "device") is OTHER
    assert comparison.best_peer({"fused": FUSED, "vectorized": OTHER}) is None


def test_where_the_runs_disagree_neither_has_won() -> None:
    from measured import benchmark

    records = [record("baseline", 100.0, run=run, batch_size=b) for run in (0, 1) for b in (1, 4)]
    records += [record("vectorized", 50.0, run=run, batch_size=1) for run in (0, 1)]
    records += [record("vectorized", 50.0 + 100 * run, run=run, batch_size=4) for run in (0, 1)]
    assert comparison.against_baseline(benchmark(records), "vectorized") == ([1], [], [4])


def test_numbers_over_runs_are_written_with_their_range() -> None:
    assert numbers.over_runs(FUSED.call) == "30.0 µs (20.0 – 40.0 µs)"
    assert numbers.over_runs(series(record("fused", 20.0)).call) == "20.0 µs", "one run has none"
    assert numbers.run_range(series(record("fused", 20.0)).call) == "–"
    assert numbers.over_runs(OverRuns({0: 990.0, 1: 1010.0})) == "1.00 ms (990 µs – 1.01 ms)"
    assert numbers.share(OverRuns({0: 0.5, 1: 0.6})) == "55% (50% – 60%)"
    assert numbers.share(None) == "–"
    assert numbers.times(OverRuns({0: 21.2, 1: 21.3})) == "21", "the same in two digits"
