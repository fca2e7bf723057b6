"""How the logits of a model become probabilities: processors, temperature, filters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rsk.decode.arguments import integer, real, shown
from rsk.sampler.arguments import PROBABILITY_DTYPES
from rsk.sampler.logits import probabilities

Processor = Callable[[Tensor, Tensor], Tensor]
"""As a ``LogitsProcessor`` of transformers: token ids int64 [1, n] and the scores float32 [1, V] of
the token after them; returns other scores."""


class Sampling:
    """The same for both models, or the draft's q would not be the law of its tokens.

    Args:
        temperature: 0 is greedy decoding, a distribution with all its mass on the best token;
            else from 2^-20 to 2^20.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the fewest tokens whose probabilities add up to this; 1 keeps all.
        min_p: keep the tokens at least this probable relative to the best; 0 keeps all.
        processors: what else changes the logits, before all these, in this order.
        batch_size: the processors are told of all requests of a batch at once, as transformers
            does, and may hold something for each; ``None``: they know nothing of a batch.

    Raises:
        ValueError: an argument out of range.
        TypeError: one that is no number, or no function.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        processors: Sequence[Processor] = (),
        batch_size: int | None = None,
    ) -> None:
        self.filters: dict[str, Any] = {
            "temperature": real("temperature", temperature),
            "top_k": integer("top_k", top_k, 0),
            "top_p": real("top_p", top_p),
            "min_p": real("min_p", min_p),
        }
        row = torch.zeros(1, 1, dtype=torch.float32, device="cpu")
        probabilities(row, backend="baseline", **self.filters)  # refuses bad numbers
        self.processors, self.batch_size = tuple(processors), batch_size
        for processor in self.processors:
            if not callable(processor):
                raise TypeError(
                    "logits_processor: expected functions of token ids and scores, "
                    f"got {shown(processor)}"
                )

    def process(
        self,
        logits: Tensor,
        texts: Sequence[Sequence[int]],
        indices: Sequence[int],
        drafts: Tensor | None = None,
    ) -> Tensor:
        """Logits as the processors leave them.

        Args:
            logits: [B, n, V], in any floating dtype.
            texts: the tokens of each request so far.
            indices: which request of the whole batch each is.
            drafts: int64 [B, n - 1], drafted after them: row j of the logits follows the first j.
                Rows behind the end of a draft are left alone.

        Returns:
            The same tensor if there are no processors and the sampler takes its dtype.
        """
        if not self.processors:
            return logits if logits.dtype in PROBABILITY_DTYPES else logits.float()
        scores = logits.float().clone()
        rows = [[]] * len(texts) if drafts is None else drafts.tolist()
        for b, (text, row) in enumerate(zip(texts, rows, strict=True)):
            ids = [*text]
            for j in range(scores.shape[1]):
                if j:
                    ids.append(row[j - 1])
                if not 0 <= ids[-1] < scores.shape[2]:
                    break
                # One that holds something for each request finds this one in its place.
                count, place = (self.batch_size, indices[b]) if self.batch_size else (1, 0)
                before = torch.tensor([ids], device=scores.device).repeat(count, 1)
                changed = scores[b, j].repeat(count, 1)
                for processor in self.processors:
                    changed = processor(before, changed)
                scores[b, j] = changed[place]
        return scores
