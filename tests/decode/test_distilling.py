"""A draft that borrows the target's embedding, and the script that distils it, in miniature."""

import importlib.util
import json
import sys

import pytest
import torch
from test_decoding import Characters
from test_lossless import TEXTS, logits_of
from tiny_models import llama

from rsk import check
from rsk.base.folders import checkout, data_dir
from rsk.decode import distilled_draft, loading
from rsk.decode.loading import LoadedPair
from rsk.decode.loop import speculative_generate

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(checkout() is None, reason="the script belongs to the checkout"),
]
MODELS = data_dir() / "models"


@pytest.fixture(scope="module")
def target():
    return llama(1, num_hidden_layers=5, initializer_range=0.15)


# --- the draft ------------------------------------------------------------------------------------


def test_a_draft_of_all_layers_and_tokens_is_the_target(target):
    draft = distilled_draft.make(target, 5, torch.arange(61))
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.allclose(draft(ids).logits, target(ids).logits, atol=1e-5)
    result = speculative_generate(target, draft, [[3, 1]], seed=0, max_new_tokens=40)
    assert result.acceptance_rate > 0.99


def test_it_borrows_and_knows_some_tokens(target, tmp_path):
    known = torch.tensor([2, 3, 5, 7, 11, 60])
    draft = distilled_draft.make(target, 2, known)
    distilled_draft.save(draft, tmp_path)
    again = distilled_draft.load(tmp_path, target)
    assert again.model.embed_tokens is target.model.embed_tokens
    probabilities = again(torch.tensor([[3, 1, 4]])).logits.softmax(-1)
    assert probabilities.gt(0).nonzero()[:, 2].unique().tolist() == known.tolist()
    for name, weight in distilled_draft.own_state(draft).items():
        step = weight.abs().amax(-1, keepdim=True) / 127
        assert bool(
            ((weight - distilled_draft.own_state(again)[name]).abs() <= step / 2 + 1e-6).all()
        )
    own = sum(weight.numel() for weight in distilled_draft.own_state(draft).values())
    assert (tmp_path / distilled_draft.WEIGHTS).stat().st_size < 1.5 * own + 6000
    assert distilled_draft.is_one(tmp_path) and not distilled_draft.is_one(tmp_path.parent)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_tokens_that_it_does_not_know_are_still_said(temperature):
    target = llama(21, vocab_size=4)
    draft = distilled_draft.make(target, 1, torch.tensor([0, 2]))

    def decode(prompts, seeds):
        return speculative_generate(
            target, draft, prompts, seed=seeds, max_new_tokens=5, stop_tokens=[3], spec_len=2,
            temperature=temperature,
        ).tokens  # fmt: skip

    verdict = check.assert_decoding_lossless(
        decode, logits_of(target), from_logits=True, temperature=temperature, **TEXTS
    )
    assert verdict.requests > 500


def test_a_pair_is_loaded_by_its_folders(target, tmp_path, monkeypatch):
    target.save_pretrained(tmp_path / "target")
    distilled_draft.save(distilled_draft.make(target, 1, torch.arange(9)), tmp_path / "draft")
    monkeypatch.setattr(loading, "load_tokenizer", lambda source: Characters())
    pair = loading.load_pair(tmp_path / "target", tmp_path / "draft", device="cpu")
    assert pair.draft.model.embed_tokens is pair.target.model.embed_tokens
    llama(1, vocab_size=60).save_pretrained(tmp_path / "other")
    with pytest.raises(loading.LoadError, match="with vocab_size 61; the target has 60"):
        loading.load_pair(tmp_path / "other", tmp_path / "draft", device="cpu")
    (tmp_path / "draft" / distilled_draft.WEIGHTS).write_bytes(b"cut short")
    with pytest.raises(loading.LoadError, match="cannot load the draft in"):
        loading.load_pair(tmp_path / "target", tmp_path / "draft", device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.norm.weight"), "not hold the weights of 1 such layers"),
        (lambda state: state.update({"more": torch.ones(2)}), "does not hold the weights"),
        (lambda state: state.pop(distilled_draft.KNOWN), "cannot load the draft in .*known_tokens"),
        (lambda state: state[distilled_draft.KNOWN].fill_(61), "tokens outside the vocabulary"),
    ],
)
def test_a_draft_with_other_weights_is_refused(target, tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    distilled_draft.save(distilled_draft.make(target, 1, torch.arange(9)), tmp_path)
    state = load_file(str(tmp_path / distilled_draft.WEIGHTS))
    change(state)
    save_file(state, str(tmp_path / distilled_draft.WEIGHTS))
    with pytest.raises(loading.LoadError, match=message):
        distilled_draft.load(tmp_path, target)


def test_positions_keep_their_precision_in_16_bits(target, tmp_path):
    """As transformers loads it, a model in 16 bits has float32 frequencies of its positions."""
    target.save_pretrained(tmp_path)
    theirs = loading.load_model(tmp_path, device=torch.device("cpu"), dtype=torch.bfloat16)
    draft = distilled_draft.make(theirs, 5, torch.arange(61))
    assert draft.dtype == torch.bfloat16
    assert torch.equal(draft.model.rotary_emb.inv_freq, target.model.rotary_emb.inv_freq)
    ids = torch.arange(61).repeat(2)[None]
    assert torch.equal(draft(ids).logits, theirs(ids).logits)


def test_it_is_made_from_a_llama_of_enough_layers(target):
    with pytest.raises(ValueError, match="expected a Llama of at least 6 layers, got llama of 5"):
        distilled_draft.make(target, 6, torch.arange(4))


# --- the script -----------------------------------------------------------------------------------


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, MODELS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load_script("distil_smollm2")


class Letters(Characters):
    chat_template = None


@pytest.fixture
def small(script):
    return script.Settings(
        layers=1, known_tokens=40, shards=4, texts=16, new_tokens=20, steps=30, batch=16,
        micro_batch=8, warm_up=3, evaluate_every=5, checkpoint_every=5, peak_rate=5e-3,
    )  # fmt: skip


def test_prompts_of_four_kinds_some_of_them_apart(script):
    found = script.prompts()
    assert set(found) == {"chat", "prose", "code", "list"}
    for some in found.values():
        apart = [prompt for prompt in some if script.is_held_out(prompt)]
        assert len(some) == len(set(some)) > 300
        assert 0.02 < len(apart) / len(some) < 0.09 and len(apart) >= 8
    assert not [
        p for some in found.values() for p in some if "{" in p.replace("{{", "") or "\\n" in p
    ]


@pytest.mark.slow
def test_the_loss_falls_and_a_rerun_gives_the_same_curve(
    script, target, small, tmp_path, monkeypatch
):
    script.distil(target, Letters(), small, tmp_path / "whole", tmp_path / "whole" / ".training")
    record = json.loads((tmp_path / "whole" / "training.json").read_text())
    first_half = [row["loss"] for row in record["log"][:3]]
    assert first_half == sorted(first_half, reverse=True)
    assert record["log"][-1]["acceptance"] > record["log"][0]["acceptance"]
    assert 0.6 < record["known_share"] <= 1 and record["sampled_tokens"] > 1000

    rate = script.learning_rate
    stops = {12, 21}

    def interrupting(settings, step):
        if step in stops:
            stops.remove(step)
            raise KeyboardInterrupt
        return rate(settings, step)

    monkeypatch.setattr(script, "learning_rate", interrupting)
    where = tmp_path / "resumed" / ".training"
    for _ in range(3):
        try:
            script.distil(target, Letters(), small, tmp_path / "resumed", where)
        except KeyboardInterrupt:
            assert (where / "checkpoint.pt").exists()
    again = json.loads((tmp_path / "resumed" / "training.json").read_text())
    assert again["log"] == record["log"]
    script.distil(target, Letters(), small, tmp_path / "resumed", where)  # nothing is left to do
    once_more = json.loads((tmp_path / "resumed" / "training.json").read_text())
    assert once_more == again and min(again["seconds"].values()) > 0
    weights = [(tmp_path / n / distilled_draft.WEIGHTS).read_bytes() for n in ("whole", "resumed")]
    assert weights[0] == weights[1]
    with pytest.raises(SystemExit, match="belongs to other settings"):
        script.distil(target, Letters(), script.Settings(), tmp_path / "resumed", where)


@pytest.mark.slow
def test_a_draft_that_learned_is_accepted_more_often(script, target, small, tmp_path):
    draft = distilled_draft.make(target, 1, torch.arange(61))
    apart = script.held_out(Letters(), each=2)
    assert {len(texts) for texts in apart.values()} == {2}
    before = script.measure(LoadedPair(target, draft, Letters()), apart, new_tokens=20)
    script.distil(target, Letters(), small, tmp_path, tmp_path / ".training")
    pair = LoadedPair(target, distilled_draft.load(tmp_path, target), Letters())
    after = script.measure(pair, apart, new_tokens=20)

    def rate(rows):
        own = [row for row in rows if row["drafter"] == "draft" and row["temperature"]]
        return sum(row["accepted"] for row in own) / sum(row["judged"] for row in own)

    assert len(after) == 4 * 2 * 2 and rate(after) > rate(before)
    (tmp_path / "measured.json").write_text(json.dumps({"device": "a machine", "rows": after}))
    pytest.importorskip("matplotlib")
    load_script("distil_card").write_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "license: apache-2.0" in text and text.count("\n| ") == 1 + len(after)
    assert (tmp_path / "training.svg").stat().st_size > 1000
