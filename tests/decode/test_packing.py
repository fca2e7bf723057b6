"""Packed weights: the same model, with the same texts."""

import copy

import pytest
import torch
from test_decoding import Characters
from test_generate import ROUNDING_GAP, disagreements
from tiny_models import llama

from rsk.decode import distilled_draft, loading, packing
from rsk.decode.loop import speculative_generate
from rsk.decode.packing import PackedLinear, pack

pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        "fbgemm" not in torch.backends.quantized.supported_engines, reason="no FBGEMM here"
    ),
]


def exact(seed, **settings):
    """A model whose weights are those of bfloat16, in float32."""
    return llama(seed, tie_word_embeddings=True, **settings).bfloat16().float()


def linears(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


def test_a_packed_model_is_the_same_model():
    model = exact(1)
    packed = copy.deepcopy(model)
    count = pack(packed)
    assert count == linears(model, torch.nn.Linear) == linears(packed, PackedLinear)
    assert not linears(packed, torch.nn.Linear)
    ids = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for wanted in (1, 2, 5, 9):
            ours, theirs = (m(ids, logits_to_keep=wanted).logits for m in (packed, model))
            assert torch.allclose(ours, theirs, atol=1e-4)
    assert loading.parameters(packed) == loading.parameters(model)
    assert torch.equal(packed.lm_head.weight, model.lm_head.weight)
    prompts = [[5, 9, 2], [7]]
    runs = [
        speculative_generate(m, m, prompts, temperature=0, max_new_tokens=30).tokens
        for m in (packed, model)
    ]
    for prompt, mine, own in zip(prompts, *runs, strict=True):
        assert all(gap < 10 * ROUNDING_GAP for gap in disagreements(model, prompt, mine, own))


def test_weights_that_float16_does_not_hold_stay_as_they_are():
    model = exact(1)
    layer = model.model.layers[0].mlp.up_proj
    with torch.no_grad():
        layer.weight[3, 4] = 1 / 3
    before = linears(model, torch.nn.Linear)
    assert pack(model) == before - 1
    assert type(layer) is torch.nn.Linear and model.model.layers[0].mlp.up_proj is layer


def test_a_large_model_on_a_cpu_is_packed_when_it_is_loaded(tmp_path, monkeypatch):
    exact(1).save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "load_tokenizer", lambda source: Characters())
    assert not linears(loading.load_pair(tmp_path, None, device="cpu").target, PackedLinear)
    monkeypatch.setattr(loading, "SMALL_MODEL", 1000)
    target = loading.load_pair(tmp_path, None, device="cpu").target
    assert linears(target, PackedLinear)
    as_asked = loading.load_pair(tmp_path, None, device="cpu", dtype=torch.float32).target
    assert not linears(as_asked, PackedLinear)
    draft = distilled_draft.make(exact(1), 1, torch.arange(30))
    distilled_draft.save(draft, tmp_path / "draft")
    again, plain = (distilled_draft.load(tmp_path / "draft", m) for m in (target, as_asked))
    assert torch.equal(again.lm_head.rows, draft.lm_head.rows)
    assert linears(again, PackedLinear) == 8 and not linears(plain, PackedLinear)
    ids = torch.tensor([[3, 1, 4]])
    with torch.inference_mode():
        ours, theirs = (m(ids).logits.softmax(-1) for m in (again, plain))
    assert torch.allclose(ours, theirs, atol=1e-3)


def test_what_cannot_be_packed_is_not():
    model = exact(1)
    assert packing.can_pack(model)
    assert not packing.can_pack(model.bfloat16())
