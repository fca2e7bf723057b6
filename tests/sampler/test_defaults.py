"""PyTorch's default dtype and default device are the caller's: no token depends on them."""

from __future__ import annotations

import functools
import sys

import pytest
import torch
from test_sampler import random_batch

import rsk
from rsk.base.folders import cuda_dir
from rsk.sampler import emulator, idiomatic, slice_laws, slices

DTYPES = [torch.bfloat16, torch.float16, torch.float64]
FILTERS = [{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.9, "min_p": 0.01}]
backends = pytest.mark.parametrize("backend", rsk.BACKENDS)


@pytest.fixture
def default_dtype():
    """Set the default dtype until the test ends."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def batch(vocab_size=700):
    """Logits whose largest are at places that 8 bits do not tell apart, and a draft of them."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 3, vocab_size, generator=generator) * 3
    draft = target[:, :2] + torch.randn(6, 2, vocab_size, generator=generator)
    return draft.argmax(-1), draft, target


def calls(backend):
    """What every function returns, of both kinds of rows."""
    tokens, draft, target = rows = batch()
    per_request = {"temperature": torch.linspace(0, 1, 6, dtype=torch.float32, device="cpu")}
    found = []
    for filters in (*FILTERS, per_request):
        options = {**filters, "backend": backend}
        found += rsk.rejection_sample_from_logits(*rows, seed=3, **options)
        drawn = rsk.sample_from_logits(target[:, 0], seed=3, return_laws=True, **options)
        laws = torch.stack([drawn[1]] * 2, 1)
        given = target[:, [0, 0]]
        found += rsk.rejection_sample_from_logits(
            *(tokens, given, target), seed=4, draft_laws=laws, **options
        )
        found += [*drawn, rsk.probabilities(target, **options)]
    q, p = draft.softmax(-1), target.softmax(-1)
    found += rsk.rejection_sample(tokens, q, p, seed=3, backend=backend, validate=True)
    torch.manual_seed(5)  # of the global CPU generator
    found += rsk.rejection_sample(tokens, None, p.bfloat16(), backend=backend)
    return [*found, rsk.sample(p[:, 0], backend=backend)]


@functools.cache
def usual(backend):
    return calls(backend)


def same(one, other):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@backends
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_default_dtype(backend, dtype, default_dtype, monkeypatch):
    expected = usual(backend)
    rows = batch()
    monkeypatch.setattr(f"{__name__}.batch", lambda: rows)
    default_dtype(dtype)
    assert same(calls(backend), expected)


@backends
def test_the_default_device(backend, monkeypatch):
    """Tensors on ``meta`` have no values, so that none can have come to be there."""
    expected = usual(backend)
    rows = batch()
    monkeypatch.setattr(f"{__name__}.batch", lambda: rows)
    with torch.device("meta"):
        assert same(calls(backend), expected)


def test_the_idiomatic_samplers_coins(default_dtype):
    rows = random_batch(50, 3, 40)

    def run():
        return idiomatic.rejection_sample(*rows, torch.Generator().manual_seed(1))

    expected = run()
    default_dtype(torch.bfloat16)
    assert same(run(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_slice(dtype, default_dtype):
    rows = torch.empty(2, 3, 0)
    columns = torch.zeros(2, 2, dtype=torch.int64)

    def run():
        return slice_laws.opening(rows, 5, 2), slices.Rows(rows, 4).pick(columns)

    expected = run()
    default_dtype(dtype)
    assert same(run(), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="the emulator needs Linux or macOS")
def test_a_kernel_given_as_text():
    name = "block_per_sequence"
    text = (cuda_dir() / f"{name}.cu").read_text()
    kernel = emulator.compile_kernel(text, f"rsk::{name}::launch")
    rows = random_batch(3, 3, 50)
    with torch.device("meta"):
        got = kernel(*rows, seed=1)
    assert same(got, rsk.rejection_sample(*rows, seed=1, backend="baseline"))
