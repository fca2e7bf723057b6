"""The benchmark from logits: its inputs, its bytes, its file, and a trial of the program."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import rsk
from rsk.measure import logit_inputs, logits_benchmark, roof
from rsk.measure.logit_inputs import (
    FILTERED,
    SPEC_LEN,
    TEMPERATURE,
    make_inputs,
    mean_needed_bytes,
    needed_bytes,
)
from rsk.measure.logits_benchmark import LogitsBenchmark
from rsk.measure.records import RecordError


@pytest.mark.parametrize("ways", [TEMPERATURE, FILTERED])
def test_the_noise_makes_the_acceptance_rate(ways):
    noise = logit_inputs.noise_for(ways, 2000, "cpu")
    inputs = make_inputs(200, 2000, ways, noise=noise, seed=9)
    q = rsk.probabilities(inputs.draft_logits, **ways.arguments)
    p = rsk.probabilities(inputs.target_logits, **ways.arguments)[:, :SPEC_LEN]
    assert p.minimum(q).sum(-1).mean().item() == pytest.approx(0.7, abs=0.06)


def test_the_needed_rows_are_counted():
    inputs = make_inputs(2, 100, FILTERED, noise=0.5, dtype=torch.bfloat16)
    n = torch.tensor([1, SPEC_LEN])  # one rejection at position 1; all accepted
    row = 100 * 2
    assert needed_bytes(inputs, n, draft_laws=False) == (2 + SPEC_LEN + 1 + 2 + SPEC_LEN) * row
    assert needed_bytes(inputs, n, draft_laws=True) == (2 + SPEC_LEN + 1 + 1) * row


def test_the_needed_bytes_of_a_call_are_a_mean_over_the_calls_in_rotation():
    sets = [make_inputs(1, 100, FILTERED, noise=0.5, seed=seed) for seed in (0, 1)]
    row = 100 * 4
    accepted = [torch.tensor([n]) for n in (0, 1, 2, SPEC_LEN)]  # rows: 1 + 1, 2 + 1, 3 + 1, 5
    assert mean_needed_bytes(sets, accepted, draft_laws=True) == round(14 / 4 * row)
    assert mean_needed_bytes(sets, accepted, draft_laws=False) == round(
        (11 + 1 + 2 + 3 + 4) / 4 * row
    )


def test_a_sampler_from_logits_that_undercuts_the_roof_is_refused(monkeypatch, tmp_path, capsys):
    measure = roof.measure

    def slow(n_bytes, *arguments, **options):
        found = measure(n_bytes, *arguments, **options)
        times = dict.fromkeys(("q25_us", "median_us", "q75_us"), 1e9)
        return dataclasses.replace(
            found, time=dataclasses.replace(found.time, disturbed=0.0, **times)
        )

    monkeypatch.setattr(roof, "measure", slow)
    monkeypatch.setattr(logits_benchmark, "DRY_SHAPES", ((2, 300),))
    with pytest.raises(RecordError, match="results: expected"):
        logits_benchmark.main(["--save", str(tmp_path / "x.json"), "--runs", "1", "--dry"])
    assert "below the memory roof, 1e+09 us" in capsys.readouterr().out


def test_the_program_writes_a_record_that_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(logits_benchmark, "DRY_SHAPES", ((2, 300),))
    file = tmp_path / "times.json"
    logits_benchmark.main(["--save", str(file), "--runs", "2", "--dry"])
    found = LogitsBenchmark.load(file)
    assert found.runs == 2 and len(found.results) == 2 * 2 * 2 * 2
    assert {result.record.dtype for result in found.results} == {"float32", "bfloat16"}
    value = json.loads(file.read_text())
    value["results"] = []
    file.write_text(json.dumps(value))
    with pytest.raises(RecordError, match="results"):
        LogitsBenchmark.load(file)


def test_wrong_tokens_are_not_timed(monkeypatch):
    inputs = make_inputs(2, 300, TEMPERATURE, noise=0.5)
    right = rsk.sampler.logits.rejection_sample_from_logits

    def wrong(*args, backend, **more):
        samples = right(*args, backend=backend, **more)
        return samples if backend == "vectorized" else type(samples)(samples[0] + 1, samples[1])

    monkeypatch.setattr(logit_inputs.logits, "rejection_sample_from_logits", wrong)
    with pytest.raises(RecordError, match="expected the tokens"):
        logits_benchmark.time_calls([inputs], TEMPERATURE, budget_s=0.001)


def test_ways_are_arguments():
    assert FILTERED.arguments == dataclasses.asdict(FILTERED)
    assert set(FILTERED.arguments) == {"temperature", "top_k", "top_p"}


def test_a_refused_time_does_not_take_the_others(tmp_path, monkeypatch, capsys) -> None:
    time_calls = logits_benchmark.time_calls

    def timed(sets, ways, *, draft_laws=False, **options):
        if draft_laws:
            raise logits_benchmark.RecordError("below the roof")
        return time_calls(sets, ways, **options)

    monkeypatch.setattr(logits_benchmark, "time_calls", timed)
    monkeypatch.setattr(logits_benchmark, "DRY_SHAPES", ((2, 300),))
    file = tmp_path / "cpu.json"
    assert logits_benchmark.main(["--save", str(file), "--runs", "1", "--dry"]) == 1
    found = logits_benchmark.LogitsBenchmark.load(file)
    assert len(found.results) == 4 and not any(one.draft_laws for one in found.results)
    assert capsys.readouterr().out.count("below the roof") == 4
