"""What the chapter on logits measures and shows of recorded times."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from rsk.base import folders
from rsk.course import from_logits, publish
from rsk.figures import record_tables
from rsk.measure import logits_benchmark
from rsk.measure.logit_inputs import TEMPERATURE, make_inputs
from rsk.measure.logits_benchmark import LogitsBenchmark
from rsk.sampler import row_law


@pytest.fixture
def shown(monkeypatch, tmp_path):
    bundles = []
    monkeypatch.setattr(publish, "_display", bundles.append)
    monkeypatch.setattr(folders, "data_dir", lambda: tmp_path)
    (tmp_path / "logits").mkdir()
    return bundles


def test_times_that_are_not_recorded_are_not_shown(shown):
    from_logits.show_recorded()
    (bundle,) = shown
    assert "Not recorded yet" in bundle["text/plain"]


def test_recorded_times_are_shown_with_where_they_are_from(shown, monkeypatch, tmp_path):
    monkeypatch.setattr(logits_benchmark, "DRY_SHAPES", ((2, 300),))
    file = tmp_path / "logits" / "cpu.json"
    logits_benchmark.main(["--save", str(file), "--runs", "2", "--dry"])
    found = LogitsBenchmark.load(file)
    older = dataclasses.replace(found.provenance, date="2020-01-01T00:00:00+00:00", torch="1.0")
    dataclasses.replace(found, provenance=older).save(file.with_stem("z"))  # last by its name
    from_logits.show_recorded()
    banner, table = shown
    assert "PyTorch 1.0" not in banner["text/plain"]
    assert banner["text/plain"].startswith("Recorded")
    assert "over 2 whole runs" in table[publish.MIME]["caption"]
    monkeypatch.setattr(record_tables, "NEAR", -1.0)  # ranges are shown, however narrow
    frame = record_tables.from_logits(LogitsBenchmark.load(file)).frame
    assert list(frame["logits"]) == ["bfloat16", "float32"]
    assert list(frame.columns[3:]) == [
        *("temperature", "temperature, laws given"),
        *("top-k 50, top-p 0.9", "top-k 50, top-p 0.9, laws given"),
    ]
    assert frame.iloc[:, 3:].map(lambda text: "%" in text).all(axis=None)
    assert frame.iloc[:, 3:].map(lambda text: "(" in text).any(axis=None)
    monkeypatch.setattr(record_tables, "NEAR", math.inf)
    frame = record_tables.from_logits(LogitsBenchmark.load(file)).frame
    assert not frame.iloc[:, 3:].map(lambda text: "(" in text).any(axis=None)


def test_a_fused_step_rounds_otherwise_but_hardly_differs():
    x = 3 * torch.randn(1, 20000, generator=torch.Generator().manual_seed(0))
    maximum, scale = x.amax(-1, keepdim=True), torch.tensor(1.5)
    plain = row_law.relative_weight(x, maximum, scale)
    fused = from_logits.fused_weight(x, maximum, scale)
    assert not torch.equal(plain, fused)
    assert torch.allclose(plain, fused, rtol=3e-7, atol=0)


def test_the_softmax_is_timed_beside_the_samplers():
    inputs = make_inputs(2, 300, TEMPERATURE, noise=0.5)
    times = from_logits.time_softmax(inputs, budget_s=0.002)
    assert next(iter(times)) == from_logits.SOFTMAX and len(times) == 4
