"""Llama-shaped models with random weights, and a context that their passes begin behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """The shape of a Llama model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    tied: bool = False
    """Whether the embedding of a token is also its row of the output."""


@dataclass(frozen=True)
class ModelPair:
    """A target and a draft with one vocabulary."""

    target: Size
    draft: Size
    vocab_size: int
    dtype: torch.dtype = torch.bfloat16


PAIRS = {
    "1.1 B with 68 M": ModelPair(
        Size(2048, 22, 32, 4, 5632), Size(768, 2, 12, 12, 3072), vocab_size=32000
    ),
    "8 B with 1 B": ModelPair(
        Size(4096, 32, 32, 8, 14336), Size(2048, 16, 32, 8, 8192, tied=True), vocab_size=128256
    ),
}
"""The shapes of TinyLlama 1.1B with Llama 68M, and of Llama 3.1 8B with Llama 3.2 1B."""
MINIATURE = {
    "miniature": ModelPair(Size(32, 2, 4, 2, 64), Size(16, 1, 2, 2, 32), 97, dtype=torch.float32)
}


class Model:
    """A model with random weights, and a context in a static cache that passes rewind to."""

    def __init__(self, size: Size, pair: ModelPair, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig

        self.config = LlamaConfig(
            vocab_size=pair.vocab_size,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            intermediate_size=size.intermediate,
            tie_word_embeddings=size.tied,
            max_position_embeddings=8192,
        )
        with device:
            self.model: Any = AutoModelForCausalLM.from_config(self.config, dtype=pair.dtype)
        self.model = self.model.to(device).eval()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.device = device

    def begin(self, batch_size: int, context: int, room: int) -> None:
        """Fill the cache with random tokens; the requests have room for so many more.

        The cache is static. With a version of transformers whose static cache cannot be rewound, it
        is one that grows, and copies itself in each pass.
        """
        from transformers import DynamicCache, StaticCache

        self.context, self.batch_size = context, batch_size
        tokens = torch.randint(self.config.vocab_size, (batch_size, context), device=self.device)
        self.cache: Any = StaticCache(config=self.config, max_cache_len=context + room)
        self.forward(tokens, keep=1)
        layers: list[Any] = self.cache.layers
        self.is_static = all(hasattr(layer, "cumulative_length") for layer in layers)
        if self.is_static:
            # One tensor for the lengths of all layers, so that rewinding is one launch.
            self.lengths = torch.full((len(layers),), context, device=self.device)
            for layer, length in zip(layers, self.lengths, strict=True):
                layer.cumulative_length = length
        else:
            self.cache = DynamicCache()
            self.forward(tokens, keep=1)

    def rewind(self) -> None:
        """Forget all tokens behind the context."""
        if self.is_static:
            self.lengths.fill_(self.context)
        elif (behind := self.cache.get_seq_length() - self.context) > 0:
            self.cache.crop(-behind)

    def forward(self, tokens: Tensor, keep: int = 0) -> Tensor:
        """Logits [B, n, V] of tokens [B, n] behind those in the cache; of the last ``keep``."""
        output = self.model(
            input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=keep
        )
        return output.logits

    def rewound_pass(self, tokens: Tensor) -> Tensor:
        """A pass behind the context."""
        self.rewind()
        return self.forward(tokens)
