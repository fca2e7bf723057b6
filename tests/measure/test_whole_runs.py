"""A sweep that was cut off, without the run that it was cut off in."""

from __future__ import annotations

import dataclasses

import pytest
from measured import benchmark, record

from rsk.measure import whole_runs
from rsk.measure.records import Benchmark, RecordError
from rsk.measure.sweep import OUT_OF_TIME


def cut_off(*counts):
    """Runs of so many times each."""
    records = [
        record("fused", 20.0, run=run, batch_size=size)
        for run, count in enumerate(counts)
        for size in (1, 4, 16)[:count]
    ]
    made = benchmark(records, complete=False, skipped=("a line", OUT_OF_TIME))
    return dataclasses.replace(made, settings={**made.settings, "runs": 5})


def test_the_run_that_was_cut_off_is_left_out_and_told_of(tmp_path):
    path = tmp_path / "record.json"
    cut_off(3, 3, 1).save(path)
    assert whole_runs.main([str(path)]) == 0
    found = Benchmark.load(path)
    assert found.complete and found.settings["runs"] == 2
    assert [one.run for one in found.records] == [0, 0, 0, 1, 1, 1]
    assert found.skipped == ("a line", "run 3: it was cut off, and is left out")


def test_a_single_run_is_none(tmp_path, capsys):
    with pytest.raises(RecordError, match="two whole runs"):
        whole_runs.whole_runs(cut_off(3, 1))
    path = tmp_path / "record.json"
    cut_off(3, 1).save(path)
    with pytest.raises(SystemExit):
        whole_runs.main([str(path)])
    assert "two whole runs" in capsys.readouterr().err


def test_a_complete_sweep_stays_as_it_is():
    whole = dataclasses.replace(cut_off(3, 3), complete=True)
    assert whole_runs.whole_runs(whole) is whole
