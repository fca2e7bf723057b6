"""A Llama whose passes over a few tokens ask for few operators.

At batch size 1 a small model's pass on a GPU takes as long as Python and the launches take, and
transformers' own pass of three layers asks for several times the operators that the layers need.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast


class LeanLlama(LlamaForCausalLM):
    """transformers' Llama with a shorter way through it, for inference with a cache."""

    def forward(self, input_ids: Tensor | None = None, **given: Any) -> Any:
        """As transformers' own, which does all but what the loop of this package asks for."""
        wanted = {"past_key_values", "position_ids", "attention_mask", "use_cache"}
        short = not torch.is_grad_enabled() and wanted | {"logits_to_keep"} == given.keys()
        if not short or input_ids is None or self.config.attention_bias:
            return super().forward(input_ids=input_ids, **given)
        hidden = self._hidden(
            input_ids, given["position_ids"], given["attention_mask"], given["past_key_values"]
        )
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden[:, -given["logits_to_keep"] :]),
            past_key_values=given["past_key_values"],
        )

    def _hidden(self, ids: Tensor, positions: Tensor, padded: Tensor | None, cache: Any) -> Tensor:
        """Last hidden states [B, n, width].

        Args:
            ids: int64 [B, n].
            positions: int64 [B, n].
            padded: int64 [B, slots], 0 where a slot is padding; ``None``: none is.
            cache: grows by the n tokens.
        """
        model: Any = self.model
        (batch, new), slots = ids.shape, cache.get_seq_length() + ids.shape[1]
        mask = None
        if new > 1 or padded is not None:
            mask = torch.ones(new, slots, dtype=torch.bool, device=ids.device).tril(slots - new)
            if padded is not None:
                # Padding sees itself, as a row of nothing has no softmax.
                alone = torch.eye(slots, dtype=torch.bool, device=ids.device)[-new:]
                mask = (mask & padded.bool()[:, None, None]) | alone
        hidden = model.embed_tokens(ids)
        cos, sin = (each.unsqueeze(1) for each in model.rotary_emb(hidden, positions))
        for index, layer in enumerate(model.layers):
            attention, width = layer.self_attn, layer.self_attn.head_dim
            states = _normed(hidden, layer.input_layernorm)
            qk = torch.cat([attention.q_proj(states), attention.k_proj(states)], -1)
            qk = qk.view(batch, new, -1, width).transpose(1, 2)
            low, high = qk.chunk(2, -1)
            qk = qk * cos + torch.cat([-high, low], -1) * sin
            queries = attention.config.num_attention_heads
            values = attention.v_proj(states).view(batch, new, -1, width).transpose(1, 2)
            keys, values = cache.update(qk[:, queries:], values, index)
            seen = nn.functional.scaled_dot_product_attention(
                qk[:, :queries], keys, values, attn_mask=mask, enable_gqa=True
            )
            hidden = hidden + attention.o_proj(seen.transpose(1, 2).reshape(batch, new, -1))
            states = _normed(hidden, layer.post_attention_layernorm)
            gated = nn.functional.silu(layer.mlp.gate_proj(states)) * layer.mlp.up_proj(states)
            hidden = hidden + layer.mlp.down_proj(gated)
        return _normed(hidden, model.norm)


def _normed(hidden: Tensor, norm: Any) -> Tensor:
    return nn.functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
