"""From logits, as people first write it: the probabilities of one row after another, then the rule.

This is the definition of sampling from logits, in the order in which it is written down. Each row
is read several times, sorted, and written out as probabilities.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rsk.sampler import baseline
from rsk.sampler.row_law import (
    HOTTEST,
    LOG2_E,
    UNIT,
    Filters,
    fixed_point,
    probability,
    relative_weight,
    to_float32,
)

INVALID_LAW = (0.0, 0.0, 0.0, math.nan)


@torch.no_grad()
def probabilities(logits: Tensor, filters: Filters) -> Tensor:
    """Probabilities of every row. Arguments as in :func:`rsk.probabilities`."""
    return from_laws(logits, row_laws(logits, filters), filters)


@torch.no_grad()
def sample_from_logits(
    logits: Tensor, filters: Filters, seed: int | Tensor, position: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens and row laws. Arguments as in :func:`rsk.sample_from_logits`."""
    laws = row_laws(logits, filters)
    return baseline.sample(from_laws(logits, laws, filters), seed, position), laws


@torch.no_grad()
def rejection_sample_from_logits(
    draft_tokens: Tensor,
    draft_logits: Tensor | None,
    draft_laws: Tensor | None,
    target_logits: Tensor,
    filters: Filters,
    seed: int | Tensor,
    position: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Probabilities first. Arguments as in :func:`rsk.rejection_sample_from_logits`."""
    draft_probs = None
    if draft_logits is not None:
        if draft_laws is None:
            draft_laws = row_laws(draft_logits, filters)
        draft_probs = from_laws(draft_logits, draft_laws, filters)
    target_probs = probabilities(target_logits, filters)
    return baseline.rejection_sample(draft_tokens, draft_probs, target_probs, seed, position)


def row_laws(logits: Tensor, filters: Filters) -> Tensor:
    """The law of each row, float32 [..., 4], of logits [B, V] or [B, K, V]."""
    requests = zip(*(_per_request(value, len(logits)) for value in filters), strict=True)
    laws = [
        [row_law(row.float(), *request) for row in rows.view(-1, rows.shape[-1])]
        for rows, request in zip(logits, requests, strict=True)
    ]
    shape = (*logits.shape[:-1], 4)
    return torch.tensor(laws, dtype=torch.float32, device=logits.device).view(shape)


def row_law(
    x: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[float, float, float, float]:
    """Maximum, scale, threshold and normaliser of one row, float32 [V]."""
    maximum = x.max().item()  # NaN if there is one
    valid = temperature == 0 or 1 / HOTTEST <= temperature <= HOTTEST
    valid = valid and top_k >= 0 and 0 <= top_p <= 1 and 0 <= min_p <= 1
    if not (valid and math.isfinite(maximum)):
        return INVALID_LAW
    if temperature == 0:
        return maximum, math.inf, (x == maximum).nonzero()[0].item(), 1.0

    scale = to_float32(LOG2_E / temperature)
    e = relative_weight(x, maximum, scale)
    weights = fixed_point(e)
    threshold = -math.inf
    if 0 < top_k < len(x):
        threshold = x.topk(top_k).values[-1].item()
    kept = x >= threshold
    if top_p < 1:
        values, order = x[kept].sort(descending=True)
        sums = weights[kept][order].cumsum(0)
        mass = max(1, math.ceil(top_p * float(sums[-1].item())))
        threshold = values[torch.searchsorted(sums, mass)].item()
    kept = (x >= threshold) & (e >= min_p)
    total = weights[kept].sum().item()
    return maximum, scale, threshold, to_float32(UNIT / total)


def from_laws(logits: Tensor, laws: Tensor, filters: Filters) -> Tensor:
    """Probabilities, float32, of logits [B, V] or [B, K, V] whose laws are known."""
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    probs = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    for b, min_p in enumerate(_per_request(filters.min_p, len(logits))):
        probs[b] = probability(logits[b], laws[b], min_p, tokens)
    return probs


def _per_request(value: float | Tensor, batch_size: int) -> list[Any]:
    return value.tolist() if isinstance(value, Tensor) else [value] * batch_size
