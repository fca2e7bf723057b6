"""Headers of the messages between ranks: what a rank takes a call to be, and who differs.

A header is ``HEADER`` words of int64. The first tell what a rank has and wants; in the others all
ranks must say the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rsk.sampler.arguments import MAX_VOCAB_SIZE
from rsk.sampler.random_words import words

FUNCTIONS = (
    *("rejection_sample", "sample"),
    *("rejection_sample_from_logits", "sample_from_logits"),
)
CONTENTS = (
    "draft_tokens",
    "seed",
    "position",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "draft_laws",
)
"""Arguments that are to be the same on every rank; a header holds a checksum of each."""
_CONTENT_STREAM = 3  # of random words; no decision uses it

# The places in a header: what a rank has or wants, then what it means by the call.
PURPOSE, LAYOUT, LENGTH, TARGET, DRAFT, ROUNDS, LOOKS = range(7)
_MEANT = ("function", "B", "K", "target's dtype", "draft's dtype", "dtype of draft_tokens")
FIRST_MEANT = 7
_WAY = FIRST_MEANT + len(_MEANT)
GIVEN = _WAY + 1
HEADER = GIVEN + len(CONTENTS)
CALL, FAULT, LATE = 1, 2, 3
"""A call; a rank has wrong arguments; a rank raises what it learns of an earlier call."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32)


class Layout(NamedTuple):
    """Which tokens each rank holds: rank r those in [bounds[r], bounds[r+1])."""

    bounds: tuple[int, ...]
    target_size: int
    """Columns of the target in all slices together: V_p."""
    draft_size: int
    """Columns of the draft: V_q."""
    digest: int
    """A number that no other layout has; never 0."""


class Meaning(NamedTuple):
    """What a rank takes the call to be. All must say the same, but for their slices' columns."""

    function: str
    batch_size: int
    spec_len: int
    target_dtype: torch.dtype
    draft_dtype: torch.dtype | None
    token_dtype: torch.dtype
    target_columns: int
    draft_columns: int
    """Of this rank's slice; -1 without draft probabilities."""
    contents: Callable[[], tuple[Tensor, ...]]
    """Makes int64 tensors: the first of ``CONTENTS``, or all of them."""
    length: int
    """Numbers in the call's longest message."""
    rounds: int = 0
    """Messages between the first and the token."""
    way: int = 0
    """Which messages those are: numbers and tensors of filters go different ways."""


def given_numbers(meaning: Meaning, layout: Layout | None, looks: bool) -> list[int]:
    """The numbers that a header begins with; ``looks``: this rank reads those of the others."""
    dtypes = (meaning.target_dtype, meaning.draft_dtype, meaning.token_dtype)
    return [
        *(CALL, layout.digest if layout else 0, meaning.length),
        *(meaning.target_columns, meaning.draft_columns, meaning.rounds, int(looks)),
        *(FUNCTIONS.index(meaning.function), meaning.batch_size, meaning.spec_len),
        *(-1 if dtype is None else _DTYPES.index(dtype) for dtype in dtypes),
        meaning.way,
    ]


def make_header(numbers: list[int], contents: tuple[Tensor, ...]) -> Tensor:
    """The header of a call, int64: the given numbers, and a checksum of each of the contents.

    ``write_header`` in ``cuda/sliced_row.h`` does the same.
    """
    device = contents[0].device
    header = torch.zeros(HEADER, dtype=torch.int64, device=device)
    if device.type == "cpu":
        header[:GIVEN] = torch.tensor(numbers, device=device)
    else:  # a graph can capture these, but no copy from the host
        for place, number in enumerate(numbers):
            header[place].fill_(number)
    flat = torch.cat([content.reshape(-1) for content in contents])
    hashed = words(flat, torch.arange(len(flat), device=device), _CONTENT_STREAM)
    parts = hashed.split([content.numel() for content in contents])
    for place, part in enumerate(parts, GIVEN):
        header[place] = part.sum()
    return header


def difference_in(headers: list[list[int]], answers: Tensor | None) -> str:
    """In what the ranks differ, and which ranks; nothing if they do not."""
    faulty = [rank for rank, header in enumerate(headers) if header[PURPOSE] != CALL]
    if faulty and answers is None:
        return f"{_ranks(faulty)} had wrong arguments"
    if faulty and answers is not None:
        texts = (answers[rank, HEADER : HEADER + headers[rank][LENGTH]].cpu() for rank in faulty)
        return "; ".join(
            text.numpy().tobytes().rstrip(b"\0").decode(errors="replace") for text in texts
        )
    told = []
    for place, name in enumerate(_MEANT, FIRST_MEANT):
        ranks = _ranks_by_value(headers, place)
        if len(ranks) > 1:
            values = (f"{_tell(name, value)} on {_ranks(who)}" for value, who in ranks.items())
            told.append(f"{name} is {', '.join(values)}")
    if not told:
        for place, name in enumerate(CONTENTS, GIVEN):
            first, *others = _ranks_by_value(headers, place).values()
            if others:
                who = " and ".join(_ranks(other) for other in others)
                told.append(f"{name} differs between {_ranks(first)} and {who}")
    if not told and len(_ranks_by_value(headers, _WAY)) > 1:
        who = " and ".join(map(_ranks, _ranks_by_value(headers, _WAY).values()))
        told.append(f"some filters are numbers on some, tensors on others, of {who}")
    return f"the ranks do not mean the same call: {'; '.join(told)}" if told else ""


def _ranks_by_value(headers: list[list[int]], place: int) -> dict[int, list[int]]:
    ranks: dict[int, list[int]] = {}
    for rank, header in enumerate(headers):
        ranks.setdefault(header[place], []).append(rank)
    return ranks


def _tell(name: str, value: int) -> str:
    if name == "function":
        return FUNCTIONS[value]
    if "dtype" in name:
        return str(_DTYPES[value]).removeprefix("torch.") if value >= 0 else "none"
    return str(value)


def _ranks(which: list[int]) -> str:
    if len(which) == 1:
        return f"rank {which[0]}"
    return f"ranks {', '.join(map(str, which[:-1]))} and {which[-1]}"


# --- the layout ----------------------------------------------------------------------------------


def _columns(headers: list[list[int]]) -> dict[str, list[int]]:
    """Columns of each rank's slices."""
    columns = {"target": [header[TARGET] for header in headers]}
    if headers[0][DRAFT] >= 0:
        columns["draft"] = [header[DRAFT] for header in headers]
    return columns


def layout_of(headers: list[list[int]]) -> Layout:
    """The layout that the slices make, in the order of the ranks."""
    columns = _columns(headers)
    bounds = [0]
    for both in zip(*columns.values(), strict=True):
        bounds.append(bounds[-1] + max(both))
    digest = int.from_bytes(hashlib.sha256(repr(columns).encode()).digest()[:7], "little") | 1
    sizes = {name: sum(each) for name, each in columns.items()}
    return Layout(tuple(bounds), sizes["target"], sizes.get("draft", 0), digest)


def fault_of_layout(headers: list[list[int]]) -> str:
    """Why the slices do not make a vocabulary; nothing if they do."""
    columns, bounds = _columns(headers), layout_of(headers).bounds
    for name, each in columns.items():
        if not 1 <= sum(each) <= MAX_VOCAB_SIZE:
            return (
                f"the {name}'s vocabulary size V: expected 1 to {MAX_VOCAB_SIZE} in all slices "
                f"together, got {sum(each)}"
            )
        for rank, size in enumerate(each):
            if size < bounds[rank + 1] - bounds[rank] and any(each[rank + 1 :]):
                shown = ", ".join(f"{who} {sizes}" for who, sizes in columns.items())
                return (
                    f"rank {rank}: slices of draft and target begin at the same token, so only the "
                    f"last one of the smaller vocabulary can be the shorter; got columns {shown}"
                )
    return ""
