"""The laws of rows of logits that are split over ranks, with PyTorch operations.

A row's law (:mod:`rsk.sampler.row_law`) takes what no slice knows alone: the maximum, the least
logit that the filters keep, and the total weight of what they keep, whose weights depend on the
maximum. How many messages that takes depends on the filters:

- greedy for all requests: one, with each slice's maximum and its place;
- top-k with one k of at most ``LONGEST_LIST``: one. Each rank lists its k largest logits and how
  many more tie with the last of them. The k largest of all lists are those of the row, and top-p
  and min-p choose among them;
- otherwise one for the maximum; then ``digits`` for each of top-k and top-p, which find the
  threshold as radix sort would, a digit of 8 bits at a time: counts, or total weights, by digit
  among the logits that agree in the digits found so far. 4 for float32 and 2 for 16-bit logits;
  then one for the total.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rsk.sampler.row_law import (
    HOTTEST,
    UNIT,
    Filters,
    fixed_point,
    probability,
    relative_weight,
    scale_of,
)
from rsk.sampler.slices import Rows

LONGEST_LIST = 128
_BASE = 256
_TOKEN_BITS = 20
_LAST_TOKEN = (1 << _TOKEN_BITS) - 1

Exchange = Generator[Tensor, Tensor, Tensor]
"""Yields this rank's messages, int64 [B, N, n], is sent those of all ranks, [R, B, N, n], and
returns float32 [B, N, ...]. So the messages about all rows of a call can go as one."""


class Plan(NamedTuple):
    """Which messages the laws of a call take; the same on all ranks."""

    greedy: bool
    """For all requests."""
    listed: int
    """Length of the lists, or 0."""
    top_k: bool
    """Whether the threshold of top-k is found by digits."""
    top_p: bool
    digits: int

    @property
    def rounds(self) -> int:
        """Messages after the first."""
        if self.greedy or self.listed:
            return 0
        return self.digits * (self.top_k + self.top_p) + 1

    @property
    def code(self) -> int:
        """The plan as a number."""
        return sum(int(value) << 8 * i for i, value in enumerate(self))

    @property
    def opening_words(self) -> int:
        """Numbers in the first message about a row; each holds two of 32 bits."""
        return 1 + (self.listed + 2) // 2 * bool(self.listed)

    def length(self, rows: int) -> int:
        """Numbers in the longest message about so many rows."""
        return rows * max(self.opening_words, _BASE * (self.top_k or self.top_p))


def plan_for(filters: Filters, groups: list[Tensor]) -> Plan:
    """Which messages the laws of these logits take."""
    k, p = filters.top_k, filters.top_p
    short = not isinstance(k, Tensor) and 0 < k <= LONGEST_LIST
    return Plan(
        greedy=not isinstance(filters.temperature, Tensor) and filters.temperature == 0,
        listed=int(k) if short else 0,
        top_k=isinstance(k, Tensor) or k > LONGEST_LIST,
        top_p=not short and (isinstance(p, Tensor) or p < 1),
        digits=max((logits.element_size() for logits in groups), default=2),
    )


class LogitRows(Rows):
    """This rank's columns of rows of logits [B, N, S], as probabilities."""

    def __init__(
        self, logits: Tensor, width: int, start: int, laws: Tensor, min_p: float | Tensor
    ) -> None:
        super().__init__(logits, width)
        self.start, self.laws, self.min_p = start, laws, min_p

    def _probabilities(self, x: Tensor, rows: Any, columns: Tensor) -> Tensor:
        least = self.min_p
        if isinstance(least, Tensor):
            least = least.view(-1, *[1] * (x.dim() - 1))
        return probability(x, self.laws[rows], least, columns + self.start)


def opening(logits: Tensor, start: int, listed: int) -> Tensor:
    """A rank's first message about its columns [B, N, S] of rows: int64 [B, N, opening_words].

    The largest logit and the first token that has it, as one number, of which the largest of all
    ranks counts. If lists are asked for, two numbers of 32 bits in each of the others: the largest
    logits, and how many more tie with the last of them.
    """
    batch_size, rows, size = logits.shape
    if size == 0:
        largest = logits.new_full((batch_size, rows, 1), -math.inf, dtype=torch.float32)
        token = torch.zeros_like(largest, dtype=torch.int64)
    else:
        largest = logits.amax(-1, keepdim=True).float() + 0.0  # +0, if it is -0
        largest = torch.where(largest.isnan(), math.nan, largest)  # the positive one
        token = logits.argmax(-1, keepdim=True) + start
    parts = [(_ordered(largest)[0] << _TOKEN_BITS) + (_LAST_TOKEN - token)]
    if listed:
        values = logits.topk(min(listed, size), -1).values.float()
        more = torch.zeros_like(token)
        if size > listed:
            last = values[..., -1:]
            more = ((logits == last).sum(-1) - (values == last).sum(-1))[..., None]
        values = F.pad(values, (0, listed - values.shape[2]), value=-math.inf)
        halves = torch.cat([values.contiguous().view(torch.int32), more.int()], -1)
        parts.append(F.pad(halves, (0, halves.shape[2] % 2)).view(torch.int64))
    return torch.cat(parts, -1)


def laws_from(
    openings: Tensor, logits: Tensor, vocab_size: int, filters: Filters, plan: Plan
) -> Exchange:
    """The laws, float32 [B, N, 4], of rows [B, N, V].

    Args:
        openings: of all ranks, int64 [R, B, N, opening_words].
        logits: this rank's columns.
        vocab_size: V, of all slices together.
        filters: what turns logits into probabilities.
        plan: which messages are exchanged.
    """
    opening = openings[..., :1].amax(0)
    maximum = _value_of(opening >> _TOKEN_BITS, 32, torch.float32)
    t, k, p, least = (_column(value, maximum) for value in filters)
    scale = scale_of(t)
    threshold = torch.full_like(maximum, -math.inf)
    total = torch.ones_like(maximum, dtype=torch.int64)

    def weights_of(x: Tensor) -> tuple[Tensor, Tensor]:
        e = relative_weight(x, maximum, scale)
        return e, fixed_point(e)

    if plan.listed:
        lists = openings[..., 1:].contiguous().view(torch.int32)[..., : plan.listed + 1]
        values = lists[..., :-1].contiguous().view(torch.float32)  # [R, B, N, k]
        last, more = values[..., -1:], lists[..., -1:].long()
        values = torch.cat([*values, *last], -1)
        times = torch.cat([*torch.ones_like(lists[..., :-1]).long(), *more], -1)
        values, order = values.sort(-1, descending=True)
        times = times.gather(-1, order)
        if plan.listed < vocab_size:  # the smallest value that has k of them before or at it
            place = torch.searchsorted(
                times.cumsum(-1), torch.full_like(k, plan.listed).contiguous()
            )
            threshold = values.gather(-1, place.clamp(max=values.shape[-1] - 1))
        e, weights = weights_of(values)
        weights = weights * times
        mass = weights.masked_fill(values < threshold, 0).cumsum(-1)
        place = torch.searchsorted(mass, mass_to_keep(p, mass[..., -1:]))
        place = place.clamp(max=values.shape[-1] - 1)
        threshold = torch.where(p < 1, values.gather(-1, place), threshold)
        total = weights.masked_fill((values < threshold) | (e < least), 0).sum(-1, keepdim=True)
    elif not plan.greedy:
        e, weights = weights_of(logits)
        if plan.top_k:
            kth = yield from select_by_digits(
                logits, torch.ones_like(weights), lambda _: k.clamp(1, vocab_size)
            )
            threshold = torch.where((k > 0) & (k < vocab_size), kth, threshold)
        if plan.top_p:
            kept = weights.masked_fill(logits < threshold, 0)
            least_kept = yield from select_by_digits(
                logits, kept, lambda whole: mass_to_keep(p, whole)
            )
            threshold = torch.where(p < 1, least_kept, threshold)
        left_out = (logits < threshold) | (e < least)
        own = weights.masked_fill(left_out, 0).sum(-1, keepdim=True)
        total = (yield own).sum(0)

    laws = torch.cat([maximum, scale, threshold, (UNIT / total.double()).float()], -1)
    first = (_LAST_TOKEN - (opening & _LAST_TOKEN)).float()
    one = torch.ones_like(maximum)
    greedy = torch.cat([maximum, math.inf * one, first, one], -1)
    laws = torch.where(t == 0, greedy, laws)
    valid = maximum.isfinite() & ((t == 0) | (t >= 1 / HOTTEST) & (t <= HOTTEST))
    valid = valid & (k >= 0) & (p >= 0) & (p <= 1) & (least >= 0) & (least <= 1)
    invalid = torch.zeros_like(laws)
    invalid[..., 3] = math.nan
    return torch.where(valid, laws, invalid)


def together(exchanges: list[Exchange], gather: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Run exchanges side by side, with one message for all of them each time.

    Args:
        exchanges: what to run.
        gather: sends int64 [n] and returns what all ranks have sent, [R, at least n].
    """
    done: dict[int, Tensor] = {}
    answers: list[Any] = [None] * len(exchanges)
    while True:
        messages: dict[int, Tensor] = {}
        for i, exchange in enumerate(exchanges):
            if i not in done:
                try:
                    messages[i] = exchange.send(answers[i])
                except StopIteration as end:
                    done[i] = end.value
        if not messages:
            return [done[i] for i in range(len(exchanges))]
        received = gather(torch.cat([message.reshape(-1) for message in messages.values()]))
        begin = 0
        for i, message in messages.items():
            part = received[:, begin : begin + message.numel()]
            answers[i] = part.reshape(len(received), *message.shape)
            begin += message.numel()


def mass_to_keep(p: Tensor, whole: Tensor) -> Tensor:
    """The least total weight that top-p keeps, of a whole; int64."""
    return (p.double() * whole.double()).ceil().long().clamp(min=1)


def select_by_digits(x: Tensor, weights: Tensor, wanted: Callable[[Tensor], Tensor]) -> Exchange:
    """The largest value of each row so that it and those above it weigh what is wanted together.

    Args:
        x: this rank's columns of rows, [B, N, S].
        weights: int64, as large.
        wanted: from the weight of the whole row, int64 [B, N, 1].

    Returns:
        float32 [B, N, 1].
    """
    keys, bits = _ordered(x)
    found = torch.zeros(*x.shape[:2], 1, dtype=torch.int64, device=x.device)
    left = found
    for shift in range(bits - 8, -1, -8):
        agrees = keys >> (shift + 8) == found
        by_digit = torch.zeros(*x.shape[:2], _BASE, dtype=torch.int64, device=x.device)
        by_digit.scatter_add_(2, keys >> shift & (_BASE - 1), weights.masked_fill(~agrees, 0))
        from_above = (yield by_digit).sum(0).flip(2).cumsum(2)
        if shift == bits - 8:
            left = wanted(from_above[..., -1:])
        place = torch.searchsorted(from_above, left).clamp(max=_BASE - 1)
        before = from_above.gather(2, (place - 1).clamp(min=0))
        left = torch.where(place > 0, left - before, left)
        found = found * _BASE + (_BASE - 1 - place)
    return _value_of(found, bits, x.dtype)


def _ordered(x: Tensor) -> tuple[Tensor, int]:
    """Integers of ``bits`` bits in the order of the values, -0 before +0; and ``bits``."""
    bits = 8 * x.element_size()
    signed = x.contiguous().view(torch.int32 if bits == 32 else torch.int16).long()
    return (signed ^ (signed >> (bits - 1) & ((1 << (bits - 1)) - 1))) + (1 << (bits - 1)), bits


def _value_of(keys: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """What :func:`_ordered` made a key of, float32."""
    signed = keys - (1 << (bits - 1))
    signed = signed ^ (signed >> (bits - 1) & ((1 << (bits - 1)) - 1))
    return signed.to(torch.int32 if bits == 32 else torch.int16).view(dtype).float()


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    """A filter as one value a row [B, N, 1], without waiting for the device."""
    if isinstance(value, Tensor):
        value = value if value.is_floating_point() else value.long()
        return value.reshape(-1, 1, 1).expand_as(like)
    dtype = torch.int64 if isinstance(value, int) else torch.float32
    return torch.full_like(like, value, dtype=dtype)
