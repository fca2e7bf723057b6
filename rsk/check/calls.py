"""Calls of a sampler: their arguments as one value, of probabilities or of logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor

Sampler = Callable[..., Any]
"""Anything with the arguments of :func:`rsk.rejection_sample`, or, where it is said to begin with
logits, of :func:`rsk.rejection_sample_from_logits`; ``backend`` and ``validate`` aside."""

FILTERS: Mapping[str, float] = MappingProxyType(
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
)
"""Their names and what leaves the probabilities as they are."""


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call of a sampler."""

    draft_tokens: Tensor
    draft_rows: Tensor | None
    """[B, K, V]: probabilities, or logits."""
    target_rows: Tensor
    """[B, K+1, V]"""
    seed: int | Tensor = 0
    position: int | Tensor = 0
    filters: Mapping[str, Any] | None = None
    """Those of :data:`FILTERS` that are not the default, if the rows are logits; ``None`` if they
    are probabilities."""

    def run(self, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Tokens [B, K+1] and num_accepted [B] of a sampler.

        Raises:
            TypeError: the sampler returns something else.
        """
        returned = sampler(
            self.draft_tokens,
            self.draft_rows,
            self.target_rows,
            seed=self.seed,
            position=self.position,
            **(self.filters or {}),
        )
        return result_of(returned, self.draft_tokens)

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, K and the larger V, if draft and target differ in it."""
        batch_size, columns, vocab_size = self.target_rows.shape
        if self.draft_rows is not None:
            vocab_size = max(vocab_size, self.draft_rows.shape[2])
        return batch_size, columns - 1, vocab_size

    def arguments(self) -> dict[str, Any]:
        """All arguments, by the names that the public functions give them."""
        kind = "probs" if self.filters is None else "logits"
        return {
            "draft_tokens": self.draft_tokens,
            f"draft_{kind}": self.draft_rows,
            f"target_{kind}": self.target_rows,
            "seed": self.seed,
            "position": self.position,
            **(self.filters or {}),
        }

    def tensors(self) -> dict[str, Tensor]:
        """The arguments that are tensors, by name."""
        return {name: x for name, x in self.arguments().items() if isinstance(x, Tensor)}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same call with each tensor changed."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        fields = {f.name: changed(getattr(self, f.name)) for f in dataclasses.fields(self)}
        if self.filters is not None:
            fields["filters"] = {name: changed(value) for name, value in self.filters.items()}
        return type(self)(**fields)

    def from_logits(self, logits: bool = True) -> Self:
        """The call for a sampler that begins with logits: the logarithms of the probabilities.

        The same call if ``logits`` is false, or if it has logits already.
        """
        if not logits or self.filters is not None:
            return self
        draft = None if self.draft_rows is None else self.draft_rows.log()
        rows = self.target_rows.log()
        return dataclasses.replace(self, draft_rows=draft, target_rows=rows, filters={})

    def rows(self, index: Tensor) -> Self:
        """The call for some of the requests only; seed and position must be tensors."""
        return self.map(lambda tensor: tensor[index])

    def per_request(self) -> Self:
        """The same call with one seed and one position per request."""
        request = torch.arange(self.shape[0], device=self.target_rows.device)
        seed = self.seed if isinstance(self.seed, Tensor) else request + self.seed
        position = self.position
        if not isinstance(position, Tensor):
            position = request * 0 + position
        return dataclasses.replace(self, seed=seed, position=position)

    def code(self) -> str:
        """Python that makes the call's arguments; the shapes alone if they are large."""
        lines = []
        for name, value in self.arguments().items():
            if isinstance(value, Tensor):
                text = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
                if value.numel() <= 64:
                    values = str(value.tolist()).replace("nan", "NAN").replace("inf", "INF")
                    text = f"torch.tensor({values}, dtype={value.dtype})"
                    text = text.replace("NAN", "torch.nan").replace("INF", "torch.inf")
                    if value.numel() == 0:
                        text = f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
            else:
                text = repr(value)
            lines.append(f"{name} = {text}")
        return "\n".join(lines)


def result_of(returned: Any, draft_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B, K+1] and num_accepted [B] of what a sampler returned.

    Raises:
        TypeError: it is something else.
    """
    batch_size, spec_len = draft_tokens.shape
    expected = [(batch_size, spec_len + 1), (batch_size,)]
    pair = (getattr(returned, "tokens", None), getattr(returned, "num_accepted", None))
    if pair == (None, None) and isinstance(returned, tuple | list) and len(returned) == 2:
        pair = (returned[0], returned[1])
    got = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in pair]
    if got != expected:
        shown = [list(g) if isinstance(g, tuple) else g for g in got]
        raise TypeError(
            f"the sampler's result: expected tensors tokens {list(expected[0])} and num_accepted "
            f"{list(expected[1])}, got {shown[0]} and {shown[1]}"
        )
    return pair  # type: ignore[return-value]


def on_probabilities(sampler: Sampler) -> Sampler:
    """A sampler from logits as one of probabilities, which are given to it as logarithms."""

    def run(
        draft_tokens: Tensor, draft_probs: Tensor | None, target_probs: Tensor, **options: Any
    ) -> Any:
        draft_logits = None if draft_probs is None else draft_probs.log()
        return sampler(draft_tokens, draft_logits, target_probs.log(), **options)

    return run
