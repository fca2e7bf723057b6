"""From logits: every backend against the definition in exact arithmetic (tests/reference.py)."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rsk

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAN, INF = math.nan, math.inf


def same(one, other):
    """Equal to the bit, the sign of a zero and the kind of a NaN aside."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(
        one.nan_to_num(7), other.nan_to_num(7)
    )


def check(logits, **filters):
    """Check all backends against the reference's probabilities."""
    expected = reference.probabilities(logits, **filters)
    for backend in rsk.BACKENDS:
        got = rsk.probabilities(logits, backend=backend, **filters)
        assert got.dtype == torch.float32 and got.shape == logits.shape
        assert same(got, expected), backend
    return expected


def random_logits(*shape, dtype=torch.float32, seed=0, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * spread).to(dtype)


FILTERS = [
    {},
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "min_p": 0.01},
]


class TestProbabilities:
    @pytest.mark.parametrize("filters", FILTERS, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("vocab_size", [1, 2, 33, 1500])
    def test_random_rows(self, vocab_size, dtype, filters):
        check(random_logits(3, vocab_size, dtype=dtype), **filters)
        check(random_logits(2, 2, vocab_size, dtype=dtype, seed=1), **filters)

    def test_they_are_probabilities(self):
        logits = random_logits(8, 4, 1000)
        expected = (logits.double() / 0.75).softmax(-1)
        for backend in rsk.BACKENDS:
            got = rsk.probabilities(logits, temperature=0.75, backend=backend).double()
            assert ((got - expected).abs().sum(-1) / 2).max() < 3e-7

    @given(data=st.data())
    @settings(max_examples=300, deadline=None, derandomize=True)
    def test_anything_goes(self, data):
        """Ties, both zeros, masks, subnormals, huge ranges, invalid rows and parameters."""
        dtype = data.draw(st.sampled_from(DTYPES))
        batch_size, spec_len = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 2))
        vocab_size = data.draw(st.integers(1, 24))
        special = [0.0, -0.0, 1.0, -1.0, 0.5, -INF, 1e-45, -1e-40, 30.0, -30.0]
        special += [6e4, -6e4, 3e38, -3e38] * data.draw(st.booleans())
        special += [NAN, INF] * data.draw(st.booleans())
        values = st.sampled_from(special) | st.floats(-20, 20, width=32)
        if data.draw(st.booleans()):
            values = st.sampled_from(data.draw(st.lists(values, min_size=1, max_size=3)))
        size = batch_size * max(spec_len, 1) * vocab_size
        flat = data.draw(st.lists(values, min_size=size, max_size=size))
        shape = (batch_size, spec_len, vocab_size) if spec_len else (batch_size, vocab_size)
        logits = torch.tensor(flat, dtype=torch.float32).reshape(shape).to(dtype)

        wild = data.draw(st.booleans())
        temperature = st.sampled_from([0.0, -0.0, 0.7, 1.0, 2.0**-20, 2.0**20])
        temperature |= st.floats(2.0**-20, 8, width=32)
        top_k = st.integers(0, vocab_size + 1)
        share = st.sampled_from([0.0, 2.0**-149, 1e-6, 0.5, 0.9, 1 - 2.0**-24, 1.0])
        share |= st.floats(0, 1, width=32)
        choices = {"temperature": temperature, "top_k": top_k, "top_p": share, "min_p": share}
        filters = {}
        for name, choice in choices.items():
            if data.draw(st.booleans()):
                filters[name] = data.draw(choice)
                continue
            if wild and name == "top_k":
                choice |= st.sampled_from([-1, -(2**31)])
            elif wild:
                choice |= st.sampled_from([NAN, INF, -1.0, 2.0**-21, 2.0**21])
            each = data.draw(st.lists(choice, min_size=batch_size, max_size=batch_size))
            dtypes = [torch.int64, torch.int32] if name == "top_k" else [torch.float32]
            filters[name] = torch.tensor(each, dtype=data.draw(st.sampled_from(dtypes)))
        check(logits, **filters)
