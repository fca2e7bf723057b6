"""The CPU kernels built for other processors give the same tokens, in a process of its own."""

from __future__ import annotations

import os

import pytest
import warm

CODE = """
import torch
import test_fused_logits as of_logits, test_sampler as of_probs
for dtype in of_probs.DTYPES:
    for size in (1, 31, 600, 1500):
        of_probs.both(of_probs.random_batch(6, 3, size, dtype), seed=size)
of_probs.TestAgreement().test_unnormalised_subnormal_and_negative_rows()
of_probs.TestAgreement().test_drafts_without_probabilities(torch.float16)
for i, filters in enumerate(of_logits.FILTERS):
    for kind in of_logits.KINDS:
        dtypes = of_logits.DTYPES[i % 3], of_logits.DTYPES[(i + i // 3) % 3]
        of_logits.assert_same(kind, dtypes, (2600, 2600 + 77 * (i % 2)), filters, i)
print("same")
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "-march=x86-64-v3", "-DRSK_SCALAR"])
def test_same_tokens(flags, tmp_path):
    """As plain as the compiler has it, with 8 floats in a vector, and without vector types."""
    if "x86" in flags and os.uname().machine != "x86_64":
        pytest.skip("needs an x86-64 processor")
    environment = {"RSK_CPU_FLAGS": flags, "RSK_CACHE_DIR": str(tmp_path)}
    done = warm.run(CODE, os.environ | environment, timeout=300)
    assert done.stdout.strip() == "same", done.stderr
