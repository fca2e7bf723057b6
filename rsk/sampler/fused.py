"""The fused sampler: one kernel per call, C++ on the CPU and CUDA on the GPU.

The kernels are in ``cuda/``; :mod:`rsk.sampler.build` compiles them. This module only passes
tensors on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rejection_sample(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    seed: int | Tensor,
    position: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Run the kernel. Arguments as in :func:`rsk.rejection_sample`; the library is loaded."""
    return torch.ops.rsk.rejection_sample.default(
        draft_tokens, draft_probs, target_probs, *tensor_and_int(seed), *tensor_and_int(position)
    )


def sample(probs: Tensor, seed: int | Tensor, position: int | Tensor) -> Tensor:
    """Run the kernel. Arguments as in :func:`rsk.sample`; the library is loaded."""
    return torch.ops.rsk.sample.default(probs, *tensor_and_int(seed), *tensor_and_int(position))


def takes_logits() -> bool:
    """Whether the loaded library has the operators that begin with logits."""
    return hasattr(torch.ops.rsk, "rejection_sample_from_logits")


def tensor_and_int(value: int | Tensor) -> tuple[Tensor | None, int]:
    """An operator's schema has no union of int and tensor, so each is an argument of its own."""
    return (value, 0) if isinstance(value, Tensor) else (None, value)
