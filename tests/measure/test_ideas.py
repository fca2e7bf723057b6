"""The ideas: each changes the sources as they are, and a spoilt record is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess

import pytest

from rsk.base.folders import cuda_dir, data_dir
from rsk.measure import ideas
from rsk.measure.implementations import backend
from rsk.measure.records import Point
from rsk.sampler import build
from rsk.sampler.api import RejectionSamples


@functools.cache
def fast_flags(nvcc):
    """Nobody runs what is compiled: so little as possible is done to make it fast."""
    known = subprocess.run([nvcc, "--help"], capture_output=True, text=True, check=True).stdout
    return ["--Ofast-compile=max"] if "--Ofast-compile" in known else []


@pytest.mark.parametrize("idea", ideas.IDEAS, ids=lambda idea: idea.name)
def test_each_idea_changes_the_sources_and_compiles(idea, tmp_path):
    folder = tmp_path / "cuda"
    shutil.copytree(cuda_dir(), folder)
    ideas.changed_sources(idea, folder)
    nvcc = build.find_nvcc()
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    command = [
        nvcc,
        *build.CUDA_FLAGS,
        *fast_flags(nvcc),
        "-arch=sm_90a",
        "-cubin",
        "-o",
        str(tmp_path / "x"),
    ]
    done = subprocess.run(
        [*command, str(folder / "cluster.cu")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_change_that_no_longer_applies_is_an_error(tmp_path):
    (tmp_path / "cluster.cu").write_text("int x = 1;")
    stale = ideas.Idea("stale", "", (ideas.Change("cluster.cu", "int y", "int z"),))
    with pytest.raises(ValueError, match="stale: expected 'int y' once in cluster.cu, found 0"):
        ideas.changed_sources(stale, tmp_path)


def test_only_right_tokens_get_a_time(monkeypatch):
    point = Point(2, 2, 500, "float32", 0.7, "warm")
    (time_us,) = ideas.measure_points([point], "cpu")
    assert time_us > 0
    wrong = dataclasses.replace(
        backend("fused"), result=lambda out: RejectionSamples(out[0] + 1, out[1])
    )
    monkeypatch.setattr(ideas, "backend", lambda name: wrong)
    assert ideas.measure_points([point], "cpu") == [None]


def test_the_shipped_record():
    record = ideas.load()
    assert record.points == ideas.POINTS
    assert [one.name for one in record.ideas] == [one.name for one in ideas.IDEAS]
    assert record.provenance.device == "cuda"


def test_a_run_is_saved_where_no_folder_is_yet(tmp_path, monkeypatch):
    path = tmp_path / "new" / "ideas.json"
    measured = ideas.load()

    def run():
        assert path.parent.is_dir(), "a place that cannot be written is found out before"
        return measured

    monkeypatch.setattr(ideas, "run", run)
    monkeypatch.setattr(ideas, "runs_on", lambda name, device: True)
    monkeypatch.setattr(ideas, "provenance", lambda device: measured.provenance)
    monkeypatch.setattr(ideas.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("sys.argv", ["ideas", "--save", str(path)])
    assert ideas.main() == 0
    assert ideas.load(path) == measured and list(path.parent.iterdir()) == [path]
    shipped = sorted((data_dir() / "kernels").glob("ideas-*.json"))
    assert path.read_bytes() in [each.read_bytes() for each in shipped], "the format is the same"

    def stopped(self, target):
        raise KeyboardInterrupt

    again = dataclasses.replace(measured, again_us=measured.unchanged_us)
    monkeypatch.setattr(type(path), "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        again.save(path)
    assert ideas.load(path) == measured, "what was there is whole until the new one is"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "expected schema 1, got 99"),
        ({"points": [{"batch_size": 1}]}, "not a run of rsk.measure.ideas"),
        ({"provenance": {}}, r"not a run of rsk.measure.ideas: provenance.date: missing"),
        ({"unchanged_us": [1.0]}, "expected a positive time for each point"),
        ({"unchanged_us": [-1.0] * len(ideas.POINTS)}, "expected a positive time"),
    ],
)
def test_a_spoilt_record_is_refused(change, message, tmp_path):
    path = next(iter(sorted((data_dir() / "kernels").glob("ideas-*.json"))))
    spoilt = tmp_path / "ideas.json"
    spoilt.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        ideas.load(spoilt)
