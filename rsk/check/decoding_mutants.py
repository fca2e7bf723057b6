"""Wrong decoding loops, each by one step, to try :func:`rsk.check.assert_decoding_lossless` on.

:class:`CorrectLoop` is speculative decoding with two toy models that have caches. A mutant
overrides one step, so the override is the bug::

    loop = rsk.check.decoding_mutants.LOOP_MUTANTS["cache_keeps_rejected"]
    rsk.check.assert_decoding_lossless(loop, loop.target, **loop.texts)  # raises, and says why
"""

# ruff: noqa: D102 - what an override is for is said where the step is defined

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from rsk.check.specimen import Specimen
from rsk.sampler.api import rejection_sample, sample
from rsk.sampler.logits import probabilities


class ToyModel:
    """A model whose logits are a sum over its last tokens, of a table for each distance."""

    def __init__(self, vocab_size: int, seed: int, *, window: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tables = torch.randn(window, vocab_size, vocab_size, generator=generator)

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits [n, V] of what follows token ids int64 [n, L]."""
        return ToyCache(self, ids, torch.zeros(len(ids), dtype=torch.int64)).read(ids)[:, -1]


class ToyCache:
    """What a toy model has read: the first ``kept`` tokens int64 [B] of each row."""

    def __init__(self, model: ToyModel, tokens: Tensor, kept: Tensor) -> None:
        self.model, self.tokens, self.kept = model, tokens.clone(), kept.clone()

    def read(self, tokens: Tensor) -> Tensor:
        """Append tokens int64 [B, n]; return the logits [B, n, V] behind each."""
        tables = self.model.tables
        window = len(tables)
        slots = self.kept[:, None] + torch.arange(tokens.shape[1])
        self.tokens.scatter_(1, slots, tokens)
        self.kept = self.kept + tokens.shape[1]
        seen = slots[:, :, None] - torch.arange(window)
        before = self.tokens.gather(1, seen.clamp_min(0).flatten(1)).view(seen.shape)
        terms = tables[torch.arange(window), before]
        return (terms * (seen >= 0)[..., None]).sum(2)


class CorrectLoop(Specimen):
    """Speculative decoding, step by step: its texts follow the target."""

    name = "correct_loop"
    filters: ClassVar[dict[str, Any]] = {"temperature": 0.8, "top_k": 3}

    def __init__(self, *, vocab_size: int = 4, spec_len: int = 2) -> None:
        self.target, self.draft = ToyModel(vocab_size, 1), ToyModel(vocab_size, 2)
        # A draft that knows something: half its tables are the target's.
        self.draft.tables = (self.draft.tables + self.target.tables) / 2
        self.spec_len = spec_len
        self.texts: dict[str, Any] = {
            "prompts": [[0, 1], [2, 0, 1, 1, 2]],
            "max_new_tokens": 5,
            "stop_tokens": [3],
            "from_logits": True,
            "batch_size": 512,
            **self.filters,
        }
        """The arguments of the check that say which texts are meant."""

    def __call__(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[list[int]]:
        """Continue prompts; new token ids for each."""
        wanted = self.texts["max_new_tokens"]
        begin = torch.tensor([len(prompt) for prompt in prompts])
        width = int(begin.max()) + wanted + 2 * self.spec_len + 2
        text = torch.tensor([[*prompt, *[0] * (width - len(prompt))] for prompt in prompts])
        length, keys = begin, self.seeds(torch.tensor(seeds))
        target, draft = (ToyCache(m, text, begin - 1) for m in (self.target, self.draft))
        while bool((length < begin + wanted).any()):
            last = text.gather(1, length[:, None] - 1)
            position = self.position(begin, length)
            token, x, q = last, [], []
            for k in range(self.spec_len):
                logits = draft.read(token)[:, 0]
                drawn = sample(self.draft_law(logits), seed=keys, position=position + k)
                x.append(drawn)
                q.append(self.q(logits))
                token = drawn[:, None]
            draft.read(token)
            drafts = torch.stack(x, 1)
            logits = self.judging_rows(target.read(torch.cat([last, drafts], 1)))
            samples = rejection_sample(
                drafts, torch.stack(q, 1), self.target_law(logits), seed=keys, position=position
            )
            # Where a row is finished its tokens no longer matter, but have to fit.
            n = samples.num_accepted.where(length < begin + wanted, -1)
            columns = torch.arange(self.spec_len + 1)
            slots = (length[:, None] + columns).clamp_max(width - 1)
            new = torch.where(columns <= n[:, None], samples.tokens, text.gather(1, slots))
            text = text.scatter(1, slots, new)
            draft.kept = (length + n).clamp_max(draft.kept)
            target.kept = self.kept(length + n, n < self.spec_len)
            length = length + n + 1
        rows = zip(text.tolist(), begin.tolist(), length.tolist(), strict=True)
        return [self.cut(row[first:end]) for row, first, end in rows]

    # --- what the models' rows become

    def draft_law(self, logits: Tensor) -> Tensor:
        """The probabilities [B, V] that drafts are drawn from."""
        return probabilities(logits, **self.filters)

    def q(self, logits: Tensor) -> Tensor:
        """The probabilities [B, V] that the sampler is told they were drawn from."""
        return probabilities(logits, **self.filters)

    def target_law(self, logits: Tensor) -> Tensor:
        """The probabilities [B, K+1, V] that drafts are judged by."""
        return probabilities(logits, **self.filters)

    def judging_rows(self, logits: Tensor) -> Tensor:
        """Of the target's logits [B, K+1, V], the row that judges each draft token."""
        return logits

    # --- bookkeeping

    def seeds(self, seeds: Tensor) -> Tensor:
        """The seed of each request [B]."""
        return seeds

    def position(self, begin: Tensor, length: Tensor) -> Tensor:
        """Where the random numbers of a step begin [B], given lengths of prompt and text."""
        return length

    def kept(self, right: Tensor, rejected: Tensor) -> Tensor:
        """How much of the target's cache stays [B]: all that the last new token follows."""
        return right

    def cut(self, tokens: list[int]) -> list[int]:
        """A text's new tokens up to the first stop token or the limit."""
        tokens = tokens[: self.texts["max_new_tokens"]]
        stops = (i for i, token in enumerate(tokens) if token in self.texts["stop_tokens"])
        return tokens[: next(stops, len(tokens)) + 1]


# --- the gallery ----------------------------------------------------------------------------------


class QIsNotTheDraftsLaw(CorrectLoop):
    """Drafts are drawn with a temperature and filters, and q is handed over without."""

    seen = "reports on serving engines: processors applied on one side only"
    verdict = "not lossless"

    def q(self, logits: Tensor) -> Tensor:
        return probabilities(logits)


class DraftsDrawnUnfiltered(CorrectLoop):
    """Drafts are drawn from the plain softmax, and q is handed over filtered."""

    seen = "loops that filter where they verify, and forget that the drafts were drawn before"
    verdict = "not lossless"

    def draft_law(self, logits: Tensor) -> Tensor:
        return probabilities(logits)


class FiltersOnTheDraftOnly(CorrectLoop):
    """The target's rows are judged by without the filters that were asked for."""

    seen = "loops that sample the draft and verify with raw logits"
    verdict = "probability 0"

    def target_law(self, logits: Tensor) -> Tensor:
        return probabilities(logits)


class CacheKeepsRejected(CorrectLoop):
    """The target's cache is rolled back by one too few: a rejected draft token stays in it."""

    seen = "off by one, as the last token of a step is in no cache yet"
    verdict = "not lossless"

    def kept(self, right: Tensor, rejected: Tensor) -> Tensor:
        return right + rejected.long()


class RowsOneBehind(CorrectLoop):
    """Each draft token is judged by the row before its own."""

    seen = "off by one, as row k of the target's pass follows token k"
    verdict = "not lossless"

    def judging_rows(self, logits: Tensor) -> Tensor:
        return torch.cat([logits[:, :1], logits[:, :-1]], 1)


class RandomNumbersAgain(CorrectLoop):
    """Every step begins with the random numbers of the first."""

    seen = "a fixed seed with the default position, at every call"
    verdict = "not lossless"

    def position(self, begin: Tensor, length: Tensor) -> Tensor:
        return begin


class OneSeedForAll(CorrectLoop):
    """All requests of a batch have the first one's seed."""

    seen = "seeds shared over the slots of a batch"
    verdict = "not lossless"

    def seeds(self, seeds: Tensor) -> Tensor:
        return seeds[:1].repeat(len(seeds))


class StopOverlooked(CorrectLoop):
    """A stop token inside an accepted block ends nothing."""

    seen = "loops that look at the last token of a step only"
    verdict = "it goes on after the stop token"

    def cut(self, tokens: list[int]) -> list[int]:
        return tokens[: self.texts["max_new_tokens"]]


class LimitOverlooked(CorrectLoop):
    """The last block is not cut where the text should end."""

    seen = "generation past the limit by up to K tokens"
    verdict = "are the limit"

    def cut(self, tokens: list[int]) -> list[int]:
        stops = (i for i, token in enumerate(tokens) if token in self.texts["stop_tokens"])
        return tokens[: next(stops, len(tokens)) + 1]


def _gallery() -> Mapping[str, CorrectLoop]:
    found = {}
    for mutant in CorrectLoop.__subclasses__():
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in mutant.__name__)
        mutant.name = words.removeprefix("_")
        mutant.caught_by = "assert_decoding_lossless"
        found[mutant.name] = mutant()
    return MappingProxyType(found)


LOOP_MUTANTS = _gallery()
"""Name to wrong loop."""
