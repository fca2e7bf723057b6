"""The grid from logits that runs on a GPU: what it covers, and that it notices; here on the CPU."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import rsk
from rsk.check import grid, logits_grid
from rsk.check.logit_mutants import LOGIT_MUTANTS
from rsk.check.synthetic import make_batch

AXES = {
    "batch_size": (1, 3),
    "spec_len": (0, 2),
    "vocab_size": (7, 129),
    "dtype": ("float32", "bfloat16"),
    "filters": tuple(logits_grid.AXES["filters"]),
}


def test_the_cases_hold_every_pair_of_values_that_fits():
    largest = 16 << 30
    cases = grid.cases(logits_grid.AXES, largest)
    smallest = {"batch_size": 1, "spec_len": 0, "vocab_size": 7, "dtype": "float32"}
    for (a, x), (b, y) in itertools.combinations(logits_grid.AXES.items(), 2):
        found = {(case[a], case[b]) for case in cases}
        for p, q in set(itertools.product(x, y)) - found:
            assert grid.bytes_of(smallest | {a: p, b: q}) > largest
    assert max(map(grid.bytes_of, cases)) <= largest and len(cases) < 120


@pytest.mark.slow
def test_every_backend_agrees_on_a_small_grid(monkeypatch):
    monkeypatch.setattr(logits_grid, "KINDS_VOCAB_SIZES", (33,))
    monkeypatch.setattr(logits_grid, "AXES", AXES)
    result = {
        "inputs": logits_grid.check_kinds_of_input("cpu", 4),
        "concurrency": logits_grid.check_operators("cpu"),
        "grid": logits_grid.check_cases("cpu", 1 << 20, 120),
    }
    assert grid.wrong(result) == {}
    assert result["grid"]["done"] == result["grid"]["planned"] > 15
    assert len(result["inputs"]) > 100


@pytest.mark.parametrize("name", logits_grid.KINDS_FILTERS)
@pytest.mark.parametrize("batch_size", [4, 48])
def test_every_kind_of_input_has_valid_requests(name, batch_size):
    for dtype, other in itertools.permutations(logits_grid.DTYPES, 2):
        call = logits_grid.make_call((batch_size, 5, 129), name, dtype=dtype, device="cpu")
        for kind, changed in logits_grid._kinds(call, other).items():
            assert (changed.run(logits_grid._VECTORIZED)[1] >= 0).any(), (kind, dtype)


@pytest.mark.parametrize("dtype", logits_grid.DTYPES)
def test_moved_rows_are_the_same_ones_elsewhere(dtype):
    call = logits_grid.make_call((3, 5, 129), dtype=dtype, device="cpu")
    kinds = logits_grid._kinds(call, dtype)
    for shift in (1, 8):
        rows = kinds[f"moved by {shift}"].target_rows
        assert torch.equal(rows, call.target_rows) and rows.stride(1) == 129 + 8
        assert rows.storage_offset() == shift
    assert kinds["moved by 1"].target_rows.data_ptr() % 16 == dtype.itemsize


def test_a_case_without_a_valid_request_is_a_fault(monkeypatch):
    call = logits_grid.make_call((3, 2, 40), device="cpu")
    call = dataclasses.replace(call, target_rows=call.target_rows * torch.nan)
    assert logits_grid.differences(call) == ["no request is valid"]
    monkeypatch.setattr(grid, "KERNELS", {})
    draft_tokens, draft, target = make_batch(3, 2, 40)
    found = grid.differences(draft_tokens, draft, target * torch.nan, 0)
    assert found == ["no request is valid"]


def test_per_request_filters_are_of_every_sort():
    filters = logits_grid.filters("per request", 64, "cpu")
    assert all(
        value.stride(0) != 1 or name in ("top_k", "min_p") for name, value in filters.items()
    )
    assert (filters["temperature"] == 0).any() and (filters["temperature"] > 1).any()
    assert (filters["top_k"] == 0).any() and (filters["top_k"] > 40).any()
    assert (filters["top_p"] == 1).any() and (filters["top_p"] < 0.7).any()


@pytest.mark.parametrize("name", ["ties_cut", "top_p_before_top_k", "draft_unfiltered"])
def test_it_notices(name, monkeypatch):
    monkeypatch.setattr(logits_grid, "_FUSED", LOGIT_MUTANTS[name])
    call = logits_grid.make_call((64, 3, 40), "all", device="cpu")
    call = dataclasses.replace(call, filters={"top_k": 5, "top_p": 0.5, "temperature": 3.0})
    call = dataclasses.replace(call, target_rows=call.target_rows.round())
    assert "fused" in logits_grid.differences(call)


def test_it_notices_laws_and_probabilities(monkeypatch):
    call = logits_grid.make_call((8, 2, 40), "all", device="cpu")
    assert logits_grid.differences(call) == []

    def sample(*arguments, **options):
        tokens, laws = rsk.sample_from_logits(*arguments, **options)
        return tokens, laws * (1 if options["backend"] == "fused" else 1.0001)

    def probabilities(*arguments, **options):
        probs = rsk.probabilities(*arguments, **options)
        return probs * (1 if options["backend"] == "fused" else 1.0001)

    monkeypatch.setattr(logits_grid, "sample_from_logits", sample)
    monkeypatch.setattr(logits_grid, "probabilities", probabilities)
    assert logits_grid.differences(call) == ["probabilities", "sample_from_logits"]


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["logits_grid"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert logits_grid.main() == 2 and "NVIDIA GPU" in capsys.readouterr().out
