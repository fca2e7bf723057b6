"""A model, its key-value cache over a batch of requests, and its logits as probabilities."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rsk.decode.arguments import integer, real

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLDEST, HOTTEST = 2.0**-20, 2.0**20
"""The temperatures other than 0 at which the logits of a model stay finite."""


class Clock:
    """Adds up the wall time of named parts."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = {"draft": 0.0, "target": 0.0, "sampler": 0.0, "callback": 0.0}
        self._device = device
        self._began = time.perf_counter()

    def _now(self) -> float:
        if self._device.type == "cuda":  # otherwise the time would go to whoever waits next
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time of a ``with`` block as that of ``name``."""
        began = self._now()
        try:
            yield
        finally:
            self.seconds[name] += self._now() - began

    def split(self) -> dict[str, float]:
        """Seconds of draft, target, sampler and, for what is left since the start, rest."""
        parts = dict(self.seconds)
        total = self._now() - self._began - parts.pop("callback")
        return parts | {"rest": total - sum(parts.values())}


class Sampling:
    """How logits become probabilities: temperature, then top-k, then top-p, as transformers does.

    Args:
        temperature: 0 is greedy decoding, a distribution with all its mass on the best token;
            else from 2^-20 to 2^20.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the fewest tokens whose probabilities add up to this; 1 keeps all.

    Raises:
        ValueError: an argument out of range.
        TypeError: one that is no number.
    """

    def __init__(self, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> None:
        from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper
        from transformers import TemperatureLogitsWarper as TemperatureWarper

        temperature, top_p = real("temperature", temperature), real("top_p", top_p)
        top_k = integer("top_k", top_k, 0)
        if temperature != 0 and not COLDEST <= temperature <= HOTTEST:  # NaN is neither
            raise ValueError(
                "temperature: expected 0 (greedy) or a number from 2^-20 to 2^20, where no logit "
                f"overflows, got {temperature:g}"
            )
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {top_p}")
        self.greedy = temperature == 0
        self._processors: Any = LogitsProcessorList()
        if temperature not in (0, 1):
            self._processors.append(TemperatureWarper(temperature))
        if top_k:
            self._processors.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._processors.append(TopPLogitsWarper(top_p))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities float32 [B, n, V] of logits [B, n, V] in any floating dtype."""
        scores = logits.float().flatten(0, 1)
        if self.greedy:
            best = scores.max(1, keepdim=True)
            one = best.values * 0 + 1  # NaN where the best is not finite: that is no distribution
            return torch.zeros_like(scores).scatter_(1, best.indices, one).view(logits.shape)
        # The processors look at scores alone; those that need the earlier tokens are not offered.
        return self._processors(None, scores).softmax(-1).view(logits.shape)


def context_length(model: PreTrainedModel) -> int:
    """Longest sequence that a model takes, in tokens."""
    return getattr(model.config, "max_position_embeddings", None) or 2**62


class CachedModel:
    """A model and its key-value cache over a batch of requests of different lengths.

    Rows are aligned at their ends: of the cache's slots, the last ``lengths[b]`` belong to row b
    and those before are padding. The attention mask and the position of each token follow from
    the lengths alone.
    """

    def __init__(self, model: PreTrainedModel, sampling: Sampling, name: str, clock: Clock) -> None:
        from transformers import DynamicCache

        self.model, self.sampling, self.name, self.clock = model, sampling, name, clock
        self.cache = DynamicCache()
        self.lengths: list[int] = []
        self.slots = 0

    def forward(self, tokens: Tensor, lengths: list[int], wanted: int) -> Tensor:
        """Append tokens int64 [B, n]; return probabilities float32 [B, wanted, V] after the last.

        ``lengths`` are the rows' lengths with these tokens; where a row has fewer than n, the
        first columns are padding.
        """
        with self.clock.part(self.name):
            device, new = tokens.device, tokens.shape[1]
            self.slots, self.lengths = self.slots + new, lengths
            padding = torch.tensor([self.slots - length for length in lengths], device=device)
            slots = torch.arange(self.slots, device=device)
            positions = slots[-new:] - padding.unsqueeze(1)
            # Padding, and draft tokens beyond a request's end: any valid position will do.
            positions = positions.clamp(0, context_length(self.model) - 1)
            mask = None if min(lengths) == self.slots else (slots >= padding.unsqueeze(1)).long()
            logits = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=wanted,
            ).logits
            return self.sampling.probabilities(logits[:, -wanted:])

    def read(self, prompts: list[list[int]]) -> None:
        """Fill the cache with prompts, any of which may be empty."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        if longest:
            device = self.model.device
            rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
            self.forward(torch.tensor(rows, device=device), lengths, 1)
        self.lengths = lengths

    def keep(self, rows: list[int], lengths: list[int]) -> None:
        """Forget all but the first ``lengths[i]`` tokens of each row ``rows[i]``."""
        with self.clock.part(self.name):
            surplus = [
                self.lengths[row] - length for row, length in zip(rows, lengths, strict=True)
            ]
            whole_batch = len(rows) == len(self.lengths)
            if whole_batch and len(set(surplus)) == 1:
                self.slots -= surplus[0]
                take = _slots_up_to(self.slots)
            else:
                take = _rows_and_slots(rows, surplus, self.slots, max(lengths), self.model.device)
                self.slots = max(lengths)
            layers: Any = self.cache.layers
            for layer in layers:
                if layer.keys is not None:
                    layer.keys, layer.values = take(layer.keys), take(layer.values)
            self.lengths = lengths


def _slots_up_to(count: int) -> Callable[[Tensor], Tensor]:
    return lambda states: states[:, :, :count]


def _rows_and_slots(
    rows: list[int], surplus: list[int], slots: int, kept: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Select rows of [B, heads, slots, width], each without its last ``surplus`` slots."""
    row = torch.tensor(rows, device=device).unsqueeze(1)
    end = slots - torch.tensor(surplus, device=device).unsqueeze(1)
    slot = (end - kept + torch.arange(kept, device=device)).clamp_min(0)  # [rows, kept]
    return lambda states: states[row, :, slot].transpose(1, 2)
