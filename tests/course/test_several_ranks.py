"""Two processes return the tokens of one, and what they send is counted."""

from __future__ import annotations

import pytest
import torch

import rsk
from rsk.course import several_ranks
from rsk.measure import logit_inputs
from rsk.measure.logit_inputs import FILTERED


@pytest.mark.slow
def test_ranks_return_the_tokens_of_one_device():
    inputs = logit_inputs.make_inputs(3, 1001, FILTERED, noise=0.5)
    arguments = {**FILTERED.arguments, "seed": 4}
    found = several_ranks.sample(*inputs[:3], **arguments)
    expected = rsk.rejection_sample_from_logits(*inputs[:3], **arguments)
    assert found.columns == [(0, 500), (500, 1001)]
    for samples in found.samples:
        assert torch.equal(samples.tokens, expected.tokens)
        assert torch.equal(samples.num_accepted, expected.num_accepted)
    assert [name for name, _ in found.messages] == ["all_gather", "all_gather", "all_reduce"]
    assert found.rows_bytes == 3 * 9 * 500 * 4
    assert min(size for _, size in found.messages) >= 3 * 8
    assert sum(size for _, size in found.messages) < found.rows_bytes


@pytest.mark.slow
def test_a_rank_that_fails_says_why():
    inputs = logit_inputs.make_inputs(1, 100, FILTERED, noise=0.5)
    with pytest.raises(RuntimeError, match=r"(?s)rank 0 failed: .*top_p"):
        several_ranks.sample(*inputs[:3], size=1, top_p=7.0, seed=0)
