"""Random calls of samplers that begin with logits: rows, masks and filters of every sort."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rsk.check.calls import FILTERS, Call
from rsk.check.recipes import Pair, Recipe, random_choices
from rsk.sampler.logits import probabilities


def _like_a_model(g: torch.Generator, v: int) -> Pair:
    p = 4 * torch.randn(v, generator=g)
    return p + torch.randn(v, generator=g), p


def _near(g: torch.Generator, v: int) -> Pair:
    p = 3 * torch.randn(v, generator=g)
    return p + 0.02 * torch.randn(v, generator=g), p


def _equal(g: torch.Generator, v: int) -> Pair:
    return (p := 3 * torch.randn(v, generator=g)), p.clone()


def _unrelated(g: torch.Generator, v: int) -> Pair:
    q, p = (4 * torch.randn(v, generator=g) for _ in range(2))
    return q, p


def _flat(g: torch.Generator, v: int) -> Pair:
    return torch.zeros(v), torch.full((v,), float(torch.randn((), generator=g)))


def _tied(g: torch.Generator, v: int) -> Pair:
    """Few values, each many times, and both zeros among them."""
    p = torch.randint(-2, 3, (v,), generator=g) * 0.5
    p = torch.where(torch.rand(v, generator=g) < 0.5, p, -p)
    return torch.where(torch.rand(v, generator=g) < 0.9, p, 0.5), p


def _masked(g: torch.Generator, v: int) -> Pair:
    rows = torch.stack(_like_a_model(g, v))
    rows[torch.rand(2, v, generator=g) < 0.6] = -math.inf
    return rows[0], rows[1]


def _one_token(g: torch.Generator, v: int) -> Pair:
    rows = torch.full((2, v), -math.inf)
    rows[[0, 1], torch.randint(v, (2,), generator=g)] = 7.0
    return rows[0], rows[1]


def _long_tail(g: torch.Generator, v: int) -> Pair:
    """One likely token, and others that only together weigh something."""
    rows = torch.randn(2, v, generator=g) * 0.1 - math.log(v)
    rows[:, int(torch.randint(v, (1,), generator=g))] = 1.0
    return rows[0], rows[1]


def _at_the_end_of_the_range(g: torch.Generator, v: int) -> Pair:
    """About 42 powers of two below the maximum, where weights become 0."""
    rows = torch.randn(2, v, generator=g) - 42 * math.log(2)
    rows[:, int(torch.randint(v, (1,), generator=g))] = 0.0
    return rows[0], rows[1]


def _huge(g: torch.Generator, v: int) -> Pair:
    q, p = (torch.randn(v, generator=g) * 1e4 for _ in range(2))
    return q, torch.where(torch.rand(v, generator=g) < 0.2, p.sign() * 3e38, p)


def _subnormal(g: torch.Generator, v: int) -> Pair:
    q, p = (torch.randn(v, generator=g) * 2.0**-135 for _ in range(2))
    return q, p


def _broken(g: torch.Generator, v: int) -> Pair:
    rows = torch.stack(_like_a_model(g, v))
    value = [torch.nan, torch.inf][int(torch.randint(2, (1,), generator=g))]
    rows.view(-1)[torch.randint(2 * v, (1,), generator=g)] = value
    return rows[0], rows[1]


def _ruled_out(g: torch.Generator, v: int) -> Pair:
    return _like_a_model(g, v)[0], torch.full((v,), -math.inf)


LOGIT_ROWS: Mapping[str, Callable[[torch.Generator, int], Pair]] = MappingProxyType(
    {
        "like a model": _like_a_model,
        "near": _near,
        "equal": _equal,
        "unrelated": _unrelated,
        "flat": _flat,
        "tied": _tied,
        "masked": _masked,
        "one token": _one_token,
        "long tail": _long_tail,
        "end of the range": _at_the_end_of_the_range,
        "huge": _huge,
        "subnormal": _subnormal,
        "broken": _broken,
        "ruled out": _ruled_out,
    }
)
"""Sorts of rows: name to a function of a generator and V that makes a draft and a target row."""

Value = float | tuple[float, ...]


@dataclass(frozen=True, repr=False)
class LogitRecipe(Recipe):
    """How to make a call with logits.

    A filter is a number for all, or a tuple: then it becomes a tensor [B], and request b has the
    entry b modulo their number.
    """

    rows: tuple[str, ...] = ("like a model",)
    temperature: Value = 1.0
    top_k: int | tuple[int, ...] = 0
    top_p: Value = 1.0
    min_p: Value = 0.0

    def make(self, device: str | torch.device = "cpu") -> Call:
        """The call."""
        filters = {
            name: self._filter(name, getattr(self, name))
            for name, off in FILTERS.items()
            if getattr(self, name) != off
        }
        call = dataclasses.replace(super().make(), filters=filters)
        return call if str(device) == "cpu" else call.map(lambda tensor: tensor.to(device))

    def _row(self, b: int) -> Callable[[torch.Generator, int], Pair]:
        return LOGIT_ROWS[self.rows[b % len(self.rows)]]

    def _weights(self, draft: Tensor) -> Tensor:
        filters = {name: self._filter(name, getattr(self, name)) for name in FILTERS}
        return probabilities(draft, backend="vectorized", **filters).nan_to_num(0)

    def _filter(self, name: str, value: Any) -> Any:
        if not isinstance(value, tuple):
            return value
        each = (value * self.batch_size)[: self.batch_size]
        dtype = self.token_dtype if name == "top_k" else torch.float32
        tensor = torch.tensor(each, dtype=dtype)
        # Others lie between them, as in a table with one row for each request.
        spread = torch.full((self.batch_size, 3), 7, dtype=dtype)
        spread[:, 1] = tensor
        return tensor if self.layout == "contiguous" else spread[:, 1]


_TEMPERATURES = (0.0, 2.0**-20, 0.1, 0.7, 0.8, 1.0, 1.3, 5.0, 2.0**20)
_SHARES = (0.0, 2.0**-149, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 2.0**-24, 1.0)
_RELATIVE = (0.0, 1e-6, 0.01, 0.05, 0.3, 1.0)
_OUT_OF_RANGE = (math.nan, math.inf, -1.0, 2.0**-21, 1.5)


def random_logit_recipe(rng: random.Random, max_elements: int = 1 << 15) -> LogitRecipe:
    """A recipe for a call of at most ``max_elements`` target logits."""
    choices = random_choices(rng, max_elements, tuple(LOGIT_ROWS), mixed=True)
    vocab_size = choices["vocab_size"]
    ks = (1, 2, 3, 20, 50, vocab_size - 1, vocab_size, vocab_size + 1, 2**31 - 1)
    values: dict[str, tuple[float, ...]] = {
        "temperature": _TEMPERATURES,
        "top_k": tuple(max(k, 0) for k in ks),
        "top_p": _SHARES,
        "min_p": _RELATIVE,
    }
    wild = rng.random() < 0.15
    for name, some in values.items():
        how = rng.random()
        if how < 0.4:
            continue
        if how < 0.7:
            choices[name] = rng.choice(some)
            continue
        invalid = (-1,) if name == "top_k" else _OUT_OF_RANGE
        off = (FILTERS[name],)
        each = rng.choices((*some, *off * 3, *(invalid if wild else ())), k=rng.choice((1, 2, 5)))
        choices[name] = tuple(each)
    return LogitRecipe(**choices)
