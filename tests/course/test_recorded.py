"""What notebook 04 shows of recorded runs: nothing without data, and what the data say with it."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from measured import CPU_PROVENANCE, GPU_PROVENANCE, story

from rsk.base import folders
from rsk.course import kernel_records, lesson
from rsk.measure.records import RecordError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder."""
    for room in ("benchmarks", "kernels"):
        (tmp_path / room).mkdir()
    monkeypatch.setattr(folders, "data_dir", lambda: tmp_path)
    return tmp_path


def test_no_data_is_said(folder, capsys):
    times = kernel_records.kernel_times(story())
    assert times.benchmark is None and times.at(64) == {}
    times.compare("cluster", lesson.predict("time", 3, "µs"), batch_size=64)
    times.show_choice(batch_size=64)
    kernel_records.show_gpu_run(story())
    kernel_records.show_resources()
    said = capsys.readouterr().out
    assert said.count("Not measured yet on a GPU") == 2 and "not measured yet" in said
    assert "Not recorded yet" in said


def test_a_recorded_run_is_shown_with_its_label(folder, capsys):
    story().save(folder / "benchmarks" / "cpu.json")
    story(gpu=True).save(folder / "benchmarks" / "gpu.json")
    times = kernel_records.kernel_times(story())
    assert times.is_recorded
    times.compare("cluster", lesson.predict("time", 3, "µs"), batch_size=4)
    times.show_choice(batch_size=4)
    kernel_records.show_gpu_run(story())
    said = capsys.readouterr().out
    assert said.count("Recorded on a GPU, driver 1.2.3") == 3
    cluster = times.at(4)["cluster"].device.median_us
    assert f"measured: {cluster:.1f} µs" in said
    assert "the fastest kernel is `cluster`" in said


def test_the_newest_run_counts_and_one_from_here_before_it(folder):
    older = dataclasses.replace(GPU_PROVENANCE, date="2025-01-01T00:00:00+00:00", gpu="old")
    dataclasses.replace(story(gpu=True), provenance=older).save(folder / "benchmarks" / "z.json")
    story(gpu=True).save(folder / "benchmarks" / "a.json")
    assert [run.provenance.gpu for run in kernel_records.gpu_runs()] == ["old", "a GPU"]
    assert kernel_records.kernel_times().benchmark.provenance.gpu == "a GPU"
    here = kernel_records.kernel_times(story(gpu=True))
    assert not here.is_recorded and here.benchmark.provenance.gpu == "a GPU"
    assert CPU_PROVENANCE.gpu is None


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
        kernel_records.resources()


def test_the_file_in_the_repository_is_sound():
    found = kernel_records.resources()
    assert found is None or all(math.isfinite(one.registers) for one in found.kernels)
