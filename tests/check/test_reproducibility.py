"""Promises: a request's tokens depend on the request alone, and no random number serves twice."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
import warm

import rsk
from rsk import check
from rsk.base import machine
from rsk.check.recipes import Recipe
from rsk.check.reproducible import BITS, FIRST_POSITION, read_numbers, read_seeds
from rsk.sampler.random_words import COIN, DRAFT, SAMPLE, word, words

BACKENDS = {name: partial(rsk.rejection_sample, backend=name) for name in rsk.BACKENDS}
STREAMS = {"coin": COIN, "sample": SAMPLE, "draft": DRAFT}
backends = pytest.mark.parametrize("backend", rsk.BACKENDS)
kernels = pytest.mark.parametrize("kernel", list(rsk.KERNELS))


@backends
def test_backends(backend):
    draw = partial(rsk.sample, backend=backend)
    check.assert_reproducible(BACKENDS[backend], draw=draw)


@pytest.mark.slow
@kernels
def test_kernels(kernel):
    check.assert_reproducible(rsk.KERNELS[kernel], draw=None, num_seeds=1)


@backends
def test_the_numbers_read_from_outside_are_the_specified_words(backend):
    """The random number of each decision is the word of its seed, position and stream."""
    draw = partial(rsk.sample, backend=backend)
    seeds = read_seeds(3).tolist()
    read = read_numbers(BACKENDS[backend], draw, 3, "cpu")
    assert set(read["one call"]) == {(use, FIRST_POSITION + k) for use in STREAMS for k in range(4)}
    for by_use in read.values():
        for (use, at), numbers in by_use.items():
            expected = [word(seed, at, STREAMS[use]) >> (64 - BITS) for seed in seeds]
            assert numbers == expected, (use, at)


def mixed_call(batch_size=12):
    rows = ("overlapping", "near", "sparse", "equal", "disjoint")
    return Recipe(
        batch_size=batch_size, spec_len=4, vocab_size=90, rows=rows, ragged=True, seed=-5
    ).make()


def test_any_implementation_any_batch_any_slot():
    """One request, everywhere: the same tokens in each implementation, batch and slot."""
    call = mixed_call().per_request()
    expected, _ = call.run(BACKENDS["baseline"])
    samplers = BACKENDS | dict(rsk.KERNELS)
    for i, (name, sampler) in enumerate(samplers.items()):
        for b in (0, 3, 11):
            others = torch.randperm(12, generator=torch.Generator().manual_seed(i))[:4].tolist()
            slot = (b + i) % 4
            index = torch.tensor([*others[:slot], b, *others[slot:]])
            got, _ = call.rows(index).run(sampler)
            assert torch.equal(got[slot], expected[b]), (name, b, slot)


@backends
def test_draws_do_not_depend_on_the_batch_either(backend):
    draw = partial(rsk.sample, backend=backend)
    probs = mixed_call(30).target_rows[:, 0]
    seeds, positions = torch.arange(30) * 17 - 99, torch.arange(30) * 5
    expected = draw(probs, seed=seeds, position=positions)
    order = torch.arange(29, -1, -1)
    assert torch.equal(
        draw(probs[order], seed=seeds[order], position=positions[order]), expected.flip(0)
    )
    for b in (0, 13, 29):
        got = draw(probs[b : b + 1], seed=seeds[b : b + 1], position=positions[b : b + 1])
        assert torch.equal(got, expected[b : b + 1])
    broken = probs.clone()
    broken[::2] = torch.nan
    assert torch.equal(draw(broken, seed=seeds, position=positions)[1::2], expected[1::2])
    for threads in (1, 3):
        with machine.pinned_threads(threads):
            assert torch.equal(draw(probs, seed=seeds, position=positions), expected)


@pytest.mark.slow
def test_another_process_gives_the_same_tokens():
    code = (
        "import torch; torch.manual_seed(123); import rsk, test_reproducibility as t\n"
        "print([t.mixed_call().run(s)[0].tolist() for s in t.BACKENDS.values()])"
    )
    done = warm.run(code, os.environ)
    expected = mixed_call().run(BACKENDS["baseline"])[0].tolist()
    assert done.stdout.strip() == str([expected] * 3), done.stderr


def test_different_positions_never_reuse_a_random_number():
    """For one seed, every (position, stream) has a word of its own: mixing is one to one."""
    t = torch.cat([torch.arange(100_000), torch.tensor([2**40, 2**60, -1, -(2**61)])])
    for seed in (0, 1, -1, 584198681):
        found = torch.cat([words(torch.tensor(seed), t, stream) for stream in STREAMS.values()])
        assert len(found.unique()) == len(found)


@pytest.mark.parametrize("spec_len", [1, 3])
def test_a_decode_uses_each_random_number_once(spec_len):
    """Steps that follow each other, as documented at position + n + 1, share no decision.

    A step at position t that accepts n tokens uses the coins of t to t + n, or to t + n - 1 if it
    accepts all, and the sample of t + n. What a step does not use is free for the next one.
    """
    used = []
    t = 0
    probs = torch.tensor([0.5, 0.3, 0.2]).repeat(1, spec_len + 1, 1)
    other = torch.tensor([0.2, 0.3, 0.5]).repeat(1, spec_len, 1)
    for _ in range(200):
        drafts = [rsk.sample(other[:, k], seed=4, position=t + k) for k in range(spec_len)]
        step = rsk.rejection_sample(torch.stack(drafts, 1), other, probs, seed=4, position=t)
        n = int(step.num_accepted)
        used += [(COIN, t + k) for k in range(min(n + 1, spec_len))] + [(SAMPLE, t + n)]
        t += n + 1
    assert len(used) == len(set(used))
    assert sorted(at for stream, at in used if stream == SAMPLE)[-1] == t - 1


def test_seeds_apart_are_independent():
    """Neighbouring seeds, which an int seed gives to a batch: their coins do not go together."""
    coins = words(torch.arange(100_000), torch.zeros(1, dtype=torch.int64), COIN) >> 40
    x = coins.double()
    correlation = torch.corrcoef(torch.stack([x[:-1], x[1:]]))[0, 1]
    assert abs(correlation) < 5 / len(x) ** 0.5
