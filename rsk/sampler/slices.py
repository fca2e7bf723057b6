"""What a rank computes of a vocabulary that is split over several, with PyTorch operations.

It holds columns [start, end) of each row. Of each position at which the walk over the drafts may
end it needs the totals of the integer weights in its slice; those of all slices add up to the
total of the row, exactly, and tell which slice the token is in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rsk.sampler.random_words import coins, words
from rsk.sampler.row_law import UNIT
from rsk.sampler.vectorized import scale_62

REJECTED, INVALID, ENDED = range(3)
"""Why the walk over a request's drafts ends."""
_KINDS = 4


class Rows:
    """This rank's columns of rows of probabilities [B, N, S]; from S to ``width`` they are 0."""

    def __init__(self, values: Tensor, width: int) -> None:
        self.values = values
        self.size = values.shape[2]
        self.width = width

    def of(self, n: int | Tensor) -> Tensor:
        """Row n of each request, or n[b] of request b: float32 [B, width]."""
        requests = torch.arange(len(self.values), device=self.values.device)
        columns = torch.arange(self.size, device=requests.device)
        rows = (slice(None), n) if isinstance(n, int) else (requests, n)
        return F.pad(
            self._probabilities(self.values[rows], rows, columns), (0, self.width - self.size)
        )

    def pick(self, columns: Tensor) -> Tensor:
        """The probability in one column of each of the first rows, float32 [B, K]."""
        if self.size == 0:
            return torch.zeros(columns.shape, dtype=torch.float32, device=columns.device)
        rows = (slice(None), slice(columns.shape[1]))
        within = columns.clamp(max=self.size - 1).unsqueeze(2)
        picked = self._probabilities(self.values[rows].gather(2, within), rows, within).squeeze(2)
        return torch.where(columns < self.size, picked, 0.0)

    def _probabilities(self, x: Tensor, rows: Any, columns: Tensor) -> Tensor:
        """The probabilities that the values x stand for, in these rows and columns."""
        del rows, columns
        return x.float()


class Slice(NamedTuple):
    """This rank's part of a call."""

    drafts: Tensor
    """int64 [B, K]."""
    draft: Rows | None
    target: Rows
    seeds: Tensor
    positions: Tensor
    start: int
    vocab_size: int
    """V, the larger of the two vocabularies."""

    def draft_row(self, k: int) -> Tensor:
        """Row k of q, float32 [B, width]."""
        return self.draft.of(k) if self.draft is not None else self._point_mass(self.drafts[:, k])

    def _point_mass(self, tokens: Tensor) -> Tensor:
        columns = torch.arange(self.target.width, device=tokens.device) + self.start
        return (tokens[:, None] == columns).float()

    def message(self) -> Tensor:
        """What the others need to know of this slice, int64 [B * (2 K + 2)].

        Where the walk ends as far as this rank can tell [B]; the totals of p [B, K+1]; those of
        the residual max(p - q, 0) [B, K]. A total is -1 if a value in the slice is not finite.
        """
        spec_len = self.drafts.shape[1]
        of_target, of_residual = [], []
        for k in range(spec_len + 1):
            p = self.target.of(k)
            p_is_finite = p.isfinite().all(1)
            of_target.append(torch.where(p_is_finite, fixed_point(p).sum(1), -1))
            if k < spec_len:
                q = self.draft_row(k)
                is_finite = p_is_finite & q.isfinite().all(1)
                of_residual.append(torch.where(is_finite, fixed_point(p - q).sum(1), -1))
        totals = torch.stack([self.stops(), *of_target, *of_residual], 1)
        return totals.reshape(-1)

    def stops(self) -> Tensor:
        """Where and why the walk ends as far as this rank can tell: int64 [B], kind + 4 k.

        It judges the drafts that it holds the probabilities of. The smallest of all ranks' counts.
        """
        spec_len = self.drafts.shape[1]
        columns = self.drafts - self.start
        mine = (columns >= 0) & (columns < self.target.width)
        columns = torch.where(mine, columns, 0)
        p = self.target.pick(columns).double()
        q = self.draft.pick(columns).double() if self.draft is not None else torch.ones_like(p)
        k = torch.arange(spec_len, device=self.drafts.device)
        accepted = coins(self.seeds[:, None], self.positions[:, None] + k) * q < p
        kind = torch.where(accepted | ~mine, _KINDS, REJECTED)
        kind = torch.where(mine & ~(p.isfinite() & q.isfinite()), INVALID, kind)
        kind = torch.where((self.drafts < 0) | (self.drafts >= self.vocab_size), INVALID, kind)
        kind = torch.where(self.drafts == -1, ENDED, kind)
        stops = torch.where(kind < _KINDS, _KINDS * k + kind, _KINDS * spec_len + ENDED)
        return F.pad(stops, (0, 1), value=_KINDS * spec_len + ENDED).amin(1)

    def find(self, decision: Decision) -> Tensor:
        """The sampled token of each request whose token is in this slice, else -1; int64 [B]."""
        weights = self.target.of(decision.n)
        spec_len = self.drafts.shape[1]
        if spec_len > 0:
            last = decision.n.clamp(max=spec_len - 1)
            if self.draft is not None:
                q = self.draft.of(last)
            else:
                q = self._point_mass(self.drafts.gather(1, last[:, None]).squeeze(1))
            weights = torch.where(decision.of_residual[:, None], weights - q, weights)
        running = fixed_point(weights).cumsum(1)
        column = torch.searchsorted(running, decision.threshold[:, None], right=True).squeeze(1)
        return torch.where(decision.mine, column + self.start, -1)


class Decision(NamedTuple):
    """What all ranks know after the first exchange; each tensor is [B]."""

    n: Tensor
    """Accepted drafts."""
    valid: Tensor
    of_residual: Tensor
    """Whether the token is sampled from the residual, else from p."""
    mine: Tensor
    """Whether the token is in this rank's slice."""
    threshold: Tensor
    """The token is the first in the slice whose running sum of weights exceeds this."""


def decide(
    messages: Tensor, rank: int, spec_len: int, seeds: Tensor, positions: Tensor, stream: int
) -> Decision:
    """Put the slices together.

    Args:
        messages: of all ranks, int64 [R, B * (2 K + 2)]; see :meth:`Slice.message`.
        rank: this one.
        spec_len: K.
        seeds: int64 [B]. positions: int64 [B].
        stream: that the token is sampled with.
    """
    parts = messages.view(len(messages), len(seeds), 2 * spec_len + 2)
    stop = parts[:, :, 0].amin(0)
    n, kind = stop // _KINDS, stop % _KINDS
    request = torch.arange(len(seeds), device=seeds.device)
    totals = parts[:, request, 1 + n]  # [R, B]
    valid = (kind != INVALID) & (totals >= 0).all(0)
    of_residual = kind == REJECTED
    if spec_len > 0:
        residuals = parts[:, request, spec_len + 2 + n.clamp(max=spec_len - 1)]
        valid &= ~of_residual | (residuals >= 0).all(0)
        of_residual = of_residual & (residuals.sum(0) > 0)
        totals = torch.where(of_residual, residuals, totals)
    total = totals.sum(0)
    valid = valid & (total > 0)
    fraction = (words(seeds, positions + n, stream) >> 2) & ((1 << 62) - 1)
    threshold = scale_62(fraction, total.clamp(min=0)) - totals[:rank].sum(0)
    mine = valid & (threshold >= 0) & (threshold < totals[rank])
    return Decision(n, valid, of_residual, mine, threshold)


def result(drafts: Tensor, decision: Decision, token: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, K+1] and num_accepted [B], once the sampled token is known."""
    column = torch.arange(drafts.shape[1] + 1, device=drafts.device)
    n, valid = decision.n[:, None], decision.valid[:, None]
    tokens = torch.where(column < n, F.pad(drafts, (0, 1)), -1)
    tokens = torch.where(column == n, token[:, None], tokens)
    return torch.where(valid, tokens, -1), torch.where(decision.valid, decision.n, -1)


def fixed_point(weights: Tensor) -> Tensor:
    """floor(w * 2^42) of weights in [0, 1], to which the others are clamped; int64."""
    return (weights.clamp(0, 1) * UNIT).long()
