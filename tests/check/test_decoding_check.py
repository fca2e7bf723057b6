"""The check of whole decoding loops: a right one passes, and wrong ones do not, by name."""

from __future__ import annotations

import inspect

import pytest
import torch

from rsk import check
from rsk.check.decoding import Texts
from rsk.check.decoding_mutants import LOOP_MUTANTS, CorrectLoop

SMALL = {"prompts": [[0]], "max_new_tokens": 2}


def uniform(ids):
    return torch.full((len(ids), 3), 1 / 3)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Toy models are faster with one."""


# --- loops that are right -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_correct_loop_passes(seed):
    loop = CorrectLoop()
    verdict = check.assert_decoding_lossless(loop, loop.target, seed=seed, **loop.texts)
    assert verdict.lossless and verdict.kinds == 2
    assert "lossless: the output follows the target" in str(verdict)
    assert "a loop off by 0.1 or more" in str(verdict)
    assert {f.aspect for f in verdict.findings} == {
        "length",
        "joint",
        *(f"token {i}" for i in range(1, 6)),
    }


def test_whatever_the_draft_reads_is_lossless():
    """A draft may be wrong in every way, if q says so: here its cache keeps what was rejected."""

    class Confused(CorrectLoop):
        def draft_law(self, logits):
            return super().draft_law(logits.flip(-1))

        q = draft_law  # and the sampler knows

    loop = Confused()
    check.assert_decoding_lossless(loop, loop.target, **loop.texts)


def test_probabilities_and_logits_are_one_law():
    loop = CorrectLoop()
    texts = {**loop.texts, "from_logits": False}
    for name in loop.filters:
        del texts[name]
    check.assert_decoding_lossless(loop, lambda ids: loop.target_law(loop.target(ids)), **texts)


def test_a_loop_of_single_prompts():
    loop = CorrectLoop(spec_len=1)
    texts = {**loop.texts, "prompts": [[1, 2]], "max_new_tokens": 3, "batch_size": 1}
    loop.texts["max_new_tokens"] = 3

    def decode(prompt, seed):
        (tokens,) = loop([prompt], [seed])
        return torch.tensor(tokens)

    check.assert_decoding_lossless(decode, loop.target, **texts, bias=0.2)


# --- loops that are wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", LOOP_MUTANTS.values(), ids=list(LOOP_MUTANTS))
def test_every_mutant_is_caught_by_name(mutant):
    assert type(mutant).__bases__ == (CorrectLoop,)
    (step,) = {n for n, m in vars(type(mutant)).items() if inspect.isfunction(m)}
    assert step != "__call__" and hasattr(CorrectLoop, step)
    assert mutant.seen and mutant.description != CorrectLoop().description
    for seed in range(3):
        with pytest.raises(check.NotLossless) as caught:
            check.assert_decoding_lossless(mutant, mutant.target, seed=seed, **mutant.texts)
        assert caught.value.verdict.culprit is not None
        assert mutant.verdict in str(caught.value)


def test_the_gallery_of_loops_is_complete():
    assert set(LOOP_MUTANTS) == {
        "q_is_not_the_drafts_law",
        "drafts_drawn_unfiltered",
        "filters_on_the_draft_only",
        "cache_keeps_rejected",
        "rows_one_behind",
        "random_numbers_again",
        "one_seed_for_all",
        "stop_overlooked",
        "limit_overlooked",
    }


@pytest.mark.slow
def test_the_level_is_what_it_says():
    """Loops that draw from the law itself, judged 300 times at a level of 10 %."""
    generator = torch.Generator().manual_seed(5)

    def decode(prompts, seeds):
        return torch.randint(3, (len(prompts), 2), generator=generator)

    options = {**SMALL, "batch_size": 4096, "level": 0.1, "bias": 0.2}
    wrong = [
        not check.examine_decoding(decode, uniform, seed=seed, **options).lossless
        for seed in range(300)
    ]
    assert sum(wrong) <= 0.1 * 300


def test_the_power_is_what_it_says():
    """A loop that is off by exactly the bias, in the direction that is hardest to see."""
    generator = torch.Generator().manual_seed(6)
    law = torch.full((9,), 1 / 9)
    law[:4] += 0.2 / 4
    law[4:8] -= 0.2 / 4

    def decode(prompts, seeds):
        drawn = law.multinomial(len(prompts), replacement=True, generator=generator)
        return torch.stack([drawn // 3, drawn % 3], 1)

    options = {**SMALL, "batch_size": 4096, "bias": 0.2}
    assert not any(
        check.examine_decoding(decode, uniform, seed=seed, **options).lossless for seed in range(60)
    )


@pytest.mark.parametrize("length", [5, 6])
def test_a_bias_among_many_texts_is_found(length):
    """Each text is rare, and all aspects but the whole text are right: an even sum is likelier."""
    generator = torch.Generator().manual_seed(7)

    def decode(prompts, seeds):
        texts = torch.randint(4, (len(prompts), length), generator=generator)
        odd = texts.sum(1) % 2 == 1
        texts[:, -1] ^= (odd & (torch.rand(len(texts), generator=generator) < 0.2)).long()
        return texts

    def target(ids):
        return torch.full((len(ids), 4), 1 / 4)

    options = {"prompts": [[0]], "max_new_tokens": length, "batch_size": 1 << 14}
    for seed in range(3):
        verdict = check.examine_decoding(decode, target, seed=seed, **options)
        assert not verdict.lossless and verdict.culprit.aspect == "joint"


# --- the law --------------------------------------------------------------------------------------


def test_texts_are_enumerated_with_their_probabilities():
    rows = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    texts = Texts([1], lambda ids: rows[ids[:, -1]], 3, {2})
    found = dict(zip(texts.cell, texts.law.tolist(), strict=False))
    assert found == {
        (1, 1, 1): 0.125,
        (1, 1, 2): 0.125,
        (1, 2): 0.25,
        (2,): 0.5,
    }
    assert float(texts.law.sum()) == 1
    length, first, *_ = texts.aspects()
    assert length.law.tolist() == [0.5, 0.25, 0.25]
    assert first.law.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ([0], "it ends after 1 of 2 tokens without a stop token"),
        ([0, 0, 0], "it has 3 tokens, where 2 are the limit"),
        ([2, 0], "it goes on after the stop token 2"),
        ([0, 7], "the target gives it probability 0"),
    ],
)
def test_what_cannot_be_is_explained(text, reason):
    with pytest.raises(check.NotLossless, match=reason):
        check.assert_decoding_lossless(lambda prompt, seed: text, uniform, stop_tokens=[2], **SMALL)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": 0}, "level: expected a number between 0 and 1, got 0"),
        ({"bias": 1.5}, "bias: expected a number between 0 and 1, got 1.5"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"prompts": []}, "prompts: expected at least one"),
        ({"prompts": [[]]}, "prompts: expected at least one, and tokens in each"),
        ({"max_new_tokens": 12}, "expected at most 16384 texts after a prompt"),
        ({"target": lambda ids: uniform(ids) * 2}, "got sums from 2 to 2; for logits, from_logits"),
        ({"target": lambda ids: uniform(ids)[0]}, r"target: expected rows \[1, V\] .* got \[3\]"),
        ({"target": lambda ids: None}, r"target: expected rows \[1, V\] .* got NoneType"),
    ],
)
def test_bad_arguments_are_named(change, message):
    options = {**SMALL, "target": uniform, **change}
    with pytest.raises(ValueError, match=message):
        check.examine_decoding(lambda prompt, seed: [0, 0], options.pop("target"), **options)


@pytest.mark.parametrize("returned", [None, [None, None], "ab", 3])
def test_a_loop_that_returns_something_else_is_named(returned):
    with pytest.raises(TypeError, match="decode: expected token ids in a list or tensor, got"):
        check.examine_decoding(lambda prompt, seed: returned, uniform, **SMALL)
    with pytest.raises(TypeError, match="decode: expected 2 lists of token ids"):
        check.examine_decoding(lambda prompts, seeds: [[0, 0]], uniform, batch_size=2, **SMALL)
