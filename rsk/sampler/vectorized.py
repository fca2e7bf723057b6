"""The vectorised sampler: PyTorch operations on whole batches, no loop and no synchronisation.

A fixed number of operations, whatever B and K are, so that launching them is what a small batch
pays for: every operation here was weighed. All random words come from one batch of operations;
weights and their sums stay in float32 and float64, in place where possible. The price is reading
in vain: every coin is computed although a request stops at its first rejection, and each
operation writes a [B, V] intermediate to memory that the next one reads back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsk.sampler.random_words import DRAFT, SAMPLE, STREAMS, numbers
from rsk.sampler.row_law import UNIT

FIXED_POINT_UNIT = 1 / UNIT
COIN_UNIT = 2.0**-29

BLOCK = 128
"""Weights are added in blocks of so many. Up to 2^11 of at most 2^42 are exact in a double."""


class Rows:
    """The rows of probabilities, [B, n, V], that a request's tokens are judged and drawn by."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.vocab_size = values.shape[2]

    def at(self, requests: Tensor, columns: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
        """Float32 probabilities [B, K] of tokens in [0, vocab_size); 0 where a row has none.

        ``requests`` [B, 1] and ``columns`` [K] say which row each of ``tokens`` [B, K] is in.
        """
        rows = requests, columns
        if self.vocab_size == vocab_size:
            return self.probabilities(self.values[*rows, tokens], rows, tokens)
        own = tokens.clamp(max=self.vocab_size - 1)
        x = self.probabilities(self.values[*rows, own], rows, own)
        return x.masked_fill(own != tokens, 0.0)

    def select(self, rows: Tensor, vocab_size: int) -> Tensor:
        """Whole rows, for int64 [B, 1] that counts the B n rows through: [B, 1, vocab_size]."""
        n = self.values.shape[1]
        if self.values.stride(0) == n * self.values.stride(1):
            # On a CPU this copies rows several times as fast as an index does.
            x = F.embedding(rows, self.values.flatten(0, 1))
        else:
            x = self.values[rows // n, rows % n]
        p = self.probabilities(x, rows, None)
        missing = vocab_size - self.vocab_size
        return F.pad(p, (0, missing)) if missing else p

    def probabilities(self, x: Tensor, rows: Any, tokens: Tensor | None) -> Tensor:
        """The probabilities of values x: of these tokens in these rows, or of whole rows."""
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
    drafts = draft_tokens.long()
    count = torch.arange((batch_size + STREAMS) * (spec_len + 1) + 1, device=drafts.device)
    requests, column = count[:batch_size, None], count[: spec_len + 1]
    random = numbers(seed, position, requests, count[1 : STREAMS * (spec_len + 1) + 1])

    # Accept token d if u q[d] < p[d]. The product is exact in a double, so that the gap between
    # the two has the right sign. (A gap times 0 is NaN if p or q is infinite, and no gap is
    # smaller than itself: so neither those are accepted, nor tokens outside the vocabulary.)
    known = drafts.clamp(0, vocab_size - 1)
    where = requests, column[:spec_len], known, vocab_size
    u = random[:, : STREAMS * spec_len : STREAMS] >> 33
    u = u * draft.at(*where).double() if draft else u.double()
    gap = torch.sub(target.at(*where), u, alpha=COIN_UNIT)
    accepted = gap * (drafts != known) < gap

    # The walk ends at the first token that is not accepted, or behind the last: there is a -1.
    n = accepted.cumprod(1).sum(1, keepdim=True)
    tokens = F.pad(drafts, (0, 1), value=-1)
    last = tokens.gather(1, n)
    rejected = last >= 0
    valid = last == last.clamp(-1, vocab_size - 1)

    # The one row that the next token is sampled from: p, or the residual after a rejection.
    p = target.select(n + count[: batch_size * (spec_len + 1) : spec_len + 1, None], vocab_size)
    flaw = extreme(p)
    if spec_len > 0:
        if draft:
            first = count[: batch_size * spec_len : spec_len, None]  # if there was no rejection
            q = draft.select(torch.addcmul(first, n, rejected), vocab_size)
            flaw = torch.where(rejected, torch.maximum(flaw, extreme(q)), flaw)
            residual = torch.sub(p, q, out=q)
            del q
        else:
            of_draft = last.clamp(0, vocab_size - 1).unsqueeze(2)
            residual = p.scatter(2, of_draft, p.gather(2, of_draft) - 1)
        rejected &= residual.amax(2) >= FIXED_POINT_UNIT  # p and q are equal: sample from p
        p = torch.where(rejected[:, :, None], residual, p, out=p)
        del residual  # its memory is used again for what comes
    token, total = draw(p, random[:, SAMPLE::STREAMS].gather(1, n))
    valid &= total > flaw * 0  # NaN where the rows that were read hold NaN or infinity

    num_accepted = torch.where(valid, n, tokens[:, -1:])
    tokens.scatter_(1, n, token).masked_fill_(column > num_accepted, -1)
    return tokens, num_accepted.squeeze(1)


@torch.no_grad()
def sample(probs: Tensor, seed: int | Tensor, position: int | Tensor) -> Tensor:
    """Draw one token per row, all rows at once. Arguments as in :func:`rsk.sample`."""
    rows = probs.to(torch.float32, copy=True)[:, None]
    count = torch.arange(max(len(rows), STREAMS + 1), device=rows.device)
    random = numbers(seed, position, count[: len(rows), None], count[1 : STREAMS + 1])
    flaw = extreme(rows)
    token, total = draw(rows, random[:, DRAFT, None])
    return torch.where(total > flaw * 0, token, -1).squeeze(1)


def extreme(rows: Tensor) -> Tensor:
    """A number for each row of [..., V] that is finite if, and only if, the whole row is.

    It is the largest entry, with a bit of the smallest. Two reductions are several times faster
    than ``torch.isfinite(rows).all(-1)``.
    """
    return torch.sub(rows.amax(-1), rows.amin(-1), alpha=2.0**-30)


def draw(weights: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one index per row in proportion to the positive part of the weights.

    The weights become integers, floor(w * 2^42), so that their sums are exact in any order: of a
    block in a double, of blocks in int64. The block that the index is in is found first.

    Args:
        weights: float32 [B, 1, V], overwritten; negative entries count as 0, above 1 as 1.
        random: int64 [B, 1], 62 random bits each.

    Returns:
        The index, and the sum of the row's integers, which is 0 if there was none to draw:
        int64 [B, 1].
    """
    batch_size, _, vocab_size = weights.shape
    blocks = (vocab_size + BLOCK - 1) // BLOCK
    integers = weights.clamp_(0, 1).div_(FIXED_POINT_UNIT, rounding_mode="trunc")
    if vocab_size < blocks * BLOCK:
        integers = F.pad(integers, (0, blocks * BLOCK - vocab_size))
    integers = integers.view(batch_size, blocks, BLOCK)
    sums = integers.sum(2, dtype=torch.float64).cumsum(1, dtype=torch.int64)
    sums = F.pad(sums, (1, 0))  # of all that is before a block
    total = sums[:, -1:]
    threshold = scale_62(random, total)
    block = (sums[:, 1:-1] <= threshold).sum(1, keepdim=True)
    chosen = integers.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1)
    rest = threshold - sums.gather(1, block)
    index = torch.searchsorted(chosen.cumsum(1, dtype=torch.int64), rest, right=True)
    return index.add_(block, alpha=BLOCK), total


def scale_62(fraction: Tensor, total: Tensor) -> Tensor:
    """floor(fraction * total / 2^62) without a 128-bit product, for factors of up to 62 bits.

    Both factors are split at bit 31; every product, and the sum of the two middle ones, stays
    below 2^63.
    """
    both = torch.stack([fraction, total])
    f_high, t_high = (both >> 31).unbind()
    f_low, t_low = both.bitwise_and_((1 << 31) - 1).unbind()
    middle = (f_low * t_low) >> 31
    middle.addcmul_(f_high, t_low).addcmul_(f_low, t_high)
    return (middle >> 31).addcmul_(f_high, t_high)
