"""Which recorded runs may be published, and why the others may not."""

from __future__ import annotations

import dataclasses

import pytest
from measured import record, spread, story, twice

from rsk.base import folders
from rsk.measure import publishable_runs
from rsk.measure.records import Benchmark, RecordError

GOOD = twice(story())


def without(benchmark, **fields):
    """The run without the records that have these fields."""
    kept = [r for r in benchmark.records if any(getattr(r, k) != v for k, v in fields.items())]
    return dataclasses.replace(benchmark, records=tuple(kept))


def disturbed(benchmark, count=None, **fields):
    """The run with other programs in the way of the records that have these fields."""
    records, left = [], count
    for r in benchmark.records:
        if left != 0 and all(getattr(r, name) == value for name, value in fields.items()):
            r = dataclasses.replace(r, call=spread(r.call.median_us, disturbed=0.9))
            left = None if left is None else left - 1
        records.append(r)
    return dataclasses.replace(benchmark, records=tuple(records))


REFUSED = {
    "unfinished": (dataclasses.replace(GOOD, complete=False), "the sweep was not finished"),
    "wrong": (dataclasses.replace(GOOD, refused=("fused: wrong",)), "wrong or impossible: fused"),
    "once": (story(), "it is 1 run of the sweep, of 2 at least"),
    "no fused": (without(GOOD, implementation="fused"), "fused was not measured at batch_size 1"),
    "a hole": (
        without(GOOD, implementation="vectorized", spec_len=8),
        "vectorized was not measured at spec_len 8",
    ),
    "one V": (without(GOOD, vocab_size=1000), "vocab_size: expected several values, got 32000"),
    "no counts": (dataclasses.replace(GOOD, operations=()), "operations of baseline were not"),
    "busy": (disturbed(GOOD, implementation="baseline"), "other programs disturbed 12 of 36 times"),
    "no kernel": (
        without(twice(story(gpu=True)), implementation="thread_per_sequence"),
        "thread_per_sequence was not measured at batch_size 1",
    ),
    "no checksum": (
        dataclasses.replace(GOOD, provenance=dataclasses.replace(GOOD.provenance, sources="abc")),
        "sources: expected a SHA-256, got 'abc'",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_may_not_be_published_is_refused_with_a_reason(what):
    run, reason = REFUSED[what]
    assert reason in publishable_runs.refusal(run)


def test_a_run_may_be_published():
    assert publishable_runs.refusal(GOOD) == ""
    assert publishable_runs.refusal(twice(story(gpu=True))) == ""


def test_few_disturbances_off_the_lines_are_borne():
    far = [record("fused", 50.0 + i, batch_size=4, acceptance=0.3 + i / 1000)
           for i in range(400)]  # fmt: skip
    many = dataclasses.replace(GOOD, records=(*GOOD.records, *far))
    assert publishable_runs.refusal(disturbed(many, 4, acceptance=0.3)) == ""
    one = disturbed(many, implementation="fused", batch_size=16)
    assert "other programs disturbed fused at Point(batch_size=16" in publishable_runs.refusal(one)


def test_a_run_from_here_has_to_be_of_the_sources_that_are_here():
    from rsk.measure.provenance import sources

    assert publishable_runs.refusal(GOOD, here=True) == "the samplers have changed since"
    now = dataclasses.replace(GOOD.provenance, sources=sources("cpu"))
    assert publishable_runs.refusal(dataclasses.replace(GOOD, provenance=now), here=True) == ""


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "data_dir", lambda: tmp_path)
    (tmp_path / "benchmarks").mkdir()
    return tmp_path / "benchmarks"


def dated(benchmark, date):
    provenance = dataclasses.replace(benchmark.provenance, date=f"{date}T00:00:00+00:00")
    return dataclasses.replace(benchmark, provenance=provenance)


def test_the_newest_that_may_be_published(data):
    with pytest.raises(RecordError, match="expected a run on cpu that may be published; make mea"):
        publishable_runs.newest("cpu")
    dated(GOOD, "2026-01-01").save(data / "b.json")
    dated(GOOD, "2026-02-01").save(data / "a.json")
    dated(story(), "2026-03-01").save(data / "c.json")  # run once
    twice(story(gpu=True)).save(data / "gpu.json")
    assert publishable_runs.newest("cpu").provenance.date.startswith("2026-02-01")
    assert [run.provenance.date[:7] for run in publishable_runs.all_runs("cpu")] == [
        *("2026-01", "2026-02", "2026-03"),
    ]
    assert publishable_runs.newest("cuda").provenance.device == "cuda"


def test_the_run_with_other_instructions_is_of_the_same_processor(data):
    def made(date, **fields):
        run = dated(twice(story()), date)
        provenance = dataclasses.replace(run.provenance, **fields)
        dataclasses.replace(run, provenance=provenance).save(data / f"{date}.json")

    assert publishable_runs.of_other_instructions(GOOD) is None
    made("2026-01-01")
    made("2026-01-02", instructions="NONE", cpu="another one")
    assert publishable_runs.of_other_instructions(GOOD) is None
    made("2026-01-03", instructions="NONE")
    made("2026-01-04", instructions="MORE")
    dated(dataclasses.replace(GOOD, complete=False), "2026-01-05").save(data / "unfinished.json")
    assert publishable_runs.of_other_instructions(GOOD).provenance.date.startswith("2026-01-04")


def test_the_reasons_are_named_where_none_is_left(data):
    dated(story(), "2026-03-01").save(data / "c.json")
    with pytest.raises(RecordError, match=r"refused: a processor.*2026-03-01: it is 1 run"):
        publishable_runs.newest("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_shipped_may_be_published(device):
    assert publishable_runs.refusal(publishable_runs.newest(device)) == ""
    assert publishable_runs.refusal(publishable_runs.all_runs(device)[-1]) == ""


def test_a_file_is_parsed_once_and_again_when_it_changed(tmp_path):
    path = tmp_path / "run.json"
    GOOD.save(path)
    assert Benchmark.load(path) is Benchmark.load(path)
    story().save(path)
    assert Benchmark.load(path) == story()
