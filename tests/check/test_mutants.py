"""The gallery of wrong samplers: each is one step away from the right one, and is caught."""

from __future__ import annotations

import inspect
import re
import time

import pytest
import torch

from rsk import check
from rsk.check import __main__ as command
from rsk.check import agreement
from rsk.check.cases import default_cases, large_vocabulary
from rsk.check.mutants import MUTANTS
from rsk.check.right_sampler import Correct

mutants = pytest.mark.parametrize("mutant", MUTANTS.values(), ids=list(MUTANTS))
HARMLESS = {"nan_falls_through", "stale_output", "depends_on_batch_slot"}
"""Their output follows the target as long as nobody looks at anything else."""


def test_the_gallery_is_complete():
    assert set(MUTANTS) == {
        "residual_argmax",
        "residual_not_clamped",
        "residual_not_renormalised",
        "one_random_number",
        "seed_reset_at_every_coin",
        "drafts_random_numbers",
        "bonus_missing",
        "bonus_from_draft",
        "first_token_unreachable",
        "last_token_unreachable",
        "coin_up_to_one",
        "coin_less_or_equal",
        "float_accumulation",
        "nan_falls_through",
        "stale_output",
        "depends_on_batch_slot",
    }


@mutants
def test_a_mutant_is_the_right_sampler_with_one_step_replaced(mutant):
    assert type(mutant).__bases__ == (Correct,)
    methods = {n for n, member in vars(type(mutant)).items() if inspect.isfunction(member)}
    (step,) = methods - {"__init__"}
    assert inspect.isfunction(getattr(Correct, step)) and step != "__call__"


@mutants
def test_a_mutant_says_what_it_is(mutant):
    assert mutant.name == re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(mutant).__name__).lower()
    assert MUTANTS[mutant.name] is mutant
    assert mutant.description.endswith(".") and mutant.description not in (
        "",
        Correct().description,
    )
    assert mutant.seen and mutant.caught_by.startswith("assert_")


def test_the_right_sampler_passes_every_check():
    correct = Correct()
    check.assert_well_formed(correct)
    check.assert_reproducible(correct)
    check.assert_agrees(correct, seed=0)
    check.assert_lossless(correct, cases=check.small_cases(), bias=0.1)


@pytest.mark.slow
def test_each_mutant_is_caught_by_a_check_that_names_it_and_in_time():
    start = time.process_time()
    for mutant in MUTANTS.values():
        with pytest.raises(AssertionError) as caught:
            getattr(check, mutant.caught_by)(mutant)
        assert re.search(mutant.verdict, str(caught.value)), (mutant.name, str(caught.value))
    # Processor time, which is not longer on a busy machine: a minute on two cores at the very most.
    assert time.process_time() - start < 60


@pytest.mark.parametrize(
    "mutant",
    [m for m in MUTANTS.values() if m.caught_by != "assert_lossless"],
    ids=lambda m: m.name,
)
def test_the_law_of_the_output_gives_all_biased_mutants_away(mutant):
    verdict = check.examine(mutant, cases=check.small_cases(), bias=0.1)
    assert verdict.lossless is (mutant.name in HARMLESS), str(verdict)


@mutants
def test_the_tokens_give_all_mutants_away(mutant, monkeypatch):
    monkeypatch.setattr(agreement, "shrink", lambda call, fails: call)
    with pytest.raises(AssertionError, match="not the baseline's tokens"):
        check.assert_agrees(mutant, seed=0, max_elements=1 << 12)


def test_the_float_sum_is_right_where_the_vocabulary_is_small():
    """It takes the large vocabulary to see it: the other cases alone would pass it."""
    check.assert_lossless(MUTANTS["float_accumulation"], cases=check.small_cases(), bias=0.1)
    assert large_vocabulary().name in {case.name for case in default_cases()}


def test_stale_output_is_right_on_clean_memory():
    fresh = type(MUTANTS["stale_output"])()
    tokens, draft = torch.zeros(2, 1, dtype=torch.int64), torch.eye(2)[[0, 0]][:, None]
    accepted, rejected = (torch.eye(2)[[v, v]][:, None].repeat(1, 2, 1) for v in (0, 1))
    assert fresh(tokens, draft, rejected, seed=0).tokens.tolist() == [[1, -1]] * 2
    assert fresh(tokens, draft, accepted, seed=0).tokens.tolist() == [[0, 0]] * 2
    assert fresh(tokens, draft, rejected, seed=0).tokens.tolist() == [[1, 0]] * 2  # the fault


def test_the_command_shows_the_gallery(capsys, monkeypatch):
    shown = {name: MUTANTS[name] for name in ("coin_up_to_one", "bonus_missing")}
    monkeypatch.setattr(command, "MUTANTS", shown)
    monkeypatch.setattr(command, "LOGIT_MUTANTS", {})
    assert command.main(["--mutants"]) == 0
    said = capsys.readouterr().out
    for mutant in shown.values():
        assert f"{mutant.name}: {mutant.description}" in said and mutant.seen in said
    assert said.count("WRONG") == 2 and "draft token 1 is rejected although p = 1" in said
    harmless = Correct()
    harmless.caught_by = "assert_well_formed"
    monkeypatch.setattr(command, "MUTANTS", {"correct": harmless})
    assert command.main(["--mutants"]) == 1
