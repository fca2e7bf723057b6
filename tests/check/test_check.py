"""The checks: their statistics are what they say, right samplers pass, planted faults do not."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

import rsk
from rsk import check
from rsk.check import __main__ as command
from rsk.check import sequential_test
from rsk.check.calls import Call
from rsk.check.cases import Case, Outcomes, long_draft, searched_coins, small_vocabulary
from rsk.check.mutants import MUTANTS
from rsk.check.recipes import Recipe
from rsk.check.right_sampler import Correct
from rsk.check.shrink import shrink
from rsk.figures import checks, plotting
from rsk.sampler.random_words import DRAFT, words

fused = partial(rsk.rejection_sample, backend="fused")
baseline = partial(rsk.rejection_sample, backend="baseline")
ONE_CASE = [small_vocabulary()]


# --- the law


def law_by_enumeration(q, p, length):
    """Every draft, every place of rejection, every last token, in fractions."""
    law = {}
    vocab = range(len(p[0]))
    for drafts in itertools.product(vocab, repeat=length):
        chance = Fraction(1)
        for k, d in enumerate(drafts):
            chance *= q[k][d]
        for n in range(length + 1):
            if chance == 0:
                break
            if n == length:
                for v in vocab:
                    law[(*drafts, v)] = law.get((*drafts, v), 0) + chance * p[n][v]
                break
            d = drafts[n]
            accept = min(Fraction(1), p[n][d] / q[n][d])
            residual = [max(a - b, Fraction(0)) for a, b in zip(p[n], q[n], strict=True)]
            if accept < 1:
                for v in vocab:
                    cell = (*drafts[:n], v)
                    share = residual[v] / sum(residual)
                    law[cell] = law.get(cell, 0) + chance * (1 - accept) * share
            chance *= accept
    return law


@pytest.mark.parametrize("case", check.small_cases(), ids=lambda case: case.name)
def test_the_law_is_that_of_the_rule(case):
    outcomes = Outcomes(case)
    for r, length in enumerate(case.draft_len):
        q, p = (
            [[Fraction(x) for x in row] for row in probs[r].tolist()]
            for probs in (case.draft_probs, case.target_probs)
        )
        expected = law_by_enumeration(q, p, length)
        law = dict(zip(outcomes.cells, outcomes.law[r].tolist(), strict=False))
        for cell, chance in law.items():
            assert chance == pytest.approx(float(expected.get(cell, 0)), abs=1e-12), cell
        assert sum(expected.values()) == 1


def test_parts_of_the_law():
    case = ONE_CASE[0]
    outcomes = Outcomes(case)
    for r, length in enumerate(case.draft_len):
        q, p = case.draft_probs[r].double(), case.target_probs[r].double()
        aspects = {aspect.name: aspect for aspect in outcomes.aspects(r)}
        accept = torch.minimum(p[:length], q[:length]).sum(1)
        closed = [float(accept[:n].prod() * (1 - accept[n])) for n in range(length)]
        closed.append(float(accept.prod()))
        lengths = aspects["accepted length"].law.tolist()
        assert lengths[: length + 1] == pytest.approx(closed) and not any(lengths[length + 1 :])
        for k in range(length):  # the theorem: what is emitted follows the target
            token = aspects[f"token at position {k}"].law
            assert float(token.sum()) == 0 or token.tolist() == pytest.approx(p[k].tolist())
        if closed[-1]:
            assert aspects["bonus token"].law.tolist() == pytest.approx(p[length].tolist())


def test_a_large_vocabulary_shares_bins():
    torch.manual_seed(1)
    q, p = (torch.rand(n, 500).double().softmax(-1).float() for n in (3, 4))
    case = Case.make("large", {"one": (q, p)})
    outcomes = Outcomes(case)
    assert 2 < outcomes.num_bins < 8 and len(outcomes.cells) <= 1024
    assert float(outcomes.law.sum()) == pytest.approx(1)
    first = next(x for x in outcomes.aspects(0) if x.name == "token at position 0")
    binned = torch.zeros(outcomes.num_bins).index_add_(0, case.bins, p[0])
    assert first.law.tolist() == pytest.approx(binned.tolist(), abs=1e-6)
    assert check.assert_lossless(fused, cases=[case], bias=0.1).lossless
    with pytest.raises(check.NotLossless, match="recovered token"):
        check.assert_lossless(MUTANTS["residual_argmax"], cases=[case], bias=0.1)


def test_bad_cases():
    with pytest.raises(ValueError, match=r"expected draft rows \[K, V\] and target rows \[K\+1, V"):
        Case.make("x", {"a": ([[1.0, 0.0]], [[1.0, 0.0]])})
    with pytest.raises(ValueError, match=r"a target row is not a distribution.*0\.9"):
        Case.make("x", {"a": ([[1.0, 0.0]], [[1.0, 0.0], [0.5, 0.4]])})
    with pytest.raises(ValueError, match="a draft row is not a distribution"):
        Case.make("x", {"a": ([[1.5, -0.5]], [[1.0, 0.0], [0.5, 0.5]])})
    with pytest.raises(ValueError, match="expected K of at most 8.* got 9"):
        Case.make("x", {"a": ([[1.0, 0.0]] * 9, [[1.0, 0.0]] * 10)})


# --- the statistics


def multinomial(rng, total, law, size):
    return torch.from_numpy(rng.multinomial(total, law.numpy(), size=size)).double()


def test_the_evidence_is_a_martingale_under_the_law():
    law = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
    rng = np.random.default_rng(0)
    for total in (0, 1, 7, 300):
        counts = multinomial(rng, total, law, 3)
        now = sequential_test.log_evidence(counts, law, 0.05).exp()
        later = sum(
            law[i] * sequential_test.log_evidence(counts + torch.eye(5)[i], law, 0.05).exp()
            for i in range(4)
        )
        assert torch.allclose(now, later, rtol=1e-9)
    assert sequential_test.log_evidence(torch.zeros(5).double(), law, 0.05).item() == pytest.approx(
        0
    )
    impossible = torch.tensor([5.0, 3, 1, 0, 1]).double()
    assert sequential_test.log_evidence(impossible, law, 0.05).item() == math.inf


def test_the_bound_on_g_holds_for_noncentral_chi_squared():
    for freedom, total, bias, miss in itertools.product(
        (1, 5, 80), (2e3, 2e4), (0.02, 0.1), (0.2, 0.01, 1e-4)
    ):
        bound = sequential_test.harmless_below(total, freedom, bias, miss)
        below = stats.ncx2.cdf(bound, freedom, 4 * total * bias**2) if bound > 0 else 0.0
        assert below <= miss


def test_g_and_its_merged_cells():
    law = torch.tensor([0.5, 0.3, 0.1, 0.07, 0.02, 0.01, 0.0], dtype=torch.float64)
    counts = torch.tensor([40.0, 40, 8, 7, 3, 2, 0]).double()
    g, freedom = sequential_test.g_statistic(counts, law)
    merged = stats.power_divergence([40, 40, 8, 7, 5], [50, 30, 10, 7, 3], lambda_="log-likelihood")
    assert freedom == 4 and g.item() == pytest.approx(merged.statistic)
    g, freedom = sequential_test.g_statistic(10 * counts, law)  # now each is expected often enough
    seen, expected = [400, 400, 80, 70, 30, 20], [500, 300, 100, 70, 20, 10]
    plain = stats.power_divergence(seen, expected, lambda_="log-likelihood")
    assert freedom == 5 and g.item() == pytest.approx(plain.statistic)
    assert sequential_test.hidden_by_merging(law, 100) == pytest.approx(0.02)  # some cell gains
    assert sequential_test.hidden_by_merging(law, 300) == 0  # one cell by itself
    assert sequential_test.hidden_by_merging(law, 1000) == 0


def test_the_noise_floor_is_what_chance_leaves():
    law = Outcomes(ONE_CASE[0]).law[0]
    rng = np.random.default_rng(1)
    for total in (1000, 20_000):
        distances = sequential_test.total_variation(multinomial(rng, total, law, 400), law)
        floor = sequential_test.noise_floor(law, total)
        assert distances.mean().item() == pytest.approx(floor, rel=0.05)


def sequential(rng, law, aspects, sample_from, repeats, level, bias, miss):
    """Run the sequential test on many streams of outcomes: which fail, which pass."""
    needed = math.log(sum(aspect.freedom > 0 for aspect in aspects) / level)
    test = sequential_test.SequentialTest(aspects, needed=needed, bias=bias, miss=miss)
    counts = torch.zeros(repeats, len(law), dtype=torch.float64)
    failed = torch.zeros(repeats, dtype=torch.bool)
    passed = torch.zeros(repeats, dtype=torch.bool)
    collected = 0
    for total in sequential_test.looks(max(aspect.freedom for aspect in aspects), bias, miss):
        counts += multinomial(rng, total - collected, sample_from, repeats)
        collected = total
        failed |= test.failed(test.evidence(counts)) & ~passed
        passed |= test.passed(counts) & ~failed
        if bool((failed | passed).all()):
            return failed, passed, collected
    raise AssertionError("unreachable")


def alternatives(law, bias, rng):
    """Laws at this distance: changed as evenly as can be, mostly in one cell, at random."""
    possible = (law > 0).nonzero().flatten()
    order = possible[law[possible].argsort(descending=True)]
    upper = torch.zeros(len(law), dtype=torch.bool)
    running = 0.0
    for i in order.tolist():  # about half of the probability
        if running + float(law[i]) <= 0.5:
            upper[i], running = True, running + float(law[i])
    even = law.clone()
    even[upper] *= 1 + bias / running
    even[~upper] *= 1 - bias / (1 - running)
    one = law.clone()
    one[order[0]] += bias
    one[order[1:]] *= 1 - bias / float(law[order[1:]].sum())
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=len(law)))
    signs -= (law * signs).sum()
    mixed = law * (1 + 2 * bias * signs / (law * signs.abs()).sum())
    return {"even": even, "one cell": one, "random signs": mixed}


def consistent(times, repeats, rate):
    """Whether so many successes are not too many for a rate of at most ``rate``."""
    return times <= stats.binom.ppf(1 - 1e-4, repeats, rate)


class TestErrorRates:
    """Level, power and smallest detectable bias, measured."""

    @pytest.mark.parametrize("level", [0.05, 0.5])
    def test_level(self, level):
        rng = np.random.default_rng(2)
        false_alarms = repeats = 0
        for r in (0, 1, 4):
            outcomes = Outcomes(ONE_CASE[0])
            law = outcomes.law[r]
            failed, _, _ = sequential(rng, law, outcomes.aspects(r), law, 1000, level, 0.05, 0.01)
            false_alarms += int(failed.sum())
            repeats += 1000
        assert consistent(false_alarms, repeats, level)
        if level == 0.5:
            assert false_alarms > 0  # the test can raise an alarm at all

    @pytest.mark.parametrize(("bias", "miss"), [(0.03, 0.01), (0.1, 0.01), (0.1, 0.2)])
    def test_power_at_the_smallest_detectable_bias(self, bias, miss):
        rng = np.random.default_rng(3)
        outcomes = Outcomes(ONE_CASE[0])
        for r in (0, 1, 4):
            law = outcomes.law[r]
            for name, other in alternatives(law, bias, rng).items():
                assert float((other - law).abs().sum() / 2) == pytest.approx(bias)
                assert float(other.min()) >= 0 and float(other.sum()) == pytest.approx(1)
                _, missed, _ = sequential(
                    rng, law, outcomes.aspects(r), other, 300, 1e-4, bias, miss
                )
                assert consistent(int(missed.sum()), 300, miss), (r, name, int(missed.sum()))

    def test_a_bias_too_small_to_be_promised_is_not_always_found(self):
        rng = np.random.default_rng(4)
        outcomes = Outcomes(ONE_CASE[0])
        law = outcomes.law[0]
        other = alternatives(law, 0.01, rng)["even"]
        _, missed, _ = sequential(rng, law, outcomes.aspects(0), other, 100, 1e-4, 0.05, 0.01)
        assert int(missed.sum()) > 50

    @pytest.mark.slow
    def test_a_hundred_seeds_of_a_correct_sampler(self):
        level, seeds = 0.1, 100
        alarms = sum(
            not check.examine(fused, cases=ONE_CASE, bias=0.2, level=level, seed=seed).lossless
            for seed in range(seeds)
        )
        assert consistent(alarms, seeds, level)

    def test_a_sampler_that_is_wrong_now_and_then(self):
        """Off by just the stated bias: an argmax in some requests, chosen by their seeds."""
        bias, seeds = 0.1, 40
        case = Case.make(
            "disjoint", {"one": ([[0.0, 1.0, 0.0]], [[0.5, 0.0, 0.5], [0.5, 0.25, 0.25]])}
        )
        share = bias / 0.5  # argmax is 0.5 from the law

        def sampler(*batch, seed, position):
            right = fused(*batch, seed=seed, position=position)
            wrong = MUTANTS["residual_argmax"](*batch, seed=seed, position=position)
            often = words(seed, position, 3) >> 1 & (1 << 62) - 1 < int(share * 2**62)
            tokens = torch.where(often[:, None], wrong.tokens, right.tokens)
            return tokens, right.num_accepted

        missed = sum(
            check.examine(sampler, cases=[case], bias=bias, power=0.9, seed=seed).lossless
            for seed in range(seeds)
        )
        assert consistent(missed, seeds, 0.1)


# --- assert_lossless


class TestLossless:
    def test_called_with_the_sampler_alone(self):
        verdict = check.assert_lossless(rsk.rejection_sample)
        assert verdict.lossless and verdict.culprit is None
        text = str(verdict)
        for said in (
            "level 0.0001: a correct sampler is called wrong with at most this probability",
            "power 0.99: a sampler off by 0.03 or more (total variation distance)",
            "noise floor",
            "evidence against it",
            f"{verdict.requests:,} requests",
        ):
            assert said in text
        assert {found.case for found in verdict.findings} == {
            case.name for case in check.default_cases()
        }

    @pytest.mark.parametrize("backend", ["baseline", "vectorized"])
    def test_backends(self, backend):
        sampler = partial(rsk.rejection_sample, backend=backend)
        check.assert_lossless(sampler, cases=check.small_cases(), bias=0.15)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_sixteen_bits(self, dtype):
        check.assert_lossless(fused, cases=check.small_cases(), dtype=dtype, bias=0.1)

    @pytest.mark.slow
    def test_a_sampler_with_random_numbers_of_its_own(self):
        """No seed, no fixed point, one request at a time, a plain tuple."""

        def sampler(draft_tokens, draft_probs, target_probs, *, seed, position):
            assert len(draft_tokens) == 1 and seed.shape == position.shape == (1,)
            emitted = []
            row = target_probs[0, 0]
            for k, d in enumerate(draft_tokens[0].tolist()):
                if d == -1:
                    break
                p, q = target_probs[0, k], draft_probs[0, k]
                if torch.rand(()) >= p[d] / q[d]:
                    row = (p - q).clamp(min=0)
                    break
                emitted.append(d)
                row = target_probs[0, k + 1]
            n = len(emitted)
            emitted.append(int(torch.multinomial(row, 1)))
            emitted += [-1] * (draft_tokens.shape[1] - n)
            return torch.tensor([emitted]), torch.tensor([n])

        verdict = check.assert_lossless(sampler, cases=ONE_CASE, bias=0.4, batch_size=1)
        again = check.assert_lossless(sampler, cases=ONE_CASE, bias=0.4, batch_size=1)
        found, same = (v.find("joint distribution").counts for v in (verdict, again))
        assert torch.equal(found, same)  # the global generator is seeded, and restored
        state = torch.get_rng_state()
        check.examine(sampler, cases=[searched_coins()], batch_size=1)
        assert torch.equal(state, torch.get_rng_state())

    def test_a_bias_that_looks_harmless(self):
        """63.04 % instead of 60 %: a distance of 0.03, which a tolerance of 0.2 never sees."""
        p, off = torch.tensor([0.6, 0.4]), torch.tensor([0.6304, 0.3696])
        case = Case.make("two words", {"q = (0.3, 0.7)": ([[0.3, 0.7]], torch.stack([p, p]))})

        def sampler(tokens, draft, target, *, seed, position):
            return fused(tokens, draft, off.expand_as(target), seed=seed, position=position)

        with pytest.raises(check.NotLossless) as caught:
            check.assert_lossless(sampler, cases=[case])
        verdict = caught.value.verdict
        assert isinstance(caught.value, AssertionError) and not verdict.lossless
        token = verdict.find("token at position 0")
        assert 0.02 < token.last.distance < 0.05
        assert "total variation distance" in str(caught.value)

    def test_dependence_between_positions_alone(self):
        """Each aspect is right; the bonus token is drawn with a draft's random number."""

        class Dependent(Correct):
            def words(self, seeds, t):
                return words(seeds, t - 1, DRAFT)

        row = [[0.25, 0.75]] * 2
        case = Case.make("equal rows", {"p = q": (row[:1], row)})
        verdict = check.examine(Dependent(), cases=[case], at_least=3000)
        assert not verdict.lossless and verdict.culprit.aspect == "joint distribution"
        for aspect in ("token at position 0", "bonus token"):
            found = verdict.find(aspect)
            assert found.last.distance < 3 * found.last.noise_floor

    def test_malformed_output_is_impossible(self):
        def sampler(tokens, draft, target, *, seed, position):
            tokens, n = fused(tokens, draft, target, seed=seed, position=position)
            tokens[:, 0] = 99
            return tokens, n

        verdict = check.examine(sampler, cases=ONE_CASE)
        assert re.search(r"accepted token 0 is 99|token is 99, not one of 4", verdict.impossible)
        assert "infinite to 1" in str(verdict)
        for n in (-1, 3):

            def counts(tokens, draft, target, *, seed, position, n=n):
                got = fused(tokens, draft, target, seed=seed, position=position)
                return got.tokens, torch.full_like(got.num_accepted, n)

            verdict = check.examine(counts, cases=ONE_CASE)
            assert re.match(rf"num_accepted is {n} for a draft of \d tokens", verdict.impossible)

    def test_the_impossible_is_explained(self):
        outcomes = Outcomes(ONE_CASE[0])
        disjoint, equal = (outcomes.case.kinds.index(k) for k in ("q and p disjoint", "q equals p"))
        for arguments, reason in (
            ((disjoint, [1, 0], [1, 0, 0], 1), "accepted although its target probability is 0"),
            (
                (disjoint, [1, 0], [3, -1, -1], 0),
                r"recovered token is 3, where p = 0 <= q = 0\.5625",
            ),
            ((equal, [0, 0], [1, -1, -1], 0), "draft token 0 is rejected although p = 0.375 >= q"),
            ((equal, [0, 0], [1, 0, 0], 2), "accepted token 0 is 1, not the draft's 0"),
            ((equal, [0, 0], [0, 0, -1], 2), "the bonus token is -1, not one of 4 words"),
        ):
            assert re.search(reason, outcomes.why_impossible(*arguments))

    def test_the_same_seed_gives_the_same_verdict(self):
        one, two, other = (
            check.examine(fused, cases=ONE_CASE, bias=0.1, seed=seed) for seed in (5, 5, 6)
        )
        counts = [v.find("joint distribution").counts for v in (one, two, other)]
        assert torch.equal(counts[0], counts[1]) and not torch.equal(counts[0], counts[2])

    def test_at_least(self):
        found = check.examine(fused, cases=[long_draft()], bias=0.2, at_least=5000).findings[0]
        assert found.last.total >= 5000
        totals = [look.total for look in found.looks]
        assert totals == sorted(set(totals))

    def test_bad_arguments(self):
        for name in ("level", "power", "bias"):
            for value in (0, 1, -0.1, math.nan):
                with pytest.raises(ValueError, match=f"{name}: expected a number between 0 and 1"):
                    check.examine(fused, **{name: value})
        with pytest.raises(ValueError, match="batch_size: expected at least 1"):
            check.examine(fused, batch_size=0)
        with pytest.raises(ValueError, match="cases: expected at least one"):
            check.examine(fused, cases=[])
        with pytest.raises(
            TypeError, match=r"tokens \[4, 2\] and num_accepted \[4\], got NoneType"
        ):
            check.examine(lambda *a, **k: None)
        with pytest.raises(TypeError, match=r"got \[4, 1\] and \[4\]"):
            check.examine(lambda *a, **k: (torch.zeros(4, 1), torch.zeros(4)))
        with pytest.raises(KeyError, match="no 'bonus' of .* there is 'accepted length'"):
            check.examine(fused, cases=ONE_CASE, bias=0.3).find("bonus")


# --- the other checks, and faults planted in the correct sampler


def planted(change):
    """The fused sampler with its result, or its arguments, changed."""

    def sampler(tokens, draft, target, *, seed=None, position=0):
        return change(tokens, draft, target, seed, position)

    return sampler


class TestAgrees:
    def test_backends(self):
        assert check.assert_agrees(partial(rsk.rejection_sample, backend="vectorized")) == 200
        assert check.assert_agrees(fused, examples=30, seed=3, max_elements=1 << 12) == 30

    def test_the_smallest_call_is_found_and_can_be_repeated(self):
        def sampler(draft_tokens, draft_probs, target_probs, *, seed, position):
            got = fused(draft_tokens, draft_probs, target_probs, seed=seed, position=position)
            if draft_tokens.shape[1] >= 2 and target_probs.shape[2] >= 5:
                got.tokens[:, 0].clamp_(max=1)
            return got

        with pytest.raises(AssertionError) as caught:
            check.assert_agrees(sampler, seed=0)
        message = str(caught.value)
        assert re.search(r"found in call \d+ of seed 0; the smallest call that shows it", message)
        assert re.search(r"an accepted token is not the draft's|token is another one", message)
        code = message.split("shows it:\n")[1]
        call = {}
        exec("\n".join(line.strip() for line in code.splitlines()), {"torch": torch}, call)
        assert call["target_probs"].shape == (1, 3, 5)
        got, expected = (s(**call).tokens for s in (sampler, baseline))
        assert not torch.equal(got, expected)

    def test_each_fault_is_described(self):
        def accept_more(tokens, draft, target, seed, position):
            return fused(tokens, draft, target * 3, seed=seed, position=position)

        def accept_less(tokens, draft, target, seed, position):
            return fused(tokens, draft if draft is None else draft * 3, target, seed=seed,
                         position=position)  # fmt: skip

        def refuse(tokens, draft, target, seed, position):
            return tuple(torch.full_like(t, -1) for t in fused(tokens, draft, target, seed=0))

        def pad(tokens, draft, target, seed, position):
            got = fused(tokens, draft, target, seed=seed, position=position)
            got.tokens[got.tokens == -1] = 0
            return got

        def crash(tokens, draft, target, seed, position):
            raise IndexError("out of bounds")

        for change, fault in (
            (accept_more, "too many draft tokens are accepted"),
            (accept_less, "too few draft tokens are accepted"),
            (refuse, "a valid request is refused"),
            (pad, "what is behind the last token is not -1"),
            (crash, "it raises IndexError: out of bounds"),
        ):
            with pytest.raises(AssertionError, match=fault):
                check.assert_agrees(planted(change), seed=1, large_vocabulary=False)

    def test_shrinking_keeps_what_matters(self):
        call = Recipe(
            batch_size=5, spec_len=6, vocab_size=40, dtype=torch.float16, layout="padded",
            rows=("overlapping", "near"), seed=11, position=70, contents=4,
        ).make()  # fmt: skip

        def fails(smaller):
            return smaller.shape[1] >= 2 and int((smaller.target_rows[:, 1] > 0).sum()) >= 3

        small = shrink(call, fails)
        assert small.shape == (1, 2, 3) and fails(small)
        assert small.draft_rows is None and small.target_rows.dtype == torch.float32
        assert int(small.seed) == int(small.position) == 0
        assert set(small.target_rows.flatten().tolist()) <= {0.0, 1.0}


class TestWellFormed:
    @pytest.mark.parametrize("backend", rsk.BACKENDS)
    def test_backends(self, backend):
        check.assert_well_formed(partial(rsk.rejection_sample, backend=backend))

    def test_planted_faults(self):
        def narrow(*batch):
            got = run(*batch)
            return got.tokens.int(), got.num_accepted

        def short(*batch):
            return run(*batch).tokens[:, :-1], run(*batch).num_accepted

        def zero_padding(*batch):
            got = run(*batch)
            got.tokens[got.tokens == -1] = 0
            return got

        def writes_input(tokens, draft, target, seed, position):
            got = run(tokens, draft, target, seed, position)
            if target.numel():
                target[0, 0, 0] += 1
            return got

        def too_many(*batch):
            got = run(*batch)
            return got.tokens, got.num_accepted + 1

        def unwritten(*batch):
            got = run(*batch)
            out = torch.empty_like(got.tokens)
            column = torch.arange(out.shape[1])
            written = column <= got.num_accepted[:, None]
            out[written] = got.tokens[written]
            return out, got.num_accepted

        def same_memory(*batch, kept={}):  # noqa: B006 - the fault
            got = run(*batch)
            out = kept.setdefault(got.tokens.shape, torch.empty_like(got.tokens))
            return out.copy_(got.tokens), got.num_accepted

        def remembered(*batch, kept={}):  # noqa: B006 - the fault
            key = (batch[0].data_ptr(), batch[2].data_ptr(), batch[2].shape)
            if key not in kept:
                kept[key] = (run(*batch), batch)  # holds the inputs, so that addresses stay theirs
            return tuple(t.clone() for t in kept[key][0])

        def raises_at_nan(tokens, draft, target, seed, position):
            if target.isnan().any():
                raise RuntimeError("probability tensor contains nan")
            return run(tokens, draft, target, seed, position)

        def refuses_all_at_nan(tokens, draft, target, seed, position):
            got = run(tokens, draft, target, seed, position)
            if target.isnan().any() and not target[0].isnan().any():
                return tuple(torch.full_like(t, -1) for t in got)
            return got

        def run(tokens, draft, target, seed, position):
            return fused(tokens, draft, target, seed=seed, position=position)

        for change, message in (
            (narrow, "tokens: expected int64, got torch.int32"),
            (short, r"expected tensors tokens \[5, 1\]"),
            (zero_padding, "behind the last token, is 0, not -1"),
            (writes_input, "the input target_probs was modified"),
            (too_many, "num_accepted is 1 in request 0, whose draft has 0 tokens"),
            (unwritten, "behind the last token|was not written"),
            (same_memory, "a later call changes the result of an earlier one"),
            (remembered, "inputs changed in place are not read again"),
            (raises_at_nan, "NaN as the target probability.*: it raises RuntimeError"),
            (refuses_all_at_nan, "NaN as the .*: it spoils request 0 too"),
        ):
            with pytest.raises(AssertionError, match=message):
                check.assert_well_formed(planted(change))

    def test_invalid_requests_can_be_left_out(self):
        check.assert_well_formed(MUTANTS["nan_falls_through"], invalid=False)


class TestReproducible:
    def test_planted_faults(self):
        def spoil(change):
            def sampler(tokens, draft, target, *, seed, position):
                return fused(tokens, draft, target, **change(seed, position, target))

            return sampler

        def by_time(seed, position, target, calls=itertools.count()):  # noqa: B008 - the fault
            return {"seed": seed, "position": position + next(calls)}

        def by_neighbours(seed, position, target):
            return {"seed": seed, "position": position + int(target.isnan().sum())}

        def by_batch_size(seed, position, target):
            return {"seed": seed, "position": position + len(target) // 8}

        def by_threads(seed, position, target):
            return {"seed": seed, "position": position + 10**6 * torch.get_num_threads()}

        def no_position(seed, position, target):
            return {"seed": seed, "position": 0}

        def ints_apart(seed, position, target):
            return {"seed": seed if isinstance(seed, torch.Tensor) else 0, "position": position}

        for change, message in (
            (by_time, "depends on when it is computed"),
            (by_neighbours, "depends on the other requests in the batch"),
            (by_batch_size, "depends on how many requests there are"),
            (by_threads, "depends on the number of threads"),
            (ints_apart, "depends on whether the seed is an int"),
            (no_position, "the coin of position 1001 is another random number when it is read in"),
        ):
            with pytest.raises(AssertionError, match=message):
                check.assert_reproducible(spoil(change))

    def test_a_sampler_without_a_seed(self):
        with pytest.raises(AssertionError, match="the same call returns something else"):
            check.assert_reproducible(lambda *batch, seed, position: fused(*batch))


# --- pictures and the command


class TestFigures:
    def verdicts(self):
        samplers = {"correct": fused, "argmax": MUTANTS["residual_argmax"]}
        return {
            name: check.examine(sampler, cases=ONE_CASE, bias=0.1, at_least=2000)
            for name, sampler in samplers.items()
        }

    def test_they_say_what_differs(self):
        verdicts = self.verdicts()
        wrong = checks.deviations(verdicts["argmax"])
        assert wrong.values["certain"] and wrong.values["worst"] > 5
        words = plotting.exhibit(wrong)
        assert "does not follow" in words.title and "recovered token" in words.caption
        assert "expected" in words.alt and len(wrong.data) >= 2
        right = checks.deviations(verdicts["correct"])
        assert not right.values["certain"] and "follows" in plotting.exhibit(right).title
        assert len(right.data) == checks.MOST_BARS
        assert right.fig.axes[0].patches
        chosen = checks.deviations(verdicts["correct"], "bonus token", kind="no draft")
        assert chosen.data["value"].tolist() == list("0123")
        for picture in (wrong, right, chosen):
            picture.fig.canvas.draw()
        with pytest.raises(KeyError, match="no 'x' of"):
            checks.deviations(verdicts["correct"], "x")


class TestCommand:
    def test_fuzz(self, capsys):
        assert command.main(["--minutes", "0.005", "--sampler", "rsk:rejection_sample"]) == 0
        assert re.search(r"rsk:rejection_sample  agrees  \d+ calls", capsys.readouterr().out)

    def test_a_sampler_that_raises_is_wrong_and_the_others_are_still_checked(
        self, capsys, monkeypatch, tmp_path
    ):
        monkeypatch.chdir(tmp_path)
        text = "def sampler(*call, **more):\n    raise IndexError('out of bounds\\nmore')\n"
        (tmp_path / "raising_one.py").write_text(text)
        monkeypatch.setattr(command.check, "assert_lossless", lambda *call, **more: None)
        names = ["raising_one:sampler", "rsk:rejection_sample"]
        assert command.main([word for name in names for word in ("--sampler", name)]) == 1
        said = capsys.readouterr().out
        assert said.count("    IndexError: out of bounds\n") == 2
        assert said.count("  WRONG   ") == 3 and "it raises IndexError: out of bounds" in said
        assert len(re.findall(r"^rsk:rejection_sample .*  passes  ", said, re.M)) == 4

    def test_checks_of_a_given_sampler(self, capsys):
        assert command.main(["--sampler", "rsk:rejection_sample"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 4 and all("  passes  " in line for line in lines)

    def test_a_wrong_sampler(self, capsys, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        text = "from rsk.check.mutants import MUTANTS\nsampler = MUTANTS['bonus_from_draft']\n"
        (tmp_path / "wrong_one.py").write_text(text)
        assert command.main(["--minutes", "0.05", "--sampler", "wrong_one:sampler"]) == 1
        said = capsys.readouterr().out
        assert "the bonus token is another one" in said and "wrong_one:sampler     WRONG" in said
        assert command.main(["--sampler", "wrong_one:sampler"]) == 1
        assert "not lossless: the bonus token is wrong" in capsys.readouterr().out

    def test_a_sampler_that_is_not_there(self):
        with pytest.raises(SystemExit, match="--sampler wrong:sampler: expected MODULE:NAME"):
            command.main(["--sampler", "wrong:sampler"])

    def test_bad_arguments(self, capsys):
        with pytest.raises(SystemExit):
            command.main(["--minutes", "0"])
        assert "expected a positive number" in capsys.readouterr().err
        for device, said in (("tpu", "device: expected"), ("cuda:99", "device cuda:99: ")):
            with pytest.raises(SystemExit):
                command.main(["--device", device])
            assert f"argument --device: {said}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_rest_of_the_package_does_not_need_it():
    code = "import sys, rsk; print([m for m in sys.modules if m.startswith('rsk.check')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_calls_are_rows_of_tensors():
    call = Recipe(batch_size=3, spec_len=2, vocab_size=4, seed=2**63 - 2).make().per_request()
    assert call.seed.tolist() == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert call.rows(torch.tensor([2])).shape == (1, 2, 4)
    assert isinstance(call, Call)
