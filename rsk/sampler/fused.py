"""The fused sampler: one kernel per call, C++ on the CPU and CUDA on the GPU.

The kernels are in ``cuda/``; :mod:`rsk.sampler.build` compiles them. This module only passes
tensors on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rsk.sampler.row_law import Filters


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


class FromLogits:
    """What begins with logits; the library is loaded."""

    def __init__(self, prefix: str = "") -> None:
        """``prefix`` begins the operators' names: "emulated_" runs the CUDA kernel on the CPU."""
        self._prefix = prefix

    def _operator(self, name: str) -> Any:
        return getattr(torch.ops.rsk, self._prefix + name).default

    @torch.no_grad()
    def probabilities(self, logits: Tensor, filters: Filters) -> Tensor:
        """Run the kernel. Arguments as in :func:`rsk.probabilities`."""
        probs: Tensor = self._operator("probabilities")(logits, *_filters(filters))
        return probs

    @torch.no_grad()
    def sample_from_logits(
        self, logits: Tensor, filters: Filters, seed: int | Tensor, position: int | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens and row laws. Arguments as in :func:`rsk.sample_from_logits`."""
        tokens, laws = self._operator("sample_from_logits")(
            logits, *_filters(filters), *tensor_and_int(seed), *tensor_and_int(position)
        )
        return tokens, laws

    def rejection_sample_from_logits(
        self,
        draft_tokens: Tensor,
        draft_logits: Tensor | None,
        draft_laws: Tensor | None,
        target_logits: Tensor,
        filters: Filters,
        seed: int | Tensor,
        position: int | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run the kernel. Arguments as in :func:`rsk.rejection_sample_from_logits`."""
        tokens, num_accepted = self._operator("rejection_sample_from_logits")(
            draft_tokens,
            draft_logits,
            None if draft_laws is None else draft_laws.contiguous(),
            target_logits,
            *_filters(filters),
            *tensor_and_int(seed),
            *tensor_and_int(position),
        )
        return tokens, num_accepted


def _filters(filters: Filters) -> list[Tensor | float | None]:
    """Each filter as a tensor and a number, one of which counts."""
    return [
        x for value in filters for x in ((value, 0) if isinstance(value, Tensor) else (None, value))
    ]


def tensor_and_int(value: int | Tensor) -> tuple[Tensor | None, int]:
    """An operator's schema has no union of int and tensor, so each is an argument of its own."""
    return (value, 0) if isinstance(value, Tensor) else (None, value)
