"""A sweep that was cut off, without the run that it was cut off in."""

from __future__ import annotations

import dataclasses

import pytest
from measured import benchmark, record, spread

from rsk.measure import whole_runs
from rsk.measure.peer_records import FromLogits, FromProbs, PeersRecord
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


def test_what_is_measured_part_by_part_is_cut_too(tmp_path):
    """A run of peers is whole with its times from probabilities and from logits."""
    time = spread(20.0)
    some = {"name": "fused", "batch_size": 1, "spec_len": 4, "vocab_size": 97, "dtype": "bfloat16"}
    some |= {"ways": "temperature", "device": time, "host": time, "call": time, "isolated": None}
    made = benchmark([])
    found = PeersRecord(
        schema=PeersRecord.SCHEMA, provenance=made.provenance, settings={"runs": 5}, complete=False,
        failed=("a line",), found=(),
        from_probs=tuple(
            FromProbs(record=record("fused", 20.0, run=run), isolated=None) for run in range(3)
        ),
        from_logits=tuple(FromLogits(run=run, **some) for run in range(2)),
    )  # fmt: skip
    path = tmp_path / "peers.json"
    found.save(path)
    assert whole_runs.main([str(path)]) == 0
    cut = PeersRecord.load(path)
    assert (cut.complete, cut.settings, cut.runs) == (True, {"runs": 2}, 2)
    assert [one.record.run for one in cut.from_probs] == [0, 1]
    assert cut.failed == ("a line", "run 3: it was cut off, and is left out")


@pytest.mark.parametrize("content", ['{"schema": "something/1"}', "{}", "[]", '{"schema": []}'])
def test_a_file_of_another_kind_is_refused(content, tmp_path, capsys):
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(SystemExit):
        whole_runs.main([str(path)])
    assert "schema: expected one of rsk-benchmark/1, rsk-peers/1" in capsys.readouterr().err


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
