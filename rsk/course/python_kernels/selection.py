"""The law of a row of logits as the kernel finds it: ``cuda/selection.h`` and ``cuda/team_law.h``.

A team of blocks has a row in its shared memory. It finds the thresholds of top-k and top-p without
sorting the row, and the law's four numbers with them. What it does is written down on the way, for
the drawings. Left out are rows and parameters that are invalid, greedy rows, and how the blocks
tell one another their numbers. A list of all that top-k keeps serves top-p as well, in CUDA without
being made again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from rsk.sampler.row_law import LOG2_E, UNIT, fixed_point, relative_weight, to_float32

BLOCKS, THREADS, PACK = 2, 8, 2
MAX_CANDIDATES = 16
"""That the leader sorts; 1024 in CUDA."""
LEAST_ORDER = -0x7F800001
"""Of minus infinity."""


def order_of(x: float) -> int:
    """An integer for a float32: integers in the order of floats. Both zeros have the same."""
    (bits,) = struct.unpack("i", struct.pack("f", x + 0.0))
    return int(bits ^ ((bits >> 31) & 0x7FFFFFFF))


def in_order(order: int) -> float:
    """The float32 of an order."""
    bits = order ^ ((order >> 31) & 0x7FFFFFFF)
    (x,) = struct.unpack("f", struct.pack("i", bits))
    return float(x)


class Pass(NamedTuple):
    """One pass over the row: three pivots, and what is at least as large as each."""

    low: float
    high: float
    """The threshold is at least ``low`` and less than ``high``, before the pass."""
    pivots: tuple[float, ...]
    numbers: tuple[int, ...]
    """Counts for top-k, weights in fixed point for top-p."""
    target: int
    by_mass: bool


class Listing(NamedTuple):
    """The logits of an interval, sorted by the leader, and the threshold among them."""

    logits: list[float]
    low: float
    threshold: float


@dataclass
class Selection:
    """What the team found out about a row, in order."""

    logits: list[float]
    readers: list[tuple[int, int]]
    """Block and thread that hold each logit."""
    maxima: dict[tuple[int, int], float] = field(default_factory=dict)
    """Of what each thread holds."""
    bound: float = in_order(LEAST_ORDER)
    """The k-th largest logit is at least this."""
    passes: list[Pass] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    maximum: float = 0.0
    scale: float = 0.0
    threshold: float = in_order(LEAST_ORDER)
    normalizer: float = 0.0

    @property
    def law(self) -> Tensor:
        """The row as four numbers, float32 [4]."""
        return torch.tensor([self.maximum, self.scale, self.threshold, self.normalizer])


def select(
    row: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Selection:
    """Find the law of a row of logits [V]; parameters as in :func:`rsk.probabilities`."""
    team = _Team(row.float(), temperature, to_float32(top_p), to_float32(min_p))
    found = team.found
    if 0 < top_k < len(row):
        found.bound = bound_of_top_k(found.maxima, top_k)
        team.find_threshold(top_k, by_mass=False, low=order_of(found.bound))
    if top_p < 1:
        total = team.sum(team.weights, found.threshold)
        team.find_threshold(team.mass_to_keep(total), by_mass=True, low=order_of(found.threshold))
    kept = [w if e >= team.min_p else 0 for w, e in zip(team.weights, team.relative, strict=True)]
    found.normalizer = to_float32(UNIT / team.sum(kept, found.threshold))
    return found


def nth_largest(values: Sequence[int], n: int) -> int:
    """The n-th largest of some orders, of which the upper 16 bits count: bit by bit."""
    upper = [(value >> 16) + 0x8000 for value in values]
    if n > len(upper):
        return LEAST_ORDER
    found = 0
    for bit in reversed(range(16)):
        if sum(value >= found | 1 << bit for value in upper) >= n:
            found |= 1 << bit
    return max((found - 0x8000) << 16, LEAST_ORDER)


def bound_of_top_k(maxima: dict[tuple[int, int], float], k: int) -> float:
    """A value that at least k logits reach, from the largest logit of each thread.

    If k threads of one block have a maximum that large, there are k logits. If each block has its
    share of k threads for which that is so, there are too.
    """
    of_blocks = [
        [order_of(x) for (block, _), x in maxima.items() if block == b] for b in range(BLOCKS)
    ]
    of_some = max(nth_largest(orders, k) for orders in of_blocks)
    of_each = min(nth_largest(orders, -(-k // BLOCKS)) for orders in of_blocks)
    return in_order(max(of_some, of_each))


class _Team:
    """The blocks that have a row in hand."""

    def __init__(self, row: Tensor, temperature: float, top_p: float, min_p: float) -> None:
        piece = -(-len(row) // (BLOCKS * PACK)) * PACK
        readers = [(v // piece, v % piece // PACK % THREADS) for v in range(len(row))]
        self.found = found = Selection(row.tolist(), readers)
        for reader, x in zip(readers, found.logits, strict=True):
            found.maxima[reader] = max(x, found.maxima.get(reader, -torch.inf))
        found.maximum = max(found.maxima.values())
        found.scale = to_float32(LOG2_E / to_float32(temperature))
        self.top_p, self.min_p = top_p, min_p
        # CUDA computes these again wherever it needs them: that is cheaper than to keep them.
        relative = relative_weight(row, found.maximum, found.scale)
        self.relative: list[float] = relative.tolist()
        self.weights: list[int] = fixed_point(relative).tolist()

    def sum(self, numbers: Sequence[int], least: float) -> int:
        """Over the logits that are at least ``least``; exact in whatever order threads add."""
        return sum(n for n, x in zip(numbers, self.found.logits, strict=True) if x >= least)

    def mass_to_keep(self, total: int) -> int:
        """The least total weight that top-p keeps."""
        wanted = self.top_p * float(total)
        return max(1, -int(-wanted // 1))

    def find_threshold(self, target: int, *, by_mass: bool, low: int) -> None:
        """Find the largest value such that the logits that are at least it reach the target.

        Args:
            target: a count, or a total weight.
            by_mass: which of them.
            low: the order of a value that is not above it.
        """
        found = self.found
        numbers = self.weights if by_mass else [1] * len(found.logits)
        high = order_of(found.maximum) + 1
        while high - low > 1:
            if sum(x >= in_order(low) for x in found.logits) <= MAX_CANDIDATES:
                high = order_of(found.maximum) + 1  # few enough to list all from there up
            inside = sorted((x for x in found.logits if low <= order_of(x) < high), reverse=True)
            if len(inside) <= MAX_CANDIDATES:
                above = self.sum(numbers, in_order(high))
                found.threshold = self.decide(inside, numbers, target - above)
                found.listings.append(Listing(inside, in_order(low), found.threshold))
                return
            low, high = self.narrow(numbers, target, by_mass, low, high)
        found.threshold = in_order(low)

    def narrow(
        self, numbers: Sequence[int], target: int, by_mass: bool, low: int, high: int
    ) -> tuple[int, int]:
        """One pass over the row with three pivots leaves a part of the interval."""
        found = self.found
        turn = sum(one.by_mass == by_mass for one in found.passes)
        orders = pivots(low, high, turn, self.near_the_maximum if by_mass else None)
        sums = [self.sum(numbers, in_order(order)) for order in orders]
        ends, values = (in_order(low), in_order(high)), tuple(map(in_order, orders))
        found.passes.append(Pass(*ends, values, tuple(sums), target, by_mass))
        for order, reached in zip(orders, sums, strict=True):
            if reached >= target:
                return order, high
            high = order
        return low, high

    def near_the_maximum(self, i: int) -> float:
        """Where most of the weight is: so many factors of two below the maximum."""
        return self.found.maximum - (5, 10, 20)[i] / self.found.scale

    def decide(self, listed: Sequence[float], numbers: Sequence[int], rest: int) -> float:
        """The leader's: go down the sorted list until the rest of the target is reached."""
        number_of = dict(
            zip(self.found.logits, numbers, strict=True)
        )  # equal logits weigh the same
        for x in listed:
            rest -= number_of[x]
            if rest <= 0:
                return x
        return listed[-1]


def pivots(low: int, high: int, turn: int, first: Callable[[int], float] | None) -> list[int]:
    """Three orders inside an interval, the highest first.

    In turn at equal distance in order, which comes to an end, and in value, which suits logits.
    """
    a, b = in_order(low), in_order(high)
    chosen = []
    for i in range(3):
        if first and turn == 0:
            order = order_of(first(i))
        elif turn % 2 == 1 and abs(b - a) < torch.inf:
            order = order_of(a + (b - a) * (0.75 - 0.25 * i))
        else:
            order = low + (high - low) * (3 - i) // 4
        chosen.append(min(max(order, low + 1), high - 1))
    return chosen
