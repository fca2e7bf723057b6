"""Random calls of the sharded sampler, compared with the same calls on whole rows.

Every rank of a group makes the same calls, of every kind, takes its columns of the rows, and
compares the result with that of the whole rows.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rsk.check.calls import FILTERS, Call
from rsk.check.logit_recipes import random_logit_recipe
from rsk.check.recipes import random_recipe
from rsk.sampler import sharded
from rsk.sampler.api import rejection_sample, sample
from rsk.sampler.arguments import check_filters
from rsk.sampler.logits import rejection_sample_from_logits, sample_from_logits
from rsk.sampler.slice_laws import plan_for

_ROWS = ("draft_probs", "target_probs", "draft_logits", "target_logits")


def random_bounds(rng: random.Random, vocab_size: int, ranks: int) -> list[int]:
    """Where slices begin and end: even ones, uneven ones, or with empty ones among them."""
    if rng.random() < 0.3:
        return [vocab_size * rank // ranks for rank in range(ranks + 1)]
    return [0, *sorted(rng.randint(0, vocab_size) for _ in range(ranks - 1)), vocab_size]


def columns_of(rows: Tensor | None, bounds: list[int], rank: int) -> Tensor | None:
    """A rank's columns; those of a smaller vocabulary end before the last slices do."""
    if rows is None:
        return None
    begin, end = bounds[rank : rank + 2]
    return rows[..., begin : max(begin, min(end, rows.shape[-1]))]


def on_rank(call: Call, bounds: list[int], rank: int) -> dict[str, Any]:
    """The arguments of a call on one rank."""
    arguments = call.arguments()
    for name in arguments.keys() & set(_ROWS):
        arguments[name] = columns_of(arguments[name], bounds, rank)
    return arguments


def compare_random_calls(
    count: int, seed: int, device: torch.device | str = "cpu", *, max_elements: int = 1 << 12
) -> Counter[str]:
    """Compare calls that begin with probabilities; on every rank of the default group.

    Returns:
        How many requests there were, and how many of some sorts.

    Raises:
        AssertionError: a result differs; the message is the call's recipe and slices.
    """
    rng = random.Random(seed)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    told: Counter[str] = Counter()
    for _ in range(count):
        recipe = random_recipe(rng, max_elements, mixed=True)
        call = recipe.make(device)
        batch_size, spec_len, vocab_size = call.shape
        bounds = random_bounds(rng, vocab_size, ranks)
        _forget(device)
        whole = rejection_sample(**call.arguments(), backend="vectorized")
        split = sharded.rejection_sample(**on_rank(call, bounds, rank))
        _expect(split.tokens, whole.tokens, recipe, bounds)
        _expect(split.num_accepted, whole.num_accepted, recipe, bounds)

        probs = call.target_rows[:, 0]
        where: dict[str, Any] = {"seed": call.seed, "position": call.position}
        bounds = random_bounds(rng, probs.shape[1], ranks)
        _forget(device)
        part = columns_of(probs, bounds, rank)
        assert part is not None
        drawn = sharded.sample(part, **where)
        _expect(drawn, sample(probs, **where, backend="vectorized"), recipe, bounds)
        draft = call.draft_rows
        told["requests"] += batch_size
        told["invalid"] += int((whole.num_accepted < 0).sum())
        told["rejected"] += int((whole.num_accepted < spec_len).sum())
        told["mixed"] += draft is not None and draft.shape[2] != call.target_rows.shape[2]
    return told


def compare_random_logit_calls(
    count: int, seed: int, device: torch.device | str = "cpu", *, max_elements: int = 1 << 11
) -> Counter[str]:
    """The same for calls that begin with logits, with filters; told is also how laws were found."""
    rng = random.Random(seed)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    told: Counter[str] = Counter()
    for _ in range(count):
        recipe = random_logit_recipe(rng, max_elements)
        call = recipe.make(device)
        assert call.filters is not None
        batch_size, spec_len, vocab_size = call.shape
        bounds = random_bounds(rng, vocab_size, ranks)
        drawing = {"seed": call.seed, "position": call.position, **call.filters}
        arguments = on_rank(call, bounds, rank)
        if call.draft_rows is not None and spec_len and rng.random() < 0.3:
            rows = call.draft_rows.unbind(1)
            laws = [sample_from_logits(row, **drawing, return_laws=True)[1] for row in rows]
            arguments["draft_laws"] = torch.stack(laws, 1)
        _forget(device)
        whole = rejection_sample_from_logits(**call.arguments(), backend="vectorized")
        split = sharded.rejection_sample_from_logits(**arguments)
        _expect(split.tokens, whole.tokens, recipe, bounds)
        _expect(split.num_accepted, whole.num_accepted, recipe, bounds)

        logits = call.target_rows[:, 0]
        bounds = random_bounds(rng, logits.shape[1], ranks)
        _forget(device)
        part = columns_of(logits, bounds, rank)
        assert part is not None
        got = sharded.sample_from_logits(part, **drawing, return_laws=True)
        expected = sample_from_logits(logits, **drawing, return_laws=True, backend="vectorized")
        _expect(got[0], expected[0], recipe, bounds)
        _expect(got[1].nan_to_num(7), expected[1].nan_to_num(7), recipe, bounds)
        plan = plan_for(check_filters(**{**FILTERS, **call.filters}, logits=logits), [logits])
        by_digits = f"digits of top-k {plan.top_k}, of top-p {plan.top_p}"
        told["greedy" if plan.greedy else "listed" if plan.listed else by_digits] += batch_size
        told["invalid"] += int((whole.num_accepted < 0).sum())
        told["rejected"] += int((whole.num_accepted < spec_len).sum())
    return told


def _forget(device: torch.device | str) -> None:
    """Slices change from call to call. On a CPU ranks notice that by themselves."""
    if torch.device(device).type == "cuda":
        sharded.forget()


def _expect(got: Tensor, expected: Tensor, recipe: object, bounds: list[int]) -> None:
    assert got.dtype == expected.dtype and torch.equal(got, expected), (
        f"{recipe} in slices {bounds}: expected {expected.tolist()}, got {got.tolist()}"
    )
