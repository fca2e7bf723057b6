"""What a sharded call costs, on paper: the bytes exactly, the time from what a machine can do.

A call is a chain. Its time is the sum over the collectives of a latency and the bytes over the
link's rate; over the passes of a rank through its columns of the bytes over the memory's rate or of
the instructions over the GPU's, whichever is more; and of a launch and a step for each kernel.
Gathering is a chain as well: the bytes of all other ranks' rows over the link's rate, copying the
rows into one another, and sampling.

The latency of a collective among R ranks is that measured among two, plus a step of the same length
for each doubling: what a tree of exchanges takes. Everything else scales with sizes, but for the
step: what a kernel that waits for the one before it adds to a chain however little it reads. That
number alone is fitted, to the record of two H100.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from rsk.measure.sharded_point import ShardedPoint
from rsk.measure.sharded_records import Link
from rsk.sampler.channel import GROWTH, WORDS
from rsk.sampler.headers import HEADER

STEP_US = 3.0
"""What a kernel that waits for the one before it adds to a chain, fitted."""
# Instructions for each element, counted in the kernels' SASS for sm_90.
_OF_A_PAIR, _OF_A_LOGIT_PAIR, _OF_AN_OPENING, _OF_A_WEIGHT = 22, 78, 8, 32


def gathers(point: ShardedPoint) -> int:
    """all_gathers of a call; one all_reduce follows."""
    if not point.from_logits:
        return 1
    return 2 if point.listed else 3


def words_of(point: ShardedPoint) -> int:
    """Length of a message: the least that holds the longest of the call."""
    rows = point.batch_size * (2 * point.spec_len + 1)
    needed = point.batch_size * (2 * point.spec_len + 2)
    if point.from_logits:
        needed = max(needed, rows * (1 + (point.listed + 2) // 2 * bool(point.listed)))
    words = WORDS
    while words - HEADER < needed:
        words *= GROWTH
    return words


def sent_bytes(point: ShardedPoint) -> int:
    """What one rank sends in all collectives of a call."""
    words = words_of(point)
    return 8 * (words * gathers(point) + words // 2)


class Cost(NamedTuple):
    """Microseconds of a call, by what takes them."""

    collectives_us: float
    reading_us: float
    launches_us: float


def sharded(point: ShardedPoint, link: Link) -> Cost:
    """What a sharded call takes."""
    steps = max(1.0, math.log2(point.ranks)) if point.ranks > 1 else 0.0
    words = words_of(point)
    received = 8 * words * (point.ranks - 1)
    gather = link.gather_us * steps + received / link.gather_bytes_us
    reduce = link.reduce_us * steps + 8 * words / link.gather_bytes_us
    columns = point.vocab_size / point.ranks
    pairs, bonus = rows_read(point)
    elements = point.batch_size * columns
    passes = [
        (
            (2 * pairs + bonus) * elements,
            (pairs + bonus) * elements * (_OF_A_LOGIT_PAIR if point.from_logits else _OF_A_PAIR),
        )
    ]
    if point.from_logits:
        all_rows = (2 * point.spec_len + 1) * elements
        second = _OF_AN_OPENING if point.listed else _OF_A_WEIGHT
        passes += [(all_rows, all_rows * _OF_AN_OPENING), (all_rows, all_rows * second)]
    reading = sum(
        max(
            read * point.item_bytes / link.memory_bytes_us,
            instructions / (link.lanes * link.clock_mhz),
        )
        for read, instructions in passes
    )
    kernels = 4 if not point.from_logits else 8
    return Cost(gathers(point) * gather + reduce, reading, kernels * (link.launch_us + STEP_US))


def gathered(point: ShardedPoint, link: Link) -> Cost:
    """What gathering the rows and sampling takes, from probabilities.

    From logits the sampler's own time is left out: this is then a lower bound.
    """
    moved = point.gathered_bytes
    whole = moved * point.ranks / max(1, point.ranks - 1)
    collectives = 2 * link.gather_us + moved / link.gather_bytes_us
    sampled = (2 - point.acceptance**point.spec_len) * point.batch_size
    sampling = sampled * point.vocab_size * point.item_bytes
    if point.from_logits:
        sampling = whole
    kernels = 5  # for each model one before and one behind the collective, and the sampler
    starting = kernels * (link.launch_us + STEP_US)
    return Cost(collectives, (2 * whole + sampling) / link.memory_bytes_us, starting)


def rows_read(point: ShardedPoint) -> tuple[float, float]:
    """Row pairs and single rows of which a rank sums its columns, for each request, on average.

    A rank knows what becomes of the drafts that it holds, one in R: it reads no row behind one that
    it rejects, nor that of one that it accepts.
    """
    accepts = point.acceptance / point.ranks
    rejects = (1 - point.acceptance) / point.ranks
    reached = [(1 - rejects) ** k for k in range(point.spec_len + 1)]
    return sum(reached[:-1]) * (1 - accepts), reached[-1]
