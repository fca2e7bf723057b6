"""The baseline: the rejection sampler as people first write it, a Python loop over tokens.

Every ``.item()`` waits until the device has finished and copies one number to the host. That is
the cost which the other implementations remove. The rest is as cheap as a loop can be: only the
row that a token is sampled from is read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from rsk.sampler.random_words import DRAFT, SAMPLE, coin, word

INVALID = -1


def rejection_sample(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    seed: int | Tensor,
    position: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Accept or reject one draft token at a time. Arguments as in :func:`rsk.rejection_sample`."""
    batch_size, spec_len = draft_tokens.shape
    device = draft_tokens.device
    if draft_probs is not None:
        draft_probs, target_probs = as_wide(draft_probs, target_probs)
    seeds = per_request(seed, batch_size, step=1)
    positions = per_request(position, batch_size, step=0)
    tokens = torch.full((batch_size, spec_len + 1), INVALID, dtype=torch.int64, device=device)
    num_accepted = torch.zeros(batch_size, dtype=torch.int64, device=device)

    for b in range(batch_size):
        n = 0
        rejected = False
        token = None
        for k in range(spec_len):
            d = int(draft_tokens[b, k].item())
            if d == -1:
                break
            if not 0 <= d < target_probs.shape[2]:
                n = INVALID
                break
            # region one coin
            p = target_probs[b, k, d].item()
            q = 1.0 if draft_probs is None else draft_probs[b, k, d].item()
            if not (math.isfinite(p) and math.isfinite(q)):
                n = INVALID
                break
            if not coin(seeds[b], positions[b] + k) * q < p:
                rejected = True
                break
            tokens[b, k] = d
            n += 1
            # endregion

        if n != INVALID:
            random_word = word(seeds[b], positions[b] + n, SAMPLE)
            target = target_probs[b, n].float()
            if rejected:
                draft = draft_row(draft_tokens, draft_probs, b, n, target)
                if all_finite(target) and all_finite(draft):
                    token = draw(target - draft, random_word)
                    if token is None:  # p and q are equal: the residual is empty
                        token = draw(target, random_word)
            elif all_finite(target):
                token = draw(target, random_word)

        if token is None:
            tokens[b] = INVALID
            num_accepted[b] = INVALID
        else:
            tokens[b, n] = token
            num_accepted[b] = n
    return tokens, num_accepted


def sample(probs: Tensor, seed: int | Tensor, position: int | Tensor) -> Tensor:
    """Draw one token per row, one row at a time. Arguments as in :func:`rsk.sample`."""
    batch_size = probs.shape[0]
    seeds = per_request(seed, batch_size, step=1)
    positions = per_request(position, batch_size, step=0)
    tokens = torch.full((batch_size,), INVALID, dtype=torch.int64, device=probs.device)
    for b in range(batch_size):
        row = probs[b].float()
        if all_finite(row):
            token = draw(row, word(seeds[b], positions[b], DRAFT))
            if token is not None:
                tokens[b] = token
    return tokens


def draw(weights: Tensor, random_word: int) -> int | None:
    """Draw an index in proportion to the positive part of ``weights``; ``None`` if there is none.

    The weights become 42-bit integers, so that their sums are exact in any order.

    Args:
        weights: float32 [V]; negative entries count as 0, entries above 1 as 1.
        random_word: 64 random bits, of which the upper 62 are used.
    """
    cumulative = (weights.clamp(0, 1) * 2.0**42).long().cumsum(0)
    total = int(cumulative[-1].item())
    if total == 0:
        return None
    threshold = ((random_word >> 2) * total) >> 62
    return int(torch.searchsorted(cumulative, threshold, right=True).item())


def draft_row(
    draft_tokens: Tensor, draft_probs: Tensor | None, b: int, k: int, like: Tensor
) -> Tensor:
    """The distribution, float32 [V], that draft token ``k`` of request ``b`` was drawn from."""
    if draft_probs is not None:
        return draft_probs[b, k].float()
    point_mass = torch.zeros_like(like)
    point_mass[draft_tokens[b, k]] = 1
    return point_mass


def as_wide(draft_probs: Tensor, target_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many columns as the wider one; the tokens that a model lacks have p = 0."""
    widths = draft_probs.shape[2], target_probs.shape[2]
    if widths[0] != widths[1]:
        draft_probs = F.pad(draft_probs, (0, max(widths) - widths[0]))
        target_probs = F.pad(target_probs, (0, max(widths) - widths[1]))
    return draft_probs, target_probs


def all_finite(row: Tensor) -> bool:
    """Whether a row holds neither NaN nor infinity: the extremes of a row with NaN are NaN."""
    low, high = row.aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def per_request(value: int | Tensor, batch_size: int, step: int) -> list[int]:
    """One int per request: the tensor's, or ``value + b * step``."""
    if isinstance(value, Tensor):
        return value.tolist()
    return [value + b * step for b in range(batch_size)]
