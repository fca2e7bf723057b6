"""K chosen from measurements, on made-up costs and on models; drafts by lookup and model."""

import itertools

import pytest
import torch
from test_generate import PROMPTS_50, ROUNDING_GAP, Table, disagreements, own_greedy
from test_lossless import TEXTS, logits_of
from tiny_models import llama

from rsk import check
from rsk.decode.drafting import ActiveRequests, Proposal, Request
from rsk.decode.kv_cache import CachedModel, Clock
from rsk.decode.loading import fitting_threads, load_pair, shipped_pair
from rsk.decode.loop import speculative_generate
from rsk.decode.prompt_lookup import LookupThenModelDraft
from rsk.decode.sampling import Sampling
from rsk.decode.speculation_length import (
    MeasuredLength,
    SpeculationLength,
    StepCost,
    expected_tokens,
    speculation_length,
)

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


def simulate(*, acceptance, target, draft, steps=300, seed=0, rest=0.001, length=None):
    """Steps of a machine on which n positions take ``target(n)`` seconds; the K of each."""
    length = length or MeasuredLength()
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for _ in range(steps):
        spec_len = length.choose()
        chosen.append(spec_len)
        coins = torch.rand(spec_len, generator=generator) < acceptance
        accepted = int(coins.long().cumprod(0).sum()) if spec_len else 0
        judged = min(accepted + 1, spec_len)
        length.learn(
            StepCost(spec_len + 1, judged, accepted, target(spec_len + 1), draft * spec_len, rest)
        )
    return chosen


def best(acceptance, target, draft, rest=0.001):
    """By the formula itself, with costs and acceptance known."""

    def speed(spec_len):
        seconds = target(spec_len + 1) + draft * spec_len + rest
        return expected_tokens(acceptance, spec_len) / seconds

    return {spec_len: speed(spec_len) for spec_len in range(9)}


MACHINES = {
    "a pass costs its bytes": lambda n: 0.05,
    "a pass costs its positions": lambda n: 0.05 * n,
    "a step up behind one": lambda n: 0.05 if n == 1 else 0.07 + 0.002 * n,
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("acceptance", "draft"), [*itertools.product((0.2, 0.6, 0.9), (0.001, 0.03))]
)
def test_the_choice_is_as_fast_as_the_best_k(machine, acceptance, draft):
    target = MACHINES[machine]
    speeds = best(acceptance, target, draft)
    chosen = simulate(acceptance=acceptance, target=target, draft=draft)[100:]
    assert sum(speeds[k] for k in chosen) / len(chosen) > 0.95 * max(speeds.values())


def test_where_drafting_does_not_pay_decoding_is_plain():
    chosen = simulate(acceptance=0.5, target=MACHINES["a pass costs its positions"], draft=0.02)
    assert chosen[:10] == [*MeasuredLength.PROBES] * 2
    assert chosen[10:].count(0) > 0.95 * len(chosen[10:])
    assert any(chosen[10:])  # but it is tried again


def test_a_text_that_becomes_easy_is_noticed():
    length = MeasuredLength()
    target = MACHINES["a step up behind one"]
    assert simulate(acceptance=0.05, target=target, draft=0.002, length=length)[-1] == 0
    assert simulate(acceptance=0.95, target=target, draft=0.002, length=length)[-1] > 4


def test_a_disturbed_pass_does_not_count():
    slow = iter(itertools.cycle([False, False, False, True]))
    chosen = simulate(
        acceptance=0.8, target=lambda n: 0.05 * (20 if next(slow) else 1), draft=0.001
    )
    assert min(chosen[50:]) >= 4


def test_times_between_the_probes_are_interpolated():
    length = MeasuredLength()
    for positions, seconds in ((1, 1.0), (5, 3.0), (9, 4.0)):
        length.learn(StepCost(positions, 0, 0, seconds, 0.0, 0.0))
    assert [length.pass_seconds(n) for n in (1, 3, 5, 7, 9)] == [1, 2, 3, 3.5, 4]


def test_what_a_draft_reads_after_plain_steps_is_no_cost_of_its_tokens():
    """Each retry begins with a pass over all that was emitted meanwhile."""
    length, plain = MeasuredLength(), 0
    for _ in range(600):
        k = length.choose()
        catching_up = 0.2 * plain if k else 0.0
        length.learn(StepCost(k + 1, k, 0, 1.0 + k, 0.1 * k + catching_up, 0.0))
        plain = 0 if k else plain + 1
    assert min(length._drafts) == pytest.approx(0.1)


def test_what_spec_len_may_be():
    assert isinstance(speculation_length("auto"), MeasuredLength)
    fixed = speculation_length(3)
    assert type(fixed) is SpeculationLength and fixed.choose() == fixed.longest == 3
    with pytest.raises(ValueError, match="spec_len: expected 0 to 128 or 'auto', got 'best'"):
        speculation_length("best")
    with pytest.raises(TypeError, match="spec_len: expected an int, got float 2.5"):
        speculation_length(2.5)


# --- in the loop ----------------------------------------------------------------------------------


class AnyLength(SpeculationLength):
    """Jumps between all lengths, plain steps among them."""

    def __init__(self):
        super().__init__(4)
        self.next = itertools.cycle([4, 0, 0, 3, 0, 1, 2, 0])

    def choose(self):
        return next(self.next)


@pytest.fixture
def any_length(monkeypatch):
    from rsk.decode import loop

    monkeypatch.setattr(loop, "speculation_length", lambda spec_len: AnyLength())


@pytest.mark.parametrize("lookup", [False, True])
def test_lengths_may_change_from_step_to_step(any_length, lookup):
    """The draft's cache falls behind and catches up: it proposes what it would have without."""
    target = llama(1)
    prompts = [[5, 9, 2, 33], [7], [1, 2, 3, 4, 1, 2, 3]]
    result = speculative_generate(
        target, target, prompts, temperature=0, max_new_tokens=40, lookup=lookup
    )
    assert set(result.spec_lens) == {0, 1, 2, 3, 4}
    for prompt, tokens in zip(prompts, result.tokens, strict=True):
        gaps = disagreements(target, prompt, tokens, own_greedy(target, prompt, 40))
        assert all(gap < ROUNDING_GAP for gap in gaps)
    if not lookup:  # a draft that is the target is always right, if it has read the same
        assert result.acceptance_rate == 1


@pytest.mark.slow
@pytest.mark.parametrize("lookup", [False, True])
@pytest.mark.parametrize("spec_len", [2, "auto"])
def test_texts_follow_the_targets_law(spec_len, lookup):
    target = llama(21, vocab_size=4)
    draft = llama(22, vocab_size=4, noise_of=target, noise=0.5)
    filters = {"temperature": 0.9, "top_k": 3}
    seen = set()

    def decode(prompts, seeds):
        result = speculative_generate(
            target, draft, prompts, seed=seeds, max_new_tokens=5, stop_tokens=[3],
            spec_len=spec_len, lookup=lookup, **filters,
        )  # fmt: skip
        seen.update(result.spec_lens)
        return result.tokens

    texts = {**TEXTS, "prompts": [[0, 1], [2, 0, 1, 1, 2, 0, 1]], "batch_size": 256}
    check.assert_decoding_lossless(decode, logits_of(target), from_logits=True, **filters, **texts)
    assert len(seen) > 1 or spec_len == 2


def test_lookup_saves_the_models_passes_where_it_finds_something():
    """A target that counts up, and a draft that is always wrong."""
    target, draft = Table(0), Table(0)
    for model, step in ((target, 1), (draft, 2)):
        model.table.fill_(-30)
        model.table[torch.arange(50), (torch.arange(50) + step) % 50] = 30
    repeated, new = [*range(20), *range(40, 50), 0, 1, 2], [30]  # three equal tokens are found
    settings = {"max_new_tokens": 9, "spec_len": 4, "seed": 0, "lookup": True}
    draft.fed.clear()
    alone = speculative_generate(target, draft, [repeated], **settings)
    assert alone.tokens == [[*range(3, 12)]] and alone.acceptance_rate == 1
    assert len(draft.fed) == 1  # the prompt
    both = speculative_generate(target, draft, [repeated, new], **settings)
    assert both.tokens == [[*range(3, 12)], [*range(31, 40)]]
    assert set(both.origins[0]) == {"accepted", "bonus"}
    assert "accepted" not in both.origins[1]


@pytest.mark.parametrize("beyond", [False, True])
def test_beside_a_lookup_the_model_reads_what_the_text_became(monkeypatch, beyond):
    """One row is looked up and the other drawn: what the model drew for the first is no text."""
    model = llama(1)
    drafter = LookupThenModelDraft(
        CachedModel(model, "draft", Clock(model.device)), Sampling(), "vectorized"
    )
    requests = [Request(0, [5, 9, 2, 33], 20, seed=1), Request(1, [7, 3], 20, seed=2)]
    looked_up = [11, 12, 61 if beyond else 13, 14]  # the model knows 61 tokens
    proposals = [Proposal(torch.tensor([looked_up, [-1] * 4])), Proposal(torch.tensor([[], []]))]
    monkeypatch.setattr(drafter.lookup, "propose", lambda batch, spec_len: proposals.pop(0))
    drafter.start(requests)
    with torch.no_grad():
        first = drafter.propose(ActiveRequests(requests, model.device), 4)
        kept = 2 if beyond else 4
        assert first.tokens[0].tolist() == [*looked_up[:kept], *[-1, 14][: 4 - kept]]
        requests[0].tokens += [*looked_up[:kept], 20]
        requests[1].tokens += [*first.tokens[1, :2].tolist(), 21]
        drafter.keep([0, 1], requests)
        again = drafter.propose(ActiveRequests(requests, model.device), 4)
        for request, logits in zip(requests, again.logits[:, 0], strict=True):
            expected = model(torch.tensor([request.tokens])).logits[0, -1]
            assert torch.allclose(logits, expected, atol=1e-4)


def test_lookup_needs_a_draft_model():
    for draft in (None, "ngram"):
        with pytest.raises(ValueError, match="lookup: goes with a draft model, got"):
            speculative_generate(Table(1), draft, PROMPTS_50, lookup=True)


def test_the_shipped_pair_chooses_for_itself():
    pair = load_pair(*shipped_pair(), device="cpu")
    with fitting_threads(pair):
        found = speculative_generate(
            pair.target, pair.draft, "def read(self):\n", pair.tokenizer, spec_len="auto",
            max_new_tokens=120, seed=1, stop_tokens=(),
        )  # fmt: skip
    assert found.spec_lens[:5] == [4, 0, 1, 2, 8] and len(found.spec_lens) > 15
    assert len(found.tokens[0]) == 120
