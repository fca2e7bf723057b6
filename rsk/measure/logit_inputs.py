"""Inputs of the sampler that begins with logits, to be timed: like those of two language models."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rsk.base import machine
from rsk.sampler import logits

ACCEPTANCE = 0.7
SPEC_LEN = 4
MAX_SETS = 64


@dataclass(frozen=True, kw_only=True)
class Ways:
    """What turns logits into probabilities, the same for all requests."""

    temperature: float
    top_k: int
    top_p: float

    @property
    def arguments(self) -> dict[str, Any]:
        """As keywords of :func:`rsk.rejection_sample_from_logits`."""
        return dataclasses.asdict(self)


TEMPERATURE = Ways(temperature=0.8, top_k=0, top_p=1.0)
FILTERED = Ways(temperature=0.8, top_k=50, top_p=0.9)


class LogitInputs(NamedTuple):
    """A call's tensors, and the laws of the draft's rows."""

    draft_tokens: Tensor
    draft_logits: Tensor
    target_logits: Tensor
    draft_laws: Tensor


def model_logits(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Logits like a language model's, float32: a broad bulk, and 40 tokens that stand out."""
    device = generator.device
    x = 2 * torch.randn(*shape, generator=generator, device=device)
    places = torch.randint(shape[-1], (*shape[:-1], 40), generator=generator, device=device)
    slope = 0.5 + torch.rand(*shape[:-1], 1, generator=generator, device=device)
    rise = 13 - 2.2 * slope * torch.arange(40.0, device=device).log1p()
    return x.scatter_(
        -1, places, rise + torch.randn(rise.shape, generator=generator, device=device)
    )


def make_inputs(
    batch_size: int,
    vocab_size: int,
    ways: Ways,
    *,
    noise: float,
    spec_len: int = SPEC_LEN,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LogitInputs:
    """Logits of a target and of a draft that differs by noise, and tokens drawn from the draft."""
    generator = torch.Generator(device).manual_seed(seed)
    target = torch.empty(batch_size, spec_len + 1, vocab_size, dtype=dtype, device=device)
    draft = torch.empty(batch_size, spec_len, vocab_size, dtype=dtype, device=device)
    for some, of_draft in zip(target.split(16), draft.split(16), strict=True):
        x = model_logits(some.shape, generator)
        some.copy_(x)
        other = torch.randn(of_draft.shape, generator=generator, device=device)
        of_draft.copy_(x[:, :spec_len] + noise * other)
    return draw(draft, target, ways, seed=seed + 1)


def draw(draft_logits: Tensor, target_logits: Tensor, ways: Ways, *, seed: int) -> LogitInputs:
    """Inputs of which the draft tokens, of one position at least, are drawn from the draft."""
    drawn = [
        logits.sample_from_logits(
            draft_logits[:, k], **ways.arguments, seed=seed, position=k, return_laws=True
        )
        for k in range(draft_logits.shape[1])
    ]
    tokens, laws = (torch.stack(parts, 1) for parts in zip(*drawn, strict=True))
    return LogitInputs(tokens, draft_logits, target_logits, laws)


@functools.cache
def noise_for(ways: Ways, vocab_size: int, device: str, acceptance: float = ACCEPTANCE) -> float:
    """How far the draft is to be from the target for this acceptance rate, by bisection."""
    low, high = 0.0, 4.0
    for _ in range(9):
        noise = (low + high) / 2
        inputs = make_inputs(16, vocab_size, ways, noise=noise, device=device, seed=5)
        q = logits.probabilities(inputs.draft_logits, **ways.arguments)
        p = logits.probabilities(inputs.target_logits, **ways.arguments)[:, :SPEC_LEN]
        if p.minimum(q).sum(-1).mean() > acceptance:
            low = noise
        else:
            high = noise
    return noise


def needed_bytes(inputs: LogitInputs, num_accepted: Tensor, draft_laws: bool) -> int:
    """Bytes of the rows that a call cannot do without, of the requests together.

    Of the target one row for each position reached. Of the draft one for each token judged, or,
    with its laws at hand, only the one that a residual is formed with.
    """
    target, draft = inputs.target_logits, inputs.draft_logits
    n = num_accepted.long()
    rejected = (n < draft.shape[1]).long()
    of_target = int((n + 1).sum()) * target.shape[2] * target.element_size()
    of_draft = rejected if draft_laws else n + rejected
    return of_target + int(of_draft.sum()) * draft.shape[2] * draft.element_size()


def mean_needed_bytes(
    sets: Sequence[LogitInputs], accepted: Sequence[Tensor], draft_laws: bool
) -> int:
    """:func:`needed_bytes` of a call, the mean over the outcomes of calls on the sets in rotation.

    Args:
        sets: of inputs.
        accepted: of each call int64 [B], as returned.
        draft_laws: whether the laws of the draft's rows were given.
    """
    pairs = zip(itertools.cycle(sets), accepted, strict=False)
    return round(statistics.fmean(needed_bytes(some, n, draft_laws) for some, n in pairs))


def make_sets(
    batch_size: int, vocab_size: int, ways: Ways, dtype: torch.dtype, device: torch.device
) -> list[LogitInputs]:
    """As many sets of inputs as keep a cache from holding what the next call reads."""
    noise = noise_for(ways, min(vocab_size, 32000), str(device))
    row_bytes = vocab_size * dtype.itemsize
    cache = machine.last_level_cache(device) if device.type == "cuda" else 0
    count = min(MAX_SETS, math.ceil(4 * cache / (batch_size * SPEC_LEN * row_bytes)) or 1)
    make = functools.partial(make_inputs, batch_size, vocab_size, ways, noise=noise, dtype=dtype)
    return [make(device=device, seed=100 * i) for i in range(count)]
