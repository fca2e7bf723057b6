"""Models small enough to make anew for a test."""

import pytest
import torch

transformers = pytest.importorskip("transformers")


def llama(seed, vocab_size=61, noise_of=None, noise=0.0, **settings):
    """A tiny Llama with random weights, or another one's weights with noise added."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 128,
            "initializer_range": 0.25,
            "eos_token_id": None,
            "bos_token_id": None,
            **settings,
        }
    )
    model = transformers.LlamaForCausalLM(config).eval()
    if noise_of is not None:
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), noise_of.parameters(), strict=True):
                mine.copy_(theirs + noise * theirs.std() * torch.randn_like(theirs))
    return model
