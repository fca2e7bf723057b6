"""What PyTorch is asked for: how many operators, never a wait, and the same bits when compiled."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import rsk
from rsk.check import assert_lossless
from rsk.check.recipes import Recipe
from rsk.check.synthetic import make_batch
from rsk.measure.operators import count_operators
from rsk.sampler import implementations
from rsk.sampler.implementations import IMPLEMENTATIONS
from rsk.sampler.random_words import STREAMS, numbers, word

vectorized = IMPLEMENTATIONS["vectorized"]
compiled = IMPLEMENTATIONS["compiled"]
idiomatic = IMPLEMENTATIONS["idiomatic"]


def operators(call):
    """How many operators that compute something: a view launches nothing on a GPU."""
    return len(count_operators(call).computing)


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("spec_len", [1, 8])
def test_the_number_of_operators(batch_size, spec_len):
    batch = make_batch(batch_size, spec_len, 32000)
    assert operators(lambda: vectorized(*batch, seed=3)) <= 90
    seeds = torch.arange(batch_size)
    assert operators(lambda: vectorized(*batch, seed=seeds, position=seeds)) <= 91
    assert operators(lambda: rsk.sample(batch[2][:, 0], seed=3, backend="vectorized")) <= 60
    assert operators(lambda: idiomatic(*batch)) <= 30


def fake_calls():
    tokens, draft, target = make_batch(3, 2, 300)
    seeds = torch.arange(3)
    return [
        lambda f: f(tokens, draft, target, seed=1),
        lambda f: f(tokens.int(), None, target.half(), seed=seeds, position=seeds),
        lambda f: f(tokens, draft[..., :200].bfloat16(), target, seed=seeds, position=7),
        lambda f: f(tokens[:, :0], draft[:, :0], target[:, :1], seed=1),
    ]


@pytest.mark.parametrize("call", fake_calls(), ids=["plain", "certain", "mixed", "no draft"])
def test_nothing_is_waited_for(call):
    """Tensors without values serve for all that does not ask for one."""

    def run(function):
        with FakeTensorMode(allow_non_fake_inputs=True):
            call(lambda *a, **k: function(*(x if x is None else x.clone() for x in a), **k))

    run(vectorized)
    with pytest.raises(DataDependentOutputException):
        run(IMPLEMENTATIONS["baseline"])


def test_nothing_is_waited_for_from_logits():
    tokens, draft, target = make_batch(3, 2, 300)
    with FakeTensorMode(allow_non_fake_inputs=True):
        rows = draft.clone(), target.clone()
        for filters in ({}, {"top_k": 5, "top_p": 0.9, "min_p": 0.1}, {"temperature": 0}):
            rsk.rejection_sample_from_logits(
                tokens.clone(), *rows, seed=1, backend="vectorized", **filters
            )
        rsk.sample(target[:, 0].clone(), seed=1, backend="vectorized")


@pytest.mark.parametrize(("seed", "position"), [(5, 0), (2**63 - 2, -(2**62)), (-(2**63), 9)])
def test_the_numbers_of_many_steps(seed, position):
    requests, steps = torch.arange(3)[:, None], torch.arange(1, STREAMS * 4 + 1)
    expected = [
        [word(seed + b, position + k, s) >> 2 for k in range(4) for s in range(STREAMS)]
        for b in range(3)
    ]
    assert numbers(seed, position, requests, steps).tolist() == expected
    seeds = torch.tensor([(seed + b + 2**63) % 2**64 - 2**63 for b in range(3)])
    assert numbers(seeds, torch.full((3,), position), requests, steps).tolist() == expected


@pytest.mark.parametrize("vocab_size", [1, 2, 127, 128, 129, 5000])
@pytest.mark.parametrize("size", [1.0, 3e38])
def test_rows_of_any_length_and_size(vocab_size, size):
    """Blocks that are not full; and differences of finite numbers that are not."""
    generator = torch.Generator().manual_seed(vocab_size)
    target = torch.rand(20, 3, vocab_size, generator=generator) * size
    draft = torch.rand(20, 2, vocab_size, generator=generator) * -size
    draft[::2].neg_()
    target[3, 0, 0], draft[5, 0, -1], target[7, :, 0] = torch.inf, -torch.inf, torch.nan
    draft[9], target[11] = -torch.inf, 0
    tokens = torch.randint(vocab_size, (20, 2), generator=generator)
    got = vectorized(tokens, draft, target, seed=1)
    expected = rsk.rejection_sample(tokens, draft, target, seed=1, backend="baseline")
    assert torch.equal(got.tokens, expected.tokens)
    assert torch.equal(got.num_accepted, expected.num_accepted)


@pytest.mark.slow
def test_compiled_gives_the_same_bits():
    """In one graph, by the default compiler, for whatever the interface takes."""
    recipes = [
        Recipe(batch_size=5, spec_len=3, vocab_size=300),
        Recipe(batch_size=8, spec_len=4, vocab_size=129, ragged=True, rows=("near", "equal")),
        Recipe(batch_size=4, spec_len=2, vocab_size=50, dtype=torch.bfloat16, layout="padded"),
        Recipe(batch_size=4, spec_len=2, vocab_size=20, certain=True, per_request=True),
    ]
    for recipe in recipes:
        call = recipe.make()
        for seed in (1, -(2**63), 2**63 - 1):
            batch = (call.draft_tokens, call.draft_rows, call.target_rows)
            got = compiled(*batch, seed=seed, position=2**62)
            expected = rsk.rejection_sample(*batch, seed=seed, position=2**62, backend="baseline")
            assert torch.equal(got.tokens, expected.tokens)
            assert torch.equal(got.num_accepted, expected.num_accepted)


@pytest.mark.slow
def test_compiled_is_compiled_for_as_many_forms_and_modes_as_there_are(monkeypatch):
    """PyTorch refuses the ninth of one function unless it is told otherwise."""
    traced = torch.compile(
        implementations.vectorized.rejection_sample, fullgraph=True, dynamic=False, backend="eager"
    )
    forms = set()
    monkeypatch.setattr(implementations, "_compiler", lambda: (traced, forms))
    for vocab_size in range(5, 15):
        batch = make_batch(2, 1, vocab_size)
        expected = vectorized(*batch, seed=1).tokens
        assert torch.equal(compiled(*batch, seed=1).tokens, expected)
    with torch.no_grad():
        assert torch.equal(compiled(*batch, seed=1).tokens, expected)
    with torch.inference_mode():
        assert torch.equal(compiled(*batch, seed=1).tokens, expected)
        seed = torch.tensor([1, 2])
    assert torch.equal(compiled(*batch, seed=seed).tokens, expected)
    batch[2].requires_grad_()
    assert torch.equal(compiled(*batch, seed=1).tokens, expected)
    assert len(forms) == 14


@pytest.mark.gpu
def test_in_a_cuda_graph():
    batch = make_batch(16, 4, 32000, device="cuda")
    expected = rsk.rejection_sample(*batch, seed=5, backend="baseline")
    for name in ("vectorized", "compiled", "triton"):
        call = partial(IMPLEMENTATIONS[name], *batch, seed=5)
        assert torch.equal(call().tokens, expected.tokens), name
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        captured.tokens.fill_(7)
        graph.replay()
        assert torch.equal(captured.tokens, expected.tokens), name
        assert torch.equal(captured.num_accepted, expected.num_accepted), name


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_idiomatic_sampler_is_lossless(device):
    torch.manual_seed(1)
    assert_lossless(idiomatic, bias=0.1, device=device)


@pytest.mark.slow
def test_deterministic_algorithms_are_no_reason_to_compile_again():
    batch = make_batch(3, 2, 97)
    expected = compiled(*batch, seed=1)
    counters = torch._dynamo.utils.counters
    before = counters["stats"]["unique_graphs"]
    torch.set_deterministic_debug_mode("warn")
    try:
        again = compiled(*batch, seed=1)
        assert torch.get_deterministic_debug_mode() == 1
    finally:
        torch.set_deterministic_debug_mode("default")
    assert torch.equal(again.tokens, expected.tokens)
    assert counters["stats"]["unique_graphs"] == before
