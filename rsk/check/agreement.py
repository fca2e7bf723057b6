"""Does a sampler return the very tokens of the baseline?"""

from __future__ import annotations

import dataclasses
import itertools
import random
import secrets
import textwrap
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rsk.check.calls import Call, Sampler
from rsk.check.logit_recipes import random_logit_recipe
from rsk.check.recipes import EXTREME_COINS, Recipe, random_recipe
from rsk.check.shrink import shrink
from rsk.sampler.api import rejection_sample
from rsk.sampler.logits import rejection_sample_from_logits
from rsk.sampler.random_words import SAMPLE, words


def assert_agrees(
    sampler: Sampler,
    *,
    from_logits: bool = False,
    mixed: bool = False,
    reference: Sampler | None = None,
    examples: int = 200,
    seed: int | None = None,
    max_elements: int = 1 << 15,
    large_vocabulary: bool = True,
    device: str | torch.device = "cpu",
) -> int:
    """Raise if a sampler and the baseline return different tokens, bit for bit, for any call.

    Among the calls are two that random ones would not find: the extreme coins, and tokens in the
    tail of a large vocabulary. The others are random: all dtypes and strides, ragged drafts, drafts
    without probabilities, extreme seeds and positions, rows that are one-hot, disjoint, equal,
    subnormal, unnormalised, NaN, empty; of logits also ties, masks, and filters as numbers and as
    tensors. A call that fails is reduced to the smallest found that still does.

    Args:
        sampler: called as :func:`rsk.rejection_sample`, without ``backend``.
        from_logits: it is called as :func:`rsk.rejection_sample_from_logits` instead.
        mixed: whether draft and target may have different dtypes and vocabularies. With logits
            they always may.
        reference: what to compare with, by default the baseline.
        examples: number of calls.
        seed: of the random calls; ``None``: fresh ones every time. The message tells it.
        max_elements: most target probabilities in a random call.
        large_vocabulary: whether to include the calls with 128256 words.
        device: where the sampler runs; the reference gets the same tensors.

    Returns:
        How many calls were compared.

    Raises:
        AssertionError: they differ; the message says how, and holds the smallest such call.
    """
    if seed is None:
        seed = secrets.randbelow(2**32)
    if reference is None:
        function = rejection_sample_from_logits if from_logits else rejection_sample
        reference = partial(function, backend="baseline")
    rng = random.Random(seed)
    compared = 0
    recipes: Iterator[Recipe] = (
        random_logit_recipe(rng, max_elements)
        if from_logits
        else random_recipe(rng, max_elements, mixed=mixed)
        for _ in itertools.count()
    )
    for call in _calls(recipes, from_logits, large_vocabulary, device):
        if compared >= examples:
            break
        difference = _difference(sampler, reference, call)
        if difference:

            def fails_alike(smaller: Call, fault: str = difference.fault) -> bool:
                found = _difference(sampler, reference, smaller)
                return found is not None and found.fault == fault

            smallest = shrink(call, fails_alike)
            difference = _difference(sampler, reference, smallest) or difference
            raise AssertionError(
                f"not the baseline's tokens: {difference.text}\n"
                f"found in call {compared} of seed {seed}; the smallest call that shows it:\n"
                + textwrap.indent(smallest.code(), "  ")
            )
        compared += 1
    return compared


def _calls(
    recipes: Iterator[Recipe],
    from_logits: bool,
    large_vocabulary: bool,
    device: str | torch.device,
) -> Iterator[Call]:
    chosen = [extreme_coins()]
    if large_vocabulary:
        chosen += [long_tail(), *([long_nucleus()] if from_logits else [])]
    first, *later = (call.from_logits(from_logits).map(lambda x: x.to(device)) for call in chosen)
    yield first
    for i, recipe in enumerate(recipes):
        if i == 20:  # after those in which another fault shows more plainly
            yield from later
        yield recipe.make(device)


def extreme_coins() -> Call:
    """Coin 0 and the largest coin, each where p = q and where p = 0."""
    one_hot = torch.eye(2)
    draft = one_hot[[1, 1, 1, 1]][:, None]
    target = one_hot[[1, 0, 1, 0]][:, None].repeat(1, 2, 1)
    seeds = torch.tensor(EXTREME_COINS).repeat_interleave(2)
    return Call(torch.ones(4, 1, dtype=torch.int64), draft, target, seeds, 0)


def long_tail(vocab_size: int = 128256) -> Call:
    """A bonus and a recovered token far out in a tail of very small probabilities."""
    row = torch.full((vocab_size,), 0.98 * 2.0**-25)
    row[0] = 1 - row[1:].double().sum()
    draft = torch.zeros(2, 1, vocab_size)
    draft[:, 0, 1] = 1
    tokens = torch.tensor([[-1], [1]])  # no draft; one that is almost surely rejected
    return Call(tokens, draft, row.expand(2, 2, -1), _seeds_of_large_samples(2), 0)


def long_nucleus(vocab_size: int = 128256) -> Call:
    """A nucleus that ends in the middle of such a tail, whose weights fall slowly."""
    row = torch.linspace(1.0, 0.9, vocab_size) * 2.0**-25
    row[0] = 1
    tokens = torch.full((2, 1), -1)
    call = Call(tokens, None, row.expand(2, 2, -1), _seeds_of_large_samples(2), 0).from_logits()
    return dataclasses.replace(call, filters={"top_p": 1 - 2.0**-10})


def _seeds_of_large_samples(count: int) -> Tensor:
    """Seeds whose random number at position 0 is close to 1, so that late tokens are drawn."""
    seeds = torch.arange(1 << 16)
    numbers = words(seeds, torch.zeros_like(seeds), SAMPLE) >> 2 & (1 << 62) - 1
    return seeds[numbers.topk(count).indices]


class _Difference(NamedTuple):
    fault: str
    """What went wrong, in the same words for every call in which it does."""
    text: str


def _difference(sampler: Sampler, reference: Sampler, call: Call) -> _Difference | None:
    """How the results differ in the first request in which they do; ``None`` if they agree."""
    expected = call.run(reference)
    try:
        got = call.run(sampler)
    except Exception as error:
        name = type(error).__name__
        return _Difference(name, f"it raises {name}: {error}")
    if all(torch.equal(e.cpu(), g.long().cpu()) for e, g in zip(expected, got, strict=True)):
        return None
    (tokens, n), (got_tokens, got_n) = (tuple(t.tolist() for t in r) for r in (expected, got))
    b = next(b for b, row in enumerate(tokens) if row != got_tokens[b] or n[b] != got_n[b])
    fault, detail = _describe(call, b, tokens[b], n[b], got_tokens[b], got_n[b])
    return _Difference(
        fault,
        f"{fault}{detail}, in request {b}\n"
        f"  expected tokens {_short(tokens[b])}, num_accepted {n[b]}\n"
        f"  got      tokens {_short(got_tokens[b])}, num_accepted {got_n[b]}",
    )


def _describe(
    call: Call, b: int, tokens: list[int], n: int, got: list[int], got_n: int
) -> tuple[str, str]:
    if n < 0 <= got_n:
        return "an invalid request is given tokens instead of -1", ""
    if got_n < 0 <= n:
        return "a valid request is refused", ""
    if got_n > n:
        return "too many draft tokens are accepted", f", {got_n} instead of {n}"
    if got_n < n:
        return "too few draft tokens are accepted", f", {got_n} instead of {n}"
    column = next(k for k, token in enumerate(tokens) if got[k] != token)
    if column > n:
        return "what is behind the last token is not -1", f" but {got[column]}"
    if column < n:
        return "an accepted token is not the draft's", f", {got[column]} for {tokens[column]}"
    ended = n == call.shape[1] or int(call.draft_tokens[b, n]) == -1
    name = "bonus" if ended else "recovered"
    return f"the {name} token is another one", f", {got[n]} instead of {tokens[n]}"


def _short(row: list[int]) -> str:
    return str(row) if len(row) <= 12 else f"{str(row[:12])[:-1]}, ...]"
