"""The vectorised sampler: PyTorch operations on whole batches, no loop and no synchronisation.

A fixed number of operations, whatever B and K are. The price is reading in vain: every coin is
computed although a request stops at its first rejection, and each operation writes a [B, V]
intermediate to memory that the next one reads back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsk.sampler.random_words import DRAFT, SAMPLE, coins, words

FIXED_POINT_UNIT = 2.0**-42


class Rows:
    """The rows of probabilities, [B, n, V], that a request's tokens are judged and drawn by."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.vocab_size = values.shape[2]

    def at(self, tokens: Tensor) -> Tensor:
        """Probabilities of token k by row k, for tokens int64 [B, K]; 0 where a row has none."""
        own = (tokens >= 0) & (tokens < self.vocab_size)
        tokens = torch.where(own, tokens, 0).unsqueeze(2)  # safe to gather with
        k = slice(tokens.shape[1])
        x = self.values[:, k].gather(2, tokens)
        return torch.where(own, self.probabilities(x, (slice(None), k), tokens).squeeze(2), 0.0)

    def select(self, k: Tensor) -> Tensor:
        """Row k[b] of each request b: float32 [B, V]."""
        rows = torch.arange(len(k), device=k.device), k
        tokens = torch.arange(self.vocab_size, device=k.device)
        return self.probabilities(self.values[rows], rows, tokens)

    def probabilities(self, x: Tensor, rows: Any, tokens: Tensor) -> Tensor:
        """The probabilities of values x, which belong to these tokens in these rows."""
        del rows, tokens
        return x.float()


@torch.no_grad()
def rejection_sample(
    draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    seed: int | Tensor,
    position: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Decide all positions at once. Arguments as in :func:`rsk.rejection_sample`."""
    draft = None if draft_probs is None else Rows(draft_probs)
    return decide(draft_tokens, draft, Rows(target_probs), seed, position)


def decide(
    draft_tokens: Tensor,
    draft: Rows | None,
    target: Rows,
    seed: int | Tensor,
    position: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """The rule, whatever the rows of probabilities come from."""
    batch_size, spec_len = draft_tokens.shape
    vocab_size = max(target.vocab_size, draft.vocab_size if draft else 0)
    device = draft_tokens.device
    seeds = per_request(seed, batch_size, device, step=1)
    positions = per_request(position, batch_size, device, step=0)
    drafts = draft_tokens.long()
    in_vocab = (drafts >= 0) & (drafts < vocab_size)

    # p[d] and q[d] [B, K] of every draft token, and the coin that decides on it.
    p_draft = target.at(drafts).double()
    q_draft = draft.at(drafts).double() if draft else torch.ones_like(p_draft)
    t = positions[:, None] + torch.arange(spec_len, device=device)
    readable = in_vocab & torch.isfinite(p_draft) & torch.isfinite(q_draft)
    accepted = readable & (coins(seeds[:, None], t) * q_draft < p_draft)

    # The walk ends where the first token is not accepted; column K stands for "all were".
    n = accepted.long().cumprod(1).sum(1)
    ended = F.pad(drafts == -1, (0, 1), value=True).gather(1, n[:, None]).squeeze(1)
    readable = F.pad(readable, (0, 1), value=True).gather(1, n[:, None]).squeeze(1)
    rejected = ~ended & readable

    # The one row that the last token is sampled from: p, or the residual after a rejection.
    p = F.pad(target.select(n), (0, vocab_size - target.vocab_size))
    valid = (ended | readable) & all_finite(p)
    weights = p
    if spec_len > 0:
        last = n.clamp(max=spec_len - 1)
        if draft:
            q = F.pad(draft.select(last), (0, vocab_size - draft.vocab_size))
        else:
            rejected_token = torch.where(in_vocab, drafts, 0).gather(1, last[:, None])
            q = torch.zeros_like(p).scatter_(1, rejected_token, 1.0)
        residual = p - q
        empty = residual.amax(1) < FIXED_POINT_UNIT  # p and q are equal: sample from p
        weights = torch.where((rejected & ~empty)[:, None], residual, p)
        valid = valid & (~rejected | all_finite(q))
    token, drawn = draw(weights, words(seeds, positions + n, SAMPLE))
    valid = valid & drawn

    column = torch.arange(spec_len + 1, device=device)
    tokens = torch.where(column < n[:, None], F.pad(drafts, (0, 1)), -1)
    tokens = torch.where(column == n[:, None], token[:, None], tokens)
    tokens = torch.where(valid[:, None], tokens, -1)
    return tokens, torch.where(valid, n, -1)


@torch.no_grad()
def sample(probs: Tensor, seed: int | Tensor, position: int | Tensor) -> Tensor:
    """Draw one token per row, all rows at once. Arguments as in :func:`rsk.sample`."""
    seeds = per_request(seed, probs.shape[0], probs.device, step=1)
    positions = per_request(position, probs.shape[0], probs.device, step=0)
    token, drawn = draw(probs.float(), words(seeds, positions, DRAFT))
    return torch.where(drawn & all_finite(probs), token, -1)


def all_finite(rows: Tensor) -> Tensor:
    """Whether each row of [B, V] is free of NaN and infinity: its extremes are NaN if it has one.

    Two reductions are several times faster than ``torch.isfinite(rows).all(1)``.
    """
    return torch.isfinite(rows.amin(1)) & torch.isfinite(rows.amax(1))


def draw(weights: Tensor, random_words: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one index per row in proportion to the positive part of the weights.

    The weights become integers, floor(w * 2^42), so that their sums are exact in any order.

    Args:
        weights: float32 [B, V]; negative entries count as 0, entries above 1 as 1.
        random_words: int64 [B], 64 random bits each, of which the upper 62 are used.

    Returns:
        The index, int64 [B], and whether the row had any weight, bool [B].
    """
    cumulative = (weights.clamp(0, 1) / FIXED_POINT_UNIT).long().cumsum(1)
    total = cumulative[:, -1]
    threshold = scale_62((random_words >> 2) & ((1 << 62) - 1), total)
    index = torch.searchsorted(cumulative, threshold[:, None], right=True).squeeze(1)
    return index, total > 0


def scale_62(fraction: Tensor, total: Tensor) -> Tensor:
    """floor(fraction * total / 2^62) without a 128-bit product, for factors of up to 62 bits.

    Both factors are split at bit 31; every product, and the sum of the two middle ones, stays
    below 2^63.
    """
    low = (1 << 31) - 1
    f_high, f_low = fraction >> 31, fraction & low
    t_high, t_low = total >> 31, total & low
    middle = f_high * t_low + f_low * t_high
    return f_high * t_high + ((middle + (f_low * t_low >> 31)) >> 31)


def per_request(value: int | Tensor, batch_size: int, device: torch.device, step: int) -> Tensor:
    """One int64 per request: the tensor itself, or ``value + b * step``, wrapping at 2^64."""
    if isinstance(value, Tensor):
        return value
    return torch.arange(batch_size, device=device) * step + value
