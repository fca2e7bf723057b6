"""A model and its key-value cache over a batch of requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Clock:
    """Adds up the wall time of named parts."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = {"draft": 0.0, "target": 0.0, "sampler": 0.0, "callback": 0.0}
        self._device = device
        self._began = time.perf_counter()
        self._before: dict[str, float] = {}

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

    def lap(self) -> dict[str, float]:
        """Seconds of each part, and of the rest, since the last call."""
        parts = self._parts(self._now())
        lap = {name: seconds - self._before.get(name, 0.0) for name, seconds in parts.items()}
        self._before = parts
        return lap

    def split(self) -> dict[str, float]:
        """Seconds of draft, target, sampler and, for what is left since the start, rest."""
        return self._parts(self._now())

    def _parts(self, now: float) -> dict[str, float]:
        parts = dict(self.seconds)
        total = now - self._began - parts.pop("callback")
        return parts | {"rest": total - sum(parts.values())}


def context_length(model: PreTrainedModel) -> int:
    """Longest sequence that a model takes, in tokens."""
    return getattr(model.config, "max_position_embeddings", None) or 2**62


class CachedModel:
    """A model and its key-value cache over a batch of requests of different lengths.

    Rows are aligned at their ends: of the cache's slots, the last ``lengths[b]`` belong to row b
    and those before are padding. The attention mask and the position of each token follow from
    the lengths alone.
    """

    def __init__(self, model: PreTrainedModel, name: str, clock: Clock) -> None:
        from transformers import DynamicCache

        self.model, self.name, self.clock = model, name, clock
        self.cache = DynamicCache()
        self.lengths: list[int] = []
        self.slots = 0

    def forward(self, tokens: Tensor, lengths: list[int], wanted: int) -> Tensor:
        """Append tokens int64 [B, n]; return the logits [B, wanted, V] after the last ones.

        ``lengths`` are the rows' lengths with these tokens; where a row has fewer than n, the
        first columns are padding. A token that the model does not know, of a vocabulary that is
        padded further, counts as the last one that it does.
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
                input_ids=tokens.clamp(0, self.model.config.vocab_size - 1),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=wanted,
            ).logits
            return logits[:, -wanted:]

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
