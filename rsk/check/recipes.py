"""Random calls of every sort: recipes, each of which makes the same call again."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsk.check.calls import Call

Pair = tuple[Tensor, Tensor]
"""A draft row and a target row, float32 [V]."""


def _dense(g: torch.Generator, v: int) -> Tensor:
    row = torch.rand(v, generator=g) ** 8 + 1e-9
    return row / row.sum()


def _overlapping(g: torch.Generator, v: int) -> Pair:
    p = _dense(g, v)
    return p.lerp(_dense(g, v), 0.3), p


def _near(g: torch.Generator, v: int) -> Pair:
    p = _dense(g, v)
    return p * (1 + 0.02 * torch.randn(v, generator=g)), p


def _equal(g: torch.Generator, v: int) -> Pair:
    return (p := _dense(g, v)), p.clone()


def _disjoint(g: torch.Generator, v: int) -> Pair:
    side = torch.rand(v, generator=g) < 0.5
    return _dense(g, v) * side, _dense(g, v) * ~side


def _one_hot(g: torch.Generator, v: int) -> Pair:
    q, p = (torch.randint(v, (1,), generator=g) for _ in range(2))
    return F.one_hot(q, v)[0].float(), F.one_hot(p, v)[0].float()


def _uniform(g: torch.Generator, v: int) -> Pair:
    del g
    return torch.full((v,), 1 / v), torch.full((v,), 1 / v)


def _sparse(g: torch.Generator, v: int) -> Pair:
    q, p = (_dense(g, v) * (torch.rand(v, generator=g) < 0.2) for _ in range(2))
    return q, p


def _fixed_point_unit(g: torch.Generator, v: int) -> Pair:
    """Multiples of a quarter of the fixed point's unit: all, some or none of the weight is lost."""
    q, p = (torch.randint(9, (v,), generator=g) * 2.0**-44 for _ in range(2))
    return q, p


def _subnormal(g: torch.Generator, v: int) -> Pair:
    q, p = (torch.rand(v, generator=g) * 2.0**-130 for _ in range(2))
    return q, torch.where(torch.rand(v, generator=g) < 0.3, _dense(g, v), p)


def _unnormalised(g: torch.Generator, v: int) -> Pair:
    q, p = (torch.rand(v, generator=g) * 3 for _ in range(2))
    return q, p


def _negative(g: torch.Generator, v: int) -> Pair:
    q, p = (torch.randn(v, generator=g) for _ in range(2))
    return q, p


def _broken(g: torch.Generator, v: int) -> Pair:
    rows = torch.stack(_overlapping(g, v))
    value = [torch.nan, torch.inf, -torch.inf][int(torch.randint(3, (1,), generator=g))]
    rows.view(-1)[torch.randint(2 * v, (1,), generator=g)] = value
    return rows[0], rows[1]


def _empty(g: torch.Generator, v: int) -> Pair:
    return _dense(g, v), torch.zeros(v)


ROWS: Mapping[str, Callable[[torch.Generator, int], Pair]] = MappingProxyType(
    {
        "overlapping": _overlapping,
        "near": _near,
        "equal": _equal,
        "disjoint": _disjoint,
        "one-hot": _one_hot,
        "uniform": _uniform,
        "sparse": _sparse,
        "fixed-point unit": _fixed_point_unit,
        "subnormal": _subnormal,
        "unnormalised": _unnormalised,
        "negative": _negative,
        "broken": _broken,
        "empty": _empty,
    }
)
"""Sorts of rows: name to a function of a generator and V that makes a draft and a target row."""

LAYOUTS = ("contiguous", "padded", "transposed", "misaligned", "shared")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXTREME_COINS = (584198681, 477644333)
"""Seeds whose coin at position 0 is exactly 0, and the largest there is."""


@dataclass(frozen=True, repr=False)
class Recipe:
    """How to make a call; the same recipe makes the same call."""

    batch_size: int = 1
    spec_len: int = 1
    vocab_size: int = 2
    rows: tuple[str, ...] = ("overlapping",)
    """Sorts of rows; request b has the sort b modulo their number."""
    dtype: torch.dtype = torch.float32
    token_dtype: torch.dtype = torch.int64
    layout: str = "contiguous"
    ragged: bool = False
    wild: bool = False
    """Some draft tokens lie outside the vocabulary."""
    certain: bool = False
    """The draft has no rows."""
    seed: int = 0
    position: int = 0
    per_request: bool = False
    """Seed and position are tensors [B], each far from the next; else they are these ints."""
    contents: int = 0
    """Seed of the random contents."""
    draft_vocab_size: int | None = None
    draft_dtype: torch.dtype | None = None
    """``None``: as the target's."""

    def __repr__(self) -> str:
        """What differs from the defaults, which is what matters."""
        fields = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        changed = [f"{name}={value!r}" for name, value, default in fields if value != default]
        return f"{type(self).__name__}({', '.join(changed)})"

    def make(self, device: str | torch.device = "cpu") -> Call:
        """The call."""
        g = torch.Generator().manual_seed(self.contents)
        batch_size, spec_len, vocab_size = self.batch_size, self.spec_len, self.vocab_size
        draft_vocab_size = self.draft_vocab_size or vocab_size
        larger = max(vocab_size, draft_vocab_size)
        draft = torch.empty(batch_size, spec_len + 1, larger)
        target = torch.empty(batch_size, spec_len + 1, larger)
        for b in range(batch_size):
            for k in range(spec_len + 1):
                draft[b, k], target[b, k] = self._row(b)(g, larger)
        target = target[..., :vocab_size].contiguous().to(self.dtype)
        draft = draft[:, :-1, :draft_vocab_size].contiguous().to(self.draft_dtype or self.dtype)
        tokens = self._tokens(g, self._weights(draft), larger)

        fraction = torch.arange(batch_size)
        seed: int | Tensor = self.seed
        position: int | Tensor = self.position
        if self.per_request:
            seed, position = self.seed + fraction * 0x1234567, self.position + fraction * 1009
        call = Call(
            self._lay_out(tokens.to(self.token_dtype), 7),
            None if self.certain else self._lay_out(draft, torch.nan),
            self._lay_out(target, torch.nan),
            seed,
            position,
        )
        return call if str(device) == "cpu" else call.map(lambda tensor: tensor.to(device))

    def _row(self, b: int) -> Callable[[torch.Generator, int], Pair]:
        """What makes the rows of request b."""
        return ROWS[self.rows[b % len(self.rows)]]

    def _weights(self, draft: Tensor) -> Tensor:
        """Probabilities to draw draft tokens with, whatever the rows hold."""
        return draft.float().nan_to_num(0, 0, 0).clamp(0, 1)

    def _tokens(self, g: torch.Generator, weights: Tensor, vocab_size: int) -> Tensor:
        """Draft tokens [B, K]: mostly drawn from q."""
        batch_size, spec_len, _ = weights.shape
        weights = weights + 1e-12
        race = torch.empty_like(weights).exponential_(generator=g)
        tokens = (race / weights).argmin(2) if weights.numel() else weights[..., 0].long()
        shape = tokens.shape
        anything = torch.randint(vocab_size, shape, generator=g)
        tokens = torch.where(torch.rand(shape, generator=g) < 0.1, anything, tokens)
        if self.wild:
            outside = torch.randint(3, shape, generator=g)
            outside = torch.where(outside == 0, -2, vocab_size - 1 + outside)
            tokens = torch.where(torch.rand(shape, generator=g) < 0.2, outside, tokens)
        if self.ragged:  # what comes behind the first -1 has no influence
            length = torch.randint(spec_len + 1, (batch_size, 1), generator=g)
            tokens = torch.where(torch.arange(spec_len) == length, -1, tokens)
        return tokens

    def _lay_out(self, tensor: Tensor, filling: float) -> Tensor:
        """The same values at other addresses, beside others that nothing may read."""
        if self.layout == "padded":
            return F.pad(tensor, (3, 6), value=filling)[..., 3:-6]
        if self.layout == "transposed" and tensor.dim() == 3:
            return tensor.transpose(0, 1).contiguous().transpose(0, 1)
        if self.layout == "misaligned":  # by one element
            flat = F.pad(tensor.reshape(-1), (1, 0), value=filling)
            return flat[1:].view(tensor.shape)
        if self.layout == "shared" and tensor.dim() == 3 and len(tensor):
            return tensor[:1].expand_as(tensor)
        return tensor


_SPEC_LENS = (0, 1, 1, 2, 3, 4, 5, 8, 16, 128)
_VOCAB_SIZES = (
    *(1, 2, 3, 5, 8, 17, 31, 32, 33, 64, 100, 129, 257, 513, 1025, 4097, 9001, 32000, 128256),
)


def random_recipe(
    rng: random.Random, max_elements: int = 1 << 15, *, mixed: bool = False
) -> Recipe:
    """A recipe for a call of at most ``max_elements`` target probabilities.

    Args:
        rng: decides.
        max_elements: B times K+1 times V.
        mixed: whether draft and target may have different dtypes and vocabularies.
    """
    return Recipe(**random_choices(rng, max_elements, tuple(ROWS), mixed))


def random_choices(
    rng: random.Random, max_elements: int, rows: tuple[str, ...], mixed: bool
) -> dict[str, Any]:
    """What a recipe consists of, with these sorts of rows."""
    while True:
        batch_size, spec_len = rng.choice((0, 1, 1, 2, 3, 4, 7)), rng.choice(_SPEC_LENS)
        vocab_size = rng.choice(_VOCAB_SIZES)
        if max(batch_size, 1) * (spec_len + 1) * vocab_size <= max_elements:
            break
    seed, position = rng.randrange(-(2**63), 2**63), rng.choice((0, rng.randrange(2**40)))
    extreme = rng.random()
    if extreme < 0.1:
        seed, position = rng.choice(EXTREME_COINS), 0
    elif extreme < 0.2:
        seed, position = rng.choice((-(2**63), 2**63 - 2)), rng.choice((-(2**63), 2**63 - 1))
    choices: dict[str, Any] = {
        "batch_size": batch_size,
        "spec_len": spec_len,
        "vocab_size": vocab_size,
        "rows": tuple(rng.choices(rows, k=rng.choice((1, 3)))),
        "dtype": rng.choice(DTYPES),
        "token_dtype": rng.choice((torch.int64, torch.int64, torch.int32)),
        "layout": rng.choice(LAYOUTS),
        "ragged": rng.random() < 0.3,
        "wild": rng.random() < 0.1,
        "certain": rng.random() < 0.2,
        "seed": seed,
        "position": position,
        "per_request": rng.random() < 0.5,
        "contents": rng.randrange(2**31),
    }
    if mixed and rng.random() < 0.4:
        difference = rng.choice((-9, -1, 1, 7, 64))
        choices["draft_vocab_size"] = max(vocab_size + difference, 1)
    if mixed and rng.random() < 0.4:
        choices["draft_dtype"] = rng.choice(DTYPES)
    return choices
