"""The checks on samplers that begin with logits: right ones pass, each planted fault is named."""

from __future__ import annotations

import dataclasses
import inspect
import random
import re
import time
from functools import partial

import pytest
import torch

import rsk
from rsk import check
from rsk.check import __main__ as command
from rsk.check import agreement
from rsk.check.logit_cases import filtered_softmax, logit_cases, make_case
from rsk.check.logit_mutants import LOGIT_MUTANTS, CorrectFromLogits
from rsk.check.logit_recipes import LOGIT_ROWS, LogitRecipe, random_logit_recipe
from rsk.check.recipes import DTYPES, LAYOUTS
from rsk.check.shrink import shrink

SAMPLERS = {n: partial(rsk.rejection_sample_from_logits, backend=n) for n in rsk.BACKENDS}
vectorized = SAMPLERS["vectorized"]
CASES = [*check.small_cases(), *logit_cases()]
mutants = pytest.mark.parametrize("mutant", LOGIT_MUTANTS.values(), ids=list(LOGIT_MUTANTS))


# --- right samplers pass


@pytest.mark.parametrize("name", [*rsk.BACKENDS, "step by step"])
@pytest.mark.slow
def test_right_samplers_pass_every_check(name):
    sampler = SAMPLERS.get(name, CorrectFromLogits())
    slow = name == "baseline"
    check.assert_well_formed(sampler, from_logits=True)
    check.assert_reproducible(sampler, from_logits=True, num_seeds=2 if slow else 8)
    check.assert_agrees(sampler, from_logits=True, seed=0, examples=60, large_vocabulary=not slow)
    cases = logit_cases() if slow else CASES
    check.assert_lossless(sampler, from_logits=True, cases=cases, bias=0.4 if slow else 0.1)


@pytest.mark.slow
def test_the_cuda_kernel_in_the_emulator_passes():
    """All but the law of its output, which takes thousands of requests."""
    sampler = partial(rsk.rejection_sample_from_logits, backend="emulator")
    check.assert_well_formed(sampler, from_logits=True)
    check.assert_reproducible(sampler, from_logits=True, num_seeds=1)
    check.assert_agrees(
        sampler, from_logits=True, seed=5, examples=20, max_elements=1 << 12, large_vocabulary=False
    )


def test_right_samplers_pass_on_other_dtypes():
    for dtype in (torch.bfloat16, torch.float16):
        check.assert_lossless(
            vectorized, from_logits=True, cases=logit_cases(), dtype=dtype, bias=0.1
        )


def test_the_cases_are_for_samplers_of_probabilities_too():
    check.assert_lossless(rsk.rejection_sample, cases=logit_cases(), bias=0.1)


# --- the gallery


def test_the_gallery_is_complete():
    assert set(LOGIT_MUTANTS) == {
        "top_p_before_top_k",
        "ties_cut",
        "crossing_token_dropped",
        "float_sums",
        "temperature_on_one_side",
        "draft_unfiltered",
        "softmax_in_16_bits",
        "ruled_out_row_passes",
    }


@mutants
def test_a_mutant_is_the_right_sampler_with_one_step_replaced(mutant):
    assert type(mutant).__bases__ == (CorrectFromLogits,)
    (step,) = (n for n, member in vars(type(mutant)).items() if inspect.isfunction(member))
    assert inspect.isfunction(getattr(CorrectFromLogits, step)) and step != "__call__"
    assert mutant.name.replace("_", "") == type(mutant).__name__.lower()
    assert LOGIT_MUTANTS[mutant.name] is mutant
    assert mutant.description.endswith(".") and mutant.description != (
        CorrectFromLogits().description
    )
    assert mutant.seen and mutant.caught_by.startswith("assert_")


@pytest.mark.slow
def test_each_mutant_is_caught_by_a_check_that_names_it_and_in_time():
    """Of each check, the first by the call as anyone makes it, and the others by a shorter one."""
    start = time.process_time()
    shorter = {
        "assert_lossless": {"cases": logit_cases()},
        "assert_agrees": {"seed": 0, "max_elements": 1 << 12, "large_vocabulary": False},
    }
    shown = set()
    for mutant in LOGIT_MUTANTS.values():
        options = shorter[mutant.caught_by] if mutant.caught_by in shown else {}
        shown.add(mutant.caught_by)
        with pytest.raises(AssertionError) as caught:
            getattr(check, mutant.caught_by)(mutant, from_logits=True, **options)
        assert re.search(mutant.verdict, str(caught.value)), (mutant.name, str(caught.value))
    assert time.process_time() - start < 120


@pytest.mark.slow
@mutants
def test_the_tokens_give_all_mutants_away(mutant, monkeypatch):
    monkeypatch.setattr(agreement, "shrink", lambda call, fails: call)
    with pytest.raises(AssertionError, match="not the baseline's tokens"):
        check.assert_agrees(mutant, from_logits=True, seed=0, max_elements=1 << 12)


def test_without_filters_and_masks_most_mutants_are_right():
    """What the cases with filters add: on the others, these faults cannot be seen."""
    harmless = set(LOGIT_MUTANTS) - {"softmax_in_16_bits", "ruled_out_row_passes"}
    for name in harmless:
        check.assert_lossless(
            LOGIT_MUTANTS[name], from_logits=True, cases=check.small_cases(), bias=0.2
        )


# --- planted faults


class TestWellFormed:
    def refused(self, sampler, message):
        with pytest.raises(AssertionError, match=message):
            check.assert_well_formed(sampler, from_logits=True)

    def test_inputs_that_are_written_to(self):
        def sampler(tokens, draft, target, **options):
            result = vectorized(tokens, draft, target, **options)
            target[:, 0, 0] = 1
            return result

        self.refused(sampler, "the input target_logits was modified")

    def test_parameters_out_of_range(self):
        def clamped(tokens, draft, target, *, temperature=1.0, **options):
            if isinstance(temperature, torch.Tensor):
                temperature = temperature.nan_to_num(1).clamp(0, 2.0**20)
                temperature = torch.where(temperature < 2.0**-20, 0, temperature)
            return vectorized(tokens, draft, target, temperature=temperature, **options)

        self.refused(clamped, "not well-formed: temperature nan: expected num_accepted -1")

    def test_rows_without_probability(self):
        def sampler(tokens, draft, target, **options):
            return vectorized(tokens, draft, target.clamp(min=-1e4), **options)

        self.refused(sampler, "a row without any probability to draw the bonus token from")


@pytest.mark.slow
def test_a_difference_is_reduced_to_a_call_with_the_filters_that_it_takes():
    def sampler(tokens, draft, target, *, temperature=1.0, top_k=0, **options):
        return vectorized(tokens, draft, target, temperature=temperature, **options)

    with pytest.raises(AssertionError) as caught:
        check.assert_agrees(sampler, from_logits=True, seed=3)
    code = str(caught.value).partition("shows it:\n")[2]
    assert "top_k = " in code and "target_logits = " in code
    assert "top_p" not in code and "min_p" not in code and "temperature" not in code


def test_a_smaller_call_keeps_vocabularies_of_different_size():
    recipe = LogitRecipe(batch_size=3, spec_len=2, vocab_size=40, draft_vocab_size=90, contents=1)
    call = recipe.make().per_request()
    call = dataclasses.replace(call, draft_tokens=torch.full((3, 2), 80))

    def fails(smaller):
        rows = smaller.draft_rows
        return rows is not None and rows.shape[1] > 0 and int(smaller.draft_tokens[0, 0]) > 0

    small = shrink(call, fails)
    assert small.shape == (1, 1, 2) and small.target_rows.shape[2] == 1


# --- cases and recipes


def test_the_law_of_a_case_is_that_of_the_probabilities():
    for case in logit_cases():
        for logits, law in zip(case.logits, (case.draft_probs, case.target_probs), strict=True):
            got = rsk.probabilities(logits, backend="baseline", **case.filters)
            assert torch.equal(got > 0, law > 0)
            assert (got - law).abs().max() < 1e-6


def test_the_law_of_a_row_is_that_of_transformers():
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = 3 * torch.randn(1, 30, generator=generator)
        processors = LogitsProcessorList(
            [TemperatureLogitsWarper(0.8), TopKLogitsWarper(12), TopPLogitsWarper(0.9),
             MinPLogitsWarper(0.05)]
        )  # fmt: skip
        expected = processors(None, logits.clone()).softmax(-1)[0].double()
        got = filtered_softmax(logits[0], 0.8, 12, 0.9, 0.05)
        assert torch.equal(got > 0, expected > 0) and (got - expected).abs().max() < 1e-6


def test_a_case_needs_rows_that_fit():
    with pytest.raises(ValueError, match=r"expected draft rows \[K, V\] and target rows"):
        make_case("x", {"one": ([[0.0, 1.0]], [[0.0, 1.0]], {})})


def test_a_recipe_makes_the_same_call_again_and_says_how():
    rng = random.Random(0)
    for _ in range(50):
        recipe = random_logit_recipe(rng, max_elements=1 << 12)
        names = {"LogitRecipe": LogitRecipe, "torch": torch, "nan": torch.nan, "inf": torch.inf}
        again = eval(repr(recipe), names)
        one, other = recipe.make(), again.make()
        assert one.tensors().keys() == other.tensors().keys()
        for name, tensor in one.tensors().items():
            twin = other.tensors()[name]
            assert tensor.stride() == twin.stride()
            assert torch.equal(tensor.nan_to_num(7), twin.nan_to_num(7))


def test_recipes_reach_every_sort_of_outcome():
    rng = random.Random(1)
    refused = accepted = rejected = whole = strided = 0
    seen, given = set(), set()
    for _ in range(300):
        recipe = random_logit_recipe(rng, max_elements=1 << 11)
        call = recipe.make()
        seen |= {recipe.dtype, recipe.draft_dtype, recipe.layout, recipe.certain, *recipe.rows}
        wider = (recipe.draft_vocab_size or recipe.vocab_size) - recipe.vocab_size
        seen.add("wider draft" if wider > 0 else "wider target" if wider < 0 else "same width")
        for name, value in call.filters.items():
            per_request = isinstance(value, torch.Tensor)
            given.add((name, per_request))
            strided += per_request and value.stride(0) != 1
        _, n = call.run(vectorized)
        spec_len = call.shape[1]
        refused += int((n < 0).sum())
        accepted += int((n > 0).sum())
        rejected += int(((n >= 0) & (n < spec_len)).sum())
        whole += int((n == spec_len).sum()) if spec_len else 0
    assert min(refused, accepted, rejected, whole) > 40 and strided
    widths = {"wider draft", "wider target", "same width"}
    assert seen == {*DTYPES, None, *LAYOUTS, True, False, *LOGIT_ROWS, *widths}
    names = ("temperature", "top_k", "top_p", "min_p")
    assert given == {(name, each) for name in names for each in (False, True)}


# --- the command


class TestCommand:
    def test_checks_and_random_calls(self, capsys):
        given = ["--sampler", "rsk:rejection_sample_from_logits", "--from-logits"]
        assert command.main([*given, "--minutes", "0.01"]) == 0
        assert re.search(r"agrees  \d+ calls", capsys.readouterr().out)

    def test_it_takes_all_backends_by_itself(self):
        found = command._samplers([], from_logits=False, device="cpu")
        names = [name for name, subject in found.items() if subject.from_logits]
        assert names == [f"logits, {name}" for name in (*rsk.BACKENDS, "emulator")]
        assert set(rsk.KERNELS) < set(found)
        assert [name for name, subject in found.items() if not subject.exact] == ["idiomatic"]

    def test_the_gallery(self, capsys, monkeypatch):
        monkeypatch.setattr(command, "MUTANTS", {})
        shown = {"ruled_out_row_passes": LOGIT_MUTANTS["ruled_out_row_passes"]}
        monkeypatch.setattr(command, "LOGIT_MUTANTS", shown)
        assert command.main(["--mutants"]) == 0
        said = capsys.readouterr().out
        assert "expected num_accepted -1" in said and said.count("WRONG") == 1
