"""The real loop under the check of whole loops: right, and wrong by one line at a time."""

import pytest
import torch
from tiny_models import llama

import rsk
from rsk import check
from rsk.decode import drafting, kv_cache, loop
from rsk.decode.loop import speculative_generate
from rsk.decode.sampling import Sampling

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

FILTERS = {"temperature": 0.9, "top_k": 3, "top_p": 0.95}
TEXTS = {
    "prompts": [[0, 1], [2, 0, 1, 1, 2, 0]],
    "max_new_tokens": 5,
    "stop_tokens": [3],
    "batch_size": 1024,
}


@pytest.fixture(scope="module")
def models():
    target = llama(21, vocab_size=4)
    return target, llama(22, vocab_size=4, noise_of=target, noise=0.5)


def judged(models, draft, **settings):
    target, model = models

    def decode(prompts, seeds):
        return speculative_generate(
            target,
            model if draft == "model" else draft,
            prompts,
            seed=seeds,
            stop_tokens=TEXTS["stop_tokens"],
            **{"spec_len": 2, "max_new_tokens": TEXTS["max_new_tokens"], **settings},
        ).tokens

    return decode


def logits_of(target):
    return lambda ids: target(ids).logits[:, -1]


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["model", "ngram", None])
def test_speculative_generate_passes_from_logits(models, draft):
    decode = judged(models, draft, **FILTERS)
    check.assert_decoding_lossless(
        decode, logits_of(models[0]), from_logits=True, **FILTERS, **TEXTS
    )


@pytest.mark.slow
def test_speculative_generate_passes_from_probabilities(models):
    decode = judged(models, "model")
    check.assert_decoding_lossless(
        decode, lambda ids: models[0](ids).logits[:, -1].double().softmax(-1), **TEXTS
    )


@pytest.mark.slow
def test_speculative_generate_passes_one_prompt_at_a_time(models):
    decode = judged(models, "model", **FILTERS)
    check.assert_decoding_lossless(
        lambda prompt, seed: decode([prompt], [seed])[0],
        logits_of(models[0]),
        from_logits=True,
        **{**FILTERS, **TEXTS, "prompts": [[2, 0, 1]], "batch_size": 1, "bias": 0.3},
    )


@pytest.mark.parametrize("sizes", [(10, 11), (11, 10)])
def test_a_vocabulary_padded_further_changes_no_law(sizes):
    target, draft = llama(31, vocab_size=sizes[0]), llama(32, vocab_size=sizes[1])
    decode = judged((target, draft), "model", temperature=1.3, max_new_tokens=3, spec_len=1)
    texts = {**TEXTS, "prompts": [[0, 1]], "max_new_tokens": 3, "bias": 0.2}
    check.assert_decoding_lossless(
        decode, logits_of(target), from_logits=True, temperature=1.3, **texts
    )


# --- wrong by one line ----------------------------------------------------------------------------


def q_is_not_the_drafts_law(monkeypatch):
    def propose(self, batch, spec_len):
        filters, self.sampling.filters = self.sampling.filters, Sampling().filters
        try:
            return right(self, batch, spec_len)._replace(laws=None)
        finally:
            self.sampling.filters = filters

    right = drafting.ModelDraft.propose
    monkeypatch.setattr(drafting.ModelDraft, "propose", propose)


def filters_on_the_draft_only(monkeypatch):
    def verify(x, q, p, **options):
        q = None if q is None else rsk.probabilities(q, **FILTERS)
        seeds = {name: options[name] for name in ("seed", "position")}
        return rsk.rejection_sample(x, q, rsk.probabilities(p), **seeds)

    monkeypatch.setattr(loop, "rejection_sample_from_logits", verify)


def a_processor_on_one_side(monkeypatch):
    right = Sampling.process

    def process(self, logits, texts, indices, drafts=None):
        logits = right(self, logits, texts, indices, drafts)
        return logits if drafts is None else logits * 0.4

    monkeypatch.setattr(Sampling, "process", process)


def cache_rolled_back_by_one_too_few(monkeypatch):
    right = kv_cache.CachedModel.keep

    def keep(self, rows, lengths):
        if self.name == "target":  # where something was rejected, one more stays
            lengths = [
                length + (self.lengths[row] > length)
                for row, length in zip(rows, lengths, strict=True)
            ]
        right(self, rows, lengths)

    monkeypatch.setattr(kv_cache.CachedModel, "keep", keep)
    forward = kv_cache.CachedModel.forward

    def forwards(self, tokens, lengths, wanted):
        if self.name == "target" and self.lengths:
            lengths = [before + tokens.shape[1] for before in self.lengths]
        return forward(self, tokens, lengths, wanted)

    monkeypatch.setattr(kv_cache.CachedModel, "forward", forwards)


def rows_of_another_request(monkeypatch):
    right = kv_cache._rows_and_slots
    monkeypatch.setattr(
        kv_cache,
        "_rows_and_slots",
        lambda rows, *others: right([rows[0], *rows[:-1]], *others),
    )


@pytest.mark.parametrize(
    "fault",
    [
        q_is_not_the_drafts_law,
        filters_on_the_draft_only,
        a_processor_on_one_side,
        cache_rolled_back_by_one_too_few,
        rows_of_another_request,
    ],
)
def test_a_wrong_line_is_found(models, fault, monkeypatch):
    target = logits_of(models[0])
    decode = judged(models, "model", **FILTERS)
    fault(monkeypatch)
    with pytest.raises(check.NotLossless):
        check.assert_decoding_lossless(decode, target, from_logits=True, **FILTERS, **TEXTS)


@pytest.mark.slow
def test_the_same_bits_in_bfloat16(models):
    """A pair in bfloat16 follows its own target's law: the caches change no more than rounding."""
    target, draft = (model.to(torch.bfloat16) for model in models)
    try:
        decode = judged((target, draft), "model", temperature=1.2)
        check.assert_decoding_lossless(
            decode, logits_of(target), from_logits=True, temperature=1.2, **TEXTS
        )
    finally:
        for model in models:
            model.to(torch.float32)
