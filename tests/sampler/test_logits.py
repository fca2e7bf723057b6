"""From logits: every backend against the definition in exact arithmetic (tests/reference.py)."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import rsk
from rsk.base import machine
from rsk.check.logit_recipes import LogitRecipe, random_logit_recipe
from rsk.sampler import vectorized_logits
from rsk.sampler.row_law import LOG2_E, probability, relative_weight, scale_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NAN, INF = math.nan, math.inf
backends = pytest.mark.parametrize("backend", rsk.BACKENDS)


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

    @pytest.mark.parametrize(
        ("filters", "known"),
        [
            ({}, "0x1.0f4c78p-5 0x1.792838p-8 0x1.9d2308p-2 0x1.2ff818p-3 0 0x1.6c978ap-2 "
                 "0x1.491a1cp-6 0x1.0f4c78p-5"),
            ({"temperature": 0.7, "top_k": 4},  # the fourth and the fifth tie
             "0x1.b00e6ap-7 0 0x1.e038dep-2 0x1.cc57c8p-4 0 0x1.91b04ap-2 0 0x1.b00e6ap-7"),
            ({"temperature": 0.7, "top_p": 0.8}, "0 0 0x1.16cbeep-1 0 0 0x1.d26822p-2 0 0"),
            ({"temperature": 1.5, "top_k": 6, "top_p": 0.95, "min_p": 0.25},
             "0 0 0x1.a4ccbcp-2 0x1.b01772p-3 0 0x1.832788p-2 0 0"),
            ({"temperature": 0.0}, "0 0 1 0 0 0 0 0"),
        ],
    )  # fmt: skip
    def test_known_answers(self, filters, known):
        x = torch.tensor([0.5, -1.25, 3.0, 2.0, -INF, 2.875, -0.0, 0.5])
        expected = [float.fromhex(p) for p in known.split()]
        assert check(x[None], **filters).tolist() == [expected]

    def test_known_weights(self):
        x = torch.tensor([0.0, -0.5, -1.0, -29.0, -29.2, -3e38, -INF])
        known = ["1", "0x1.368b2ep-1", "0x1.78b564p-2", "0x1.1e6448p-42", "0", "0", "0"]
        scale = reference.float32(1.4426950408889634)
        assert relative_weight(x, 0.0, scale).tolist() == [*map(float.fromhex, known)]

    def test_every_scale(self):
        """Of all temperatures from 1 to 2, and so of all others: powers of two change no digit."""
        temperatures = np.arange(0x3F800000, 0x40000000, dtype=np.uint32).view(np.float32)
        expected = (LOG2_E / temperatures.astype(np.float64)).astype(np.float32)
        assert np.array_equal(scale_of(torch.from_numpy(temperatures)).numpy(), expected)

    def test_they_are_the_softmax(self):
        logits = random_logits(8, 4, 1000)
        expected = (logits.double() / 0.75).softmax(-1)
        for backend in rsk.BACKENDS:
            got = rsk.probabilities(logits, temperature=0.75, backend=backend).double()
            assert ((got - expected).abs().sum(-1) / 2).max() < 3e-7

    @pytest.mark.parametrize("seed", range(4))
    def test_the_filters_are_those_of_transformers(self, seed):
        """On rows without ties; there, a sort cuts what stays here."""
        from transformers import (
            LogitsProcessorList,
            MinPLogitsWarper,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        rng = random.Random(seed)
        for vocab_size in (3, 50, 1000, 32000):
            logits = random_logits(4, vocab_size, seed=seed, spread=rng.choice((1.0, 3.0, 8.0)))
            temperature, top_k = rng.uniform(0.3, 2), rng.randrange(1, vocab_size)
            top_p, min_p = rng.uniform(0.05, 0.99), rng.choice((0.001, 0.01, 0.2))
            chosen = {
                "temperature": (temperature, TemperatureLogitsWarper(temperature)),
                "top_k": (top_k, TopKLogitsWarper(top_k)),
                "top_p": (top_p, TopPLogitsWarper(top_p)),
                "min_p": (min_p, MinPLogitsWarper(min_p)),
            }
            for names in ([*chosen], *([name] for name in chosen)):
                processors = LogitsProcessorList([chosen[name][1] for name in names])
                expected = processors(None, logits.double()).softmax(-1)
                filters = {name: chosen[name][0] for name in names}
                for backend in ("vectorized", "fused"):
                    got = rsk.probabilities(logits, backend=backend, **filters)
                    assert torch.equal(got > 1e-12, expected > 1e-12), filters
                    assert (got - expected).abs().max() < 1e-6

    def test_ties_stay(self):
        x = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0, -0.0, 0.0]])
        for filters, kept in (
            ({"top_k": 1}, [1, 2, 3]),
            ({"top_k": 2}, [1, 2, 3]),
            ({"top_k": 3}, [1, 2, 3]),
            ({"top_k": 4}, [0, 1, 2, 3]),
            ({"top_k": 5}, [0, 1, 2, 3, 4, 5, 6]),
            ({"top_p": 0.0}, [1, 2, 3]),
            ({"top_p": 0.5}, [1, 2, 3]),
            ({"top_p": 0.85}, [0, 1, 2, 3]),
            ({"top_p": 0.9}, [0, 1, 2, 3, 4, 5, 6]),
            ({"min_p": 1.0}, [1, 2, 3]),
        ):
            assert check(x, **filters)[0].nonzero().flatten().tolist() == kept, filters

    def test_extreme_temperatures_and_ranges(self):
        x = torch.tensor([[-3e38, 3e38, 0.0, 1e-45, -INF, 1.0], [1e-40, 2e-40, 0.0, -1e-40, 0, 0]])
        for temperature in (2.0**-20, 2.0**20, 1.0, 0.0):
            check(x, temperature=temperature)
            check(x[:, 2:], temperature=temperature, top_p=0.5)

    def test_greedy_and_sampled_rows_in_one_batch(self):
        temperature = torch.tensor([0.0, 1.0, -0.0, 0.5])
        probs = check(random_logits(4, 3, 20), temperature=temperature, top_k=3)
        assert (probs[::2] > 0).sum(-1).eq(1).all() and (probs[1::2] > 0).sum(-1).eq(3).all()

    def test_the_first_of_the_largest_is_the_greedy_one(self):
        x = torch.zeros(1, 5000)
        x[0, [700, 701, 4000]] = 1
        for dtype in DTYPES:
            assert check(x.to(dtype), temperature=0)[0].nonzero().tolist() == [[700]]
        assert check(torch.tensor([[-INF, -0.0, 0.0]]), temperature=0).tolist() == [[0, 1, 0]]

    def test_invalid_rows(self):
        x = torch.zeros(2, 5, 3)
        x[0, 0, 1], x[0, 1, 2], x[0, 2], x[1, 4, 1] = NAN, INF, -INF, -INF
        for filters in FILTERS:
            invalid = check(x, **filters).isnan()
            assert torch.equal(invalid.all(-1), invalid.any(-1))
            assert invalid.any(-1).tolist() == [[True] * 3 + [False] * 2, [False] * 5]

    def test_invalid_parameters_are_invalid_for_their_request(self):
        x = random_logits(4, 8)
        for name, off, wrong in (
            ("temperature", 1.0, [NAN, INF, -1.0, 2.0**-21, 2.0**21]),
            ("top_k", 0, [-1, -(2**31)]),
            ("top_p", 1.0, [NAN, -1e-9, 1.0000001, INF]),
            ("min_p", 0.0, [NAN, -1e-9, 1.0000001, INF]),
        ):
            for value in wrong:
                probs = check(x, **{name: torch.tensor([off, value, off, off])})
                assert probs.isnan().any(-1).tolist() == [False, True, False, False]

    def test_views_and_strides(self):
        x = random_logits(6, 5, 40)
        padded = F.pad(x, (3, 6), value=NAN)[..., 3:-6]
        columns = torch.rand(6, 7)[:, 2]
        ks = torch.randint(1, 9, (6, 2), dtype=torch.int32)[:, 1]
        filters = {"temperature": columns + 0.5, "top_k": ks, "top_p": columns}
        expected = check(x, **filters)
        for view in (padded, x.transpose(0, 1).contiguous().transpose(0, 1)):
            assert not view.is_contiguous()
            assert same(check(view, **filters), expected)
        assert same(check(x[:1].expand(6, -1, -1), **filters)[0], expected[0])

    @backends
    def test_empty_batches(self, backend):
        for shape in ((0, 4), (0, 3, 4), (2, 0, 4)):
            assert rsk.probabilities(torch.empty(shape), backend=backend).shape == shape

    def test_chunks_do_not_matter(self, monkeypatch):
        x = random_logits(7, 3, 50)
        filters = {"temperature": torch.rand(7) + 0.5, "top_p": 0.9, "min_p": torch.rand(7) / 9}
        expected = rsk.probabilities(x, backend="vectorized", **filters)
        for chunk in (1, 151, 450):
            monkeypatch.setattr(vectorized_logits, "CHUNK", chunk)
            assert same(rsk.probabilities(x, backend="vectorized", **filters), expected)

    @pytest.mark.slow
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


class TestSampleFromLogits:
    @pytest.mark.parametrize("filters", FILTERS, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_it_is_a_sample_of_the_probabilities(self, dtype, filters):
        logits = random_logits(9, 130, dtype=dtype)
        logits[3, 0], logits[4] = NAN, -INF
        positions = torch.arange(9) * 11
        probs = reference.probabilities(logits, **filters)
        expected = reference.sample(probs, range(2, 11), positions.tolist())
        assert expected[3] == expected[4] == -1 < min(expected[5:])
        for backend in rsk.BACKENDS:
            options = {"seed": 2, "position": positions, "backend": backend, **filters}
            got = rsk.sample_from_logits(logits, **options)
            assert got.dtype == torch.int64 and got.tolist() == expected
            again, laws = rsk.sample_from_logits(logits, return_laws=True, **options)
            assert torch.equal(again, got) and laws.shape == (9, 4)

    @pytest.mark.parametrize("filters", FILTERS, ids=str)
    def test_a_law_gives_every_probability(self, filters):
        logits = random_logits(5, 60)
        logits[1, 7], logits[2, :50] = INF, -INF
        tokens = torch.arange(60)
        expected = rsk.probabilities(logits, backend="baseline", **filters)
        min_p = reference.float32(filters.get("min_p", 0.0))
        found = []
        for backend in rsk.BACKENDS:
            _, laws = rsk.sample_from_logits(
                logits, seed=0, backend=backend, return_laws=True, **filters
            )
            assert laws.dtype == torch.float32
            assert same(probability(logits, laws, min_p, tokens), expected)
            found.append(laws)
        assert all(same(laws, found[0]) for laws in found)

    def test_the_four_numbers(self):
        x = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.0, 5.0, 5.0, NAN], [0.0, 5.0, 5.0, 1.0]])
        for backend in rsk.BACKENDS:
            _, laws = rsk.sample_from_logits(
                x, temperature=torch.tensor([0.5, 1, 0]), top_k=3, backend=backend,
                return_laws=True,
            )  # fmt: skip
            maximum, scale, threshold, normalizer = laws.unbind(1)
            assert maximum[[0, 2]].tolist() == [3.0, 5.0]
            assert scale[[0, 2]].tolist() == [reference.float32(2 * 1.4426950408889634), INF]
            assert threshold[[0, 2]].tolist() == [1.0, 1.0]  # the least logit; the one token
            assert normalizer[1].isnan() and normalizer[2] == 1
            assert normalizer[0] == rsk.probabilities(x[:1], temperature=0.5, top_k=3).max()


def batch(batch_size, spec_len, vocab_size, dtype=torch.float32, seed=0):
    """Draft tokens, draft logits near the target's, target logits."""
    target = random_logits(batch_size, spec_len + 1, vocab_size, seed=seed)
    noise = random_logits(batch_size, spec_len, vocab_size, seed=seed + 1)
    draft = (target[:, :-1] + 0.2 * noise).to(dtype)
    tokens = torch.empty(batch_size, spec_len, dtype=torch.int64)
    for k in range(spec_len):
        tokens[:, k] = rsk.sample_from_logits(draft[:, k], seed=seed, position=k)
    return tokens, draft, target.to(dtype)


def from_logits(call, backend, **options):
    """A call's result by one backend."""
    return rsk.rejection_sample_from_logits(
        call.draft_tokens,
        call.draft_rows,
        call.target_rows,
        seed=call.seed,
        position=call.position,
        backend=backend,
        **(call.filters or {}),
        **options,
    )


def equal(one, other):
    return torch.equal(one.tokens, other.tokens) and torch.equal(
        one.num_accepted, other.num_accepted
    )


class TestRejectionSampleFromLogits:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("filters", FILTERS, ids=str)
    def test_against_the_reference(self, dtype, filters):
        tokens, draft, target = batch(4, 3, 40, dtype)
        q, p = (reference.probabilities(x, **filters) for x in (draft, target))
        expected = reference.rejection_sample(tokens, q, p, range(5, 9), [7] * 4)
        for backend in rsk.BACKENDS:
            got = rsk.rejection_sample_from_logits(
                tokens, draft, target, seed=5, position=7, backend=backend, **filters
            )
            assert (got.tokens.tolist(), got.num_accepted.tolist()) == expected, backend

    @pytest.mark.slow
    @given(seed=st.integers(0, 2**32))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_it_is_the_rule_on_the_probabilities(self, seed):
        """The definition, for random calls of every sort, with laws and without."""
        call = random_logit_recipe(random.Random(seed), max_elements=1 << 12).make()
        filters = call.filters
        draft, target = call.draft_rows, call.target_rows
        p = rsk.probabilities(target, backend="baseline", **filters)
        q = None if draft is None else rsk.probabilities(draft, backend="baseline", **filters)
        expected = rsk.rejection_sample(
            call.draft_tokens, q, p, seed=call.seed, position=call.position, backend="baseline"
        )
        laws = None
        if draft is not None and draft.shape[1]:
            laws = torch.stack(
                [
                    rsk.sample_from_logits(draft[:, k], seed=0, return_laws=True, **filters)[1]
                    for k in range(draft.shape[1])
                ],
                1,
            )
        for backend in rsk.BACKENDS:
            assert same(rsk.probabilities(target, backend=backend, **filters), p), backend
            assert equal(from_logits(call, backend), expected), backend
            assert equal(from_logits(call, backend, draft_laws=laws), expected), backend

    @given(seed=st.integers(0, 2**32))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def test_what_is_never_reached_has_no_influence(self, seed):
        recipe = random_logit_recipe(random.Random(seed), max_elements=1 << 11)
        call = recipe.make().map(torch.clone)
        for backend in rsk.BACKENDS:
            expected = from_logits(call, backend)
            spoilt = call.map(torch.clone)
            for b, last in enumerate(expected.num_accepted.tolist()):
                if last < 0:
                    continue
                spoilt.target_rows[b, last + 1 :] = NAN
                spoilt.draft_tokens[b, last + 1 :] = 2**20
                if spoilt.draft_rows is not None:
                    spoilt.draft_rows[b, last + 1 :] = INF
            assert equal(from_logits(spoilt, backend), expected), backend

    @backends
    def test_a_bad_row_matters_only_where_it_is_read(self, backend):
        logits = torch.zeros(4, 3, 5)
        tokens = torch.zeros(4, 2, dtype=torch.int64)
        logits[0, 1, 1:] = -INF  # the second draft row is certain of its token
        draft, target = logits[:, :2].clone(), logits.clone()
        target[1, 0, 0] = -INF  # rejected at once
        target[1, 1], target[2, 2, 3] = NAN, INF
        got = rsk.rejection_sample_from_logits(tokens, draft, target, seed=0, backend=backend)
        assert got.num_accepted.tolist() == [2, 0, -1, 2]
        parameters = torch.tensor([1.0, 1.0, 1.0, 2.0])
        got = rsk.rejection_sample_from_logits(
            tokens, draft, target, top_p=parameters, seed=0, backend=backend
        )
        assert got.num_accepted.tolist() == [2, 0, -1, -1]

    def test_drafts_without_logits(self):
        tokens, _, target = batch(32, 3, 8)
        tokens[3, 1] = -1
        p = rsk.probabilities(target, top_k=3)
        expected = rsk.rejection_sample(tokens, None, p, seed=5, backend="baseline")
        for backend in rsk.BACKENDS:
            got = rsk.rejection_sample_from_logits(
                tokens, None, target, top_k=3, seed=5, backend=backend
            )
            assert equal(got, expected) and len(set(got.num_accepted.tolist())) > 1

    @pytest.mark.slow
    @pytest.mark.parametrize("sizes", [(1, 2), (40, 41), (64, 50)])
    def test_vocabularies_of_different_size(self, sizes):
        """As if both were padded with zeros; the k of top-k is meant with each row's own V."""
        p_size, q_size = sizes
        larger = max(sizes)
        tokens = torch.randint(0, larger, (64, 3), generator=torch.Generator().manual_seed(1))
        draft, target = random_logits(64, 3, q_size), random_logits(64, 4, p_size, seed=1)
        tokens[:4, 0] = torch.tensor([larger, larger - 1, -1, min(sizes) - 1])
        draft[5, :, 0], target[6, 0] = NAN, NAN
        for filters in ({}, {"top_k": min(sizes)}, {"top_p": 0.8, "temperature": 0.6}):
            q, p = (
                F.pad(rsk.probabilities(x, backend="baseline", **filters), (0, larger - x.shape[2]))
                for x in (draft, target)
            )
            expected = rsk.rejection_sample(tokens, q, p, seed=3, backend="baseline")
            assert expected.num_accepted[0] == -1
            for backend in rsk.BACKENDS:
                got = rsk.rejection_sample_from_logits(
                    tokens, draft.bfloat16().float(), target, seed=3, backend=backend, **filters
                )
                exact = rsk.rejection_sample_from_logits(
                    tokens, draft, target, seed=3, backend=backend, **filters
                )
                assert equal(exact, expected), backend
                mixed = rsk.rejection_sample_from_logits(
                    tokens, draft.bfloat16(), target, seed=3, backend=backend, **filters
                )
                assert equal(mixed, got), backend

    @pytest.mark.slow
    def test_a_draft_that_is_the_target_is_accepted(self):
        for filters in FILTERS:
            target = random_logits(200, 3, 30)
            tokens = torch.stack(
                [rsk.sample_from_logits(target[:, k], seed=k, **filters) for k in (0, 1)], 1
            )
            for backend in rsk.BACKENDS:
                got = rsk.rejection_sample_from_logits(
                    tokens, target[:, :2], target, seed=9, backend=backend, validate=True, **filters
                )
                assert got.num_accepted.tolist() == [2] * 200

    def test_a_request_does_not_depend_on_its_batch(self):
        tokens, draft, target = batch(16, 4, 100)
        each = {"temperature": torch.rand(16) + 0.3, "top_k": torch.arange(16)}
        each |= {"seed": torch.arange(100, 116), "position": torch.arange(16) * 7}
        for backend in rsk.BACKENDS:
            whole = rsk.rejection_sample_from_logits(tokens, draft, target, backend=backend, **each)
            for rows in ([3], [15, 0, 7]):
                part = rsk.rejection_sample_from_logits(
                    tokens[rows], draft[rows], target[rows], backend=backend,
                    **{name: value[rows] for name, value in each.items()},
                )  # fmt: skip
                assert torch.equal(part.tokens, whole.tokens[rows])

    def test_any_number_of_threads(self):
        tokens, draft, target = batch(16, 3, 3000)
        results = []
        for threads in (1, 2, 5):
            with machine.pinned_threads(threads):
                results += [
                    rsk.rejection_sample_from_logits(
                        tokens, draft, target, temperature=0.8, top_p=0.9, seed=1, backend=backend
                    )
                    for backend in ("vectorized", "fused")
                ]
        assert all(equal(result, results[0]) for result in results)

    @backends
    def test_inputs_are_not_modified(self, backend):
        recipe = LogitRecipe(batch_size=3, spec_len=2, vocab_size=9, top_k=(2, 3), top_p=(0.5, 1.0))
        call = recipe.make()
        before = {name: tensor.clone() for name, tensor in call.tensors().items()}
        from_logits(call, backend)
        rsk.probabilities(call.target_rows, backend=backend, **call.filters)
        rsk.sample_from_logits(call.target_rows[:, 0], seed=0, backend=backend, **call.filters)
        assert all(torch.equal(x, before[name]) for name, x in call.tensors().items())

    @backends
    def test_validate(self, backend):
        tokens, draft, target = batch(4, 2, 9)
        options = {"seed": 0, "backend": backend, "validate": True}
        rsk.rejection_sample_from_logits(tokens, draft, target, **options)
        broken = target.clone()
        broken[1] = NAN
        with pytest.raises(ValueError, match=r"1 of 4 requests are invalid \(rows 1\): .*infinity"):
            rsk.rejection_sample_from_logits(tokens, draft, broken, **options)
        unlikely = tokens.clone()
        unlikely[2, 0] = draft[2, 0].argmin()
        with pytest.raises(ValueError, match=r"draft_logits: expected each .* rows \(\[2, 0\]\)"):
            rsk.rejection_sample_from_logits(unlikely, draft, target, top_k=3, **options)


class TestEmulator:
    """The CUDA kernel on the CPU; in several orders of threads: test_from_logits_kernels.py."""

    @pytest.mark.parametrize("filters", FILTERS, ids=str)
    def test_against_the_reference(self, filters):
        tokens, draft, target = batch(3, 2, 150, torch.bfloat16)
        q, p = (reference.probabilities(x, **filters) for x in (draft, target))
        expected = reference.rejection_sample(tokens, q, p, range(5, 8), [7] * 3)
        options = {"position": 7, "backend": "emulator", **filters}
        got = rsk.rejection_sample_from_logits(tokens, draft, target, seed=5, **options)
        assert (got.tokens.tolist(), got.num_accepted.tolist()) == expected
        drawn, laws = rsk.sample_from_logits(draft[:, 0], seed=5, return_laws=True, **options)
        assert drawn.tolist() == reference.sample(q[:, 0], range(5, 8), [7] * 3)
        _, wanted = rsk.sample_from_logits(draft[:, 0], seed=5, return_laws=True, **filters)
        assert same(laws, wanted)
        assert same(rsk.probabilities(target, backend="emulator", **filters), p)

    def test_it_takes_cpu_tensors_only(self):
        with pytest.raises(ValueError, match="expected a tensor on cpu or cuda"):
            rsk.probabilities(torch.zeros(1, 2, device="meta"), backend="emulator")


class TestArguments:
    def refused(self, message, *, error=ValueError, **change):
        tokens, draft, target = batch(2, 3, 5)
        arguments = {"draft_tokens": tokens, "draft_logits": draft, "target_logits": target}
        with pytest.raises(error, match=message):
            rsk.rejection_sample_from_logits(**arguments | {"seed": 0} | change)

    def test_numbers(self):
        self.refused(r"temperature: expected 0 \(greedy\) or a number from 2\^-20 to 2\^20, got -1",
                     temperature=-1)  # fmt: skip
        for value in (2.0**-20 * (1 - 1e-9), 2.0**20 + 1, NAN, INF):
            self.refused("temperature: expected 0 .* or a number from", temperature=value)
        for name in ("top_p", "min_p"):
            for value in (-1e-300, 1 + 1e-12, NAN):
                self.refused(rf"{name}: expected a number in \[0, 1\], got", **{name: value})
        self.refused("top_k: expected an int of at least 0, which keeps all, got -1", top_k=-1)
        self.refused(r"top_k: expected an int in \[-2\^63, 2\^63\)", top_k=2**63)

    def test_types(self):
        for name in ("temperature", "top_p", "min_p"):
            for value in ("0.5", None, [0.5], True, 1j):
                message = rf"{name}: expected a number or a float32 tensor \[B\], got "
                message += type(value).__name__
                self.refused(message, error=TypeError, **{name: value})
        for value in (0.5, "1", None, True):
            self.refused("top_k: expected an int or an int64 or int32 tensor", error=TypeError,
                         top_k=value)  # fmt: skip

    def test_numbers_of_other_libraries(self):
        import fractions

        import numpy as np

        x = random_logits(2, 9)
        expected = rsk.probabilities(x, temperature=0.5, top_k=3, top_p=0.5)
        for half in (np.float32(0.5), np.float64(0.5), fractions.Fraction(1, 2)):
            got = rsk.probabilities(x, temperature=half, top_k=np.int32(3), top_p=half)
            assert torch.equal(got, expected)
        assert torch.equal(
            rsk.probabilities(x, temperature=2), rsk.probabilities(x, temperature=2.0)
        )

    @backends
    def test_numbers_are_rounded_to_float32(self, backend):
        x = random_logits(4, 50)
        for filters in ({"temperature": 0.7}, {"top_p": 0.9}, {"min_p": 1e-3}, {"min_p": 1e-50}):
            (name, value), = filters.items()  # fmt: skip
            got = rsk.probabilities(x, backend=backend, **filters)
            each = torch.full((4,), value)
            assert torch.equal(got, rsk.probabilities(x, backend=backend, **{name: each}))

    def test_tensors(self):
        each = torch.ones(2)
        for name in ("temperature", "top_p", "min_p"):
            message = rf"{name}: expected a number or a tensor float32 \[B\] = \[2\], got "
            self.refused(message + r"float32 \[3\]", **{name: torch.ones(3)})
            self.refused(message + r"float64 \[2\]", **{name: each.double()})
            self.refused(message + r"float32 \[\]", **{name: torch.tensor(0.5)})
            self.refused(f"{name}: expected device cpu", **{name: each.to("meta")})
        self.refused(
            r"top_k: .* tensor int64 or int32 \[B\] = \[2\], got float32 \[2\]", top_k=each
        )

    def test_shapes_and_dtypes(self):
        tokens, draft, target = batch(2, 3, 5)
        self.refused(r"target_logits: expected shape \[B, K\+1, V\] = \[2, 4, 5\]",
                     target_logits=draft)  # fmt: skip
        self.refused("draft_logits: expected shape", draft_logits=target)
        self.refused("target_logits: expected dtype", target_logits=target.double())
        self.refused("target_logits: expected the last dimension to be contiguous",
                     target_logits=target.repeat(1, 1, 2)[..., ::2])  # fmt: skip
        self.refused("draft_tokens: expected dtype", draft_tokens=tokens.float())
        self.refused("backend: expected one of", backend="cuda")
        for shape in ((5,), (1, 2, 3, 4)):
            with pytest.raises(ValueError, match=r"logits: expected 2 dimensions \[B, V\]"):
                rsk.probabilities(torch.zeros(shape))
        with pytest.raises(ValueError, match=r"logits: expected 2 dimensions \[B, V\]"):
            rsk.sample_from_logits(target)
        with pytest.raises(ValueError, match="vocabulary size V: expected 1 to 1048576, got 0"):
            rsk.probabilities(torch.zeros(2, 0))
        with pytest.raises(TypeError, match="logits: expected a tensor, got list"):
            rsk.probabilities([[0.0]])

    def test_laws(self):
        laws = torch.zeros(2, 3, 4)
        self.refused("draft_laws: expected draft_logits beside them", draft_laws=laws,
                     draft_logits=None)  # fmt: skip
        self.refused(r"draft_laws: expected shape \[B, K, 4\] = \[2, 3, 4\]",
                     draft_laws=laws[:, :2])  # fmt: skip
        self.refused("draft_laws: expected dtype float32", draft_laws=laws.double())


class TestPyTorch:
    def test_opcheck_of_what_torch_compile_sees(self):
        x, each = random_logits(3, 2, 10), torch.rand(3) + 0.1
        for filters in (
            (None, 0.7, None, 3, None, 0.9, None, 0.0),
            (each, 0, torch.tensor([0, 2, 4]), 0, each.clamp(max=1), 0, each / 9, 0),
        ):
            torch.library.opcheck(torch.ops.rsk.row_laws.default, (x, *filters))
        laws = vectorized_logits.row_laws(x, vectorized_logits.Filters(0.7, 3, 0.9, 0.0))
        tokens = torch.arange(10)
        for min_p in ((None, 0.1), (each, 0.0)):
            torch.library.opcheck(torch.ops.rsk.probabilities_at.default, (x, laws, *min_p, tokens))

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["vectorized", "auto"])
    def test_compiles_without_a_graph_break(self, backend):
        torch._dynamo.reset()

        def step(tokens, draft, target, temperature, top_k, top_p, min_p, seed):
            filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
            options = {**filters, "seed": seed, "position": 3, "backend": backend}
            got = rsk.rejection_sample_from_logits(tokens, draft, target, **options)
            drawn, laws = rsk.sample_from_logits(draft[:, 0], return_laws=True, **options)
            probs = rsk.probabilities(target, backend=backend, **filters)
            return got.tokens, drawn, laws, probs

        compiled = torch.compile(step, fullgraph=True)
        each = torch.tensor([0.3, 0.0, 1.7, 0.9])
        for filters in ((0.7, 5, 0.9, 0.01), (each, torch.arange(4), each.clamp(max=1), 0.0)):
            arguments = *batch(4, 3, 40), *filters, torch.arange(4)
            for got, expected in zip(compiled(*arguments), step(*arguments), strict=True):
                assert torch.equal(got, expected)

    @backends
    def test_logits_that_require_gradients(self, backend):
        tokens, draft, target = batch(3, 2, 10)
        draft.requires_grad_(), target.requires_grad_()
        got = rsk.rejection_sample_from_logits(tokens, draft, target, seed=1, backend=backend)
        assert not got.tokens.requires_grad
        assert not rsk.probabilities(target, backend=backend).requires_grad

    @backends
    def test_no_seed_draws_from_the_global_generator(self, backend):
        tokens, draft, target = batch(64, 3, 40)

        def run(seed):
            torch.manual_seed(seed)
            options = {"temperature": 1.5, "backend": backend}
            got = rsk.rejection_sample_from_logits(tokens, draft, target, **options).tokens
            return got, rsk.sample_from_logits(target[:, 0], **options)

        assert all(map(torch.equal, run(1), run(1)))
        assert not any(map(torch.equal, run(1), run(2)))


def test_the_reference_is_the_softmax():
    """So that it is not only the backends' own idea."""
    logits = random_logits(3, 200)
    got = reference.probabilities(logits, temperature=0.6).double()
    expected = (logits.double() / reference.float32(0.6)).softmax(-1)
    assert ((got - expected).abs().sum(-1) / 2 < 2e-7).all()
