"""Drafts that are looked up in the text so far, alone or where they beat a draft model."""

from __future__ import annotations

import torch

from rsk.decode.drafting import ActiveRequests, Draft, ModelDraft, Proposal, Request
from rsk.decode.kv_cache import CachedModel
from rsk.decode.sampling import Sampling

LONGEST_NGRAM = 3


class NgramDraft(Draft):
    """Prompt lookup: what followed the latest earlier occurrence of the last few tokens.

    Source: Saxena, "Prompt lookup decoding" (2023).

    Args:
        shortest: how many tokens must be the same.
    """

    def __init__(self, shortest: int = 1) -> None:
        self.shortest = shortest

    def start(self, requests: list[Request]) -> None:  # noqa: D102
        # Per request: how many tokens are indexed; n-gram -> where the token after it stands.
        self.indexed = {request.index: 0 for request in requests}
        self.after: dict[int, dict[tuple[int, ...], int]] = {r.index: {} for r in requests}

    def propose(self, batch: ActiveRequests, spec_len: int) -> Proposal:  # noqa: D102
        found = [self._look_up(request, spec_len) for request in batch.requests]
        longest = max(map(len, found))
        return Proposal(batch.tensor([row + [-1] * (longest - len(row)) for row in found]))

    def _look_up(self, request: Request, spec_len: int) -> list[int]:
        tokens, after = request.tokens, self.after[request.index]
        for end in range(self.indexed[request.index], len(tokens)):
            for size in range(self.shortest, min(LONGEST_NGRAM, end) + 1):
                after[tuple(tokens[end - size : end])] = end
        self.indexed[request.index] = len(tokens)
        for size in range(LONGEST_NGRAM, self.shortest - 1, -1):
            if start := after.get(tuple(tokens[-size:])):
                return tokens[start : start + spec_len]
        return []


class LookupThenModelDraft(ModelDraft):
    """Prompt lookup where the last few tokens occurred before, all of them; else the model.

    What followed a single equal token is right less often than a model's guess. Where lookup finds
    something for every request, the model is not asked.
    """

    def __init__(self, model: CachedModel, sampling: Sampling, backend: str) -> None:
        super().__init__(model, sampling, backend)
        self.lookup = NgramDraft(shortest=LONGEST_NGRAM)
        self.looked_up: dict[int, int] = {}
        """The rows that were looked up beside others that were not, and their lengths."""

    def start(self, requests: list[Request]) -> None:  # noqa: D102
        super().start(requests)
        self.lookup.start(requests)

    def propose(self, batch: ActiveRequests, spec_len: int) -> Proposal:  # noqa: D102
        found = self.lookup.propose(batch, spec_len)
        self.looked_up = {}
        if not spec_len or (found.tokens.shape[1] and bool((found.tokens[:, 0] >= 0).all())):
            return found
        drawn = super().propose(batch, spec_len)
        if not found.tokens.shape[1] or drawn.logits is None:
            return drawn
        # A row of minus infinity but for one token is that token's, whatever the filters.
        looked_up = torch.nn.functional.pad(
            found.tokens, (0, spec_len - found.tokens.shape[1]), value=-1
        )
        # What the draft has no column for, of a vocabulary that is padded further, ends it.
        looked_up = looked_up.masked_fill(looked_up >= drawn.logits.shape[2], -1)
        certain = (looked_up[:, :1] >= 0).expand_as(looked_up)
        self.looked_up = {
            row: batch.lengths[row] for row, is_one in enumerate(certain[:, 0].tolist()) if is_one
        }
        only = torch.full_like(drawn.logits, -torch.inf)
        only.scatter_(2, looked_up.clamp_min(0).unsqueeze(2), 0.0)
        return Proposal(
            torch.where(certain, looked_up, drawn.tokens),
            torch.where(certain.unsqueeze(2), only, drawn.logits),
        )

    def read_in_order(self, row: int) -> int:  # noqa: D102
        # There it has read what it drew itself, and not what was proposed.
        return self.looked_up.get(row, self.model.lengths[row])
