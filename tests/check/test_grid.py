"""The grid that runs on a GPU: what it covers, and that it notices; here in the emulator."""

from __future__ import annotations

import itertools
import sys

import pytest

import rsk
from rsk.check import grid
from rsk.check.synthetic import make_batch

AXES = {
    "batch_size": (1, 3),
    "spec_len": (0, 2),
    "vocab_size": (7, 33),
    "dtype": ("float32", "float16"),
}


def test_the_cases_hold_every_pair_of_values():
    cases = grid.cases(grid.AXES, 60 << 30)
    for (a, x), (b, y) in itertools.combinations(grid.AXES.items(), 2):
        found = {(case[a], case[b]) for case in cases}
        too_large = {(1024, 128)} if (a, b) == ("batch_size", "spec_len") else set()
        assert set(itertools.product(x, y)) - found <= too_large
    assert max(map(grid.bytes_of, cases)) <= 60 << 30


def test_counts_are_compared_with_the_baseline_too(monkeypatch):
    """All the others may agree on a wrong count."""
    batch = make_batch(4, 3, 33)
    monkeypatch.setattr(grid, "KERNELS", {})
    assert grid.differences(*batch, 0) == []

    def wrong(*batch, backend="fused", **keys):
        result = rsk.rejection_sample(*batch, backend=backend, **keys)
        more = int(backend != "baseline")
        return result._replace(num_accepted=result.num_accepted + more)

    monkeypatch.setattr(grid, "rejection_sample", wrong)
    assert grid.differences(*batch, 0) == ["vectorized"]


@pytest.mark.skipif(sys.platform == "win32", reason="the emulator needs Linux or macOS")
@pytest.mark.slow
def test_the_kernels_agree_and_a_wrong_one_is_named(monkeypatch):
    monkeypatch.setattr(grid, "KINDS_VOCAB_SIZES", (33,))
    monkeypatch.setattr(grid, "AXES", AXES)
    result = {
        "inputs": grid.check_kinds_of_input("cpu", 4),
        "concurrency": {},
        "grid": grid.check_cases("cpu", 1 << 20, 60),
    }
    assert grid.wrong(result) == {}
    assert result["grid"]["done"] == result["grid"]["planned"] > 4
    assert len(result["inputs"]) == 3 * 13 and "all right" in grid.summary(result)

    def wrong(*batch, **keys):
        result = rsk.rejection_sample(*batch, **keys)
        return result._replace(num_accepted=result.num_accepted.clamp(max=2))

    monkeypatch.setattr(grid, "KERNELS", {"cluster": rsk.KERNELS["cluster"], "wrong": wrong})
    monkeypatch.setattr(grid, "AXES", AXES | {"spec_len": (4, 5)})
    result["inputs"] = grid.check_kinds_of_input("cpu", 16)
    assert {who for found in grid.wrong(result).values() for who in found} == {"wrong"}
    result["grid"] = grid.check_cases("cpu", 1 << 20, 60)
    assert grid.wrong(result)["grid"][0]["wrong"] == ["wrong"]
