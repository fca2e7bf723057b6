"""What holds for every input: all implementations agree, and some things may not matter."""

from __future__ import annotations

import dataclasses
import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import rsk
from rsk.check.recipes import DTYPES, EXTREME_COINS, LAYOUTS, ROWS, Recipe, random_recipe

BACKENDS = {name: partial(rsk.rejection_sample, backend=name) for name in rsk.BACKENDS}
baseline = BACKENDS["baseline"]

WORDS = st.integers(1, 40) | st.sampled_from([64, 127, 129, 257, 511, 513, 1025, 2049])
SEEDS = st.integers(-(2**63), 2**63 - 10) | st.sampled_from([*EXTREME_COINS, 2**63 - 3])
POSITIONS = st.just(0) | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2**20)


def recipes(mixed=False, **fixed):
    choices = {
        "batch_size": st.integers(0, 4),
        "spec_len": st.integers(0, 5),
        "vocab_size": WORDS,
        "rows": st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=3).map(tuple),
        "dtype": st.sampled_from(DTYPES),
        "token_dtype": st.sampled_from([torch.int64, torch.int32]),
        "layout": st.sampled_from(LAYOUTS),
        "ragged": st.booleans(),
        "wild": st.booleans(),
        "certain": st.booleans(),
        "seed": SEEDS,
        "position": POSITIONS,
        "per_request": st.booleans(),
        "contents": st.integers(0, 2**31 - 1),
    }
    if mixed:
        choices["draft_vocab_size"] = st.none() | st.integers(1, 80)
        choices["draft_dtype"] = st.none() | st.sampled_from(DTYPES)
    return st.builds(Recipe, **{**choices, **{k: st.just(v) for k, v in fixed.items()}})


def examples(count):
    """The same examples in each run; ``python -m rsk.check --minutes 5`` tries new ones."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- all implementations agree


@pytest.mark.slow
@given(recipe=recipes(mixed=True))
@example(Recipe(vocab_size=1, rows=("empty",)))
@example(Recipe(spec_len=128, vocab_size=9, rows=("near",)))
@example(Recipe(batch_size=3, vocab_size=70_001, rows=("uniform", "sparse", "subnormal")))
@examples(300)
def test_backends_agree(recipe):
    call = recipe.make()
    expected = call.run(baseline)
    for name, sampler in BACKENDS.items():
        assert same(call.run(sampler), expected), name


@pytest.mark.parametrize("name", list(rsk.KERNELS))
@given(recipe=recipes(mixed=True))
@example(Recipe(vocab_size=1, rows=("empty",)))
@example(Recipe(vocab_size=4096, draft_vocab_size=4104, rows=("near", "uniform")))
@example(Recipe(spec_len=40, vocab_size=9, rows=("equal",)))
@example(Recipe(batch_size=2, vocab_size=5000, rows=("uniform", "sparse")))
@examples(40)
def test_kernels_agree(name, recipe):
    call = recipe.make()
    assert same(call.run(rsk.KERNELS[name]), call.run(baseline))


@given(recipe=recipes(certain=True))
@examples(60)
def test_draws_agree_and_the_layout_does_not_matter(recipe):
    call = recipe.make()
    rows = call.target_rows[:, -1]
    plain = dataclasses.replace(recipe, layout="contiguous").make().target_rows[:, -1]
    assume(recipe.layout != "shared")
    expected = rsk.sample(plain, seed=call.seed, position=call.position, backend="baseline")
    for backend in rsk.BACKENDS:
        got = rsk.sample(rows, seed=call.seed, position=call.position, backend=backend)
        assert torch.equal(got, expected), backend


# --- what may not matter


def fused(call):
    return call.run(BACKENDS["fused"])


@given(recipe=recipes(), filling=st.sampled_from([torch.nan, -1.0, 0.25]))
@examples(100)
def test_what_is_never_reached_has_no_influence(recipe, filling):
    """Tokens and rows behind the first rejection, or behind the end of the draft."""
    call = recipe.make().map(torch.clone)
    tokens, n = fused(call)
    for b, last in enumerate(n.tolist()):
        if last < 0:
            continue
        call.target_rows[b, last + 1 :] = filling
        call.draft_tokens[b, last + 1 :] = 99
        if call.draft_rows is not None:
            call.draft_rows[b, last + 1 :] = filling
    assert same(fused(call), (tokens, n))


@given(recipe=recipes(wild=False), more=st.integers(1, 300))
@examples(60)
def test_words_of_probability_zero_do_not_matter(recipe, more):
    call = recipe.make()
    wider = {"target_rows": F.pad(call.target_rows, (0, more))}
    if call.draft_rows is not None:
        wider["draft_rows"] = F.pad(call.draft_rows, (0, more))
    assert same(fused(dataclasses.replace(call, **wider)), fused(call))


@given(recipe=recipes())
@examples(60)
def test_only_the_values_matter(recipe):
    """Not their type, nor where they are stored."""
    call = recipe.make()
    wide = call.map(lambda t: t.clone().float() if t.is_floating_point() else t.clone().long())
    assert same(fused(call), fused(wide))


@given(recipe=recipes())
@examples(60)
def test_no_draft_is_a_draft_that_ends_at_once(recipe):
    call = recipe.make()
    tokens, n = fused(call.map(lambda t: t.clone() if t.is_floating_point() else t))
    ended = dataclasses.replace(call, draft_tokens=torch.full_like(call.draft_tokens, -1))
    none = dataclasses.replace(
        call,
        draft_tokens=call.draft_tokens[:, :0],
        draft_rows=None,
        target_rows=call.target_rows[:, :1],
    )
    (long, long_n), (short, short_n) = fused(ended), fused(none)
    assert torch.equal(long[:, :1], short) and torch.equal(long_n, short_n)
    assert bool((long[:, 1:] == -1).all())
    assert tokens.shape == long.shape and n.shape == long_n.shape


@given(recipe=recipes(rows=("overlapping", "near", "equal"), wild=False))
@examples(100)
def test_a_decision_belongs_to_its_position(recipe):
    """A draft of K tokens decides as K drafts of one token do, one after another."""
    call = recipe.make().per_request()
    tokens, n = fused(call)
    spec_len = call.shape[1]
    going = torch.ones(len(n), dtype=torch.bool)
    for k in range(spec_len):
        one = dataclasses.replace(
            call,
            draft_tokens=call.draft_tokens[:, k : k + 1],
            draft_rows=None if call.draft_rows is None else call.draft_rows[:, k : k + 1],
            target_rows=call.target_rows[:, k : k + 2],
            position=call.position + k,
        )
        first, accepted = fused(one)
        assert torch.equal(going & (accepted > 0), n > k)
        assert torch.equal(first[going, 0], tokens[going, k])
        going &= accepted > 0


# --- the recipes that these tests are made of


def test_a_recipe_makes_the_same_call_again_and_says_how():
    rng = random.Random(0)
    for _ in range(50):
        recipe = random_recipe(rng)
        again = eval(repr(recipe), {"Recipe": Recipe, "torch": torch})
        assert again == recipe
        one, other = recipe.make(), again.make()
        for name, tensor in one.tensors().items():
            twin = other.tensors()[name]
            assert tensor.stride() == twin.stride()
            assert torch.equal(tensor.nan_to_num(7), twin.nan_to_num(7))


def test_recipes_reach_every_sort_of_outcome():
    """Otherwise agreement would say little."""
    rng = random.Random(1)
    refused = accepted = rejected = whole = 0
    seen = set()
    for _ in range(300):
        recipe = random_recipe(rng, max_elements=1 << 12)
        call = recipe.make()
        seen |= {recipe.dtype, recipe.layout, recipe.token_dtype, recipe.certain, *recipe.rows}
        _, n = fused(call)
        spec_len = call.shape[1]
        refused += int((n < 0).sum())
        accepted += int((n > 0).sum())
        rejected += int(((n >= 0) & (n < spec_len)).sum())
        whole += int((n == spec_len).sum()) if spec_len else 0
    assert min(refused, accepted, rejected, whole) > 40
    assert seen == {*DTYPES, *LAYOUTS, torch.int64, torch.int32, True, False, *ROWS}


def test_layouts_are_what_they_are_called():
    recipe = Recipe(batch_size=3, spec_len=2, vocab_size=8)
    calls = {layout: dataclasses.replace(recipe, layout=layout).make() for layout in LAYOUTS}
    plain = calls["contiguous"].target_rows
    assert plain.is_contiguous() and plain.data_ptr() % 16 == 0
    assert calls["padded"].target_rows.stride(1) > 8
    assert calls["transposed"].target_rows.stride(0) < calls["transposed"].target_rows.stride(1)
    assert calls["misaligned"].target_rows.data_ptr() % 16 != 0
    assert calls["shared"].target_rows.stride(0) == 0
    for layout, call in calls.items():
        if layout != "shared":
            assert torch.equal(call.target_rows, plain)
