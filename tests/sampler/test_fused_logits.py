"""The fused kernel from logits on the CPU, where its paths part: long rows, ties, many kept tokens.

What rows and filters mean is tested in test_logits.py for all backends; here the fused kernel is
held to ``vectorized``, which is fast at any length.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import rsk
from rsk.base import machine

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPERATORS = torch.ops.rsk
FILTERS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 2.0**-20},
    {"temperature": 0.1, "top_k": 700},  # most logits weigh nothing, yet they count
    {"top_k": 1},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
    {"top_k": 2000},
    {"top_k": 2000, "top_p": 0.95},
    {"top_p": 0.9},
    {"top_p": 1e-7},
    {"temperature": 20.0, "top_p": 0.97},
    {"temperature": 20.0, "top_p": 0.97, "min_p": 0.9},
    {"min_p": 0.05},
    {"min_p": 1e-9},
    {"min_p": 1.0},
]


def rows(kind, *shape, seed=0):
    """Logits of a kind; the last dimension is the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "normal":
        return torch.randn(shape, generator=generator) * 3
    if kind == "peaked":  # Zipf's law in any order
        order = torch.rand(shape, generator=generator).argsort(-1)
        return -1.3 * torch.log(1.0 + order)
    if kind == "tied":
        return torch.randint(-2, 3, shape, generator=generator).float()
    if kind == "constant":
        return torch.full(shape, -3.5)
    assert kind == "masked"
    masked = torch.rand(shape, generator=generator) < 0.98
    logits = torch.randn(shape, generator=generator) * 3
    return logits.masked_fill(masked.index_fill(-1, torch.tensor([1]), False), -torch.inf)


KINDS = ["normal", "peaked", "tied", "constant", "masked"]


def assert_same(kind, dtypes, sizes, filters, seed=0):
    """All three functions, with laws and without, equal those of ``vectorized``."""
    target = rows(kind, 4, 3, sizes[0], seed=seed).to(dtypes[0])
    draft = rows(kind, 4, 2, sizes[1], seed=seed + 1).to(dtypes[1])
    common = min(sizes)
    draft[..., :common] = 0.8 * target[:, :2, :common].float() + 0.2 * draft[..., :common].float()
    drawn = []
    for k in range(2):
        options = {**filters, "seed": seed, "position": k, "return_laws": True}
        expected = rsk.sample_from_logits(draft[:, k], backend="vectorized", **options)
        got = rsk.sample_from_logits(draft[:, k], backend="fused", **options)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
        drawn.append(got)
    tokens = torch.stack([token for token, _ in drawn], 1)
    tokens[3, 1] = -1
    laws = torch.stack([law for _, law in drawn], 1)
    expected = rsk.probabilities(target, backend="vectorized", **filters)
    assert torch.equal(rsk.probabilities(target, backend="fused", **filters), expected)
    for draft_rows, draft_laws in ((draft, None), (draft, laws), (None, None)):
        options = {**filters, "seed": seed, "position": 0}
        one = rsk.rejection_sample_from_logits(
            tokens, draft_rows, target, backend="vectorized", **options
        )
        other = rsk.rejection_sample_from_logits(
            tokens, draft_rows, target, backend="fused", draft_laws=draft_laws, **options
        )
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.num_accepted, other.num_accepted)


class TestAgreement:
    @pytest.mark.parametrize("filters", FILTERS, ids=str)
    @pytest.mark.parametrize("kind", KINDS)
    def test_long_rows(self, kind, filters):
        for seed, dtype in enumerate(DTYPES):
            assert_same(kind, (dtype, dtype), (9001, 9001), filters, seed)

    @pytest.mark.parametrize("sizes", [(1, 5), (513, 500), (2100, 6000)])
    @pytest.mark.parametrize("dtypes", [*itertools.permutations(DTYPES, 2)])
    @pytest.mark.parametrize("filters", [{}, FILTERS[6], FILTERS[8], {"temperature": 0.0}], ids=str)
    def test_vocabularies_and_dtypes_that_differ(self, sizes, dtypes, filters):
        assert_same("normal", dtypes, sizes, filters)
        assert_same("peaked", dtypes, sizes[::-1], filters, seed=7)

    @pytest.mark.parametrize("size", [127, 128, 511, 512, 513, 1023, 1025, 2049])
    def test_sizes_around_a_block(self, size):
        for filters in ({}, {"top_k": 20}, {"top_p": 0.5}, {"top_k": size - 1, "top_p": 0.9}):
            assert_same("normal", (torch.float32, torch.float32), (size, size), filters, size)

    def test_the_largest_vocabulary(self):
        size = 1 << 20
        logits = rows("peaked", 1, size)
        for filters in ({}, {"top_k": 50, "top_p": 0.9}, {"top_k": 5000}, {"top_p": 0.9}):
            options = {**filters, "seed": 3, "return_laws": True}
            one = rsk.sample_from_logits(logits, backend="vectorized", **options)
            other = rsk.sample_from_logits(logits, backend="fused", **options)
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])

    @pytest.mark.parametrize("batch_size", [1, 3, 12])
    def test_any_number_of_threads(self, batch_size):
        """Also those at which the rows of a request are read ahead."""
        size = 70_000
        target = rows("peaked", batch_size, 4, size)
        draft = target[:, :3] + rows("normal", 1, 1, size) * 0.1
        results = []
        for threads in (1, 2, 7):
            with machine.pinned_threads(threads):
                tokens = torch.stack(
                    [
                        rsk.sample_from_logits(draft[:, k], top_p=0.8, seed=1, position=k)
                        for k in range(3)
                    ],
                    1,
                )
                tokens[0, 1] = size  # invalid, where it is reached
                results.append(
                    rsk.rejection_sample_from_logits(
                        tokens, draft, target, top_p=0.8, seed=1, backend="fused"
                    )
                )
        expected = rsk.rejection_sample_from_logits(
            tokens, draft, target, top_p=0.8, seed=1, backend="vectorized"
        )
        for result in results:
            assert torch.equal(result.tokens, expected.tokens)
            assert torch.equal(result.num_accepted, expected.num_accepted)

    def test_what_is_never_reached_has_no_influence(self):
        target, draft = rows("normal", 2, 3, 700), rows("normal", 2, 2, 700)
        tokens = torch.zeros(2, 2, dtype=torch.int64)
        draft[:, 0, 0], target[:, 0, 0] = 30.0, -30.0  # rejected
        clean = rsk.rejection_sample_from_logits(tokens, draft, target, seed=0, backend="fused")
        assert clean.num_accepted.tolist() == [0, 0]
        target[0, 1:], draft[0, 1], tokens[0, 1] = torch.nan, torch.nan, 10**6
        got = rsk.rejection_sample_from_logits(tokens, draft, target, seed=0, backend="fused")
        assert torch.equal(got.tokens, clean.tokens)


class TestGivenLaws:
    """The laws of the draft's rows, where they are not what the rows give under these filters."""

    @pytest.mark.parametrize("sizes", [(9001, 9001), (3000, 4500), (4500, 3000)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_greedy_ones_beside_a_target_that_is_not(self, sizes, dtype):
        """Of which every token is kept, so that none are listed."""
        target = rows("normal", 16, 2, sizes[0]).to(dtype)
        draft = rows("normal", 16, 1, sizes[1], seed=1)
        draft[:8, 0, :3000] += 2 * target[:8, 0, :3000].float()
        draft, target[8:, 0, 7] = draft.to(dtype), 30.0
        draft[8:, 0, 7] = 40.0  # accepted, but for the largest coins
        greedy, seed = {"temperature": 0.0, "return_laws": True}, torch.arange(16)
        tokens, laws = rsk.sample_from_logits(draft[:, 0], seed=0, backend="fused", **greedy)
        one, other, without = (
            rsk.rejection_sample_from_logits(
                tokens[:, None], draft_rows, target, seed=seed, backend=backend, draft_laws=given
            )
            for backend, draft_rows, given in [
                ("vectorized", draft, laws[:, None]),
                ("fused", draft, laws[:, None]),
                ("fused", None, None),  # a point mass, too
            ]
        )
        assert {0, 1} <= set(one.num_accepted.tolist())
        assert torch.equal(other.tokens, one.tokens)
        assert torch.equal(without.tokens, one.tokens)

    @pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, -1.0, 0.5, 2.0**31])
    def test_ones_that_no_row_has_do_no_harm(self, number):
        """What is drawn with them means nothing, but it comes soon and is a token, or none."""
        target, draft = rows("peaked", 8, 2, 3000), rows("normal", 8, 1, 3000)
        tokens = draft.argmax(-1)
        for temperature in (0.0, 1.0):
            options = {"temperature": temperature, "return_laws": True, "backend": "fused"}
            _, laws = rsk.sample_from_logits(draft[:, 0], seed=0, **options)
            for place in range(4):
                laws[:, place], whole = number, laws[:, place].clone()
                got = rsk.rejection_sample_from_logits(
                    tokens, draft, target, seed=0, draft_laws=laws[:, None], backend="fused"
                )
                laws[:, place] = whole
                assert ((got.tokens >= -1) & (got.tokens < 3000)).all()


class TestOperators:
    NUMBERS = (None, 0.8, None, 50, None, 0.9, None, 0.02)

    def arguments(self):
        target, draft = rows("normal", 3, 3, 40), rows("normal", 3, 2, 40)
        return torch.randint(0, 40, (3, 2)), draft, None, target, *self.NUMBERS, None, 7, None, 0

    def test_opcheck(self):
        rsk.probabilities(rows("normal", 1, 2), backend="fused")
        tokens, draft, _, target, *rest = self.arguments()
        ones = torch.ones(6)[::2]
        filters = (ones, 0.0, ones.long(), 0, ones, 0.0, ones, 0.0)
        laws = OPERATORS.sample_from_logits(draft.flatten(0, 1), *self.NUMBERS, None, 0, None, 0)[1]
        check = torch.library.opcheck
        check(OPERATORS.probabilities.default, (target, *self.NUMBERS))
        check(OPERATORS.probabilities.default, (target[:, 0].half(), *filters))
        check(OPERATORS.sample_from_logits.default, (target[:, 0], *filters, None, 0, None, 0))
        rejection_sample = OPERATORS.rejection_sample_from_logits.default
        check(rejection_sample, (tokens, draft, None, target, *rest))
        check(rejection_sample, (tokens, draft, laws.view(3, 2, 4), target, *rest))
        check(rejection_sample, (tokens[:0].int(), None, None, target[:0], *rest))

    def test_they_check_their_arguments(self):
        rsk.probabilities(rows("normal", 1, 2), backend="fused")
        tokens, draft, _, target, *rest = self.arguments()
        laws = torch.zeros(3, 2, 4)

        def refused(message, *arguments):
            with pytest.raises(RuntimeError, match=message):
                OPERATORS.rejection_sample_from_logits(*arguments)

        refused("target_logits: expected 3 dim", tokens, draft, None, target[0], *rest)
        refused("target_logits: expected float32", tokens, draft, None, target.double(), *rest)
        refused("draft_logits: expected float32", tokens, draft.double(), None, target, *rest)
        refused(r"draft_logits: expected \[B, K, V\]", tokens, draft[:2], None, target, *rest)
        refused(r"target_logits: expected \[B, K\+1", tokens, draft, None, target[:, 1:], *rest)
        refused("draft_laws: expected draft_logits", tokens, None, laws, target, *rest)
        refused("draft_laws: expected float32", tokens, draft, laws[:, :1], target, *rest)
        refused("draft_laws: expected float32", tokens, draft, laws.double(), target, *rest)
        refused(
            "draft_laws: expected a contiguous",
            *(tokens, draft, laws.repeat(1, 2, 1)[:, ::2], target, *rest),
        )
        for place, (name, expected) in enumerate(
            [("temperature", "float32"), ("top_k", "int64 or int32"), ("top_p", "float32"),
             ("min_p", "float32")]
        ):  # fmt: skip
            for wrong in (torch.ones(3).double(), torch.ones(2), torch.ones(3, 1)):
                filters = [*self.NUMBERS]
                filters[2 * place] = wrong
                with pytest.raises(RuntimeError, match=rf"{name}: expected {expected} \[3\]"):
                    OPERATORS.probabilities(target, *filters)
        with pytest.raises(RuntimeError, match=r"logits: expected \[B, V\] or \[B, K, V\]"):
            OPERATORS.probabilities(target[0, 0], *self.NUMBERS)

    @pytest.mark.parametrize(
        ("place", "number", "message"),
        [
            (1, -1.0, "temperature: expected 0, or a number in"),
            (1, 2.0**-20 - 2.0**-60, "temperature"),  # although the nearest float32 is in range
            (1, torch.nan, "temperature"),
            (3, -1, "top_k: expected at least 0, got -1"),
            (5, 1 + 2.0**-50, r"top_p: expected a number in \[0, 1\]"),
            (7, -0.1, "min_p: expected a number in .* got -0.1"),
        ],
    )
    def test_they_refuse_numbers_out_of_range(self, place, number, message):
        rsk.probabilities(rows("normal", 1, 2), backend="fused")
        filters = [*self.NUMBERS]
        filters[place] = number
        with pytest.raises(RuntimeError, match=message):
            OPERATORS.probabilities(rows("normal", 2, 30), *filters)

    @pytest.mark.slow
    def test_compiles_without_a_graph_break(self):
        torch._dynamo.reset()

        @torch.compile(fullgraph=True)
        def step(draft, target, seed, top_p):
            filters = {"temperature": 0.8, "top_k": 5, "top_p": top_p, "backend": "fused"}
            tokens, laws = rsk.sample_from_logits(draft, seed=seed, return_laws=True, **filters)
            result = rsk.rejection_sample_from_logits(
                *(tokens[:, None], draft[:, None], target),
                seed=seed, draft_laws=laws[:, None], **filters,
            )  # fmt: skip
            return result.tokens + 1, rsk.probabilities(target, **filters)

        for batch_size, top_p in ((3, 0.9), (5, torch.full((5,), 0.5))):
            target = rows("normal", batch_size, 2, 60, seed=batch_size)
            draft = target[:, 0] * 0.9
            tokens, probs = step(draft, target, 11, top_p)
            filters = {"temperature": 0.8, "top_k": 5, "top_p": top_p, "backend": "vectorized"}
            drawn = rsk.sample_from_logits(draft, seed=11, **filters)
            expected = rsk.rejection_sample_from_logits(
                drawn[:, None], draft[:, None], target, seed=11, **filters
            )
            assert torch.equal(tokens, expected.tokens + 1)
            assert torch.equal(probs, rsk.probabilities(target, **filters))
