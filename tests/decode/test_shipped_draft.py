"""The draft that ships for SmolLM2: its size, its figures, its card, and that it loads."""

import json
import sys

import pytest
import torch
import transformers
from test_distilling import MODELS, load_script

from rsk.decode import distilled_draft, loading
from rsk.decode.loop import speculative_generate

FOLDER = loading.shipped_draft("smollm2")
MEGA = 10**6


def read(name):
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def test_it_is_small_and_found_by_the_targets_name():
    assert FOLDER == MODELS / "smollm2-draft"
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 14 * MEGA


@pytest.mark.parametrize(("temperature", "least"), [(0.0, 0.55), (0.8, 0.45)])
def test_held_out_prompts_of_every_kind_accept_enough(temperature, least):
    rows = [r for r in read("measured")["rows"] if r["drafter"] == "draft"]
    rows = [r for r in rows if r["temperature"] == temperature]
    assert {row["kind"] for row in rows} == {"chat", "code", "prose", "list"}
    for row in rows:
        assert row["judged"] > 500 and row["accepted"] / row["judged"] >= least, row


def test_the_card_says_what_the_records_say(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(MODELS))
    card = load_script("distil_card")
    text = card.card(read("training"), read("measured"))
    assert text == (FOLDER / "README.md").read_text("utf-8")
    assert "10,620,864 parameters" in text and "apache-2.0" in text


def test_the_prompts_were_kept_apart():
    script = sys.modules.get("distil_smollm2") or load_script("distil_smollm2")
    apart = {p for some in script.prompts().values() for p in some if script.is_held_out(p)}
    found = read("held_out")
    assert set(found) == set(script.FORMS)
    for texts in found.values():
        assert len(texts) == len(set(texts)) == 8
        assert all(any(prompt in text for prompt in apart) for text in texts)


@pytest.mark.slow
def test_it_drafts_for_a_model_of_the_targets_shape():
    shape = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
    shape |= {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 1}
    torch.manual_seed(0)
    target = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**shape, tie_word_embeddings=True, eos_token_id=None)
    ).eval()
    draft = distilled_draft.load(FOLDER, target)
    assert draft.config.num_hidden_layers == read("training")["settings"]["layers"]
    found = speculative_generate(target, draft, [[1, 2, 3]], seed=0, max_new_tokens=8)
    assert len(found.tokens[0]) == 8 and sum(found.tried) > 0
