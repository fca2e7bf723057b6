"""Smaller calls that still fail: fewer requests, positions and words, plainer values."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import torch

from rsk.check.calls import Call


def shrink(call: Call, fails: Callable[[Call], bool], seconds: float = 5.0) -> Call:
    """The smallest call found that still fails: fewer requests, positions and words, plain values.

    Args:
        call: one that fails.
        fails: whether a call does.
        seconds: when to give up looking for a smaller one.
    """
    end = time.monotonic() + seconds
    call = call.per_request().map(torch.clone)
    while True:
        for smaller in _smaller(call):
            if time.monotonic() > end:
                return call
            if fails(smaller):
                call = smaller
                break
        else:
            return call


def _smaller(call: Call) -> Iterator[Call]:
    """Calls that are each simpler than this one in some way, the boldest first."""
    batch_size, spec_len, vocab_size = call.shape
    replace = dataclasses.replace
    if batch_size > 1:
        for half in torch.arange(batch_size).chunk(2):
            yield call.rows(half)
    for length in dict.fromkeys((0, spec_len // 2, spec_len - 1)):
        if 0 <= length < spec_len:
            yield replace(
                call,
                draft_tokens=call.draft_tokens[:, :length],
                draft_rows=None if call.draft_rows is None else call.draft_rows[:, :length],
                target_rows=call.target_rows[:, : length + 1],
            )
    if spec_len:
        yield replace(
            call,
            draft_tokens=call.draft_tokens[:, 1:],
            draft_rows=None if call.draft_rows is None else call.draft_rows[:, 1:],
            target_rows=call.target_rows[:, 1:],
            position=call.position + 1,
        )
    yield from _smaller_vocabulary(call)
    if any(x.is_floating_point() and x.dtype != torch.float32 for x in call.tensors().values()):
        yield call.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
    if call.draft_tokens.dtype != torch.int64:
        yield replace(call, draft_tokens=call.draft_tokens.long())
    if call.draft_rows is not None:
        yield replace(call, draft_rows=None)
    for name in ("position", "seed"):
        value = getattr(call, name)
        if bool((value != 0).any()):
            yield replace(call, **{name: torch.zeros_like(value)})
            if bool((value.abs() > 9).any()):
                for small in range(1, 10):
                    yield replace(call, **{name: torch.full_like(value, small)})
    filters = call.filters or {}
    for name in filters:
        yield replace(call, filters={n: value for n, value in filters.items() if n != name})
    if batch_size * (spec_len + 1) * vocab_size <= 64:
        yield from _plainer_values(call)


def _smaller_vocabulary(call: Call) -> Iterator[Call]:
    """Leave out a run of words that no draft token names."""
    vocab_size = call.shape[2]
    drafts, draft, target = call.draft_tokens, call.draft_rows, call.target_rows
    named = set(drafts.flatten().tolist())
    size = vocab_size // 2
    while size >= 1:
        for start in range(0, vocab_size - size + 1, size):
            keep = torch.ones(vocab_size, dtype=torch.bool)
            keep[start : start + size] = False
            left = [keep[: rows.shape[2]] for rows in (target, draft) if rows is not None]
            if not all(map(torch.any, left)) or any(start <= d < start + size for d in named):
                continue
            yield dataclasses.replace(
                call,
                draft_tokens=torch.where(drafts >= start + size, drafts - size, drafts),
                draft_rows=None if draft is None else draft[..., left[1]],
                target_rows=target[..., left[0]],
            )
        size //= 2


_PLAIN = (0.0, 1.0, 0.5, 0.25, 0.125)


def _plainer_values(call: Call) -> Iterator[Call]:
    """Replace a value, everywhere it occurs or in one place, by a plainer one."""
    for name in ("target_rows", "draft_rows"):
        probs = getattr(call, name)
        if probs is None:
            continue
        values = probs.flatten().tolist()
        places = [probs == value for value in dict.fromkeys(values) if values.count(value) > 1]
        each = torch.arange(len(values), device=probs.device).view(probs.shape)
        places += [each == i for i in range(len(values))]
        for place in places:
            value = float(probs[place][0])
            for plain in _PLAIN[: _PLAIN.index(value) if value in _PLAIN else None]:
                yield dataclasses.replace(call, **{name: probs.masked_fill(place, plain)})
