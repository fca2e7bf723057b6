"""Weights of a model on a CPU packed once, for passes over one or a few tokens.

A pass over one token reads every weight and multiplies it once: its time is that of the bytes. A
pass over five should take little longer, but PyTorch's float32 product of so few rows takes several
times as long, and with it goes what speculation saves. FBGEMM's product with weights in float16,
packed in the order in which it reads them, and sums in float32 does not, and reads half the bytes.
Only weights that float16 holds exactly are packed, so the model remains the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PackedLinear(nn.Module):
    """A linear layer in float32 with packed float16 weights, without gradients."""

    def __init__(self, layer: nn.Linear, *, shared: bool = False) -> None:
        super().__init__()
        bias = None if layer.bias is None else layer.bias.detach().float()
        self.packed: Any = torch.ops.quantized.linear_prepack_fp16(
            layer.weight.detach().float(), bias
        )
        self.numel = 0 if shared else layer.weight.numel() + (0 if bias is None else bias.numel())
        """Parameters that are no other module's too."""

    @property
    def weight(self) -> Tensor:
        """The weights [out, in] again, float32."""
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self.packed)[0]
        return weight

    def forward(self, states: Tensor) -> Tensor:
        """Float32 [..., out] of float32 [..., in]."""
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(states, self.packed)
        return out


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model is in float32 on a CPU for which this PyTorch packs."""
    engines = torch.backends.quantized.supported_engines
    return model.device.type == "cpu" and model.dtype == torch.float32 and "fbgemm" in engines


@torch.no_grad()
def pack(model: PreTrainedModel) -> int:
    """Replace each linear layer whose weights float16 holds exactly; return how many those are."""
    count, embedding = 0, model.get_input_embeddings().weight
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _is_exact(child.weight):
                setattr(parent, name, PackedLinear(child, shared=child.weight is embedding))
                count += 1
    return count


def _is_exact(weight: Tensor) -> bool:
    return bool((weight.half().float() == weight).all())
