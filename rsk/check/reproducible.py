"""Does a request's output depend on nothing but the request, and on no random number twice?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from rsk.base.machine import pinned_threads
from rsk.check.calls import Call, Sampler, on_probabilities
from rsk.check.recipes import Recipe
from rsk.sampler.api import sample

BITS = 20
"""How much of each random number is read out."""

FIRST_POSITION = 1000
MAX_COINCIDENCES = 2
"""Among some 1000 pairs of independent 20-bit numbers, more than this is no coincidence: the
probability is below 1e-9."""


def assert_reproducible(
    sampler: Sampler,
    *,
    from_logits: bool = False,
    draw: Callable[..., Tensor] | None = sample,
    num_seeds: int = 16,
    device: str | torch.device = "cpu",
) -> None:
    """Raise if the same seed and position can give other tokens, or a random number serves twice.

    The same requests are sent again: twice, in another order, among other and among broken
    neighbours, one by one, with another number of threads. Then each random number is read out from
    outside, bit by bit: with probability x for one of two outcomes, the outcome tells whether the
    number is below x. No two decisions may share one, and a decision's number must belong to its
    position, not to the call that it is made in.

    Args:
        sampler: called as :func:`rsk.rejection_sample`, without ``backend``.
        from_logits: it is called as :func:`rsk.rejection_sample_from_logits` instead.
        draw: what draws the drafts, called as :func:`rsk.sample`; ``None``: leave it out.
        num_seeds: how many requests to read the random numbers of: 2 for what is very slow.
        device: where the sampler runs.

    Raises:
        AssertionError: the message says what the output depends on, or which numbers are shared.
    """
    if from_logits:
        sampler = on_probabilities(sampler)
    _check_batches(sampler, device)
    _check_numbers(read_numbers(sampler, draw, num_seeds, device))


# --- the batch does not matter


def _check_batches(sampler: Sampler, device: str | torch.device) -> None:
    rows = ("overlapping", "near", "sparse", "equal")
    call = Recipe(
        batch_size=24, spec_len=4, vocab_size=61, rows=rows, ragged=True, per_request=True, seed=77
    ).make(device)
    expected = call.run(sampler)

    def same(what: str, other: Call, index: Tensor | slice = slice(None)) -> None:
        """Compare the requests ``index`` of the original with the first ones of another call."""
        got = other.run(sampler)
        wanted = [tensor[index] for tensor in expected]
        fine = all(torch.equal(w, g[: len(w)]) for w, g in zip(wanted, got, strict=True))
        assert fine, f"not reproducible: the result depends on {what}"

    same("when it is computed: the same call returns something else the second time", call)
    # The slot stays, the neighbours change; then the slot changes.
    index = torch.arange(24, device=call.target_rows.device)
    broken = call.map(torch.clone)
    broken.target_rows[12:] = torch.nan
    same("the other requests in the batch", broken, slice(12))
    same("how many requests there are", call.rows(index[:7]), slice(7))
    same("the slot in the batch in which a request stands", call.rows(index.flip(0)), index.flip(0))
    for b in (0, 23):
        one = index[b : b + 1]
        same("the slot in the batch in which a request stands", call.rows(one), one)
    for threads in (1, 3):
        with pinned_threads(threads):
            same("the number of threads", call)

    ints = Recipe(batch_size=5, spec_len=3, vocab_size=20, seed=2**63 - 3, position=9).make(device)
    expected = ints.run(sampler)
    same("whether the seed is an int, or the tensor of int + 0, int + 1, ...", ints.per_request())


# --- random numbers are used once


Use = tuple[str, int]
"""A decision: what the random number is for, and at which position."""


def read_numbers(
    sampler: Sampler,
    draw: Callable[..., Tensor] | None,
    num_seeds: int,
    device: str | torch.device,
) -> dict[str, dict[Use, list[int]]]:
    """Read the random numbers from outside: by the way of reading, and by use, one per seed.

    The seeds are :func:`read_seeds`, the positions begin with ``FIRST_POSITION``; a number is its
    leading ``BITS`` bits.
    """
    seeds = read_seeds(num_seeds).to(device)
    spec_len = 4
    start = FIRST_POSITION
    numbers: dict[str, dict[Use, list[int]]] = {"one call": {}, "a later call": {}, "a bonus": {}}
    for k in range(spec_len):
        at = start + k
        one, later = numbers["one call"], numbers["a later call"]
        one["coin", at] = _read(_coin_reader(sampler, seeds, start, k, spec_len))
        one["sample", at] = _read(_sample_reader(sampler, seeds, start, k, spec_len))
        later["coin", at] = _read(_coin_reader(sampler, seeds, at, 0, 1))
        later["sample", at] = _read(_sample_reader(sampler, seeds, at, 0, 1))
        numbers["a bonus"]["sample", at] = _read(_sample_reader(sampler, seeds, at, 0, 0))
        if draw is not None:
            one["draft", at] = _read(_draft_reader(draw, seeds, at))
    return numbers


def read_seeds(num_seeds: int) -> Tensor:
    """The seeds of the requests whose random numbers are read."""
    return torch.arange(num_seeds) * 0x9E3779B9 - 3


def _read(below: Callable[[Tensor], Tensor]) -> list[int]:
    """The leading bits of hidden uniform numbers [B], given whether each is below some x [B]."""
    known = torch.zeros_like(below(torch.zeros(1)), dtype=torch.int64)
    for bit in reversed(range(BITS)):
        tried = known + (1 << bit)
        known = torch.where(below(tried.float() * 2.0**-BITS), known, tried)
    return known.tolist()


def _call(
    seeds: Tensor, position: int, spec_len: int, rows: dict[int, tuple[Tensor, Tensor]]
) -> Call:
    """A call in which draft token 0 is accepted everywhere but for the given (q, p) rows [B, 3]."""
    size, device = len(seeds), seeds.device
    certain = torch.tensor([1.0, 0.0, 0.0], device=device)
    draft = certain.repeat(size, spec_len, 1)
    target = certain.repeat(size, spec_len + 1, 1)
    for k, (q, p) in rows.items():
        target[:, k] = p
        if k < spec_len:
            draft[:, k] = q
    drafts = torch.zeros(size, spec_len, dtype=torch.int64, device=device)
    positions = torch.full_like(seeds, position)
    return Call(drafts, draft, target, seeds, positions)


def _split(x: Tensor, seeds: Tensor, first: int, second: int) -> Tensor:
    """Rows [B, 3] with probability x for one word and the rest for another."""
    x = x.to(seeds.device).expand(len(seeds))
    row = torch.zeros(len(seeds), 3, device=seeds.device)
    row[:, first], row[:, second] = x, 1 - x
    return row


def _coin_reader(
    sampler: Sampler, seeds: Tensor, position: int, k: int, spec_len: int
) -> Callable[[Tensor], Tensor]:
    """Whether the coin of column k is below x: draft token 0 has q = 1 and p = x."""

    def below(x: Tensor) -> Tensor:
        q = _split(torch.ones(1), seeds, 0, 1)
        call = _call(seeds, position, spec_len, {k: (q, _split(x, seeds, 0, 1))})
        return call.run(sampler)[1] > k

    return below


def _sample_reader(
    sampler: Sampler, seeds: Tensor, position: int, k: int, spec_len: int
) -> Callable[[Tensor], Tensor]:
    """Whether the number that draws the token of column k is below x: token 1 has weight x.

    The draft token there is 0 with q = 1 and p = 0, so it is rejected; with spec_len = k there is
    no draft, and the token is a bonus token.
    """

    def below(x: Tensor) -> Tensor:
        q = _split(torch.ones(1), seeds, 0, 1)
        call = _call(seeds, position, spec_len, {k: (q, _split(x, seeds, 1, 2))})
        return call.run(sampler)[0][:, k] == 1

    return below


def _draft_reader(
    draw: Callable[..., Tensor], seeds: Tensor, position: int
) -> Callable[[Tensor], Tensor]:
    def below(x: Tensor) -> Tensor:
        return (
            draw(_split(x, seeds, 0, 1), seed=seeds, position=torch.full_like(seeds, position)) == 0
        )

    return below


def _check_numbers(numbers: dict[str, dict[Use, list[int]]]) -> None:
    one = numbers.pop("one call")
    shared: Counter[str] = Counter()
    for (use, values), (other, others) in combinations(one.items(), 2):
        same = sum(map(int.__eq__, values, others))
        shared[_pair(use, other)] += same
    if shared.total() > MAX_COINCIDENCES:
        (pair, times), *_ = shared.most_common(1)
        raise AssertionError(
            f"not reproducible: {pair} are the same random number, {times} times in "
            f"{len(next(iter(one.values())))} requests; each may influence one decision only"
        )
    for where, read in numbers.items():
        for (purpose, at), values in read.items():
            assert values == one[purpose, at], (
                f"not reproducible: the {purpose} of position {at} is another random number when "
                f"it is read in {where}: it must belong to the request and the position"
            )


def _pair(use: Use, other: Use) -> str:
    (purpose, at), (other_purpose, other_at) = use, other
    which = "the same" if at == other_at else "another"
    return f"the {purpose} of a position and the {other_purpose} of {which} position"
