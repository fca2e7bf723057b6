"""The requests of a batch, and the drafts that can be proposed for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rsk.decode.kv_cache import CachedModel
from rsk.decode.sampling import Sampling
from rsk.sampler.arguments import MAX_VOCAB_SIZE
from rsk.sampler.logits import sample_from_logits


class Request:
    """One prompt on its way: its tokens so far, and how many may follow."""

    def __init__(
        self,
        index: int,
        prompt: list[int],
        max_new_tokens: int,
        seed: int,
        padding: Sequence[int] = (),
    ) -> None:
        self.index, self.seed = index, seed
        self.padding = padding
        """What stood before the prompt in a batch: only logits processors are shown it."""
        self.tokens, self.prompt_length = list(prompt), len(prompt)
        self.origins: list[str] = []
        self.max_new_tokens = max_new_tokens
        self.finished = False

    @property
    def room(self) -> int:
        """Draft tokens that are of use: one token comes from the target in any case."""
        return self.max_new_tokens - (len(self.tokens) - self.prompt_length) - 1


class ActiveRequests:
    """The active requests, and what a step needs of them as tensors."""

    def __init__(self, requests: list[Request], device: torch.device) -> None:
        self.requests, self.device = requests, device
        self.indices = [request.index for request in requests]
        self.lengths = [len(request.tokens) for request in requests]
        self.seeds = self.tensor([request.seed for request in requests])
        """int64 [B]"""
        self.positions = self.tensor(self.lengths)
        """int64 [B]: where each request's next token goes."""

    @property
    def texts(self) -> list[list[int]]:
        """The tokens of each request as logits processors are shown them."""
        return [[*request.padding, *request.tokens] for request in self.requests]

    def tensor(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        """Int64 tensor on the models' device."""
        return torch.tensor(values, dtype=torch.int64, device=self.device)


class Proposal(NamedTuple):
    """Drafted tokens, and what they were drawn from."""

    tokens: Tensor
    """int64 [B, K], -1 after the last of a request."""
    logits: Tensor | None = None
    """[B, K, V]; ``None`` from a draft that is certain of its tokens."""
    laws: Tensor | None = None
    """float32 [B, K, 4]: what these logits stand for; see :mod:`rsk.sampler.row_law`."""


class Draft:
    """The draft of plain decoding: it proposes nothing."""

    def start(self, requests: list[Request]) -> None:
        """Read the prompts."""

    def propose(self, batch: ActiveRequests, spec_len: int) -> Proposal:
        """Propose at most ``spec_len`` tokens for each request."""
        return Proposal(batch.tensor([[] for _ in batch.requests]))

    def keep(self, rows: list[int], requests: list[Request]) -> None:
        """Go on with these rows of the batch, whose tokens are now those in ``requests``."""


class ModelDraft(Draft):
    """Tokens drawn from a small model, one pass each.

    Between steps its cache lacks the last two tokens of each request. After a step that accepted
    everything it cannot have more, since the last draft token was drawn but never read; and a step
    that begins with the same two for every request serves them all in one pass. It lacks more
    after steps for which it was not asked, and catches up.
    """

    def __init__(self, model: CachedModel, sampling: Sampling, backend: str) -> None:
        self.model, self.sampling, self.backend = model, sampling, backend

    def start(self, requests: list[Request]) -> None:  # noqa: D102
        self.model.read([request.tokens[:-2] for request in requests])

    def propose(self, batch: ActiveRequests, spec_len: int) -> Proposal:  # noqa: D102
        if not spec_len:  # every request lacks one token, and that is the target's
            return super().propose(batch, 0)
        self._catch_up(batch)
        texts = batch.texts
        tokens = batch.tensor([[0, *text][-2:] for text in texts])
        drafts: list[Tensor] = []
        every, laws = [], []
        for k in range(spec_len):
            logits = self.model.forward(tokens, [length + k for length in batch.lengths], 1)
            with self.model.clock.part("sampler"):
                logits = self.sampling.process(logits, texts, batch.indices)
                drawn, law = sample_from_logits(
                    logits[:, 0],
                    seed=batch.seeds,
                    position=batch.positions + k,
                    backend=self.backend,
                    return_laws=True,
                    **self.sampling.filters,
                )
                if self.sampling.processors:  # they look at the tokens before
                    texts = [[*text, t] for text, t in zip(texts, drawn.tolist(), strict=True)]
            drafts.append(drawn)
            every.append(logits)
            laws.append(law)
            tokens = drawn.unsqueeze(1)
        x = torch.stack(drafts, 1)
        # -1 is an invalid row, but would pass for the end of a draft; no token at all is refused.
        x = x.masked_fill(x < 0, MAX_VOCAB_SIZE)
        return Proposal(x, torch.cat(every, 1), torch.stack(laws, 1))

    def keep(self, rows: list[int], requests: list[Request]) -> None:  # noqa: D102
        have = [self.read_in_order(row) for row in rows]
        lengths = [len(request.tokens) - 2 for request in requests]
        self.model.keep(rows, [min(pair) for pair in zip(have, lengths, strict=True)])

    def read_in_order(self, row: int) -> int:
        """How many tokens of a row the model has read, its text's and then those it proposed."""
        return self.model.lengths[row]

    def _catch_up(self, batch: ActiveRequests) -> None:
        """Read what was emitted since the model was last asked, but for the last two tokens."""
        wanted = [max(length - 2, 0) for length in batch.lengths]
        missed = max(want - have for want, have in zip(wanted, self.model.lengths, strict=True))
        if missed > 0:  # every request reads as many, so some read again what they have
            rows = list(range(len(wanted)))
            self.model.keep(rows, [max(want - missed, 0) for want in wanted])
            tokens = [
                [*[0] * missed, *request.tokens[:want]][-missed:]
                for request, want in zip(batch.requests, wanted, strict=True)
            ]
            self.model.forward(batch.tensor(tokens), wanted, 1)
