"""Do the texts of a whole decoding loop follow the target? For targets small enough to enumerate.

A sampler that is right can still be called wrongly: with a q that is not the law its drafts were
drawn from, with filters on one side, with a cache that keeps what was rejected. Each of these shows
in the law of the texts, which the target alone defines: a text's probability is the product of
those of its tokens, up to the first stop token or the limit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from rsk.check.cases import Aspect
from rsk.check.sequential_test import looks
from rsk.check.verdict import NotLossless, Verdict, Watch
from rsk.sampler.logits import probabilities

MAX_TEXTS = 1 << 14
"""Most texts that are told apart."""
_SUM_TOLERANCE = 1e-3

Target = Callable[[Tensor], Tensor]
"""Token ids int64 [n, L] to what follows each row: probabilities or logits, [n, V]."""
Decode = Callable[..., Any]
"""A prompt's token ids and a seed to the new token ids; or lists of both to a list of these."""


def assert_decoding_lossless(decode: Decode, target: Target, **options: Any) -> Verdict:
    """Raise if the texts of a decoding loop do not follow the target.

    Args:
        decode: what to test; see :func:`examine_decoding`, also for the options.
        target: defines the law.
        **options: ``prompts``, ``max_new_tokens``, ``stop_tokens``, ``level`` and others.

    Returns:
        The verdict of a loop that passes.

    Raises:
        NotLossless: an ``AssertionError`` whose message and ``verdict`` say what is wrong.
        TypeError, ValueError: as :func:`examine_decoding`.
    """
    verdict = examine_decoding(decode, target, **options)
    if not verdict.lossless:
        raise NotLossless(verdict)
    return verdict


def examine_decoding(
    decode: Decode,
    target: Target,
    *,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_tokens: Collection[int] = (),
    from_logits: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    level: float = 1e-4,
    power: float = 0.99,
    bias: float = 0.1,
    seed: int = 0,
    batch_size: int = 1,
) -> Verdict:
    """Decide whether the texts of a decoding loop follow the target, and say why not if not.

    Every text that can follow a prompt is enumerated with its probability; then the loop decodes
    with random seeds, and its whole texts, their lengths and the token at each place are compared
    with that law by the sequential test of :func:`rsk.check.examine`. Choose ``max_new_tokens``
    beyond K + 1, or no second step is seen: most faults of a cache begin there.

    Args:
        decode: called as ``decode(prompt, seed)``, a list of token ids and an int; returns the new
            token ids, in a list or a tensor, a stop token included. With ``batch_size`` above 1,
            ``decode(prompts, seeds)``, lists of both, and returns a list of these, whose texts
            must be independent of one another.
        target: called with token ids int64 [n, L], the prompt and what follows it; returns
            probabilities [n, V] of the next token, in any floating dtype.
        prompts: token ids; a kind of request each.
        max_new_tokens: a text that meets no stop token has so many.
        stop_tokens: end a text, which includes them.
        from_logits: the target returns logits, which become probabilities as the next four say,
            as in :func:`rsk.probabilities`.
        temperature: as are the next three, as the loop was told.
        top_k: 0 means all.
        top_p: 1 means all.
        min_p: 0 means all.
        level: largest probability to find a correct loop wrong, all prompts together.
        power: smallest probability to find a loop wrong that is off by ``bias`` for any prompt.
        bias: total variation distance between the loop's texts and their law. The number of texts
            grows with 1 / bias^2, and where many are possible with how many: most of the
            probability must be in texts that are seen several times each.
        seed: of everything random here; the same seed gives the same verdict.
        batch_size: largest number of texts in one call of the loop.

    Raises:
        ValueError: an argument out of range, no prompts, more texts than 2^14 for a prompt, or a
            target that does not return distributions.
        TypeError: the loop returns something else than token ids.
    """
    for name, value in (("level", level), ("power", power), ("bias", bias)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: expected a number between 0 and 1, got {value}")
    for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    begun = [list(prompt) for prompt in prompts]
    if not begun or not all(begun):
        raise ValueError("prompts: expected at least one, and tokens in each")

    def law(ids: Tensor) -> Tensor:
        rows = target(ids)
        if from_logits:
            rows = probabilities(
                rows, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
            )
        return _distributions(rows, len(ids))

    start = time.perf_counter()
    with torch.no_grad():
        texts = [Texts(prompt, law, max_new_tokens, frozenset(stop_tokens)) for prompt in begun]
    aspects = [each.aspects() for each in texts]
    shares = sum(aspect.freedom > 0 for of_prompt in aspects for aspect in of_prompt)
    verdict = Verdict(
        lossless=True,
        level=level,
        power=power,
        bias=bias,
        kinds=len(texts),
        needed=math.log(max(shares, 1) / level),  # the union bound: the aspects share the level
        subject="loop",
    )
    generator = torch.Generator().manual_seed(seed)
    _watch(decode, texts, aspects, verdict, batch_size, generator)
    verdict.seconds = time.perf_counter() - start
    return verdict


class Texts:
    """Every text that can follow a prompt, and its probability."""

    def __init__(
        self,
        prompt: list[int],
        law: Callable[[Tensor], Tensor],
        max_new_tokens: int,
        stops: Collection[int],
    ) -> None:
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.stops = stops
        found: dict[tuple[int, ...], float] = {}
        unfinished: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(max_new_tokens):
            if not unfinished:
                break
            ids = torch.tensor([[*prompt, *text] for text in unfinished])
            rows = law(ids)
            longer: dict[tuple[int, ...], float] = {}
            for (text, chance), row in zip(unfinished.items(), rows.tolist(), strict=True):
                for token, share in enumerate(row):
                    if share > 0:
                        ended = token in stops
                        (found if ended else longer)[*text, token] = chance * share
            if len(found) + len(longer) > MAX_TEXTS:
                raise ValueError(
                    f"expected at most {MAX_TEXTS} texts after a prompt, got more: "
                    f"fewer than {max_new_tokens} new tokens or a smaller vocabulary will do"
                )
            unfinished = longer
        found |= unfinished
        self.cell = {text: i for i, text in enumerate(found)}
        self.law = torch.tensor([*found.values(), 0.0], dtype=torch.float64)
        """float64 [texts + 1]; the last is for what cannot be."""

    @property
    def impossible(self) -> int:
        """The cell of what has probability 0."""
        return len(self.cell)

    def aspects(self) -> list[Aspect]:
        """The length, the token at each place, and the whole text."""
        texts = list(self.cell)
        lengths = list(range(1, self.max_new_tokens + 1))
        index = [len(text) - 1 for text in texts]
        found = [Aspect("length", _indices(index), self.law, lengths)]
        for i in range(self.max_new_tokens):
            tokens = sorted({text[i] for text in texts if len(text) > i})
            index = [tokens.index(text[i]) if len(text) > i else -1 for text in texts]
            if tokens:
                found.append(Aspect(f"token {i + 1}", _indices(index), self.law, tokens))
        return [*found, Aspect("joint", torch.arange(len(self.law)), self.law, [*texts, ()])]

    def why_impossible(self, text: tuple[int, ...]) -> str:
        """What is wrong with a text of probability 0."""
        stop = next((i for i, token in enumerate(text) if token in self.stops), None)
        if stop is not None and stop + 1 < len(text):
            return f"it goes on after the stop token {text[stop]}"
        if len(text) > self.max_new_tokens:
            return f"it has {len(text)} tokens, where {self.max_new_tokens} are the limit"
        if len(text) < self.max_new_tokens and stop is None:
            return f"it ends after {len(text)} of {self.max_new_tokens} tokens without a stop token"
        return "the target gives it probability 0"


def _indices(values: list[int]) -> Tensor:
    """An aspect's cell for each text; what cannot be has none."""
    return torch.tensor([*values, -1])


def _distributions(rows: Tensor, count: int) -> Tensor:
    """The target's rows as float64 [n, V] that sum to 1.

    Raises:
        ValueError: they are no distributions.
    """
    if not isinstance(rows, Tensor) or rows.dim() != 2 or len(rows) != count:
        shape = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"target: expected rows [{count}, V] for {count} texts, got {shape}")
    rows = rows.detach().double().cpu()
    sums = rows.sum(1, keepdim=True)
    if not (bool((rows >= 0).all()) and bool(((sums - 1).abs() < _SUM_TOLERANCE).all())):
        raise ValueError(
            "target: expected probabilities that sum to 1 in each row, got sums from "
            f"{float(sums.min()):g} to {float(sums.max()):g}; for logits, from_logits=True"
        )
    return rows / sums


def _watch(
    decode: Decode,
    texts: list[Texts],
    aspects: list[list[Aspect]],
    verdict: Verdict,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Decode until the texts of every prompt have spoken for or against their law."""
    watched = [
        Watch(verdict, "decoding", f"prompt {each.prompt}", of_prompt)
        for each, of_prompt in zip(texts, aspects, strict=True)
    ]
    counts = [torch.zeros_like(each.law) for each in texts]
    freedom = max(aspect.freedom for of_prompt in aspects for aspect in of_prompt)
    collected = 0
    for total in looks(freedom, verdict.bias, 1 - verdict.power):
        # Prompts are mixed, so that those of a batch differ in length and end at different times.
        order = torch.arange(len(texts)).repeat(total - collected)
        order = order[torch.randperm(len(order), generator=generator)]
        for kinds in order.split(batch_size):
            seeds = torch.empty_like(kinds).random_(-(2**63), None, generator=generator).tolist()
            prompts = [list(texts[kind].prompt) for kind in kinds.tolist()]
            decoded = _decoded(decode, prompts, seeds, batch_size)
            for kind, key, text in zip(kinds.tolist(), seeds, decoded, strict=True):
                cell = texts[kind].cell.get(text, texts[kind].impossible)
                counts[kind][cell] += 1
                if cell == texts[kind].impossible and verdict.impossible is None:
                    reason = texts[kind].why_impossible(text)
                    verdict.impossible = f"text {list(text)}: {reason} (seed {key})"
        verdict.requests += len(order)
        collected = total
        for watch, of_kind in zip(watched, counts, strict=True):
            watch.look(of_kind)
        if not verdict.lossless:
            verdict.blame()
        if not verdict.lossless or all(watch.is_decided for watch in watched):
            return


def _decoded(
    decode: Decode, prompts: list[list[int]], seeds: list[int], batch_size: int
) -> list[tuple[int, ...]]:
    """The texts that the loop returns.

    Raises:
        TypeError: they are none.
    """
    if batch_size == 1:
        returned: Iterable[Any] = [decode(prompts[0], seeds[0])]
    else:
        returned = decode(prompts, seeds)
        if not isinstance(returned, Iterable) or len(returned := list(returned)) != len(prompts):
            raise TypeError(
                f"decode: expected {len(prompts)} lists of token ids, got {type(returned).__name__}"
            )
    texts = []
    for row in returned:
        tokens = row.tolist() if isinstance(row, Tensor) else row
        try:
            texts.append(tuple(int(token) for token in tokens))
        except (TypeError, ValueError):
            raise TypeError(
                f"decode: expected token ids in a list or tensor, got {type(row).__name__}"
            ) from None
    return texts
