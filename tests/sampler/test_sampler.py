"""Every backend against the rule in exact arithmetic (tests/reference.py), and the arguments."""

from __future__ import annotations

import itertools
import os
import signal
from functools import partial

import numpy as np
import pytest
import reference
import torch
import warm
from hypothesis import given, settings
from hypothesis import strategies as st

import rsk
from rsk.base import machine
from rsk.check import bad_calls
from rsk.check.synthetic import make_batch
from rsk.sampler import build
from rsk.sampler.arguments import MAX_SPEC_LEN, MAX_VOCAB_SIZE

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
backends = pytest.mark.parametrize("backend", rsk.BACKENDS)


def both(batch, seed, position=0, kernels=False):
    """Check all backends, and perhaps the emulated kernels, against the reference's answer."""
    batch_size = batch[0].shape[0]
    seeds = seed.tolist() if isinstance(seed, torch.Tensor) else range(seed, seed + batch_size)
    positions = position.tolist() if isinstance(position, torch.Tensor) else [position] * batch_size
    expected = reference.rejection_sample(*batch, seeds, positions)
    for backend in rsk.BACKENDS:
        got = rsk.rejection_sample(*batch, seed=seed, position=position, backend=backend)
        assert got.tokens.dtype == got.num_accepted.dtype == torch.int64
        assert (got.tokens.tolist(), got.num_accepted.tolist()) == expected, backend
    if kernels:
        for name, kernel in rsk.KERNELS.items():
            got = kernel(*batch, seed=seed, position=position)
            assert (got.tokens.tolist(), got.num_accepted.tolist()) == expected, name
    return expected


def random_rows(*shape, dtype=torch.float32, generator=None):
    rows = torch.rand(shape, generator=generator) ** 8
    return (rows / rows.sum(-1, keepdim=True)).to(dtype)


def random_batch(batch_size, spec_len, vocab_size, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = random_rows(batch_size, spec_len + 1, vocab_size, dtype=dtype, generator=generator)
    draft = random_rows(batch_size, spec_len, vocab_size, dtype=dtype, generator=generator)
    draft = (draft.float() * 0.3 + target[:, :spec_len].float() * 0.7).to(dtype)
    tokens = torch.empty(batch_size, spec_len, dtype=torch.int64)
    for k in range(spec_len):
        tokens[:, k] = rsk.sample(draft[:, k], seed=seed, position=k, backend="vectorized")
    return tokens, draft, target


class TestAgreement:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("vocab_size", [1, 2, 7, 33, 129, 511, 513, 1500])
    @pytest.mark.parametrize("spec_len", [0, 1, 4])
    def test_random_batches(self, dtype, vocab_size, spec_len):
        both(random_batch(6, spec_len, vocab_size, dtype), seed=vocab_size)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_long_drafts_of_different_lengths(self, dtype):
        tokens, draft, target = random_batch(12, 128, 9, dtype)
        draft[6:] = target[6:, :128]  # these accept all they have
        tokens[6:] = draft[6:].argmax(-1)
        tokens[torch.arange(12), torch.tensor([0, 1, 5, 127, *[60] * 8])] = -1
        num_accepted = both((tokens, draft, target), seed=3)[1]
        assert num_accepted[0] == 0 and set(num_accepted[6:]) == {60}

    def test_all_accepted_up_to_the_longest_draft(self):
        tokens, _, target = random_batch(3, MAX_SPEC_LEN, 5)
        draft = target[:, :MAX_SPEC_LEN].clone()
        tokens = torch.stack([rsk.sample(draft[:, k], seed=k) for k in range(MAX_SPEC_LEN)], 1)
        assert both((tokens, draft, target), seed=1)[1] == [MAX_SPEC_LEN] * 3

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_drafts_without_probabilities(self, dtype):
        tokens, _, target = random_batch(32, 3, 5, dtype)
        tokens[3, 1] = -1
        num_accepted = both((tokens, None, target), seed=5)[1]
        assert len(set(num_accepted)) > 1

    @pytest.mark.slow
    @pytest.mark.parametrize("vocab_size", [9000, 9001])  # rows aligned to 16 bytes, and not
    def test_a_certain_draft_anywhere_in_a_row(self, vocab_size):
        """Wherever it is among what a warp reads at a time, its weight is taken out once."""
        tokens = torch.linspace(0, vocab_size - 1, 24).long()[:, None]
        _, _, target = random_batch(24, 1, vocab_size)
        target[torch.arange(24), 0, tokens[:, 0]] = 1.0  # half of the row's weight
        num_accepted = both((tokens, None, target / 2), seed=5, kernels=True)[1]
        assert set(num_accepted) == {0, 1}

    def test_point_mass_equals_one_hot(self):
        tokens, _, target = random_batch(64, 4, 20)
        one_hot = torch.nn.functional.one_hot(tokens, 20).float()
        for backend in rsk.BACKENDS:
            certain = rsk.rejection_sample(tokens, None, target, seed=1, backend=backend)
            explicit = rsk.rejection_sample(tokens, one_hot, target, seed=1, backend=backend)
            assert torch.equal(certain.tokens, explicit.tokens)

    def test_int32_tokens(self):
        tokens, draft, target = random_batch(8, 4, 50)
        both((tokens.int(), draft, target), seed=9)

    def test_extreme_seeds_and_positions(self):
        batch = random_batch(4, 3, 20)
        for seed in (-(2**63), 2**63 - 2, -1, 0):
            for position in (0, 2**40, 2**63 - 1, -(2**63)):
                both(batch, seed, position)

    def test_seeds_and_positions_per_request(self):
        generator = torch.Generator().manual_seed(0)
        draw = torch.empty(2, 16, dtype=torch.int64).random_(-(2**63), None, generator=generator)
        both(random_batch(16, 4, 30), draw[0], draw[1])

    def test_the_extreme_coins(self):
        # p = q = tiny: the largest coin still accepts; p = 0: coin 0 still rejects.
        target = torch.tensor([[[1e-38, 1.0], [0.5, 0.5]]]).repeat(2, 1, 1)
        draft = target[:, :1].clone()
        tokens = torch.zeros(2, 1, dtype=torch.int64)
        assert both((tokens, draft, target), torch.tensor([477644333, 584198681]))[1] == [1, 1]
        target = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]).repeat(2, 1, 1)
        draft = torch.tensor([[[0.5, 0.5]]]).repeat(2, 1, 1)
        assert both((tokens, draft, target), torch.tensor([477644333, 584198681]))[1] == [0, 0]

    def test_empty_batch(self):
        for backend in rsk.BACKENDS:
            for spec_len in (0, 4):
                tokens = torch.empty(0, spec_len, dtype=torch.int64)
                draft, target = torch.empty(0, spec_len, 10), torch.empty(0, spec_len + 1, 10)
                got = rsk.rejection_sample(tokens, draft, target, seed=0, backend=backend)
                assert got.tokens.shape == (0, spec_len + 1) and got.num_accepted.shape == (0,)

    def test_unnormalised_subnormal_and_negative_rows(self):
        target = torch.tensor(
            [
                [[3.0, 2.0, -1.0, 0.0], [4.0, 0.5, 9.0, 1e30]],
                [[1e-40, 2e-45, 0.0, 1e-39], [2.0**-42, 2.0**-43, 2.0**-41, 0.0]],
                [[3e38, -3e38, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]],
            ]
        )
        draft = torch.tensor(
            [[[1.0, 5.0, 2.0, 0.5]], [[0.0, 1e-40, 1e-44, 0.5]], [[-3e38, 3e38, 0.5, 0.5]]]
        )
        for d in range(4):
            for seed in range(8):
                tokens = torch.full((3, 1), d)
                both((tokens, draft, target), seed)
                both((tokens, None, target), seed)

    def test_the_residual_is_empty(self):
        # q is above p wherever p is positive, so a rejection leaves nothing: p is sampled instead.
        target = torch.tensor([[[0.25, 0.25, 0.0], [1.0, 0, 0]]]).repeat(64, 1, 1)
        draft = torch.tensor([[[0.5, 0.5, 0.0]]]).repeat(64, 1, 1)
        tokens, num_accepted = both((torch.zeros(64, 1, dtype=torch.int64), draft, target), 0)
        assert {row[0] for row, n in zip(tokens, num_accepted, strict=True) if n == 0} == {0, 1}

    @pytest.mark.slow
    def test_largest_vocabulary(self):
        tokens, draft, target = random_batch(2, 1, MAX_VOCAB_SIZE)
        results = [
            rsk.rejection_sample(tokens, draft, target, seed=4, backend=backend).tokens.tolist()
            for backend in rsk.BACKENDS
        ]
        assert results[0] == results[1] == results[2]
        ones = torch.ones(2, 1, MAX_VOCAB_SIZE)  # total 2^62: the largest there is
        both((torch.empty(2, 0, dtype=torch.int64), None, ones), seed=4)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_strided_views_are_read_in_place(self, dtype):
        tokens, draft, target = random_batch(8, 4, 33, dtype)
        padded = torch.full((8, 5, 40), float("nan"), dtype=dtype)
        padded[:, :, :33] = target
        transposed = torch.full((4, 8, 64), float("nan"), dtype=dtype)
        transposed[:, :, 3:36] = draft.transpose(0, 1)
        wide = torch.full((8, 9), 7)
        wide[:, 2:6] = tokens
        views = wide[:, 2:6], transposed[:, :, 3:36].transpose(0, 1), padded[:, :, :33]
        assert not any(view.is_contiguous() for view in views)
        assert both(views, 6) == both((tokens, draft, target), 6)
        shared = target[:1].expand(8, -1, -1)  # stride 0
        both((tokens, draft, shared), 6)

    def test_inputs_are_not_modified(self):
        batch = random_batch(8, 4, 33)
        copies = [tensor.clone() for tensor in batch]
        for backend in rsk.BACKENDS:
            rsk.rejection_sample(*batch, seed=0, backend=backend)
            rsk.sample(batch[2][:, 0], seed=0, backend=backend)
            for tensor, copy in zip(batch, copies, strict=True):
                assert torch.equal(tensor, copy)

    def test_a_request_does_not_depend_on_its_batch(self):
        batch = random_batch(16, 4, 100)
        seeds, positions = torch.arange(100, 116), torch.arange(16) * 7
        for backend in rsk.BACKENDS:
            whole = rsk.rejection_sample(*batch, seed=seeds, position=positions, backend=backend)
            for rows in ([3], [15, 0, 7]):
                part = rsk.rejection_sample(
                    *(tensor[rows] for tensor in batch),
                    seed=seeds[rows],
                    position=positions[rows],
                    backend=backend,
                )
                assert torch.equal(part.tokens, whole.tokens[rows])

    def test_any_number_of_threads(self):
        batch = random_batch(32, 3, 3000)
        results = []
        for threads in (1, 2, 5):
            with machine.pinned_threads(threads):
                results += [
                    rsk.rejection_sample(*batch, seed=1, backend=b).tokens for b in rsk.BACKENDS
                ]
        assert all(torch.equal(result, results[0]) for result in results)

    @pytest.mark.slow
    @given(data=st.data())
    @settings(max_examples=150, deadline=None)
    def test_anything_goes(self, data):
        dtype = data.draw(st.sampled_from(DTYPES))
        batch_size, spec_len = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 4))
        vocab_size = data.draw(st.integers(1, 40))
        special = [0.0, -0.0, 1.0, 2.0, -1.0, 2.0**-42, 1e-45, 6e-8, 0.1, 0.25]
        special += [float("nan"), float("inf"), float("-inf")] * data.draw(st.booleans())
        values = st.sampled_from(special) | st.floats(0, 1, width=32)

        def tensor(*shape):
            size = int(torch.tensor(shape).prod())
            flat = data.draw(st.lists(values, min_size=size, max_size=size))
            return torch.tensor(flat, dtype=torch.float32).reshape(shape).to(dtype)

        token = st.integers(0, vocab_size - 1) | st.integers(-3, vocab_size + 2)
        flat = data.draw(
            st.lists(token, min_size=batch_size * spec_len, max_size=batch_size * spec_len)
        )
        tokens = torch.tensor(flat, dtype=torch.int64).reshape(batch_size, spec_len)
        draft = tensor(batch_size, spec_len, vocab_size) if data.draw(st.booleans()) else None
        target = tensor(batch_size, spec_len + 1, vocab_size)
        seed = data.draw(st.sampled_from([584198681, 477644333]) | st.integers(-(2**63), 2**62))
        both((tokens, draft, target), seed)


class TestKernels:
    """The CUDA kernels in the emulator."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("vocab_size", [1, 7, 129, 1032, 5000])
    def test_random_batches(self, dtype, vocab_size):
        both(random_batch(3, 3, vocab_size, dtype), seed=vocab_size, kernels=True)

    def test_ragged_long_and_certain_drafts(self):
        tokens, draft, target = random_batch(4, 70, 9)
        draft[1:] = target[1:, :70]
        tokens[1:] = draft[1:].argmax(-1)
        tokens[2, 40] = -1
        tokens[3, 65] = 9  # invalid
        both((tokens, draft, target), 3, kernels=True)
        both((tokens[:, :3].int(), None, target[:, :4]), 3, kernels=True)

    def test_no_drafts(self):
        both(random_batch(3, 0, 40), 5, kernels=True)

    def test_the_residual_is_empty(self):
        target = torch.tensor([[[0.25, 0.25, 0.0], [1.0, 0, 0]]]).repeat(8, 1, 1)
        draft = torch.tensor([[[0.5, 0.5, 0.0]]]).repeat(8, 1, 1)
        num_accepted = both((torch.zeros(8, 1).int(), draft, target), 0, kernels=True)[1]
        assert 0 in num_accepted
        target[0, 0] = 0  # and nothing to fall back on
        assert both((torch.zeros(8, 1).int(), draft, target), 0, kernels=True)[1][0] == -1

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, value):
        target = torch.full((3, 2, 300), 1 / 300)
        draft = target[:, :1].clone()
        target[1, 1, 299] = value  # the bonus row
        target[2, 0] = 0
        draft[2, 0, 150] = value  # the residual
        num_accepted = both((torch.zeros(3, 1).int(), draft, target), 0, kernels=True)[1]
        assert num_accepted == [1, -1, -1]

    def test_strided_rows_that_are_not_aligned(self):
        tokens, draft, target = random_batch(3, 2, 200)
        shifted = torch.zeros(3, 3, 207)[:, :, 1:201]
        shifted[:] = target
        both((tokens, draft, shifted), 4, kernels=True)

    def test_empty_batch(self):
        empty = torch.zeros(0, 2, dtype=torch.int64), torch.ones(0, 2, 5), torch.ones(0, 3, 5)
        for kernel in rsk.KERNELS.values():
            assert kernel(*empty, seed=0).tokens.shape == (0, 3)

    @pytest.mark.parametrize("order", range(4))
    def test_any_order_of_threads(self, order, monkeypatch):
        monkeypatch.setenv("RSK_EMULATOR_SEED", str(order))
        both(random_batch(3, 3, 2000), seed=7, position=5, kernels=True)


class TestVocabulariesOfDifferentSize:
    """A row that is shorter than the other goes on with zeros."""

    @pytest.mark.parametrize("dtypes", [*itertools.permutations(DTYPES, 2)])
    @pytest.mark.parametrize("sizes", [(1, 2), (600, 601), (512, 700), (33, 2000)])
    @pytest.mark.parametrize("target_is_larger", [False, True])
    def test_equals_padding(self, dtypes, sizes, target_is_larger):
        p_size, q_size = sorted(sizes, reverse=target_is_larger)
        larger = max(sizes)
        generator = torch.Generator().manual_seed(larger)
        target = random_rows(64, 4, p_size, dtype=dtypes[0], generator=generator)
        draft = random_rows(64, 3, q_size, dtype=dtypes[1], generator=generator)
        draft[:8, :, p_size:] = -1  # weighs something, where there is no p
        draft[8, :, -1] = float("nan")
        tokens = torch.randint(0, larger, (64, 3), generator=generator)
        tokens[9:12, 0] = torch.tensor([larger, larger - 1, -1])
        padded = [
            torch.nn.functional.pad(rows.float(), (0, larger - rows.shape[2]))
            for rows in (draft, target)
        ]
        expected = rsk.rejection_sample(tokens, *padded, seed=1, backend="baseline")
        for backend in rsk.BACKENDS:
            got = rsk.rejection_sample(tokens, draft, target, seed=1, backend=backend)
            assert torch.equal(got.tokens, expected.tokens)
            assert torch.equal(got.num_accepted, expected.num_accepted)
        assert got.num_accepted[9] == -1
        if not target_is_larger:
            assert got.tokens.max() >= p_size


class TestSample:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("vocab_size", [1, 5, 16, 130, 1025])
    def test_backends_agree_with_the_reference(self, dtype, vocab_size):
        rows = random_rows(9, vocab_size, dtype=dtype)
        rows[3, 0] = float("nan")
        rows[4] = 0
        rows[5] = -1
        positions = torch.arange(9) * 11
        expected = reference.sample(rows, range(2, 11), positions.tolist())
        assert expected[3] == expected[4] == expected[5] == -1
        for backend in rsk.BACKENDS:
            got = rsk.sample(rows, seed=2, position=positions, backend=backend)
            assert got.tolist() == expected
            padded = torch.nn.functional.pad(rows, (0, 3), value=float("nan"))[:, :vocab_size]
            assert rsk.sample(padded, seed=2, position=positions, backend=backend).equal(got)

    @backends
    def test_follows_the_distribution(self, backend):
        probs = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
        draws = rsk.sample(probs.expand(20_000, -1), seed=11, backend=backend)
        counts = torch.bincount(draws, minlength=5).double()
        expected = probs.double() * 20_000
        chi_square = ((counts - expected) ** 2 / expected)[:4].sum().item()
        assert chi_square < 21.1 and counts[4] == 0  # 3 degrees of freedom, level 1e-4

    @backends
    def test_empty(self, backend):
        assert rsk.sample(torch.empty(0, 4), seed=0, backend=backend).shape == (0,)


class TestDistribution:
    @pytest.mark.parametrize("backend", ["vectorized", "fused"])
    def test_the_output_follows_the_target(self, backend):
        """The first emitted token's law is the target's, although q is far from it."""
        count = 100_000
        p, q = torch.tensor([0.6, 0.3, 0.1, 0.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
        seeds = torch.arange(count)
        tokens = rsk.sample(q.expand(count, -1), seed=seeds, backend=backend)
        got = rsk.rejection_sample(
            tokens[:, None],
            q.expand(count, 1, -1),
            p.expand(count, 2, -1),
            seed=seeds,
            backend=backend,
        )
        counts = torch.bincount(got.tokens[:, 0], minlength=4).double()
        expected = p.double() * count
        chi_square = ((counts - expected) ** 2 / expected)[:3].sum().item()
        assert chi_square < 18.5 and counts[3] == 0  # 2 degrees of freedom, level 1e-4
        accepted = got.num_accepted.double().mean().item()
        assert abs(accepted - torch.minimum(p, q).sum().item()) < 4 * (0.25 / count) ** 0.5


class TestInvalidRequests:
    NAN = float("nan")

    def batch(self):
        """Four equal requests, of which tests break number 1; all drafts would be accepted."""
        target = torch.tensor([0.5, 0.25, 0.25]).repeat(4, 3, 1)
        return torch.zeros(4, 2, dtype=torch.int64), target[:, :2].clone(), target

    def check(self, batch, invalid):
        tokens, num_accepted = both(batch, seed=0)
        assert (num_accepted[1] == -1) is invalid
        assert all(num_accepted[b] >= 0 for b in (0, 2, 3))
        if invalid:
            assert set(tokens[1]) == {-1}
            for backend in rsk.BACKENDS:
                with pytest.raises(ValueError, match=r"1 of 4 requests are invalid \(rows 1\)"):
                    rsk.rejection_sample(*batch, seed=0, backend=backend, validate=True)
        else:
            rsk.rejection_sample(*batch, seed=0, validate=True)

    @pytest.mark.parametrize("token", [-2, 3, 2**40, -(2**63)])
    def test_token_outside_the_vocabulary(self, token):
        tokens, draft, target = self.batch()
        tokens[1, 1] = token
        self.check((tokens, draft, target), invalid=True)

    @pytest.mark.parametrize("token", [-2, 3, 2**31 - 1, -(2**31)])
    def test_int32_token_outside_the_vocabulary(self, token):
        tokens, draft, target = self.batch()
        tokens[1, 0] = token
        self.check((tokens.int(), draft, target), invalid=True)

    @pytest.mark.parametrize("value", [NAN, float("inf"), float("-inf")])
    @pytest.mark.parametrize("which", ["p of the coin", "q of the coin", "bonus row"])
    def test_not_finite_where_it_is_read(self, value, which):
        tokens, draft, target = self.batch()
        if which == "p of the coin":
            target[1, 1, 0] = value
        elif which == "q of the coin":
            draft[1, 1, 0] = value
        else:
            target[1, 2, 2] = value
        self.check((tokens, draft, target), invalid=True)

    @pytest.mark.parametrize("row", ["p", "q"])
    def test_not_finite_in_the_rows_of_the_residual(self, row):
        tokens, draft, target = self.batch()
        tokens[1, 0] = 1
        target[1, 0] = torch.tensor([1.0, 0.0, 0.0])
        (target if row == "p" else draft)[1, 0, 2] = self.NAN
        self.check((tokens, draft, target), invalid=True)

    def test_what_is_never_reached_has_no_influence(self):
        tokens, draft, target = self.batch()
        tokens[1, 0] = 1  # rejected: p is 0 there
        target[1, 0] = torch.tensor([1.0, 0.0, 0.0])
        tokens[1, 1] = 99
        target[1, 1:] = self.NAN
        draft[1, 1] = self.NAN
        self.check((tokens, draft, target), invalid=False)
        tokens[1] = torch.tensor([-1, 99])  # behind the end of a ragged draft
        self.check((tokens, draft, target), invalid=False)

    def test_an_unread_draft_row_may_be_anything(self):
        tokens, draft, target = self.batch()
        draft[1, :, 1:] = self.NAN  # all accepted: only q at the drafts is read
        self.check((tokens, draft, target), invalid=False)

    def test_no_probability_left(self):
        tokens, draft, target = self.batch()
        target[1, 2] = 0
        self.check((tokens, draft, target), invalid=True)
        target[1, 2] = torch.tensor([-1.0, -0.5, 2.0**-43])
        self.check((tokens, draft, target), invalid=True)

    def test_no_fallback_left(self):
        tokens, draft, target = self.batch()
        target[1, 0] = 0
        self.check((tokens, draft, target), invalid=True)
        self.check((tokens, None, target), invalid=True)


class TestValidate:
    """What ``validate=True`` finds besides invalid requests; it looks at nothing unread."""

    def batch(self):
        target = torch.tensor([0.5, 0.25, 0.25]).repeat(4, 3, 1)
        return torch.zeros(4, 2, dtype=torch.int64), target[:, :2].clone(), target

    @backends
    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ([1.5, 0.0, 0.0], r"expected entries from 0 to 1; not so in 1 rows \(\[2, {k}\]\)"),
            ([1.25, -0.25, 0.0], "expected entries from 0 to 1"),
            ([0.5, 0.25, 0.0], r"expected rows that sum to 1 .* \(\[2, {k}\]\), the first to 0.75"),
            ([0.5, 0.3, 0.22], "expected rows that sum to 1 .*, the first to 1.02"),
        ],
    )
    def test_a_row_that_is_no_distribution(self, backend, row, message):
        for name, k in (("target_probs", 1), ("target_probs", 2), ("draft_probs", 1)):
            tokens, draft, target = self.batch()
            (target if name == "target_probs" else draft)[2, k] = torch.tensor(row)
            rsk.rejection_sample(tokens, draft, target, seed=0, backend=backend)
            with pytest.raises(ValueError, match=f"{name}: {message.format(k=k)}"):
                rsk.rejection_sample(tokens, draft, target, seed=0, backend=backend, validate=True)

    @backends
    def test_a_draft_token_that_cannot_have_been_drawn(self, backend):
        tokens, draft, target = self.batch()
        draft[1, 0] = torch.tensor([0.0, 0.5, 0.5])
        with pytest.raises(ValueError, match=r"probability above 0; .* 1 rows \(\[1, 0\]\)"):
            rsk.rejection_sample(tokens, draft, target, seed=0, backend=backend, validate=True)
        tokens[1, 0] = 3  # of a vocabulary that only the target has
        wide = torch.nn.functional.pad(target, (0, 1))
        wide[1, 0] = torch.tensor([0.0, 0.0, 0.0, 1.0])
        with pytest.raises(ValueError, match=r"probability above 0; .* 1 rows \(\[1, 0\]\)"):
            rsk.rejection_sample(tokens, self.batch()[1], wide, backend=backend, validate=True)

    def test_rows_behind_the_end_are_not_looked_at(self):
        tokens, draft, target = self.batch()
        tokens[0, 1] = -1
        draft[0, 1] = 7
        target[0, 2] = 7
        draft[3, 1] = target[3, 1] = target[3, 2] = 7
        target[3, 0] = torch.tensor([0.0, 0.5, 0.5])  # rejects
        rsk.rejection_sample(tokens, draft, target, seed=0, validate=True)
        rsk.rejection_sample(tokens, None, target, seed=0, validate=True)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_honest_rows_pass(self, dtype):
        for size in (2, 1000, 50_000):
            batch = random_batch(3, 2, size, dtype)
            rsk.rejection_sample(*batch, seed=0, validate=True)
            rsk.sample(batch[2][:, 0], seed=0, validate=True)
        rsk.rejection_sample(*random_batch(3, 0, 5), seed=0, validate=True)
        rsk.rejection_sample(*(x[:0] for x in random_batch(3, 2, 5)), seed=0, validate=True)

    @backends
    def test_sample(self, backend):
        rows = torch.tensor([[1.0, 0.0, 0.0], [5.0, 1.0, 1.0]])
        drawn = rsk.sample(rows[1].expand(3000, 3), seed=0, backend=backend)
        assert all(900 < count < 1100 for count in drawn.bincount().tolist())  # as documented
        with pytest.raises(ValueError, match=r"probs: expected entries from 0 to 1; .* \(1\)"):
            rsk.sample(rows, seed=0, backend=backend, validate=True)
        with pytest.raises(ValueError, match=r"within 1 %; .* \(0, 1\), the first to 0.5"):
            rsk.sample(torch.full((2, 1), 0.5), seed=0, backend=backend, validate=True)
        with pytest.raises(ValueError, match=r"1 of 2 requests are invalid \(rows 1\)"):
            rsk.sample(torch.tensor([[1.0], [0.0]]), seed=0, backend=backend, validate=True)


class TestArguments:
    def batch(self):
        return [torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, 5), torch.ones(2, 4, 5)]

    def refused(self, message, *, error=ValueError, **change):
        arguments = dict(
            zip(("draft_tokens", "draft_probs", "target_probs"), self.batch(), strict=True)
        )
        arguments |= {"seed": 0} | change
        with pytest.raises(error, match=message):
            rsk.rejection_sample(**arguments)

    def test_types(self):
        self.refused("draft_tokens: expected a tensor, got list", error=TypeError, draft_tokens=[])
        self.refused("target_probs: expected a tensor", error=TypeError, target_probs=None)
        self.refused("seed: expected an int .* got float", error=TypeError, seed=1.5)
        self.refused("seed: .* got bool", error=TypeError, seed=True)
        self.refused("position: .* got str", error=TypeError, position="0")

    def test_shapes(self):
        self.refused(r"draft_tokens: expected 2 dimensions \[B, K\]", draft_tokens=torch.zeros(2))
        self.refused(
            r"target_probs: expected shape \[B, K\+1, V\] = \[2, 4, 5\] .* got \[2, 3, 5\]",
            target_probs=torch.ones(2, 3, 5),
        )
        self.refused(r"draft_probs: expected shape", draft_probs=torch.ones(2, 4, 5))
        self.refused(r"draft_probs: expected shape", draft_probs=torch.ones(1, 3, 5))
        self.refused(r"draft_probs: expected 3 dimensions", draft_probs=torch.ones(2, 5))
        self.refused(r"seed: expected shape \[B\]", seed=torch.zeros(3, dtype=torch.int64))
        self.refused(r"position: expected 1 dim", position=torch.tensor(0))

    def test_dtypes(self):
        self.refused("draft_tokens: expected dtype int64 or int32, got float32",
                     draft_tokens=torch.zeros(2, 3))  # fmt: skip
        self.refused("target_probs: expected dtype float32 or bfloat16 or float16, got float64",
                     target_probs=torch.ones(2, 4, 5).double())  # fmt: skip
        self.refused("draft_probs: expected dtype float32 or bfloat16 or float16, got float64",
                     draft_probs=torch.ones(2, 3, 5).double())  # fmt: skip
        self.refused("seed: expected dtype int64, got int32", seed=torch.zeros(2).int())

    def test_devices(self):
        self.refused("draft_tokens: expected a tensor on cpu or cuda, got meta",
                     draft_tokens=torch.zeros(2, 3, dtype=torch.int64, device="meta"))  # fmt: skip
        self.refused("target_probs: expected a tensor on cpu or cuda, got meta",
                     target_probs=torch.ones(2, 4, 5, device="meta"))  # fmt: skip

    def test_strides(self):
        self.refused("target_probs: expected the last dimension to be contiguous",
                     target_probs=torch.ones(2, 4, 10)[:, :, ::2])  # fmt: skip
        self.refused("draft_tokens: .* contiguous",
                     draft_tokens=torch.zeros(3, 2, dtype=torch.int64).T)  # fmt: skip

    def test_a_tensor_without_elements_may_have_any_strides(self):
        _, draft, target = random_batch(3, 0, 7)
        tokens = torch.from_numpy(np.zeros((3, 0), dtype=np.int64))
        empty = torch.from_numpy(np.zeros((3, 0, 7), dtype=np.float32))
        assert empty.stride() == (0, 0, 0) != draft.stride()
        both((tokens, empty, target), 3, kernels=True)
        none = torch.from_numpy(np.zeros((0, 2, 7), dtype=np.float32))
        both((torch.zeros(0, 1, dtype=torch.int64), none[:, :1], none), 3, kernels=True)
        for backend in rsk.BACKENDS:
            assert rsk.sample(none[:, 0], seed=0, backend=backend).shape == (0,)
            drawn = rsk.sample_from_logits(none[:, 0], seed=0, backend=backend)
            assert drawn.shape == (0,)

    @pytest.mark.parametrize("number", [np.int64(11), np.uint8(11), np.array(11)])
    def test_any_index_is_an_int(self, number):
        batch = random_batch(3, 2, 9)
        for backend in (*rsk.BACKENDS, "auto"):
            expected = rsk.rejection_sample(*batch, seed=11, position=11, backend=backend)
            got = rsk.rejection_sample(*batch, seed=number, position=number, backend=backend)
            assert torch.equal(got.tokens, expected.tokens)
            drawn = rsk.sample(batch[2][:, 0], seed=number, position=number, backend=backend)
            assert drawn.equal(rsk.sample(batch[2][:, 0], seed=11, position=11, backend=backend))
        got = rsk.KERNELS["cluster"](*batch, seed=number, position=number)
        assert torch.equal(got.tokens, expected.tokens)

    @pytest.mark.parametrize("value", ["3", [3], 1.5, [1.5], True, np.float64(3), np.array([3, 4])])
    @pytest.mark.parametrize("name", ["seed", "position"])
    def test_nothing_else_is(self, name, value):
        message = f"{name}: expected an int or an int64 tensor .*, got {type(value).__name__}"
        for backend in (*rsk.BACKENDS, "auto"):
            self.refused(message, error=TypeError, backend=backend, **{name: value})
            with pytest.raises(TypeError, match=message):
                rsk.sample(torch.ones(2, 3), backend=backend, **{name: value})

    def test_ranges(self):
        long = MAX_SPEC_LEN + 1
        self.refused("speculation length K: expected 0 to 128, got 129",
                     draft_tokens=torch.zeros(2, long, dtype=torch.int64),
                     draft_probs=None, target_probs=torch.ones(2, long + 1, 5))  # fmt: skip
        for vocab_size in (0, MAX_VOCAB_SIZE + 1):
            self.refused(f"draft's vocabulary size V: expected 1 to 1048576, got {vocab_size}",
                         draft_probs=torch.ones(2, 3, 1).expand(2, 3, vocab_size).contiguous()
                         )  # fmt: skip
            self.refused(f"vocabulary size V: expected 1 to 1048576, got {vocab_size}",
                         draft_probs=None,
                         target_probs=torch.ones(2, 4, 1).expand(2, 4, vocab_size).contiguous()
                         )  # fmt: skip
        self.refused(r"seed: expected an int in \[-2\^63, 2\^63\)", seed=2**63)
        self.refused(r"position: expected an int in", position=-(2**63) - 1)

    def test_unknown_backend(self):
        self.refused("backend: expected one of 'auto', 'baseline', 'vectorized', 'fused', "
                     "got 'cuda'", backend="cuda")  # fmt: skip
        with pytest.raises(ValueError, match="backend"):
            rsk.sample(torch.ones(1, 2), backend="fastest")

    def test_sample(self):
        with pytest.raises(ValueError, match=r"probs: expected 2 dimensions \[B, V\]"):
            rsk.sample(torch.ones(3))
        with pytest.raises(ValueError, match="probs: expected dtype"):
            rsk.sample(torch.ones(3, 2).double())
        with pytest.raises(ValueError, match="vocabulary size V"):
            rsk.sample(torch.ones(3, 0))
        with pytest.raises(ValueError, match="contiguous"):
            rsk.sample(torch.ones(3, 2).T)

    def test_every_bad_call_is_refused(self):
        """As built here; test_toolchains.py tries other compilers."""
        build.load("cpu")
        build.load("emulator")
        build.load("sharded emulator")
        build.load("roof cpu")
        build.load("roof emulator")
        names = bad_calls.bad_calls("cpu")
        operators = {
            name.removeprefix("rsk::")
            for name in torch._C._dispatch_get_all_op_names()
            if name.startswith("rsk::") and bad_calls._is_implemented(name, "CPU")
        }
        assert operators == bad_calls.good_operator_calls("cpu").keys()
        assert {"rejection_sample", "sample", "launch", "sharded_find"} <= operators
        assert {name: bad_calls.make(name, "cpu") for name in names} == dict.fromkeys(names, "")

    def test_a_call_that_ends_its_process_is_found(self, monkeypatch):
        calls = {
            "refuse": partial(rsk.sample, None),
            "end": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "leave": lambda: os._exit(3),
            "accept": lambda: 7,
        }
        monkeypatch.setattr(bad_calls, "bad_calls", lambda device: calls)
        assert bad_calls.make_apart(list(calls), "cpu", False) == {
            "refuse": "",
            "end": "killed the process: SIGKILL",
            "leave": "left with status 3",
            "accept": "was accepted and returned 7",
        }

    def test_the_operators_check_too(self):
        rsk.sample(torch.ones(1, 2), seed=0, backend="fused")
        tokens, draft, target = self.batch()
        operator = torch.ops.rsk.rejection_sample
        for arguments in (
            (tokens[0], draft, target),
            (tokens.float(), draft, target),
            (tokens, draft[:, :2], target),
            (tokens, draft[:, :, :0], target),
            (tokens, draft.double(), target),
            (tokens, draft, target[:, :3]),
            (tokens, draft, target.double()),
            (tokens, draft, target[:, :, :0]),
        ):
            with pytest.raises(RuntimeError, match="expected"):
                operator(*arguments, None, 0, None, 0)
        with pytest.raises(RuntimeError, match="seed: expected int64"):
            operator(tokens, draft, target, torch.zeros(1, dtype=torch.int64), 0, None, 0)


class TestSeeds:
    @backends
    def test_none_draws_from_the_global_generator(self, backend):
        batch = random_batch(64, 4, 100)

        def run(seed):
            torch.manual_seed(seed)
            return [rsk.rejection_sample(*batch, backend=backend).tokens for _ in range(2)]

        first, second = run(1)
        assert not torch.equal(first, second)
        assert all(map(torch.equal, run(1), (first, second)))
        assert not torch.equal(run(2)[0], first)

    @backends
    def test_an_int_is_the_first_of_consecutive_seeds(self, backend):
        batch = random_batch(8, 4, 100)
        seeds = torch.arange(40, 48)
        a = rsk.rejection_sample(*batch, seed=40, backend=backend)
        b = rsk.rejection_sample(*batch, seed=seeds, backend=backend)
        assert torch.equal(a.tokens, b.tokens)


class TestPyTorch:
    def test_opcheck(self):
        tokens, draft, target = random_batch(3, 2, 10)
        seeds = torch.arange(3)
        rsk.sample(target[:, 0], seed=0, backend="fused")
        for arguments in (
            (tokens, draft, target, None, 7, None, 0),
            (tokens.int(), None, target.half(), seeds, 0, seeds, 0),
            (tokens[:0], draft[:0], target[:0], None, 7, None, 0),
        ):
            torch.library.opcheck(torch.ops.rsk.rejection_sample.default, arguments)
        torch.library.opcheck(torch.ops.rsk.sample.default, (target[:, 0], seeds, 0, None, 3))

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["vectorized", "fused", "auto"])
    def test_compiles_without_a_graph_break(self, backend):
        torch._dynamo.reset()

        @torch.compile(fullgraph=True, backend="eager")
        def step(tokens, draft, target, seed, position):
            got = rsk.rejection_sample(
                tokens, draft, target, seed=seed, position=position, backend=backend
            )
            again = rsk.sample(target[:, 0], seed=seed, position=position, backend=backend)
            return got.tokens + 1, again

        for batch_size, seed in ((4, 5), (6, 2**63 - 3), (6, torch.arange(6)), (4, None)):
            batch = random_batch(batch_size, 3, 40)
            torch.manual_seed(batch_size)
            tokens, drawn = step(*batch, seed, 9)
            if seed is None:
                assert tokens.min() >= 0
                continue
            expected = rsk.rejection_sample(*batch, seed=seed, position=9, backend="baseline")
            assert torch.equal(tokens, expected.tokens + 1)
            assert torch.equal(drawn, rsk.sample(batch[2][:, 0], seed=seed, position=9))

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["vectorized", "fused"])
    def test_compiles_with_the_default_compiler(self, backend):
        torch._dynamo.reset()
        compiled = torch.compile(rsk.rejection_sample, fullgraph=True)
        batch = random_batch(5, 3, 60)
        for seed, position in ((-5 * 10**18, 2**62), (torch.arange(5), torch.arange(5))):
            got = compiled(*batch, seed=seed, position=position, backend=backend)
            expected = rsk.rejection_sample(*batch, seed=seed, position=position)
            assert torch.equal(got.tokens, expected.tokens)

    def test_the_first_call_of_a_process_may_be_compiled(self):
        """Nothing that is loaded meanwhile makes the compiled function one of another time."""
        code = (
            "import torch, rsk\n"
            "from rsk.check.synthetic import make_batch\n"
            "step = torch.compile(rsk.rejection_sample, fullgraph=True, backend='eager')\n"
            "batch = make_batch(3, 2, 40)\n"
            "expected = rsk.rejection_sample(*batch, seed=1, backend='baseline')\n"
            "print(torch.equal(step(*batch, seed=1).tokens, expected.tokens))\n"
        )
        done = warm.run(code, os.environ)
        assert done.stdout == "True\n", done.stderr

    def test_probabilities_that_require_gradients(self):
        tokens, draft, target = random_batch(3, 2, 10)
        expected = rsk.rejection_sample(tokens, draft, target, seed=1).tokens
        draft.requires_grad_(), target.requires_grad_()
        for backend in rsk.BACKENDS:
            got = rsk.rejection_sample(tokens, draft, target, seed=1, backend=backend).tokens
            assert torch.equal(got, expected) and not got.requires_grad
            assert not rsk.sample(target[:, 0], seed=1, backend=backend).requires_grad


class TestSynthetic:
    @pytest.mark.parametrize("acceptance", [0.5, 0.7, 0.9])
    def test_acceptance_rate_is_what_was_asked_for(self, acceptance):
        batch = make_batch(400, 4, 1000, acceptance=acceptance)
        got = rsk.rejection_sample(*batch, seed=10**6)
        expected = sum(acceptance**k for k in range(1, 5))
        assert got.num_accepted.double().mean().item() == pytest.approx(expected, abs=0.35)
        total = torch.minimum(batch.draft_probs, batch.target_probs[:, :4]).sum(-1)
        assert total.mean().item() == pytest.approx(acceptance, abs=0.01)

    def test_rows_are_distributions_and_peaked(self):
        batch = make_batch(8, 2, 32000)
        sums = torch.cat([batch.draft_probs, batch.target_probs], 1).sum(-1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        assert batch.target_probs.amax(-1).mean() > 0.2

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="acceptance"):
            make_batch(1, 1, 10, acceptance=1.5)
        with pytest.raises(ValueError, match="vocab_size"):
            make_batch(1, 1, 0)
