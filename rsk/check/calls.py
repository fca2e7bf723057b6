"""Calls of a sampler: their arguments as one value, random ones of every sort, smaller ones."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

Sampler = Callable[..., Any]
"""Anything with the arguments of :func:`rsk.rejection_sample`, backend and validate aside."""


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call of a sampler."""

    draft_tokens: Tensor
    draft_probs: Tensor | None
    target_probs: Tensor
    seed: int | Tensor = 0
    position: int | Tensor = 0

    def run(self, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Tokens [B, K+1] and num_accepted [B] of a sampler.

        Raises:
            TypeError: the sampler returns something else.
        """
        returned = sampler(
            self.draft_tokens,
            self.draft_probs,
            self.target_probs,
            seed=self.seed,
            position=self.position,
        )
        return result_of(returned, self.draft_tokens)

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, K, V."""
        batch_size, columns, vocab_size = self.target_probs.shape
        return batch_size, columns - 1, vocab_size

    def tensors(self) -> dict[str, Tensor]:
        """The arguments that are tensors, by name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, Tensor)}

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same call with each tensor changed."""
        changed = {name: change(tensor) for name, tensor in self.tensors().items()}
        return dataclasses.replace(self, **changed)

    def rows(self, index: Tensor) -> Self:
        """The call for some of the requests only; seed and position must be tensors."""
        return self.map(lambda tensor: tensor[index])

    def per_request(self) -> Self:
        """The same call with one seed and one position per request."""
        request = torch.arange(self.shape[0], device=self.target_probs.device)
        seed = self.seed if isinstance(self.seed, Tensor) else request + self.seed
        position = self.position
        if not isinstance(position, Tensor):
            position = request * 0 + position
        return dataclasses.replace(self, seed=seed, position=position)

    def code(self) -> str:
        """Python that makes the call's arguments; the shapes alone if they are large."""
        lines = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
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
            lines.append(f"{f.name} = {text}")
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


# --- random calls -------------------------------------------------------------------------------

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
    """``draft_probs`` is ``None``."""
    more_columns: int = 0
    """How many columns the draft has more than the target; fewer if negative."""
    draft_dtype: torch.dtype | None = None
    """``None``: the target's."""
    seed: int = 0
    position: int = 0
    per_request: bool = False
    """Seed and position are tensors [B], each far from the next; else they are these ints."""
    contents: int = 0
    """Seed of the random contents."""

    def __repr__(self) -> str:
        """What differs from the defaults, which is what matters."""
        fields = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        changed = [f"{name}={value!r}" for name, value, default in fields if value != default]
        return f"Recipe({', '.join(changed)})"

    def make(self, device: str | torch.device = "cpu") -> Call:
        """The call."""
        g = torch.Generator().manual_seed(self.contents)
        batch_size, spec_len, vocab_size = self.batch_size, self.spec_len, self.vocab_size
        draft_size = vocab_size if self.certain else max(1, vocab_size + self.more_columns)
        columns = max(vocab_size, draft_size)
        draft = torch.empty(batch_size, spec_len + 1, columns)
        target = torch.empty(batch_size, spec_len + 1, columns)
        for b in range(batch_size):
            sort = ROWS[self.rows[b % len(self.rows)]]
            for k in range(spec_len + 1):
                draft[b, k], target[b, k] = sort(g, columns)
        draft = draft[:, :-1, :draft_size].to(self.draft_dtype or self.dtype).contiguous()
        target = target[..., :vocab_size].to(self.dtype).contiguous()
        tokens = self._tokens(g, draft, columns)

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

    def _tokens(self, g: torch.Generator, draft: Tensor, columns: int) -> Tensor:
        """Draft tokens [B, K]: mostly drawn from q."""
        batch_size, spec_len, _ = draft.shape
        weights = draft.float().nan_to_num(0, 0, 0).clamp(0, 1) + 1e-12
        race = torch.empty_like(weights).exponential_(generator=g)
        tokens = (race / weights).argmin(2) if weights.numel() else weights[..., 0].long()
        shape = tokens.shape
        anything = torch.randint(columns, shape, generator=g)
        tokens = torch.where(torch.rand(shape, generator=g) < 0.1, anything, tokens)
        if self.wild:
            outside = torch.randint(3, shape, generator=g)
            outside = torch.where(outside == 0, -2, columns - 1 + outside)
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
        rng: what it depends on.
        max_elements: about so many; the draft may have a few more.
        mixed: whether the draft may have another vocabulary and another dtype than the target.
    """
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
    recipe = Recipe(
        batch_size=batch_size,
        spec_len=spec_len,
        vocab_size=vocab_size,
        rows=tuple(rng.choices(list(ROWS), k=rng.choice((1, 3)))),
        dtype=rng.choice(DTYPES),
        token_dtype=rng.choice((torch.int64, torch.int64, torch.int32)),
        layout=rng.choice(LAYOUTS),
        ragged=rng.random() < 0.3,
        wild=rng.random() < 0.1,
        certain=rng.random() < 0.2,
        seed=seed,
        position=position,
        per_request=rng.random() < 0.5,
        contents=rng.randrange(2**31),
    )
    if not mixed or rng.random() < 0.6:
        return recipe
    more, dtype = rng.choice((-130, -8, -1, 0, 1, 8, 130)), rng.choice(DTYPES)
    return dataclasses.replace(recipe, more_columns=more, draft_dtype=dtype)


# --- smaller calls ------------------------------------------------------------------------------


def shrink(call: Call, fails: Callable[[Call], bool], seconds: float = 5.0) -> Call:
    """The smallest call found that still fails: fewer requests, positions and words, plain values.

    Args:
        call: one that fails.
        fails: whether a call does.
        seconds: when to give up looking for a smaller one.
    """
    end = time.monotonic() + seconds
    call = call.per_request().map(torch.clone)
    while True:
        for smaller in _smaller(call):
            if time.monotonic() > end:
                return call
            if fails(smaller):
                call = smaller
                break
        else:
            return call


def _smaller(call: Call) -> Iterator[Call]:
    """Calls that are each simpler than this one in some way, the boldest first."""
    batch_size, spec_len, vocab_size = call.shape
    replace = dataclasses.replace
    if batch_size > 1:
        for half in torch.arange(batch_size).chunk(2):
            yield call.rows(half)
    for length in dict.fromkeys((0, spec_len // 2, spec_len - 1)):
        if 0 <= length < spec_len:
            yield replace(
                call,
                draft_tokens=call.draft_tokens[:, :length],
                draft_probs=None if call.draft_probs is None else call.draft_probs[:, :length],
                target_probs=call.target_probs[:, : length + 1],
            )
    if spec_len:
        yield replace(
            call,
            draft_tokens=call.draft_tokens[:, 1:],
            draft_probs=None if call.draft_probs is None else call.draft_probs[:, 1:],
            target_probs=call.target_probs[:, 1:],
            position=call.position + 1,
        )
    if call.draft_probs is not None and call.draft_probs.shape[2] != vocab_size:
        columns = max(call.draft_probs.shape[2], vocab_size)
        padded = {
            name: F.pad(probs, (0, columns - probs.shape[2]))
            for name, probs in call.tensors().items()
            if name.endswith("probs")
        }
        yield replace(call, **padded)
    else:
        yield from _fewer_words(call)
    if any(t.dtype in (torch.bfloat16, torch.float16) for t in call.tensors().values()):
        widened = {"target_probs": call.target_probs.float()}
        if call.draft_probs is not None:
            widened["draft_probs"] = call.draft_probs.float()
        yield replace(call, **widened)
    if call.draft_tokens.dtype != torch.int64:
        yield replace(call, draft_tokens=call.draft_tokens.long())
    if call.draft_probs is not None:
        yield replace(call, draft_probs=None)
    for name in ("position", "seed"):
        value = getattr(call, name)
        if bool((value != 0).any()):
            yield replace(call, **{name: torch.zeros_like(value)})
            if bool((value.abs() > 9).any()):
                for small in range(1, 10):
                    yield replace(call, **{name: torch.full_like(value, small)})
    if batch_size * (spec_len + 1) * vocab_size <= 64:
        yield from _plainer_values(call)


def _fewer_words(call: Call) -> Iterator[Call]:
    """Leave out a run of words that no draft token names."""
    vocab_size = call.shape[2]
    named = set(call.draft_tokens.flatten().tolist())
    size = vocab_size // 2
    while size >= 1:
        for start in range(0, vocab_size - size + 1, size):
            if vocab_size - size < 1 or any(start <= d < start + size for d in named):
                continue
            keep = torch.ones(vocab_size, dtype=torch.bool)
            keep[start : start + size] = False
            drafts = call.draft_tokens
            yield dataclasses.replace(
                call,
                draft_tokens=torch.where(drafts >= start + size, drafts - size, drafts),
                draft_probs=None if call.draft_probs is None else call.draft_probs[..., keep],
                target_probs=call.target_probs[..., keep],
            )
        size //= 2


_PLAIN = (0.0, 1.0, 0.5, 0.25, 0.125)


def _plainer_values(call: Call) -> Iterator[Call]:
    """Replace a value, everywhere it occurs or in one place, by a plainer one."""
    for name in ("target_probs", "draft_probs"):
        probs = getattr(call, name)
        if probs is None:
            continue
        values = probs.flatten().tolist()
        places = [probs == value for value in dict.fromkeys(values) if values.count(value) > 1]
        each = torch.arange(len(values), device=probs.device).view(probs.shape)
        places += [each == i for i in range(len(values))]
        for place in places:
            value = float(probs[place][0])
            for plain in _PLAIN[: _PLAIN.index(value) if value in _PLAIN else None]:
                yield dataclasses.replace(call, **{name: probs.masked_fill(place, plain)})
