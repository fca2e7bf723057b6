"""Speculative decoding from within transformers' own ``model.generate``."""

import functools
import math

import pytest
import torch
from test_generate import ROUNDING_GAP, disagreements
from tiny_models import llama

import rsk.decode
from rsk import check
from rsk.decode import custom_generate
from rsk.decode.loop import speculative_generate

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

OURS = {"custom_generate": rsk.decode.generate}


@pytest.fixture(scope="module")
def pair():
    target = llama(1, pad_token_id=0)
    return target, llama(2, noise_of=target, noise=0.15)


PROMPTS = [[5, 9, 2, 33], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


def padded(prompts):
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def test_greedy_is_transformers_own_for_a_batch(pair):
    """Of which transformers itself refuses the drafting."""
    target, draft = pair
    settings = {"max_new_tokens": 30, "do_sample": False}
    ours = target.generate(**padded(PROMPTS), **settings, assistant_model=draft, **OURS)
    theirs = target.generate(**padded(PROMPTS), **settings)
    assert ours.shape == theirs.shape and ours.dtype == torch.int64 and not ours.is_inference()
    for prompt, mine, own in zip(
        PROMPTS, ours[:, 11:].tolist(), theirs[:, 11:].tolist(), strict=True
    ):
        gaps = disagreements(target, prompt, mine, own)
        assert all(gap < ROUNDING_GAP for gap in gaps)
    assert torch.equal(ours[:, :11], padded(PROMPTS)["input_ids"])
    with pytest.raises(ValueError, match="batch_size = 1"):
        target.generate(**padded(PROMPTS), **settings, assistant_model=draft)


def test_the_text_is_that_of_speculative_generate(pair):
    target, draft = pair
    filters = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02}
    settings = {"max_new_tokens": 25, "seed": 7, "spec_len": 3, **filters}
    expected = speculative_generate(target, draft, PROMPTS, **settings)
    for name in ("assistant_model", "draft"):
        got = target.generate(
            **padded(PROMPTS), do_sample=True, **settings, **{name: draft}, **OURS
        )
        assert got[:, 11:].tolist() == expected.tokens
    whole = functools.partial(rsk.decode.generate, assistant_model=draft, spec_len=3, seed=7)
    del settings["seed"], settings["spec_len"]
    got = target.generate(**padded(PROMPTS), do_sample=True, **settings, custom_generate=whole)
    assert got[:, 11:].tolist() == expected.tokens


def test_pytorchs_seed_is_the_seed(pair):
    def text():
        return pair[0].generate(
            torch.tensor([[5, 9]]),
            do_sample=True,
            max_new_tokens=20,
            assistant_model=pair[1],
            **OURS,
        )

    torch.manual_seed(3)
    first, second = text(), text()
    torch.manual_seed(3)
    assert torch.equal(first, text()) and not torch.equal(first, second)


def test_prompt_lookup_by_its_own_argument_and_by_name(pair):
    target, _ = pair
    ids = torch.tensor([[1, 2, 3, 4, 1, 2, 3]])
    expected = speculative_generate(target, "ngram", ids, spec_len=2, seed=1, max_new_tokens=12)
    settings = {"do_sample": True, "max_new_tokens": 12, "seed": 1, "top_k": 0}
    for settled in (
        {"prompt_lookup_num_tokens": 2},
        {"draft": "ngram", "spec_len": 2},
        {"draft": "ngram", "prompt_lookup_num_tokens": 2},
        {"spec_len": 2, "prompt_lookup_num_tokens": 9},
    ):
        got = target.generate(ids, **settings, **settled, **OURS)
        assert got[0, 7:].tolist() == expected.tokens[0]
    plain = speculative_generate(target, "ngram", ids, spec_len=0, seed=1, max_new_tokens=12)
    got = target.generate(ids, **settings, spec_len=0, prompt_lookup_num_tokens=2, **OURS)
    assert got[0, 7:].tolist() == plain.tokens[0] != expected.tokens[0]


@pytest.mark.slow
def test_texts_follow_the_targets_law_in_a_padded_batch():
    """With a processor that looks at the text before, and a stop token."""
    target = llama(21, vocab_size=4, pad_token_id=0)
    draft = llama(22, vocab_size=4, noise_of=target, noise=0.5)
    penalty = transformers.RepetitionPenaltyLogitsProcessor(1.3)
    prompts = [[0, 1], [2, 0, 1, 1, 2]]

    def decode(prompts, seeds):
        batch, width = padded(prompts), max(map(len, prompts))
        got = target.generate(
            **batch, assistant_model=draft, do_sample=True, temperature=0.9, max_new_tokens=4,
            eos_token_id=3, seed=seeds, spec_len=2, repetition_penalty=1.3, **OURS,
        )  # fmt: skip
        rows = got[:, width:].tolist()
        return [row[: row.index(3) + 1] if 3 in row else row for row in rows]

    def law(ids):
        return penalty(ids, target(ids).logits[:, -1]) / 0.9

    check.assert_decoding_lossless(
        decode, law, prompts=prompts, max_new_tokens=4, stop_tokens=[3], from_logits=True,
        batch_size=256, bias=0.15,
    )  # fmt: skip


def test_a_processor_that_holds_something_for_each_row_finds_it(pair):
    """Allowed tokens by row, which transformers gives by the row's place in the batch."""
    target, draft = pair
    allowed = [[20, 21], [30, 31, 32], [40]]
    got = target.generate(
        **padded(PROMPTS), max_new_tokens=12, do_sample=True, seed=1, assistant_model=draft,
        prefix_allowed_tokens_fn=lambda row, ids: allowed[row], **OURS,
    )  # fmt: skip
    for row, some in zip(got[:, 11:].tolist(), allowed, strict=True):
        assert set(row) <= set(some)


def test_a_stop_token_ends_its_row_alone(pair):
    target, draft = pair
    settings = {"max_new_tokens": 40, "seed": 2, "spec_len": 5, "do_sample": True}
    settings |= {"assistant_model": draft, **OURS}
    free = target.generate(**padded(PROMPTS), **settings)[:, 11:].tolist()
    stop = free[0][9]
    ended = target.generate(**padded(PROMPTS), **settings, eos_token_id=stop)[:, 11:].tolist()
    lengths = []
    for row, longer in zip(ended, free, strict=True):
        lengths.append(row.index(stop) + 1 if stop in row else len(row))
        assert row[: lengths[-1] - 1] == longer[: lengths[-1] - 1]
        assert set(row[lengths[-1] :]) <= {0}
    assert len(set(lengths)) > 1 and max(lengths) == len(ended[0])


class Record:
    """A criterion that notes what it is shown, and ends a text after some token."""

    def __init__(self, last=None):
        self.shown, self.last = [], last

    def __call__(self, input_ids, scores, **kwargs):
        self.shown.append(input_ids[0].tolist())
        return torch.tensor([self.last is not None and int(input_ids[0, -1]) == self.last])


def test_criteria_are_asked_after_every_token(pair):
    target, draft = pair
    settings = {"max_new_tokens": 20, "do_sample": False, "assistant_model": draft, **OURS}
    criterion = Record()
    free = target.generate(**padded([[5, 9]]), **settings, stopping_criteria=[criterion])
    assert criterion.shown == [free[0, : i + 1].tolist() for i in range(2, 22)]
    criterion = Record(last=int(free[0, 9]))
    ended = target.generate(**padded([[5, 9]]), **settings, stopping_criteria=[criterion])
    end = free[0, 2:].tolist().index(criterion.last) + 3
    assert ended[0].tolist() == free[0, :end].tolist()


class Words:
    """A tokenizer with as much of the interface as a streamer needs."""

    def decode(self, tokens, **_):
        return "".join(f"{token} " for token in tokens)


def test_a_streamer_gets_the_prompt_each_token_and_the_end(pair):
    target, draft = pair
    settings = {"max_new_tokens": 12, "do_sample": False, "assistant_model": draft}
    streamer = transformers.TextIteratorStreamer(Words(), timeout=5)
    got = target.generate(torch.tensor([[5, 9]]), **settings, streamer=streamer, **OURS)
    assert "".join(streamer) == "".join(f"{token} " for token in got[0].tolist())


class Forbid:
    """A processor that rules out what was said, padding included."""

    def __init__(self):
        self.shown = []

    def __call__(self, input_ids, scores):
        self.shown.append(input_ids[0].tolist())
        return scores.scatter(1, input_ids, -math.inf)


@pytest.mark.parametrize("do_sample", [False, True])
def test_other_processors_see_the_rows_of_transformers(pair, do_sample):
    target, draft = pair
    processor = Forbid()
    got = target.generate(
        **padded(PROMPTS), max_new_tokens=15, do_sample=do_sample, temperature=0.8,
        assistant_model=draft, logits_processor=[processor], seed=1, **OURS,
    )  # fmt: skip
    for row, prompt in zip(got.tolist(), PROMPTS, strict=True):
        new = row[11:]
        assert len(set(new)) == 15 and not set(new) & {*prompt, *row[:11]}
        assert all(row[:end] in processor.shown for end in range(11, len(row)))


def test_a_minimal_length_counts_from_the_end_of_the_prompts(pair):
    target, draft = pair
    stops = list(range(1, 61, 2))
    got = target.generate(
        **padded(PROMPTS), max_new_tokens=30, min_new_tokens=9, do_sample=True, eos_token_id=stops,
        assistant_model=draft, seed=1, **OURS,
    )  # fmt: skip
    for row in got[:, 11:].tolist():
        end = next(i for i, token in enumerate(row, 1) if token in stops)
        assert end > 9
    assert got.shape[1] < 11 + 30


def filters_of(**settings):
    config = transformers.GenerationConfig(do_sample=True, **settings)
    processors = llama(0)._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    return custom_generate._sampling(processors, True, 1)


def test_the_samplers_own_filters_take_the_place_of_transformers():
    sampling = filters_of(temperature=0.7, top_k=40, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    assert sampling.filters == {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.1}
    assert [type(p).__name__ for p in sampling.processors] == ["RepetitionPenaltyLogitsProcessor"]
    sampling = filters_of(temperature=0.7, top_k=0, top_p=0.9, typical_p=0.9)
    assert len(sampling.processors) == 3  # what comes before another one stays before it
    assert sampling.filters["temperature"] == 1


def test_a_dictionary_is_returned_on_request(pair):
    target, draft = pair
    settings = {"max_new_tokens": 5, "do_sample": False, "assistant_model": draft, **OURS}
    plain = target.generate(torch.tensor([[5, 9]]), **settings)
    found = target.generate(torch.tensor([[5, 9]]), **settings, return_dict_in_generate=True)
    assert torch.equal(found.sequences, plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"assistant_model": None}, "expected a draft, in assistant_model=, or in draft="),
        ({"return_dict_in_generate": True, "output_scores": True}, "does not do output_scores"),
        ({"num_beams": 2, "assistant_model": None, "draft": "ngram"}, "does not do num_beams=2"),
        ({"guidance_scale": 1.5}, "does not do guidance_scale=1.5, which keeps state"),
        ({"spec_len": 129}, "spec_len: expected 0 to 128, got 129"),
        ({"max_new_tokens": 300}, "more than the target's context of 128"),
        ({"draft": llama(0, vocab_size=40)}, "the target has 61 tokens, the draft 40"),
        ({"draft": "n-gram"}, "draft: expected a model, 'ngram' or None, got 'n-gram'"),
        ({"attention_mask": torch.tensor([[1, 0]])}, "expected padding on the left alone"),
        ({"cache_implementation": "static"}, "does not do cache_implementation='static'"),
    ],
)
def test_what_it_does_not_do_is_refused(pair, change, message):
    target, draft = pair
    settings = {"assistant_model": draft, "max_new_tokens": 4, "do_sample": False, **OURS}
    with pytest.raises(ValueError, match=message):
        target.generate(torch.tensor([[5, 9]]), **{**settings, **change})


def test_a_streamer_for_several_prompts_is_refused(pair):
    class Silent(transformers.generation.BaseStreamer):
        put = end = lambda *_: None

    with pytest.raises(ValueError, match="does not do a streamer for several prompts"):
        pair[0].generate(
            **padded(PROMPTS), assistant_model=pair[1], max_new_tokens=4, streamer=Silent(), **OURS
        )


def test_a_vocabulary_padded_further_drafts_too():
    target, draft = llama(1, vocab_size=61), llama(2, vocab_size=64)
    ids = torch.tensor([[5, 9]])
    got = target.generate(ids, assistant_model=draft, do_sample=False, max_new_tokens=20, **OURS)
    expected = speculative_generate(target, draft, ids, temperature=0, max_new_tokens=20)
    assert got[0, 2:].tolist() == expected.tokens[0]


def test_an_argument_is_found_in_the_call_of_this_model_alone(pair):
    target, draft = pair
    assert custom_generate._argument_of_generate(target, "assistant_model") is None
    seen = []

    def spy(model, input_ids, **_):
        seen.extend(
            custom_generate._argument_of_generate(each, "assistant_model")
            for each in (target, draft)
        )
        return input_ids

    target.generate(torch.tensor([[5]]), assistant_model=draft, custom_generate=spy)
    assert seen[0] is draft and seen[1] is None
