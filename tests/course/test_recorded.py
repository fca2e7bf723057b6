"""What notebook 04 shows of recorded runs: nothing without data, and what the data say with it."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from measured import GPU_PROVENANCE, story, twice

from rsk.base import folders
from rsk.course import kernel_records, lesson
from rsk.measure import resources
from rsk.measure.records import RecordError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder."""
    for room in ("benchmarks", "kernels"):
        (tmp_path / room).mkdir()
    monkeypatch.setattr(folders, "data_dir", lambda: tmp_path)
    monkeypatch.setattr(resources, "data_dir", lambda: tmp_path)
    return tmp_path


def test_without_data_the_chapter_cannot_be_shown(folder):
    for show in (kernel_records.kernel_times, lambda: kernel_records.show_gpu_run(story())):
        with pytest.raises(RecordError, match="expected a run on cuda that may be published"):
            show()
    with pytest.raises(RecordError, match=r"resources\.json is missing"):
        kernel_records.show_resources()


def test_a_recorded_run_is_shown_with_its_label(folder, capsys):
    twice(story()).save(folder / "benchmarks" / "cpu.json")
    twice(story(gpu=True)).save(folder / "benchmarks" / "gpu.json")
    times = kernel_records.kernel_times(story())
    assert times.is_recorded
    times.compare("cluster", lesson.predict("time", 3, "µs"), batch_size=4)
    times.compare("split_vocabulary", lesson.predict("time", 3, "µs"), batch_size=4)
    times.show_choice(batch_size=4)
    kernel_records.show_gpu_run(story())
    said = capsys.readouterr().out
    assert said.count("Recorded on a GPU, driver 1.2.3") == 3
    cluster = times.at(4)["cluster"].device.median_us
    assert f"{cluster:.1f} µs" in said
    assert "the fastest kernel is `cluster`" in said
    assert said.count("Not measured yet on a GPU") == 1, "that run holds no time of the other"
    with pytest.raises(RecordError, match="not measured up to B = 0"):
        times.show_choice(batch_size=0)


def test_the_newest_run_counts_and_one_from_here_before_it(folder):
    older = dataclasses.replace(GPU_PROVENANCE, date="2025-01-01T00:00:00+00:00", gpu="old")
    run = twice(story(gpu=True))
    dataclasses.replace(run, provenance=older).save(folder / "benchmarks" / "z.json")
    run.save(folder / "benchmarks" / "a.json")
    assert kernel_records.kernel_times().benchmark.provenance.gpu == "a GPU"
    here = kernel_records.kernel_times(story(gpu=True))
    assert not here.is_recorded and here.benchmark.provenance.gpu == "a GPU"


def test_a_batch_size_up_to_the_one_asked_for(folder):
    times = kernel_records.kernel_times(story(gpu=True))
    assert times.at(64)["cluster"].batch_size == 16
    assert times.at(15)["cluster"].batch_size == 4


ROW = {
    "kernel": "cluster",
    "dtype": "float32",
    "architecture": "90a",
    "registers": 61,
    "shared_bytes": 2048,
    "stack_bytes": 0,
    "spill_stores": 0,
    "spill_loads": 8,
}


def test_resources_are_read_from_the_file(folder, capsys):
    path = folder / "kernels" / "resources.json"
    path.write_text(json.dumps({"nvcc": "13.0", "flags": "-O3", "kernels": [ROW]}))
    kernel_records.show_resources()
    said = capsys.readouterr().out
    assert "sm_90a" in said and "61" in said and "8 bytes are spilled" in said
    path.write_text(
        json.dumps({"nvcc": "13.0", "flags": "", "kernels": [{**ROW, "registers": ""}]})
    )
    with pytest.raises(RecordError, match=r"resources.json: kernels\[0\].registers"):
        resources.load()


def test_the_file_in_the_repository_is_sound():
    assert all(math.isfinite(one.registers) for one in resources.load().kernels)
