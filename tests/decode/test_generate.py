"""Speculative decoding: exact, reproducible, right for ragged batches, clear about bad input."""

import itertools
import json
import math
import pickle
import re
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import llama

import rsk
from rsk.decode import command_line, drafting, kv_cache, loading, loop, prompt_lookup
from rsk.decode.loop import speculative_generate
from rsk.decode.sampling import Sampling

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDING_GAP = 1e-4  # logits closer than this may be ordered either way by another summation order
LEVEL = 1e-3  # of the statistical tests; they run on fixed seeds


@pytest.fixture(scope="module")
def pair():
    target = llama(1)
    return target, llama(2, noise_of=target, noise=0.15)


PROMPTS = [[5, 9, 2, 33], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [60, 60]]


def own_greedy(model, prompt, new):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=new,
        pad_token_id=0,
        use_cache=True,
    )
    return out[0, len(prompt) :].tolist()


def disagreements(model, prompt, ours, theirs):
    """Where greedy outputs part: nothing, or the gap between the two best logits there."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + theirs[:i]])).logits[0, -1]
            best = logits.topk(2).values
            return [float(best[0] - best[1])]
    return []


# --- greedy ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def greedy(pair):
    """Each prompt and the target's own greedy text."""
    return [(prompt, own_greedy(pair[0], prompt, 40)) for prompt in PROMPTS]


@pytest.mark.slow
@pytest.mark.parametrize("backend", rsk.BACKENDS)
@pytest.mark.parametrize("spec_len", [0, 1, 2, 4, 7])
def test_greedy_is_the_targets_own_greedy(pair, greedy, spec_len, backend):
    target, draft = pair
    near_ties = []
    for kind in (draft, "ngram"):
        result = speculative_generate(
            target,
            kind,
            PROMPTS,
            spec_len=spec_len,
            max_new_tokens=40,
            temperature=0,
            backend=backend,
        )
        for (prompt, own), tokens in zip(greedy, result.tokens, strict=True):
            near_ties += disagreements(target, prompt, tokens, own)
    print(f"{len(near_ties)} of {2 * len(PROMPTS)} part at a near tie: {near_ties}")
    assert all(gap < ROUNDING_GAP for gap in near_ties), near_ties
    assert len(near_ties) <= 1


def test_the_greedy_test_sees_a_cache_that_keeps_rejected_tokens(pair, monkeypatch):
    target, draft = pair
    right = speculative_generate(target, draft, PROMPTS, temperature=0, max_new_tokens=40)
    assert 0 < right.acceptance_rate < 1  # or there would be nothing to forget, or to keep
    monkeypatch.setattr(
        kv_cache, "_slots_up_to", lambda count: lambda states: states[:, :, -count:]
    )
    wrong = speculative_generate(target, draft, PROMPTS[:1], temperature=0, max_new_tokens=40)
    assert wrong.tokens != right.tokens[:1]


def test_sliding_window_attention(pair):
    torch.manual_seed(3)
    config = transformers.MistralConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        sliding_window=6,
        initializer_range=0.25,
        eos_token_id=None,
    )
    target = transformers.MistralForCausalLM(config).eval()
    result = speculative_generate(target, pair[1], PROMPTS, temperature=0, max_new_tokens=30)
    for prompt, tokens in zip(PROMPTS, result.tokens, strict=True):
        gaps = disagreements(target, prompt, tokens, own_greedy(target, prompt, 30))
        assert all(gap < ROUNDING_GAP for gap in gaps)


# --- sampling -------------------------------------------------------------------------------------


def test_the_default_dtype_does_not_matter(pair):
    options = {"max_new_tokens": 12, "seed": 3, "temperature": 0.9, "top_p": 0.95}
    expected = speculative_generate(*pair, PROMPTS, **options).tokens
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert speculative_generate(*pair, PROMPTS, **options).tokens == expected
    finally:
        torch.set_default_dtype(before)


def joint_law(model, prompt, new, sampling):
    """Exact probability of each continuation of length `new`, float64 [V ** new], no cache."""
    vocab_size = model.config.vocab_size
    every = list(itertools.product(range(vocab_size), repeat=new))
    ids = torch.tensor([[*prompt, *tokens] for tokens in every])
    with torch.no_grad():
        logits = model(ids).logits[:, len(prompt) - 1 : -1]
        probs = rsk.probabilities(logits, **sampling.filters).double()
    return probs.gather(2, torch.tensor(every).unsqueeze(2)).prod(1).squeeze(1)


def g_test(counts, law):
    """p-value of the likelihood ratio test; cells expected fewer than 5 times are pooled."""
    expected = law / law.sum() * counts.sum()
    if bool((counts[expected == 0] > 0).any()):
        return 0.0
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    observed, expected = observed[expected > 0], expected[expected > 0]
    statistic = 2 * torch.special.xlogy(observed, observed / expected).sum()
    return float(stats.chi2.sf(float(statistic), len(expected) - 1))


def count_continuations(target, draft, prompt, new, count, seed, **settings):
    result = speculative_generate(
        target, draft, [prompt] * count, max_new_tokens=new, seed=seed, **settings
    )
    cells = torch.tensor(result.tokens) @ target.config.vocab_size ** torch.arange(new).flip(0)
    return torch.bincount(cells, minlength=target.config.vocab_size**new).double(), result


@pytest.fixture(scope="module")
def enumerable():
    target = llama(11, vocab_size=5)
    return target, llama(12, vocab_size=5, noise_of=target, noise=0.5)


SAMPLES = 6000
CASES = {
    "temperature 1": {"spec_len": 2},
    "K beyond the end": {"spec_len": 5},
    "flat": {"spec_len": 3, "temperature": 1.7},
    "top-k": {"spec_len": 2, "temperature": 1.3, "top_k": 3},
    "top-p": {"spec_len": 2, "top_p": 0.8},
    "min-p": {"spec_len": 2, "temperature": 1.5, "min_p": 0.1},
    "all": {"spec_len": 2, "temperature": 1.3, "top_k": 4, "top_p": 0.9, "min_p": 0.05},
    "no draft": {"spec_len": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_samples_follow_the_targets_joint_distribution(enumerable, case):
    target, draft = enumerable
    settings = dict(CASES[case])
    law = joint_law(
        target,
        [3, 1],
        3,
        Sampling(**{k: v for k, v in settings.items() if k != "spec_len"}),
    )
    counts, result = count_continuations(target, draft, [3, 1], 3, SAMPLES, 1000, **settings)
    if settings["spec_len"]:
        assert 0.2 < result.acceptance_rate < 0.95
    assert g_test(counts, law) > LEVEL


def test_prompt_lookup_follows_the_targets_joint_distribution(enumerable):
    target, _ = enumerable
    prompt = [0, 1, 2, 3, 4, 0, 1]
    law = joint_law(target, prompt, 3, Sampling())
    counts, result = count_continuations(target, "ngram", prompt, 3, SAMPLES, 5, spec_len=2)
    assert sum(result.tried) > SAMPLES
    assert g_test(counts, law) > LEVEL


def wrong_always_accept(x, q, p, *, seed, position, **options):
    p = p.softmax(-1)
    q = torch.zeros_like(p[:, :-1])
    return rsk.rejection_sample(x, q, p, seed=seed, position=position)


def wrong_same_position(x, q, p, *, position, **options):
    return rsk.rejection_sample_from_logits(x, q, p, position=0, **options)


def wrong_argmax_residual(x, q, p, **options):
    right = rsk.rejection_sample_from_logits(x, q, p, **options)
    tokens = right.tokens.clone()
    for b, n in enumerate(right.num_accepted.tolist()):
        if n < x.shape[1] and x[b, n] >= 0:
            tokens[b, n] = (p[b, n].softmax(0) - q[b, n].softmax(0)).argmax()
    return rsk.RejectionSamples(tokens, right.num_accepted)


@pytest.mark.parametrize("wrong", [wrong_always_accept, wrong_same_position, wrong_argmax_residual])
def test_the_distribution_test_has_power(enumerable, wrong, monkeypatch):
    target, draft = enumerable
    monkeypatch.setattr(loop, "rejection_sample_from_logits", wrong)
    law = joint_law(target, [3, 1], 3, Sampling())
    counts, _ = count_continuations(target, draft, [3, 1], 3, SAMPLES, 1000, spec_len=2)
    assert g_test(counts, law) < LEVEL / 1000


def test_ragged_batch_follows_each_prompts_own_distribution(enumerable):
    """Prompts of different lengths, requests that end at different times, all in one batch."""
    target, draft = enumerable
    prompts = [[4], [3, 1], [0, 1, 2, 3, 4, 0, 1]]
    count = 2500
    result = speculative_generate(
        target, draft, prompts * count, max_new_tokens=3, seed=9, spec_len=3, stop_tokens=[2]
    )
    for i, prompt in enumerate(prompts):
        law = joint_law(target, prompt, 3, Sampling()).view(5, 5, 5)
        stopped = {}  # merge the continuations that agree up to the first stop token
        for tokens in itertools.product(range(5), repeat=3):
            end = tokens.index(2) + 1 if 2 in tokens else 3
            stopped[tokens[:end]] = stopped.get(tokens[:end], 0.0) + float(law[tokens])
        keys = list(stopped)
        counts = torch.zeros(len(keys), dtype=torch.float64)
        for tokens in result.tokens[i :: len(prompts)]:
            counts[keys.index(tuple(tokens))] += 1
        assert g_test(counts, torch.tensor([stopped[k] for k in keys]).double()) > LEVEL


# --- the same text, whatever the batch ------------------------------------------------------------


class Table(torch.nn.Module):
    """A model whose logits depend on the last token alone, bit for bit whatever the batch."""

    def __init__(self, seed, vocab_size=50, sharpness=2.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        table = sharpness * torch.randn(vocab_size, vocab_size, generator=generator)
        self.register_buffer("table", table)
        self.config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=4096)
        self.device = torch.device("cpu")
        self.fed = []

    def forward(self, input_ids, attention_mask, position_ids, **settings):
        self.fed.append((input_ids, attention_mask, position_ids))
        return SimpleNamespace(logits=self.table[input_ids][:, -settings["logits_to_keep"] :])


@pytest.mark.parametrize("backend", rsk.BACKENDS)
def test_a_prompts_text_does_not_depend_on_its_batch(backend):
    target, draft = Table(1), Table(1)
    draft.table += 0.7 * torch.randn(50, 50, generator=torch.Generator().manual_seed(2))
    settings = {"max_new_tokens": 25, "spec_len": 3, "backend": backend, "stop_tokens": [13]}
    seeds = [101, 7, 2**62, -5]
    together = speculative_generate(target, draft, PROMPTS_50, seed=seeds, **settings)
    for i in range(len(seeds)):
        alone = speculative_generate(target, draft, [PROMPTS_50[i]], seed=[seeds[i]], **settings)
        assert alone.tokens[0] == together.tokens[i]
        assert alone.origins[0] == together.origins[i]
    order = [2, 0, 3, 1]
    shuffled = speculative_generate(
        target, draft, [PROMPTS_50[i] for i in order], seed=[seeds[i] for i in order], **settings
    )
    assert shuffled.tokens == [together.tokens[i] for i in order]


PROMPTS_50 = [[5, 9, 2, 33], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [40, 41]]


def test_all_backends_give_the_same_text(pair):
    runs = [
        speculative_generate(*pair, PROMPTS, max_new_tokens=30, seed=3, backend=backend).tokens
        for backend in rsk.BACKENDS
    ]
    assert runs[0] == runs[1] == runs[2]


def test_a_seed_reproduces_and_another_one_does_not(pair):
    runs = [
        speculative_generate(*pair, PROMPTS, max_new_tokens=20, seed=seed).tokens
        for seed in (4, 4, 5)
    ]
    assert runs[0] == runs[1] != runs[2]
    shifted = speculative_generate(*pair, PROMPTS, max_new_tokens=20, seed=[4, 5, 6, 7]).tokens
    assert shifted == runs[0]
    torch.manual_seed(0)
    first = speculative_generate(*pair, PROMPTS[0:1], max_new_tokens=20).tokens
    second = speculative_generate(*pair, PROMPTS[0:1], max_new_tokens=20).tokens
    torch.manual_seed(0)
    assert first == speculative_generate(*pair, PROMPTS[0:1], max_new_tokens=20).tokens != second


def test_no_random_number_is_used_twice(pair, monkeypatch):
    """Positions as the sampler sees them: each step starts one past the last emitted token."""
    seen = []

    def spy(x, q, p, **options):
        out = rsk.rejection_sample_from_logits(x, q, p, **options)
        seen.append((int(options["position"][0]), int(out.num_accepted[0])))
        return out

    monkeypatch.setattr(loop, "rejection_sample_from_logits", spy)
    speculative_generate(*pair, [PROMPTS[0]], max_new_tokens=30, seed=1)
    assert seen[0][0] == len(PROMPTS[0])
    for (position, accepted), (following, _) in itertools.pairwise(seen):
        assert following == position + accepted + 1


# --- what comes back ------------------------------------------------------------------------------


def test_result_adds_up(pair):
    result = speculative_generate(*pair, PROMPTS, max_new_tokens=33, seed=0, spec_len=4)
    assert [len(tokens) for tokens in result.tokens] == [33] * 4
    flat = [origin for origins in result.origins for origin in origins]
    assert flat.count("accepted") == sum(result.accepted)
    assert flat.count("recovered") == sum(result.tried) - sum(result.accepted)
    assert flat.count("recovered") + flat.count("bonus") == result.request_passes
    assert len(flat) == 4 * 33
    assert result.tokens_per_target_pass == len(flat) / result.request_passes
    assert result.target_passes <= result.request_passes <= 4 * result.target_passes
    assert result.tried == sorted(result.tried, reverse=True)  # judged only behind an acceptance
    assert result.tried[1:] <= result.accepted[:-1]
    rates = result.acceptance_by_position
    assert len(rates) == 4
    assert all(0 <= rate <= 1 for rate in rates)
    assert set(result.seconds) == {"draft", "target", "sampler", "rest"}
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert math.isclose(result.total_seconds, sum(result.seconds.values()))


def test_plain_decoding_emits_one_token_per_pass(pair):
    result = speculative_generate(pair[0], None, PROMPTS, max_new_tokens=5, seed=0)
    assert result.tokens_per_target_pass == 1
    assert math.isnan(result.acceptance_rate)
    assert result.seconds["draft"] == 0
    same = speculative_generate(*pair, PROMPTS, max_new_tokens=5, seed=0, spec_len=0)
    assert same.tokens == result.tokens


def test_a_perfect_draft_is_always_accepted(pair):
    result = speculative_generate(pair[0], pair[0], PROMPTS, max_new_tokens=41, seed=0, spec_len=4)
    assert result.acceptance_rate > 0.99  # p and q differ by rounding
    assert result.tokens_per_target_pass > 4


def counting_up():
    """A target that says the next number."""
    target = Table(0)
    target.table.fill_(-30)
    target.table[torch.arange(50), (torch.arange(50) + 1) % 50] = 30
    return target


def test_prompt_lookup_repeats_what_the_prompt_repeats():
    """A target that counts up: what followed a token once follows it always."""
    target = counting_up()
    prompt = [*range(10), *range(40, 50), 0]
    result = speculative_generate(target, "ngram", [prompt], max_new_tokens=9, spec_len=4, seed=0)
    assert result.tokens == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert result.acceptance_rate == 1
    assert result.target_passes == 2


def test_nothing_follows_a_stop_token(pair):
    long = speculative_generate(*pair, PROMPTS, max_new_tokens=60, seed=2, spec_len=6)
    stops = {long.tokens[0][17], long.tokens[2][4]}
    emissions = []
    short = speculative_generate(
        *pair,
        PROMPTS,
        max_new_tokens=60,
        seed=2,
        spec_len=6,
        stop_tokens=stops,
        on_emit=emissions.append,
    )
    for full, cut in zip(long.tokens, short.tokens, strict=True):
        end = next((i for i, token in enumerate(full) if token in stops), len(full) - 1) + 1
        assert cut[:-1] == full[: end - 1] if len(cut) == end else not stops & set(cut[:-1])
        assert not stops & set(cut[:-1])
    assert any(tokens[-1] in stops for tokens in short.tokens)
    streamed = [[] for _ in PROMPTS]
    for emission in emissions:
        assert emission.tokens
        assert len(emission.tokens) == len(emission.origins)
        assert set(emission.origins[:-1]) <= {"accepted"}
        streamed[emission.request] += emission.tokens
    assert streamed == short.tokens


def test_what_is_cut_off_behind_a_stop_token_is_not_counted():
    """A draft that is always right, and a stop token in the middle of its second block."""
    target = counting_up()
    result = speculative_generate(
        target, target, [[0]], max_new_tokens=20, spec_len=4, stop_tokens=[7], temperature=0
    )
    assert result.tokens == [[1, 2, 3, 4, 5, 6, 7]]
    assert result.origins == [[*["accepted"] * 4, "bonus", *["accepted"] * 2]]
    assert (result.tried, result.accepted) == ([2, 2, 1, 1], [2, 2, 1, 1])
    assert result.tokens_per_target_pass == 3.5 and result.request_passes == 2


def test_stop_tokens_come_from_the_target_by_default(pair):
    target, draft = pair
    free = speculative_generate(target, draft, PROMPTS[:1], max_new_tokens=20, seed=2)
    stop = free.tokens[0][3]
    target.generation_config.eos_token_id = [stop]
    try:
        ended = speculative_generate(target, draft, PROMPTS[:1], max_new_tokens=20, seed=2)
    finally:
        target.generation_config.eos_token_id = None
    assert ended.tokens[0] == free.tokens[0][: free.tokens[0].index(stop) + 1]


def test_time_in_the_callback_is_not_counted(pair):
    result = speculative_generate(
        *pair, PROMPTS[:1], max_new_tokens=8, seed=0, on_emit=lambda _: time.sleep(0.2)
    )
    assert result.total_seconds < 0.2 * result.target_passes


def test_padding_is_hidden_from_the_model():
    target = Table(1)
    speculative_generate(target, None, PROMPTS_50, max_new_tokens=1, seed=0)
    ids, mask, positions = target.fed[0]
    assert ids.shape == (4, 10)
    assert mask.sum(1).tolist() == [len(prompt) - 1 for prompt in PROMPTS_50]
    assert positions[0, -3:].tolist() == [0, 1, 2]
    assert ids[0, -3:].tolist() == PROMPTS_50[0][:-1]


def test_the_last_position_of_the_context_can_be_used(pair):
    result = speculative_generate(*pair, [[1] * 120, [1]], max_new_tokens=8, seed=0, spec_len=6)
    assert [len(tokens) for tokens in result.tokens] == [8, 8]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spec_len": -1}, "spec_len: expected 0 to 128, got -1"),
        ({"spec_len": 129}, "spec_len: expected 0 to 128, got 129"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ({"temperature": -1}, r"temperature: expected 0 \(greedy\) or a number .*, got -1"),
        ({"temperature": math.nan}, r"temperature: expected 0 \(greedy\) .*, got nan"),
        ({"temperature": 1e-40}, r"temperature: expected .* from 2\^-20 to 2\^20, got 1e-40"),
        ({"temperature": math.inf}, r"temperature: expected 0 \(greedy\) .*, got inf"),
        ({"top_k": -2}, "top_k: expected at least 0, got -2"),
        ({"top_p": -0.5}, r"top_p: expected a number in \[0, 1\], got -0.5"),
        ({"top_p": 1.5}, r"top_p: expected a number in \[0, 1\], got 1.5"),
        ({"min_p": 1.5}, r"min_p: expected a number in \[0, 1\], got 1.5"),
        ({"backend": "cuda"}, "backend: expected one of"),
        ({"seed": [1]}, r"seed: expected one per prompt \(4\), got 1"),
        ({"prompts": []}, "prompts: expected at least one"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[61]]}, r"prompt 0 has token ids outside \[0, 61\)"),
        ({"prompts": ["text"]}, "expected a tokenizer, got None"),
        ({"prompts": [[1] * 100], "max_new_tokens": 29}, "more than the target's context of 128"),
        ({"draft": "n-gram"}, "draft: expected a model, 'ngram' or None, got 'n-gram'"),
        ({"seed": 2**63}, r"seed: expected -9223372036854775808 to 9223372036854775807"),
        ({"seed": [1, 2, 3, -(2**63) - 1]}, r"seed\[3\]: expected -9223372036854775808 to"),
        ({"stop_tokens": [-1]}, "stop_tokens: expected 0 to 60, got -1"),
        ({"stop_tokens": 61}, "stop_tokens: expected 0 to 60, got 61"),
        ({"stop_tokens": ["\n\n"]}, r"'\\n\\n' is a text: expected a tokenizer, got None"),
        ({"prompts": np.zeros((0, 3), int)}, "prompts: expected at least one"),
    ],
)
def test_bad_arguments_are_named(pair, change, message):
    target, draft = pair
    settings = {"prompts": PROMPTS, "draft": draft, "max_new_tokens": 4, **change}
    with pytest.raises(ValueError, match=message):
        speculative_generate(target, settings.pop("draft"), settings.pop("prompts"), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": 7}, "prompts: expected a text, token ids, or several of either, got int 7"),
        ({"prompts": np.int64(7)}, "prompts: expected a text, token ids"),
        ({"prompts": None}, "prompts: .* got NoneType None"),
        ({"prompts": 1.5}, "prompts: .* got float 1.5"),
        ({"prompts": b"text"}, "prompts: .* got bytes b'text'"),
        ({"prompts": Path("a")}, r"prompts: .* got PosixPath"),
        ({"prompts": {"the", "draft"}}, "prompts: .* got set"),
        ({"prompts": {"text": [[1]]}}, "a mapping without 'input_ids': 'text'"),
        ({"prompts": torch.tensor(3)}, r"prompts: .* got Tensor of torch.int64 \[\]"),
        ({"prompts": torch.ones(2, 3)}, "prompt 0: expected token ids, which are ints, got float"),
        ({"prompts": torch.ones(2, 3, 1).long()}, "prompt 0: expected token ids, .* got list"),
        ({"prompts": [[1], None]}, "prompt 1: expected a text or token ids, got NoneType None"),
        ({"prompts": [[1], Path("a")]}, "prompt 1: expected a text or token ids"),
        ({"prompts": [[1, True]]}, "prompt 0: expected token ids, .* got bool True"),
        ({"prompts": [["1"]]}, "prompt 0: expected token ids, .* got str '1'"),
        ({"seed": "3"}, "seed: expected an int, one per prompt, or None, got str '3'"),
        ({"seed": 1.0}, "seed: expected an int, one per prompt, or None, got float 1.0"),
        ({"seed": True}, "seed: expected an int, one per prompt, or None, got bool True"),
        ({"seed": [1, 2, 3, 1.5]}, r"seed\[3\]: expected an int, got float 1.5"),
        ({"seed": {1, 2, 3, 4}}, "seed: expected an int, one per prompt, or None, got set"),
        ({"stop_tokens": 1.5}, "stop_tokens: expected token ids or texts of one token"),
        ({"stop_tokens": [1.0]}, "stop_tokens: expected .* got float 1.0"),
        ({"stop_tokens": [None]}, "stop_tokens: expected .* got NoneType"),
        ({"stop_tokens": {5: 1}}, "stop_tokens: expected .* got dict"),
        ({"stop_tokens": True}, "stop_tokens: expected .* got bool"),
        ({"spec_len": 2.0}, "spec_len: expected an int, got float 2.0"),
        ({"spec_len": True}, "spec_len: expected an int, got bool True"),
        ({"max_new_tokens": "4"}, "max_new_tokens: expected an int, got str '4'"),
        ({"temperature": "0.7"}, "temperature: expected a number, got str '0.7'"),
        ({"temperature": None}, "temperature: expected a number, got NoneType None"),
        ({"top_p": True}, "top_p: expected a number, got bool True"),
        ({"top_k": 5.0}, "top_k: expected an int, got float 5.0"),
        ({"min_p": "0"}, "min_p: expected a number, got str '0'"),
        ({"logits_processor": [3]}, "logits_processor: expected functions .*, got int 3"),
        ({"draft": Path("model")}, "draft: expected a model, 'ngram' or None, got PosixPath"),
        (
            {"target": "model"},
            "target: expected a model, got str 'model'; rsk.decode.loop.load_pair",
        ),
        ({"tokenizer": "gpt2"}, "tokenizer: expected a tokenizer, got str 'gpt2'"),
        ({"on_emit": "print"}, "on_emit: expected a function or None, got str 'print'"),
    ],
)
def test_arguments_of_the_wrong_type_are_named(pair, change, message):
    settings = dict(zip(("target", "draft"), pair, strict=True), prompts=PROMPTS)
    with pytest.raises(TypeError, match=message):
        speculative_generate(**settings | {"max_new_tokens": 4} | change)


def test_prompts_in_every_form_that_has_one_meaning(pair):
    def tokens(prompts, **changes):
        settings = {"max_new_tokens": 6, "seed": 3} | changes
        return speculative_generate(*pair, prompts, **settings).tokens

    one, two = [5, 9, 2, 33], [7, 8]
    expected = tokens([one])
    for same in (one, tuple(one), iter(one), np.array(one), np.array([one], dtype=np.int32)):
        assert tokens(same) == expected
    for same in (torch.tensor(one), torch.tensor([one]), [np.array(one)], [torch.tensor(one)]):
        assert tokens(same) == expected
    for same in ({"input_ids": one}, {"input_ids": torch.tensor([one]), "attention_mask": None}):
        assert tokens(transformers.BatchEncoding(same)) == tokens(same) == expected
    both = tokens([one, two])
    for same in ((iter(one), two), (row for row in (one, two)), [torch.tensor(one), tuple(two)]):
        assert tokens(same) == both
    padded = transformers.BatchEncoding(
        {
            "input_ids": torch.tensor([one, [0, 0, *two]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
        }
    )
    assert tokens(padded) == both
    for seed in (
        np.int64(3),
        np.array([3, 4]),
        torch.tensor([3, 4]),
        (3, np.int8(4)),
        iter([3, 4]),
    ):
        assert tokens([one, two], seed=seed) == both
    numbers = {"spec_len": np.int64(4), "top_k": np.int32(0), "top_p": np.float32(1)}
    assert tokens([one, two], **numbers, temperature=torch.tensor(1.0)) == both


def test_stop_tokens_in_every_form(pair):
    long = speculative_generate(*pair, PROMPTS[:1], max_new_tokens=30, seed=2).tokens[0]
    stop = long[4]
    expected = long[: long.index(stop) + 1]
    for same in (stop, np.int64(stop), [stop], {stop}, (s for s in [stop]), torch.tensor([stop])):
        result = speculative_generate(
            *pair, PROMPTS[:1], max_new_tokens=30, seed=2, stop_tokens=same
        )
        assert result.tokens[0] == expected


def test_different_vocabularies_are_refused(pair):
    with pytest.raises(ValueError, match="the target has 61 tokens, the draft 40"):
        speculative_generate(pair[0], llama(0, vocab_size=40), PROMPTS)


@pytest.mark.parametrize("words", [(50, 53), (53, 50)])
def test_one_vocabulary_padded_to_different_sizes(words):
    """The text is that of models padded alike, with tokens that the other does not know."""
    padding = -1e9  # what models have learnt never to say

    def table(seed, known, size):
        made = Table(seed, size)
        made.table[:, known:] = -math.inf if known < size else padding
        return made

    target_words, draft_words = words
    settings = {"max_new_tokens": 30, "seed": 3, "spec_len": 3}
    target, draft = Table(1, target_words), Table(1, draft_words, sharpness=1.5)
    largest = max(words)
    alike = Table(1, largest), Table(1, largest)
    for model, wide in zip((target, draft), alike, strict=True):
        known = model.config.vocab_size
        wide.table.fill_(-math.inf)
        wide.table[:known, :known] = model.table
        wide.table[known:, :known] = model.table[-1]  # as the last that it knows
    prompts = [[5, 9], [7], [target_words - 1]]
    for backend in rsk.BACKENDS:
        got = speculative_generate(target, draft, prompts, backend=backend, **settings)
        expected = speculative_generate(*alike, prompts, backend=backend, **settings)
        assert got.tokens == expected.tokens and got.accepted == expected.accepted
        assert max(map(max, got.tokens)) < target_words


class Recorder:
    """A processor that notes the tokens it is shown, and rules out all that stand before."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        assert input_ids.dtype == torch.int64 and scores.dtype == torch.float32
        self.seen.append(input_ids[0].tolist())
        return scores.scatter(1, input_ids, -math.inf)


@pytest.mark.parametrize("backend", rsk.BACKENDS)
@pytest.mark.parametrize("kind", ["model", "ngram", None])
def test_other_processors_see_the_tokens_before(kind, backend):
    target, draft = Table(1), Table(2) if kind == "model" else kind
    recorder = Recorder()
    result = speculative_generate(
        target, draft, PROMPTS_50, seed=4, spec_len=3, max_new_tokens=12, backend=backend,
        logits_processor=[recorder], temperature=0.9, top_p=0.95,
    )  # fmt: skip
    for prompt, tokens in zip(PROMPTS_50, result.tokens, strict=True):
        text = prompt + tokens
        assert len(set(tokens)) == 12 and not set(tokens) & set(prompt)  # nothing said twice
        for end in range(len(prompt), len(text)):
            assert text[:end] in recorder.seen


def test_a_processor_of_transformers_changes_both_models(enumerable):
    """The joint law of what it leaves, with a draft; the same processor on both sides."""
    target, draft = enumerable
    processors = [transformers.RepetitionPenaltyLogitsProcessor(2.5)]
    prompt, new = [3, 1], 3
    law = torch.ones(1, dtype=torch.float64)
    for length in range(new):
        rows = []
        for tokens in itertools.product(range(5), repeat=length):
            ids = torch.tensor([[*prompt, *tokens]])
            with torch.no_grad():
                scores = processors[0](ids, target(ids).logits[:, -1])
            rows.append(scores[0].double().softmax(0))
        law = (law[:, None] * torch.stack(rows)).flatten()
    counts, result = count_continuations(
        target, draft, prompt, new, 2500, 21, spec_len=2, logits_processor=processors
    )
    assert 0.2 < result.acceptance_rate < 0.95
    assert g_test(counts, law) > LEVEL
    plain = joint_law(target, prompt, new, Sampling())
    assert g_test(counts, plain) < LEVEL / 1000  # it makes a difference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_drafts_are_judged_by_the_law_they_were_drawn_from(dtype, monkeypatch):
    """To the bit, in the models' own dtype: with equal models nothing is ever rejected."""
    target = Table(1).to(dtype)
    seen = []

    def spy(x, q, p, *, draft_laws, **options):
        out = rsk.rejection_sample_from_logits(x, q, p, draft_laws=draft_laws, **options)
        again = rsk.rejection_sample_from_logits(x, q, p, **options)
        assert torch.equal(out.tokens, again.tokens)
        if q is not None:  # these very logits are what the drafts were drawn from
            for k in range(q.shape[1]):
                where = {**options, "position": options["position"] + k}
                drawn = rsk.sample_from_logits(q[:, k], **where)
                assert torch.equal(drawn, x[:, k].where(x[:, k] >= 0, drawn))
        seen.append((q.dtype, p.dtype))
        return out

    monkeypatch.setattr(loop, "rejection_sample_from_logits", spy)
    settings = {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "spec_len": 3}
    result = speculative_generate(target, target, PROMPTS_50, seed=5, max_new_tokens=40, **settings)
    assert result.acceptance_rate == 1
    wanted = torch.float32 if dtype == torch.float64 else dtype
    assert set(seen) == {(wanted, wanted)}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("broken", ["target", "draft"])
def test_nan_logits_are_an_error(broken, temperature):
    models = {"target": Table(1), "draft": Table(1)}
    models[broken].table.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        speculative_generate(
            models["target"], models["draft"], [[1]], seed=0, temperature=temperature
        )


# --- loading --------------------------------------------------------------------------------------

WORDS = ["the", "draft", "proposes", "and", "the target", "verifies", "é", "\n    "]


def save_tokenizer(folder, vocab_size, seed=0):
    """A byte-level BPE tokenizer with `vocab_size` tokens, most of them made up."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<unk>", "<s>", "</s>", *alphabet]
    tokens += [f"w{seed}{i}" for i in range(vocab_size - len(tokens))]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def hub_folders(tmp_path_factory):
    """Two folders as the hub lays them out, with the vocabulary size of TinyLlama."""
    top = tmp_path_factory.mktemp("hub")
    target = llama(1, vocab_size=32000, eos_token_id=2, bos_token_id=1)
    draft = llama(2, vocab_size=32000, noise_of=target, noise=0.1, eos_token_id=2, bos_token_id=1)
    for name, model in {"target": target, "draft": draft}.items():
        model.to(torch.bfloat16).save_pretrained(top / name)
        save_tokenizer(top / name, 32000)
    return top


def test_a_hub_folder_with_32000_tokens_goes_all_the_way(hub_folders):
    folders = hub_folders / "target", hub_folders / "draft"
    target, draft, tokenizer = loading.load_pair(*folders, device="cpu")
    assert (target.dtype, draft.dtype) == (torch.float32, torch.float32)
    assert not target.training
    result = speculative_generate(
        target,
        draft,
        ["the draft proposes", "é"],
        tokenizer,
        max_new_tokens=12,
        seed=1,
        top_k=50,
        top_p=0.9,
        temperature=0.7,
    )
    assert result.texts == [tokenizer.decode(t, skip_special_tokens=True) for t in result.tokens]
    assert all(result.texts)
    prompt = tokenizer("the draft proposes").input_ids
    greedy = speculative_generate(target, draft, [prompt], temperature=0, max_new_tokens=12)
    gaps = disagreements(target, prompt, greedy.tokens[0], own_greedy(target, prompt, 12))
    assert all(gap < ROUNDING_GAP for gap in gaps)


@pytest.mark.gpu
def test_on_a_gpu_weights_stay_as_stored(hub_folders):
    folders = hub_folders / "target", hub_folders / "draft"
    target, draft, tokenizer = loading.load_pair(*folders, device="auto")
    assert {(m.device.type, m.dtype) for m in (target, draft)} == {("cuda", torch.bfloat16)}
    result = speculative_generate(target, draft, "é", tokenizer, max_new_tokens=12, seed=1)
    assert len(result.tokens[0]) == 12 or result.tokens[0][-1] == 2


def test_prompt_lookup_and_no_draft_need_one_folder(hub_folders):
    assert loading.load_pair(hub_folders / "target", "ngram").draft == "ngram"
    assert loading.load_pair(str(hub_folders / "target"), None).draft is None


def test_loading_names_a_missing_folder(tmp_path):
    with pytest.raises(loading.LoadError, match="there is no model folder .*nowhere"):
        loading.load_pair(tmp_path / "nowhere", None)
    with pytest.raises(loading.LoadError, match="there is no model folder ./nowhere"):
        loading.load_pair("./nowhere", None)


def test_loading_names_an_empty_folder(tmp_path):
    with pytest.raises(loading.LoadError, match=f"cannot load the folder {tmp_path}"):
        loading.load_pair(tmp_path, None)


def test_a_hub_id_without_network_is_one_clear_line(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        loading.LoadError, match="nobody/no-such-model.*HF_HUB_OFFLINE is set"
    ) as info:
        loading.load_pair("nobody/no-such-model", None)
    assert "\n" not in str(info.value)


def test_no_network_is_said_at_once(monkeypatch):
    from huggingface_hub import constants

    def no_network(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    began = time.monotonic()
    with pytest.raises(loading.LoadError, match="there is no network .*Name or service not known"):
        loading.load_pair("nobody/no-such-model", None)
    assert time.monotonic() - began < 5  # the hub's client alone retries for a minute


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_weights_are_never_unpickled(hub_folders, tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "unpickled"
    shutil.copytree(hub_folders / "target", folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(loading.LoadError, match="cannot load the folder"):
        loading.load_pair(folder, None)
    assert not marker.exists()


def test_code_in_a_model_folder_is_never_run(hub_folders, tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(hub_folders / "target", folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForCausalLM": "evil.EvilModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    loading.load_pair(folder, None)  # a known architecture: its own code is used
    assert not marker.exists()
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(loading.LoadError, match="cannot load the folder"):
        loading.load_pair(folder, None)
    assert not marker.exists()


def test_tokenizers_that_disagree_are_refused(hub_folders, tmp_path):
    shutil.copytree(hub_folders / "draft", tmp_path / "draft")
    save_tokenizer(tmp_path / "draft", 32000, seed=1)
    with pytest.raises(ValueError, match="token 259 is 'w00' to the target and 'w10' to the draft"):
        loading.load_pair(hub_folders / "target", tmp_path / "draft")


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1519, 1520), (1520, 1519)])
def test_one_tokenizer_padded_to_two_sizes_goes_all_the_way(sizes, tmp_path):
    """As Qwen2.5, whose 151 665 tokens are padded to 151 936 or to 152 064."""
    for name, seed, size in zip(("target", "draft"), (1, 2), sizes, strict=True):
        llama(seed, vocab_size=size).save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name, 1500)
    pair = loading.load_pair(tmp_path / "target", tmp_path / "draft", device="cpu")
    prompts = ["the draft", "é"]
    greedy = speculative_generate(*pair[:2], prompts, pair.tokenizer, temperature=0)
    for prompt, tokens in zip(prompts, greedy.tokens, strict=True):
        ids = pair.tokenizer(prompt).input_ids
        gaps = disagreements(pair.target, ids, tokens, own_greedy(pair.target, ids, len(tokens)))
        assert all(gap < ROUNDING_GAP for gap in gaps)
    sampled = speculative_generate(*pair[:2], prompts, pair.tokenizer, seed=1, temperature=2.0)
    assert sampled.tried[0] > 20 and max(map(max, sampled.tokens)) < sizes[0]


def test_another_tokenizer_of_another_size_is_refused_by_its_first_token(tmp_path):
    for name, size, seed in (("target", 1500, 0), ("draft", 700, 1)):
        llama(1, vocab_size=size).save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name, size, seed=seed)
    with pytest.raises(ValueError, match="token 259 is 'w00' to the target and 'w10' to the draft"):
        loading.load_pair(tmp_path / "target", tmp_path / "draft")


def test_a_gpu_that_is_not_there(hub_folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="PyTorch finds no NVIDIA GPU"):
        loading.load_pair(hub_folders / "target", None, device="cuda")


def test_prompt_lookup_finds_the_longest_and_latest_match():
    ngram = prompt_lookup.NgramDraft()
    request = drafting.Request(0, [1, 2, 3, 9, 2, 3, 8, 5, 1, 2, 3], 10, 0)
    batch = drafting.ActiveRequests([request], torch.device("cpu"))
    ngram.start([request])
    tokens, logits, laws = ngram.propose(batch, 3)
    assert logits is None and laws is None
    assert tokens.tolist() == [[9, 2, 3]]  # after 1 2 3, not the later 2 3
    request.tokens.append(2)
    assert ngram.propose(batch, 2).tokens.tolist() == [[3, 2]]  # after 2: the latest
    request.tokens.append(77)
    assert ngram.propose(batch, 2).tokens.shape == (1, 0)


# --- the command ----------------------------------------------------------------------------------


def figures(output):
    """The lines "name: value" at the end of the command's output."""
    lines = output.split("\n\n")[-1].splitlines()
    return {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}


def test_the_command_streams_the_text_and_adds_figures(hub_folders, capsys):
    folders = {"target": str(hub_folders / "target"), "draft": str(hub_folders / "draft")}
    settings = {"max_new_tokens": 20, "seed": 3, "spec_len": 3, "top_k": 40}
    command_line.run("the draft proposes", **folders, **settings, device="cpu", plain=True)
    output = capsys.readouterr().out
    pair = loading.load_pair(*folders.values(), device="cpu")
    result = speculative_generate(
        pair.target, pair.draft, "the draft proposes", pair.tokenizer, **settings
    )
    assert "the draft proposes" + result.text in output
    assert "\x1b" not in output
    shown = figures(output)
    assert shown["acceptance rate"].startswith(f"{result.acceptance_rate:.3f} (by position: ")
    assert shown["tokens per target pass"] == f"{result.tokens_per_target_pass:.2f}"
    assert float(shown["tokens per second"].split()[0]) > 0
    assert shown["speed-up"].endswith("x") or "does not pay" in shown["speed-up"]
    assert re.fullmatch(r"draft \d+%, target \d+%, sampler \d+%, rest \d+%", shown["time"])


def test_the_command_tells_tokens_apart_in_a_terminal(hub_folders, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    command_line.run(
        "the draft proposes",
        str(hub_folders / "target"),
        str(hub_folders / "draft"),
        max_new_tokens=40,
        seed=3,
        device="cpu",
    )
    output = capsys.readouterr().out
    text = output[output.index("the draft proposes") : output.index("acceptance rate")]
    for code in ("36", "4;31", "1"):  # accepted cyan, recovered underlined red, bonus bold
        assert f"\x1b[{code}m" in text


def test_the_command_drafts_by_prompt_lookup_for_a_target_alone(hub_folders, capsys):
    command_line.run(
        "the the the", str(hub_folders / "target"), max_new_tokens=4, device="cpu", plain=True
    )
    assert "prompt lookup" in capsys.readouterr().out


def test_the_command_looks_the_prompt_up_beside_a_draft_model(hub_folders, capsys):
    folders = {"target": str(hub_folders / "target"), "draft": str(hub_folders / "draft")}
    settings = {"max_new_tokens": 12, "seed": 3, "lookup": True}
    command_line.run("the the the the", **folders, **settings, device="cpu", plain=True)
    output = capsys.readouterr().out
    pair = loading.load_pair(*folders.values(), device="cpu")
    result = speculative_generate(*pair[:2], "the the the the", pair.tokenizer, **settings)
    assert "the the the the" + result.text in output and "and prompt lookup, K=4" in output
    assert float(figures(output)["plain, same run"]) > 0


def test_the_command_refuses_lookup_beside_lookup(hub_folders, capsys):
    with pytest.raises(ValueError, match="lookup: goes with a draft model, got 'ngram'"):
        command_line.run(
            "text", str(hub_folders / "target"), draft="ngram", lookup=True, device="cpu"
        )
    assert capsys.readouterr().out == ""


def test_the_command_prints_nothing_before_an_error(hub_folders, capsys):
    with pytest.raises(ValueError, match="more than the target's context of 128"):
        command_line.run("text", str(hub_folders / "target"), max_new_tokens=300, device="cpu")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8000000000 bytes."),
    ],
)
def test_out_of_memory_is_one_clear_line(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(command_line, "load_pair", fail)
    with pytest.raises(loading.LoadError, match="not enough memory") as info:
        command_line.run("text")
    assert "\n" not in str(info.value)


def test_a_full_disk_is_one_clear_line(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", full)
    with pytest.raises(loading.LoadError, match="No space left on device"):
        loading.load_pair("some/model", None)
