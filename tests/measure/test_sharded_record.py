"""The measurement of the sharded sampler: its schema, its cost model, and a run over gloo."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys

import pytest
import sharded_cost
from rich.console import Console
from typer.testing import CliRunner

from rsk.base.folders import data_dir
from rsk.cli import app
from rsk.measure import sharded, sharded_clocks
from rsk.measure.record_files import RecordFile
from rsk.measure.records import RecordError
from rsk.measure.sharded_point import ShardedPoint
from rsk.measure.sharded_records import STARTS, Link, Sharded
from rsk.sampler import build

RECORDS = sorted((data_dir() / "sharded").glob("*.json"))
LINK = Link(
    ranks=2,
    gather_us=10.0,
    reduce_us=10.0,
    gather_bytes_us=3e5,
    memory_bytes_us=2.5e6,
    launch_us=2.0,
    lanes=132 * 128,
    clock_mhz=1980.0,
)


@pytest.fixture(scope="module")
def over_gloo():
    return sharded.run(2, quick=True)


@pytest.mark.slow
def test_a_run_over_gloo_compares_and_times_nothing(over_gloo, tmp_path):
    assert over_gloo.backend == "gloo" and over_gloo.link is None
    assert {record.start for record in over_gloo.records} == set(STARTS)
    for record in over_gloo.records:
        assert record.equal and record.sharded is None and record.speedup is None
    over_gloo.save(tmp_path / "x.json")
    assert Sharded.load(tmp_path / "x.json") == over_gloo
    page = io.StringIO()
    sharded.show(over_gloo, Console(file=page, width=140))
    assert "correctness run" in page.getvalue() and "NO" not in page.getvalue()


@pytest.mark.slow
def test_the_command_line(over_gloo, monkeypatch, tmp_path):
    monkeypatch.setattr(sharded, "run", lambda ranks, **_: over_gloo)
    arguments = ["benchmark", "--sharded", "2", "--save", str(tmp_path / "x.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "correctness run" in done.output, done.output
    assert Sharded.load(tmp_path / "x.json") == over_gloo


def test_no_ranks():
    with pytest.raises(ValueError, match="--sharded: expected at least 1 rank, got 0"):
        sharded.run(0)


def test_no_compiler_is_needed_on_a_cpu(tmp_path):
    """In a process that has loaded no kernel: without one, its operators do not exist."""
    code = (
        "from rsk.measure import sharded, sharded_rank\n"
        "if __name__ == '__main__':\n"
        "    sharded.spawn = lambda measure_on, arguments, nprocs: measure_on(0, *arguments)\n"
        "    sharded_rank.CALLS = 1\n"
        "    found = sharded.run(1, quick=True)\n"
        "    print(found.rival, all(one.equal for one in found.records), len(found.records))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"RSK_CACHE_DIR": str(tmp_path), "CXX": "no-such-compiler", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "vectorized True 6\n", done.stderr


@pytest.mark.parametrize("told", ["", "[N/A]", "No devices were found"])
def test_a_clock_that_is_not_told_is_known_before_ranks_are_started(told, monkeypatch):
    started = []
    monkeypatch.setattr(sharded_clocks.machine, "output_of", lambda *command: told)
    monkeypatch.setattr(build, "load", lambda library: None)
    monkeypatch.setattr(sharded, "spawn", lambda *arguments, **more: started.append(arguments))
    monkeypatch.setattr(sharded.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sharded.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecordError, match="clock_mhz: expected a clock in MHz from nvidia-smi, go"):
        sharded.run(2)
    assert not started


def test_the_clock_is_that_of_the_first_gpu(monkeypatch):
    told = "1980 MHz\n1755 MHz"
    monkeypatch.setattr(sharded_clocks.machine, "output_of", lambda *command: told)
    assert sharded_clocks.clock_mhz() == 1980.0


@pytest.mark.slow
def test_the_bytes_on_paper_are_those_that_were_sent(over_gloo):
    for record in over_gloo.records:
        item_bytes = 4 if record.dtype == "float32" else 2
        sizes = record.batch_size, record.spec_len, record.vocab_size
        point = ShardedPoint(record.start, *sizes, over_gloo.ranks, item_bytes)
        assert record.sent_bytes == sharded_cost.sent_bytes(point)
        assert record.collectives == sharded_cost.gathers(point) + 1


@pytest.mark.slow
def test_a_time_of_gloo_is_refused(over_gloo, tmp_path):
    over_gloo.save(tmp_path / "x.json")
    data = json.loads((tmp_path / "x.json").read_text())
    data["backend"] = "nccl"
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(RecordError, match="times are of nccl"):
        Sharded.load(tmp_path / "x.json")


def test_a_file_of_a_newer_version_is_told_so_before_its_fields(tmp_path):
    data = json.loads(RECORDS[-1].read_text()) | {"schema": "rsk-sharded/2", "another": 1}
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(RecordError, match="'rsk-sharded/2'; it was written by a newer rsk"):
        Sharded.load(tmp_path / "x.json")


def test_every_kind_of_record_file_has_its_version():
    every = [kind for one in RecordFile.__subclasses__() for kind in (one, *one.__subclasses__())]
    ours = [kind for kind in every if kind.__module__.startswith("rsk.")]
    without = {kind.__name__ for kind in ours if not getattr(kind, "SCHEMA", None)}
    # The first is no file of its own; the second has never had one, and has no machine either.
    assert Sharded in ours and without <= {"PartsRecord", "ResourceTable"}, without


class TestTheModel:
    def test_bytes_grow_with_requests_not_with_the_vocabulary(self):
        for start in STARTS:
            small = ShardedPoint(start, 64, 4, 32000, 8, 2)
            wide, many = small._replace(vocab_size=262144), small._replace(batch_size=1024)
            sent = sharded_cost.sent_bytes
            assert sent(small) == sent(wide) < sent(many)
            assert small.gathered_bytes * 8 < wide.gathered_bytes

    def test_more_ranks_read_less_and_wait_longer(self):
        two = ShardedPoint("probabilities", 64, 4, 128256, 2, 4)
        eight = two._replace(ranks=8)
        ours, theirs = sharded_cost.sharded(two, LINK), sharded_cost.sharded(eight, LINK)
        assert theirs.reading_us < ours.reading_us
        assert theirs.collectives_us > ours.collectives_us

    def test_rows_read_without_and_with_other_ranks(self):
        alone = ShardedPoint("probabilities", 1, 4, 1000, 1, 4, acceptance=0.5)
        pairs, bonus = sharded_cost.rows_read(alone)
        # As on one device: a pair where a draft is rejected, else the bonus row.
        assert pairs == pytest.approx(1 - 0.5**4) and bonus == pytest.approx(0.5**4)
        pairs, bonus = sharded_cost.rows_read(alone._replace(ranks=1000))
        assert pairs == pytest.approx(4, rel=0.01) and bonus == pytest.approx(1, rel=0.01)

    @pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
    def test_it_agrees_with_what_was_measured(self, path):
        result = Sharded.load(path)
        if result.link is None:
            pytest.skip("nothing was timed")
        for record in result.records:
            item_bytes = 4 if record.dtype == "float32" else 2
            sizes = record.batch_size, record.spec_len, record.vocab_size
            point = ShardedPoint(record.start, *sizes, result.ranks, item_bytes, record.acceptance)
            assert record.sent_bytes == sharded_cost.sent_bytes(point)
            assert record.gathered_bytes == point.gathered_bytes
            predicted = sum(sharded_cost.sharded(point, result.link))
            measured = record.sharded.graph.median_us
            assert 0.6 < predicted / measured < 1.5, (record.start, *sizes, predicted, measured)
            if not point.from_logits:
                predicted = sum(sharded_cost.gathered(point, result.link))
                measured = record.gathered.graph.median_us
                assert 0.6 < predicted / measured < 1.5, (*sizes, predicted, measured)

    @pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
    def test_every_recorded_result_was_right_and_faster_from_16_requests_on(self, path):
        for record in Sharded.load(path).records:
            assert record.equal
            if record.batch_size >= 16 and record.sharded is not None:
                assert record.speedup > 1, dataclasses.asdict(record)
