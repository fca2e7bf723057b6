"""The shorter way through a Llama gives what transformers' own way gives."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from rsk.decode.kv_cache import CachedModel, Clock  # noqa: E402
from rsk.decode.lean_llama import LeanLlama  # noqa: E402
from rsk.measure.operators import count_operators  # noqa: E402

CPU = torch.device("cpu")


class Longer:
    """transformers' own way through a model, as a model."""

    def __init__(self, model):
        self.model, self.config, self.device = model, model.config, model.device

    def __call__(self, **given):
        return transformers.LlamaForCausalLM.forward(self.model, **given)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def model(request):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=48, intermediate_size=64, num_attention_heads=6,
        num_key_value_heads=2, num_hidden_layers=3, initializer_range=0.15,
    )  # fmt: skip
    return LeanLlama(config).eval().to(request.param)


def passes(model):
    """Logits of several passes over rows of different lengths, with tokens forgotten between."""
    cached = CachedModel(model, "draft", Clock(CPU))
    yield cached.forward(torch.tensor([[1, 2, 3, 4, 5], [0, 0, 7, 8, 9]]), [5, 3], 2)
    yield cached.forward(torch.tensor([[6], [7]]), [6, 4], 1)
    yield cached.forward(torch.tensor([[6, 3], [7, 1]]), [8, 6], 1)
    cached.keep([0, 1], [7, 4])
    yield cached.forward(torch.tensor([[6], [7]]), [8, 5], 1)
    cached.keep([1], [4])
    yield cached.forward(torch.tensor([[6, 9]]), [6], 2)
    cached.keep([0], [5])
    yield cached.forward(torch.tensor([[4]]), [6], 1)


@torch.inference_mode()
def test_both_ways_agree(model):
    rounding = {torch.float32: 1e-4, torch.bfloat16: 0.2}[model.dtype]
    for short, long in zip(passes(model), passes(Longer(model)), strict=True):
        assert short.dtype == long.dtype
        torch.testing.assert_close(short, long, atol=rounding, rtol=0)


@torch.inference_mode()
def test_it_asks_for_fewer_operators(model):
    counts = []
    for each in (model, Longer(model)):
        cached = CachedModel(each, "draft", Clock(CPU))
        cached.forward(torch.tensor([[1, 2, 3]]), [3], 1)
        asked = count_operators(lambda cached=cached: cached.forward(torch.tensor([[1]]), [4], 1))
        counts.append(len(asked.computing))
    assert counts[0] < 0.75 * counts[1]


def test_all_else_goes_the_usual_way(model):
    ids = torch.tensor([[1, 2, 3]])
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None
    model.zero_grad()
    with torch.no_grad():
        texts = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert texts.shape[1] <= 8 and texts[0, :3].tolist() == [1, 2, 3]
