"""The from-logits kernel, in the emulator, against the definition (baseline)."""

from __future__ import annotations

import random
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import rsk
from rsk.check.logit_recipes import random_logit_recipe
from rsk.sampler import build

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the emulator needs Linux or macOS")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPERATORS = ["probabilities", "sample_from_logits", "rejection_sample_from_logits"]


@pytest.fixture(autouse=True)
def order(request, monkeypatch):
    """Let the backend "fused" mean the CUDA kernel; a test may choose how threads take turns."""
    build.load("emulator")
    seed = getattr(request, "param", 1)
    monkeypatch.setenv("RSK_EMULATOR_SEED", str(seed))
    for name in OPERATORS:
        monkeypatch.setattr(torch.ops.rsk, name, getattr(torch.ops.rsk, f"emulated_{name}"))
    return seed


orders = pytest.mark.parametrize("order", [0, 1, 2], indirect=True)


def check_rows(logits, **filters):
    """Check the probabilities of rows [B, V], one token of each, and the law beside it."""
    expected = rsk.probabilities(logits, backend="baseline", **filters)
    got = rsk.probabilities(logits, backend="fused", **filters)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(7), expected.nan_to_num(7))
    (tokens, laws), (expected_tokens, expected_laws) = (
        rsk.sample_from_logits(logits, seed=3, backend=backend, return_laws=True, **filters)
        for backend in ("fused", "baseline")
    )
    assert torch.equal(tokens, expected_tokens)
    assert torch.equal(laws.isnan(), expected_laws.isnan())
    assert torch.equal(laws.nan_to_num(7), expected_laws.nan_to_num(7))


def test_what_torch_compile_sees_of_the_emulator():
    """Tensors without values: what is traced is the operators' shapes."""
    tokens, rows = torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 3, 10).half()

    def run():
        options = {"backend": "emulator", "seed": 1}
        yield rsk.probabilities(rows, backend="emulator")
        yield from rsk.sample_from_logits(rows[:, 0], return_laws=True, **options)
        yield from rsk.rejection_sample_from_logits(tokens, None, rows, **options)

    expected = [(x.shape, x.dtype) for x in run()]
    with FakeTensorMode() as mode:
        tokens, rows = map(mode.from_tensor, (tokens, rows))
        assert [(x.shape, x.dtype) for x in run()] == expected


def check_draft(draft_tokens, draft_logits, target_logits, draft_laws=None, **arguments):
    """Check a decided draft; returns how many tokens were accepted."""
    of_baseline, of_kernel = (
        rsk.rejection_sample_from_logits(
            draft_tokens,
            draft_logits,
            target_logits,
            backend=backend,
            draft_laws=draft_laws,
            **arguments,
        )
        for backend in ("baseline", "fused")
    )
    assert torch.equal(of_kernel.tokens, of_baseline.tokens), arguments
    assert torch.equal(of_kernel.num_accepted, of_baseline.num_accepted), arguments
    return of_kernel.num_accepted


def random_logits(*shape, dtype=torch.float32, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * spread).to(dtype)


@pytest.mark.slow
@orders
def test_random_calls(order):
    rng = random.Random(order)
    ended = set()
    for _ in range(16):
        recipe = random_logit_recipe(rng, max_elements=1 << 12)
        call = recipe.make()
        ended |= set(
            check_draft(
                call.draft_tokens,
                call.draft_rows,
                call.target_rows,
                seed=call.seed,
                position=call.position,
                **call.filters,
            ).tolist()
        )
    assert {-1, 0, 1} <= ended


FILTERS = [
    {},
    {"temperature": 0.0},
    {"min_p": 0.05},
    {"top_k": 7},
    {"top_p": 0.9},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.1},
    {"top_k": 900, "top_p": 0.5},
    {"top_k": 1500},
    {"temperature": 0.7, "top_k": 40, "min_p": 1.0},
]


@pytest.mark.parametrize(
    ("order", "filters"), list(enumerate(FILTERS)), indirect=["order"], ids=str
)
def test_rows_of_several_blocks(order, filters):
    check_rows(random_logits(2, 2600, dtype=DTYPES[order % 3], seed=order), **filters)


@pytest.mark.slow
@orders
@pytest.mark.parametrize("top_k", [20, 150])
def test_the_largest_logits_are_all_in_one_block(order, top_k):
    """Of five blocks: 20 fit into its part of the leader's list, 150 do not."""
    filters = {"top_k": top_k, "top_p": 0.95}
    target = random_logits(2, 2, 20000, seed=order).sort(-1).values
    draft = target[:, :1] + random_logits(2, 1, 20000, seed=1, spread=0.2)
    check_rows(target[:, 0], **filters)
    tokens = torch.tensor([[19999], [19990]])
    for of_draft in (draft, None):
        check_draft(tokens, of_draft, target, seed=order, **filters)


@pytest.mark.parametrize("top_p", [1.0, 0.6])
@pytest.mark.parametrize("top_k", [1, 3, 300])
def test_zeros_of_both_signs_at_the_maximum_and_the_threshold(top_k, top_p):
    """All ties stay, -0 beside +0: with few values, and with more ties than a block can list."""
    g = torch.Generator().manual_seed(top_k)
    for vocab_size, other in ((40, -1.0), (40, 1.0), (2600, -1.0)):
        signs = torch.where(torch.rand(2, vocab_size, generator=g) < 0.5, 0.0, -0.0)
        rows = torch.where(torch.rand(2, vocab_size, generator=g) < 0.9, signs, other)
        check_rows(rows, top_k=top_k, top_p=top_p)
    check_rows(torch.full((1, 40), -0.0), top_k=top_k, top_p=top_p)


@pytest.mark.parametrize("filters", FILTERS[:6], ids=str)
def test_broken_and_masked_rows(filters):
    rows = random_logits(6, 300)
    rows[0, 17] = torch.nan
    rows[1, 299] = torch.inf
    rows[2] = -torch.inf
    rows[3, 1:] = -torch.inf
    rows[4, torch.rand(300, generator=torch.Generator().manual_seed(3)) < 0.9] = -torch.inf
    check_rows(rows, **filters)
    tokens = torch.tensor([[5], [5], [5], [0], [5], [300]])
    for draft in (None, random_logits(6, 1, 300, seed=1), rows[:, None].roll(1, 0)):
        accepted = check_draft(tokens, draft, rows[:, None].expand(6, 2, 300), seed=3, **filters)
        assert accepted[:3].tolist() == [-1, -1, -1] and accepted[5] == -1


@pytest.mark.slow
@orders
def test_ragged_drafts_of_another_vocabulary_and_dtype(order):
    for i, (v_draft, v_target) in enumerate([(300, 300), (257, 300), (300, 257), (1300, 1295)]):
        draft = random_logits(4, 3, v_draft, dtype=DTYPES[(i + order) % 3], seed=i)
        target = random_logits(4, 4, v_target, dtype=DTYPES[i % 3], seed=i)  # alike at the start
        for filters in ({}, {"temperature": 0.0}, {"top_k": 20, "top_p": 0.95}):
            tokens = draft.float().argmax(-1)
            tokens[1, 1:] = -1
            tokens[2, 0] = -1
            tokens[3, 1] = max(v_draft, v_target) - 1
            check_draft(tokens, draft, target, seed=i, **filters)
            check_draft(tokens, None, target, seed=i, **filters)


@pytest.mark.parametrize("filters", FILTERS[:7], ids=str)
def test_laws_of_the_draft_instead_of_its_rows(filters):
    draft = random_logits(3, 2, 700)
    target = torch.cat([draft, draft[:, :1]], 1) + random_logits(3, 3, 700, seed=1, spread=0.3)
    drawn = [
        rsk.sample_from_logits(draft[:, k], seed=9, position=k, return_laws=True, **filters)
        for k in range(2)
    ]
    tokens = torch.stack([tokens for tokens, _ in drawn], 1)
    laws = torch.stack([laws for _, laws in drawn], 1)
    with_laws = check_draft(tokens, draft, target, draft_laws=laws, seed=4, **filters)
    assert torch.equal(with_laws, check_draft(tokens, draft, target, seed=4, **filters))


def test_one_value_of_each_filter_a_request():
    filters = {
        "temperature": torch.tensor([1.0, 0.0, 0.5, torch.nan, 1.0, 1.0]),
        "top_k": torch.tensor([0, 5, 20, 5, -1, 700]),
        "top_p": torch.tensor([0.9, 0.5, 1.0, 1.0, 1.0, 0.3]),
        "min_p": torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 1.0]),
    }
    check_rows(random_logits(6, 700), **filters)
    draft, target = random_logits(6, 2, 700), random_logits(6, 3, 700)
    check_draft(draft.argmax(-1), draft, target, seed=1, **filters)


def test_more_rows_than_a_launch_can_have_blocks():
    rows = 2**31 - 1
    with pytest.raises(RuntimeError, match=f"at most 134217727 rows, got {rows**2}"):
        rsk.probabilities(torch.zeros(1).expand(rows, rows, 1), backend="fused")
