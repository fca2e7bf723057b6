"""From logits, with PyTorch operations on whole batches: no loop over rows and no wait.

The thresholds of top-k and top-p come from sorted rows: running sums of integer weights say where
top-p ends. A row becomes four numbers; probabilities are written for the one row only that each
request samples from.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rsk.sampler import vectorized
from rsk.sampler.row_law import (
    HOTTEST,
    UNIT,
    Filters,
    fixed_point,
    probability,
    relative_weight,
    scale_of,
)

CHUNK = 1 << 22
"""So many logits at a time: the temporaries, partly in 64 bits, stay small beside the logits."""


@torch.no_grad()
def probabilities(logits: Tensor, filters: Filters) -> Tensor:
    """Probabilities of every row. Arguments as in :func:`rsk.probabilities`."""
    tokens = torch.arange(logits.shape[-1], device=logits.device)
    return probabilities_at(logits, row_laws(logits, filters), filters.min_p, tokens)


@torch.no_grad()
def sample_from_logits(
    logits: Tensor, filters: Filters, seed: int | Tensor, position: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens and row laws. Arguments as in :func:`rsk.sample_from_logits`."""
    laws = row_laws(logits, filters)
    tokens = torch.arange(logits.shape[1], device=logits.device)
    probs = probabilities_at(logits, laws, filters.min_p, tokens)
    return vectorized.sample(probs, seed, position), laws


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
    """The laws of all rows first. Arguments as in :func:`rsk.rejection_sample_from_logits`."""
    draft = None if draft_logits is None else LogitRows(draft_logits, filters, draft_laws)
    target = LogitRows(target_logits, filters)
    return vectorized.decide(draft_tokens, draft, target, seed, position)


class LogitRows(vectorized.Rows):
    """Rows of logits: of their probabilities, only those asked for are computed."""

    def __init__(self, logits: Tensor, filters: Filters, laws: Tensor | None = None) -> None:
        super().__init__(logits)
        self.laws = row_laws(logits, filters) if laws is None else laws
        self.min_p = filters.min_p

    def probabilities(  # noqa: D102
        self, x: Tensor, rows: Any, tokens: Tensor | None
    ) -> Tensor:
        if tokens is None:
            every = torch.arange(self.vocab_size, device=x.device)
            return probabilities_at(x, self.laws.flatten(0, 1)[rows], self.min_p, every)
        one = probabilities_at(x[..., None], self.laws[rows], self.min_p, tokens[..., None])
        return one.squeeze(-1)


# --- the two steps -------------------------------------------------------------------------------


def row_laws(logits: Tensor, filters: Filters) -> Tensor:
    """The law of each row, float32 [..., 4], of logits [B, V] or [B, K, V]."""
    # torch.compile may make one operation, rounded once, of a product and a sum, where the rule
    # rounds each. So it is kept out of this function and of the next.
    compute = _opaque_laws if torch.compiler.is_compiling() else _eager_laws
    arguments: Any = [part for value in filters for part in _tensor_and_number(value)]
    return compute(logits, *arguments)


def probabilities_at(x: Tensor, laws: Tensor, min_p: float | Tensor, tokens: Tensor) -> Tensor:
    """Probabilities, float32 [B, ..., n], of tokens with logits x in rows with laws [B, ..., 4].

    ``tokens`` is int64 [n], or [B, ..., n]; ``min_p`` one number, or one a request.
    """
    compute = _opaque_probabilities if torch.compiler.is_compiling() else _eager_probabilities
    return compute(x, laws, *_tensor_and_number(min_p), tokens)


def _tensor_and_number(value: float | Tensor) -> tuple[Tensor | None, float]:
    return (value, 0) if isinstance(value, Tensor) else (None, value)


def _eager_laws(
    logits: Tensor,
    temperature: Tensor | None,
    temperature0: float,
    top_k: Tensor | None,
    top_k0: int,
    top_p: Tensor | None,
    top_p0: float,
    min_p: Tensor | None,
    min_p0: float,
) -> Tensor:
    filters = Filters(
        temperature0 if temperature is None else temperature,
        top_k0 if top_k is None else top_k,
        top_p0 if top_p is None else top_p,
        min_p0 if min_p is None else min_p,
    )
    laws = torch.empty((*logits.shape[:-1], 4), dtype=torch.float32, device=logits.device)
    for part in _chunks(logits):
        x = logits[part]
        laws[part] = _laws(x, *(_beside(x, value, part) for value in filters))
    return laws


def _eager_probabilities(
    x: Tensor, laws: Tensor, min_p: Tensor | None, min_p0: float, tokens: Tensor
) -> Tensor:
    probs = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    for part in _chunks(x):
        least = _beside(x[part], min_p0 if min_p is None else min_p, part)
        of = tokens if tokens.dim() == 1 else tokens[part]
        probs[part] = probability(x[part], laws[part], least, of)
    return probs


@torch.library.custom_op("rsk::row_laws", mutates_args=())
def _opaque_laws(
    logits: Tensor,
    temperature: Tensor | None,
    temperature0: float,
    top_k: Tensor | None,
    top_k0: int,
    top_p: Tensor | None,
    top_p0: float,
    min_p: Tensor | None,
    min_p0: float,
) -> Tensor:
    return _eager_laws(
        logits, temperature, temperature0, top_k, top_k0, top_p, top_p0, min_p, min_p0
    )


@_opaque_laws.register_fake
def _(logits: Tensor, *filters: Any) -> Tensor:
    return logits.new_empty((*logits.shape[:-1], 4), dtype=torch.float32)


@torch.library.custom_op("rsk::probabilities_at", mutates_args=())
def _opaque_probabilities(
    x: Tensor, laws: Tensor, min_p: Tensor | None, min_p0: float, tokens: Tensor
) -> Tensor:
    return _eager_probabilities(x, laws, min_p, min_p0, tokens)


@_opaque_probabilities.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def _chunks(rows: Tensor) -> list[slice]:
    """Stretches of requests that together have about ``CHUNK`` elements."""
    requests = max(1, CHUNK // max(1, rows[:1].numel()))
    return [slice(b, b + requests) for b in range(0, len(rows), requests)]


def _beside(x: Tensor, value: float | Tensor, part: slice) -> Any:
    """A number as it is; one value a request as [B, 1, ...], with as many dimensions as x."""
    return value[part].view(-1, *[1] * (x.dim() - 1)) if isinstance(value, Tensor) else value


# --- the law of a row ----------------------------------------------------------------------------


def _laws(x: Tensor, temperature: Any, top_k: Any, top_p: Any, min_p: Any) -> Tensor:
    """Laws [..., 4] of logits [..., V]; each filter is a number, or one value a row [..., 1]."""
    if not isinstance(top_k, Tensor) and top_k >= x.shape[-1]:
        top_k = 0
    maximum = x.amax(-1, keepdim=True).float()  # NaN if there is one
    t, k, p, least = (_column(f, maximum) for f in (temperature, top_k, top_p, min_p))
    valid = maximum.isfinite() & ((t == 0) | (t >= 1 / HOTTEST) & (t <= HOTTEST))
    valid = valid & (k >= 0) & (p >= 0) & (p <= 1) & (least >= 0) & (least <= 1)
    scale = scale_of(t)

    if isinstance(top_k, Tensor) or isinstance(top_p, Tensor) or top_k or top_p < 1:
        values, e, weights, threshold = _sorted(
            x, k if isinstance(top_k, Tensor) else top_k, maximum, scale
        )
        if isinstance(top_p, Tensor) or top_p < 1:
            sums = weights.masked_fill(values < threshold, 0).cumsum(-1)
            mass = (p.double() * sums[..., -1:].double()).ceil().long().clamp(min=1)
            last = torch.searchsorted(sums, mass).clamp(max=values.shape[-1] - 1)
            threshold = torch.where(p < 1, values.gather(-1, last), threshold)
        left_out = (values < threshold) | (e < least)
    else:
        e = relative_weight(x, maximum, scale)
        weights = fixed_point(e)
        threshold = torch.full_like(maximum, -math.inf)
        left_out = e < least
    total = weights.masked_fill(left_out, 0).sum(-1, keepdim=True)
    laws = torch.cat([maximum, scale, threshold, (UNIT / total.double()).float()], -1)

    if isinstance(temperature, Tensor) or temperature == 0:
        first = x.argmax(-1, keepdim=True).float()
        one = torch.ones_like(maximum)
        greedy = torch.cat([maximum, math.inf * one, first, one], -1)
        laws = torch.where(t == 0, greedy, laws)
    invalid = torch.zeros_like(laws)
    invalid[..., 3] = math.nan
    return torch.where(valid, laws, invalid)


def _sorted(
    x: Tensor, top_k: int | Tensor, maximum: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All logits that top-k may keep, from the largest: values, e, weights; and the least kept.

    For one k these are the k largest, and one more entry for all further ties with the last.
    """
    every = torch.full_like(maximum, -math.inf)
    if isinstance(top_k, Tensor):
        values = x.sort(-1, descending=True).values.float()
        on = (top_k > 0) & (top_k < x.shape[-1])
        kth = values.gather(-1, torch.where(on, top_k.long() - 1, 0))
        return *_weighted(values, maximum, scale), torch.where(on, kth, every)
    if top_k == 0:
        values = x.sort(-1, descending=True).values.float()
        return *_weighted(values, maximum, scale), every
    values = x.topk(top_k, -1).values.float()
    kth = values[..., -1:]
    further = (x == kth).sum(-1) - (values == kth).sum(-1)
    values, e, weights = _weighted(torch.cat([values, kth], -1), maximum, scale)
    weights[..., -1] *= further
    return values, e, weights, kth


def _weighted(values: Tensor, maximum: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    e = relative_weight(values, maximum, scale)
    return values, e, fixed_point(e)


def _column(value: Any, like: Tensor) -> Tensor:
    """A filter as one value a row, without waiting for the device."""
    if not isinstance(value, Tensor):
        dtype = torch.int64 if isinstance(value, int) else torch.float32
        value = torch.full((), value, dtype=dtype, device=like.device)
    return value.expand_as(like)
