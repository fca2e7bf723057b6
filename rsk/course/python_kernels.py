"""The four CUDA kernels as Python functions of a block and a thread index, on a tiny GPU.

They follow ``cuda/*.cu`` and ``cuda/warp.h`` step by step, return the same tokens bit for bit, and
log every probability that they load, which is what the drawings of the course are made from. What
waits for others in CUDA is a ``yield`` here: ``yield WARP, x`` gives x to the lanes of the warp and
returns theirs; ``yield BLOCK`` is ``__syncthreads()``; ``yield CLUSTER`` waits until all blocks of
the cluster are there; ``yield LETTERS, mailbox`` waits until the mailbox is complete. Left out are
the refusal of values that are not finite, and drafts without probabilities.

A GPU's warp has 32 lanes that load 16 bytes each, four times before they wait; here it has 4 lanes
that load 8, twice, so that a warp's load is one memory sector of 32 bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rsk.sampler.api import RejectionSamples
from rsk.sampler.baseline import per_request
from rsk.sampler.random_words import SAMPLE, coin, word

LANES = 4
PACK = 2
"""Neighbouring probabilities that a lane loads at once."""
CHUNK = LANES * PACK
"""What a warp loads at once."""
CHUNKS = 2
"""Loads of a lane that are on their way together."""
TILE = CHUNKS * CHUNK
"""What a warp asks for before it waits."""
WARPS = 2
"""Of a block, where a block has more than one."""
SPLIT = 2
"""Blocks that share a request, where several do."""

WARP, BLOCK, CLUSTER, LETTERS = ("warp",), ("block",), ("cluster",), ("letters",)
ACCEPTED, REJECTED, ENDED, INVALID = "accepted", "rejected", "ended", "invalid"

Thread = Generator[tuple[Any, ...], Any, Any]


class Load(NamedTuple):
    """One probability that a thread loaded to sum or to search a row."""

    block: int
    thread: int
    wait: int
    """At which of the thread's waits for memory it arrived, from 0; what was asked for together
    shares it."""
    request: int
    v: int
    """Place in the row of the target's (and the draft's) probabilities."""


@dataclass
class Call:
    """The arguments of a call, its result, and what was loaded on the way."""

    draft_tokens: list[list[int]]
    p: Any
    """float32 [B, K+1, V]"""
    q: Any
    """float32 [B, K, V]"""
    seeds: list[int]
    positions: list[int]
    tokens: Tensor
    num_accepted: Tensor
    loads: list[Load] = field(default_factory=list)
    running: tuple[int, int] = (0, 0)
    """Block and thread that are running now."""
    waits: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.p.shape[2])

    @property
    def spec_len(self) -> int:
        """K."""
        return int(self.q.shape[1])

    def judge(self, b: int, k: int) -> str:
        """Decide on draft token k of request b, on its own."""
        d = self.draft_tokens[b][k]
        if d == -1:
            return ENDED
        if not 0 <= d < self.vocab_size:
            return INVALID
        u = coin(self.seeds[b], self.positions[b] + k)
        return ACCEPTED if u * float(self.q[b, k, d]) < float(self.p[b, k, d]) else REJECTED

    def row_to_sample(self, b: int, n: int, verdict: str) -> Row:
        """The row that the last token is sampled from."""
        return Row(self, b, n, verdict == REJECTED)

    def threshold(self, b: int, n: int, total: int) -> int:
        """The token is the first whose running sum of weights exceeds this."""
        return (word(self.seeds[b], self.positions[b] + n, SAMPLE) >> 2) * total >> 62

    def write_result(self, b: int, n: int, token: int) -> None:
        """Accepted drafts, then the token, then -1; a negative token marks an invalid request."""
        row = [*self.draft_tokens[b][:n], token] if token >= 0 else []
        self.tokens[b] = torch.tensor(row + [-1] * (self.spec_len + 1 - len(row)))
        self.num_accepted[b] = n if token >= 0 else -1


@dataclass
class Row:
    """Weights max(p - q, 0), or max(p, 0), of one row, in fixed point."""

    call: Call
    b: int
    n: int
    is_residual: bool

    def load(self, *spans: range) -> list[list[int]]:
        """Ask for the probabilities of each span, wait for all of them, and return the weights."""
        call, who = self.call, self.call.running
        number = call.waits[who] = call.waits.get(who, -1) + 1
        call.loads += [Load(*who, number, self.b, v) for span in spans for v in span]
        return [self._weights(span) for span in spans]

    def weight(self, v: int) -> int:
        """Load one probability."""
        return self.load(range(v, v + 1))[0][0]

    def _weights(self, span: range) -> list[int]:
        w = self.call.p[self.b, self.n, span.start : span.stop]
        if self.is_residual:
            w = w - self.call.q[self.b, self.n, span.start : span.stop]  # float32, rounded once
        return [int(float(x) * 2**42) for x in np.clip(w, 0, 1)]


class Cut(NamedTuple):
    """How a row is cut: a piece for each warp, and that in stretches for its lanes."""

    piece: int
    """Length: whole chunks, so only the row's end is ragged."""
    stretch: int
    """Length: whole tiles."""


@dataclass
class Piece:
    """Part of a row, for one warp."""

    begin: int
    end: int
    stretch: int
    """Length of a stretch."""
    total: int = 0
    """Of this lane's stretch."""


def cut_row(size: int, count: int) -> Cut:
    """Cut a row of ``size`` elements into ``count`` pieces."""
    chunks = -(-size // CHUNK)
    piece = -(-chunks // count) * CHUNK
    return Cut(piece, -(-piece // (LANES * TILE)) * TILE)


def piece_of_row(size: int, i: int, cut: Cut) -> Piece:
    """Piece i of a row; those behind its end are empty."""
    begin, end = i * cut.piece, (i + 1) * cut.piece
    return Piece(min(begin, size), min(end, size), cut.stretch)


# --- the kernels ------------------------------------------------------------------------------


def thread_per_sequence(block: int, thread: int, call: Call) -> None:
    """Step 1: a thread walks a request, as the Python loop does."""
    b = block * LANES + thread
    if b >= len(call.draft_tokens):
        return

    n, verdict = 0, ENDED
    while n < call.spec_len:
        verdict = call.judge(b, n)
        if verdict != ACCEPTED:
            break
        n += 1

    row = call.row_to_sample(b, n, verdict)
    token = -1
    while verdict != INVALID:
        total = 0
        for v in range(call.vocab_size):
            total += row.weight(v)
        if total > 0:
            rest, token = call.threshold(b, n, total), -1
            while rest >= 0:
                token += 1
                rest -= row.weight(token)
            break
        if not row.is_residual:
            break
        row.is_residual = False  # the residual is empty: sample from p
    call.write_result(b, n, token)


def block_per_sequence(block: int, thread: int, call: Call, shared: dict[Any, Any]) -> Thread:
    """Step 2: the warps of a block share the row of a request."""
    b, (warp, lane) = block, divmod(thread, LANES)
    n, verdict = yield from walk_drafts(call, b, lane)
    if verdict == INVALID:
        if thread == 0:
            call.write_result(b, n, -1)
        return
    row = call.row_to_sample(b, n, verdict)
    piece = piece_of_row(call.vocab_size, warp, cut_row(call.vocab_size, WARPS))

    tile = Tile()
    while True:
        shared["total", warp] = yield from sum_piece(row, piece, tile, lane)
        yield BLOCK
        warps = yield from add_totals([shared["total", i] for i in range(WARPS)], lane)
        if warps.all != 0 or not row.is_residual:
            break
        row.is_residual = False  # the residual is empty: sample from p
        yield BLOCK  # before the totals are overwritten
    token, writer = -1, 0  # nothing to sample from
    if warps.all > 0:
        writer, rest = yield from warps.choose(call.threshold(b, n, warps.all))
        if warp == writer:
            token = yield from find_token(row, piece, tile, rest, lane)
    if warp == writer and lane == 0:
        call.write_result(b, n, token)


def split_vocabulary(
    block: int, thread: int, call: Call, shared: dict[Any, Any], workspace: dict[Any, int]
) -> Thread:
    """Step 3: several blocks share the row; the last to arrive finishes the request."""
    (b, part), (warp, lane) = divmod(block, SPLIT), divmod(thread, LANES)
    n, verdict = yield from walk_drafts(call, b, lane)
    if verdict == INVALID:
        if part == 0 and thread == 0:
            call.write_result(b, n, -1)
        return
    row = call.row_to_sample(b, n, verdict)
    cut = cut_row(call.vocab_size, SPLIT * WARPS)
    piece = piece_of_row(call.vocab_size, part * WARPS + warp, cut)

    tile = Tile()
    shared["total", warp] = yield from sum_piece(row, piece, tile, lane)
    yield BLOCK
    if warp == 0:
        warps = yield from add_totals([shared["total", i] for i in range(WARPS)], lane)
        if lane < WARPS:
            workspace["warp total", b, part, lane] = shared["total", lane]
        if lane == 0:
            workspace["block total", b, part] = warps.all
        yield *WARP, None
        if lane == 0:  # atomicAdd: take a ticket
            ticket = workspace.get(("ticket", b), 0)
            workspace["ticket", b] = ticket + 1
            shared["is last"] = ticket == SPLIT - 1
    yield BLOCK
    if not shared["is last"]:
        return

    totals = yield from add_totals([workspace["block total", b, i] for i in range(SPLIT)], lane)
    if totals.all > 0:
        chosen, rest = yield from totals.choose(call.threshold(b, n, totals.all))
        totals_of_warps = [workspace["warp total", b, chosen, i] for i in range(WARPS)]
        warps = yield from add_totals(totals_of_warps, lane)
        inner, rest = yield from warps.choose(rest)
        piece = piece_of_row(call.vocab_size, chosen * WARPS + inner, cut)
    elif row.is_residual:  # empty, which is rare: this block alone sums p
        row.is_residual = False
        cut = cut_row(call.vocab_size, WARPS)
        piece = piece_of_row(call.vocab_size, warp, cut)
        shared["total", warp] = yield from sum_piece(row, piece, tile, lane)
        yield BLOCK
        totals = yield from add_totals([shared["total", i] for i in range(WARPS)], lane)
        if totals.all > 0:
            chosen, rest = yield from totals.choose(call.threshold(b, n, totals.all))
            piece = piece_of_row(call.vocab_size, chosen, cut)
    if warp != 0:
        return
    other = Tile()  # than the one that this warp has read, nor did it sum these stretches
    piece.stretch = piece.end - piece.begin
    token = (yield from find_token(row, piece, other, rest, lane)) if totals.all > 0 else -1
    if lane == 0:
        call.write_result(b, n, token)


def cluster(
    block: int, thread: int, call: Call, shared_of_blocks: Sequence[dict[Any, Any]]
) -> Thread:
    """Step 4: the blocks of a request write each other letters."""
    (b, part), (warp, lane) = divmod(block, SPLIT), divmod(thread, LANES)
    shared, mine = shared_of_blocks[part], part * WARPS + warp
    if thread == 0:
        for round_number in range(2):
            shared["mailbox", round_number] = open_mailbox(SPLIT)

    n, verdict = yield from walk_drafts(call, b, lane)
    row = call.row_to_sample(b, n, verdict)
    piece = piece_of_row(call.vocab_size, mine, cut_row(call.vocab_size, SPLIT * WARPS))
    if verdict == INVALID:  # all blocks of the request agree
        if part == 0 and thread == 0:
            call.write_result(b, n, -1)
        return

    tile = Tile()
    for round_number in range(2):
        shared["total", round_number, warp] = yield from sum_piece(row, piece, tile, lane)
        yield BLOCK
        totals = [shared["total", round_number, i] for i in range(WARPS)]
        warps = yield from add_totals(totals, lane)
        if round_number == 0:
            yield CLUSTER  # until the mailboxes of all blocks are open
        if warp == 0 and lane < SPLIT:  # lane i writes to block i
            send(shared_of_blocks[lane]["mailbox", round_number], part, warps.all)
        mailbox = shared["mailbox", round_number]
        yield *LETTERS, mailbox
        blocks = yield from add_totals([mailbox.letters[i] for i in range(SPLIT)], lane)
        if blocks.all != 0 or not row.is_residual:
            break
        row.is_residual = False  # the residual is empty: sample from p
    token, writer = -1, 0  # nothing to sample from
    if blocks.all > 0:
        chosen, rest = yield from blocks.choose(call.threshold(b, n, blocks.all))
        if part != chosen:
            return
        inner, rest = yield from warps.choose(rest)
        writer = part * WARPS + inner
        if mine == writer:
            token = yield from find_token(row, piece, tile, rest, lane)
    if mine == writer and lane == 0:
        call.write_result(b, n, token)


# --- what a warp does -------------------------------------------------------------------------


def walk_drafts(call: Call, b: int, lane: int) -> Thread:
    """Each lane judges a draft; returns how many are accepted and why the walk ended."""
    for start in range(0, call.spec_len, LANES):
        k = start + lane
        verdicts = yield *WARP, call.judge(b, k) if k < call.spec_len else ENDED
        for first, verdict in enumerate(verdicts):
            if verdict != ACCEPTED:
                return start + first, verdict
    return call.spec_len, ENDED


class Tile:
    """A lane's share of what a warp reads at once: one pack of each chunk."""

    def __init__(self) -> None:
        self.sums = [0] * CHUNKS  # of the packs
        self.begin = -1  # nothing was read

    def add(self, row: Row, start: int, end: int, lane: int) -> Thread:
        """Sum the packs from ``start`` on: all are asked for before any is waited for."""
        self.begin = start
        places = [start + c * CHUNK + lane * PACK for c in range(CHUNKS)]
        packs = row.load(*(range(place, min(place + PACK, end)) for place in places))
        self.sums = [sum(pack) for pack in packs]
        return sum((yield *WARP, sum(self.sums)))

    def find(self, row: Row, end: int, rest: int, lane: int) -> Thread:
        """The first element whose running sum exceeds ``rest``, or -1; and what is left of it."""
        for c in range(CHUNKS):  # the chunk
            total = sum((yield *WARP, self.sums[c]))
            if total > rest:
                break
            rest -= total
        else:
            return -1, rest
        running = yield from running_sum(self.sums[c], lane)
        sums = yield *WARP, running
        first = next(i for i in range(LANES) if sums[i] > rest)  # the lane
        place = self.begin + c * CHUNK + lane * PACK
        (weights,) = row.load(range(place, min(place + PACK, end)))  # one pack is read again
        v = place + len(weights)
        for weight in reversed(weights):  # going back, the running sum falls to `rest`
            v -= running > rest
            running -= weight
        return (yield *WARP, v)[first], rest


def sum_piece(row: Row, piece: Piece, tile: Tile, lane: int) -> Thread:
    """The sum of the piece's weights; the tile that was read last is left in ``tile``."""
    own = piece.begin + lane * piece.stretch
    piece.total = total = 0
    tile.begin = -1
    for start in range(piece.begin, piece.end, TILE):
        of_tile = yield from tile.add(row, start, piece.end, lane)
        if own <= start < own + piece.stretch:
            piece.total += of_tile
        total += of_tile
    return total


def find_token(row: Row, piece: Piece, tile: Tile, rest: int, lane: int) -> Thread:
    """The token; what is in ``tile`` is not read again."""
    begin = piece.begin
    if piece.stretch < piece.end - piece.begin:
        stretches = Totals((yield from running_sum(piece.total, lane)), 0)
        chosen, rest = yield from stretches.choose(rest)
        begin += chosen * piece.stretch
    for start in range(begin, piece.end, TILE):
        if tile.begin != start:
            yield from tile.add(row, start, piece.end, lane)
        token, rest = yield from tile.find(row, piece.end, rest, lane)
        if token >= 0:
            return token
    raise AssertionError("the piece was chosen because the token is in it")


class Totals(NamedTuple):
    """The totals of the parts of a row, one a lane."""

    running: int
    """Over the parts up to this lane's."""
    all: int

    def choose(self, rest: int) -> Thread:
        """The part that the token is in, and the threshold within that part."""
        running = yield *WARP, self.running
        part = next(i for i in range(LANES) if running[i] > rest)
        return part, rest - (running[part - 1] if part > 0 else 0)


def add_totals(totals: Sequence[int], lane: int) -> Thread:
    """The running sums and the sum of up to as many totals as a warp has lanes."""
    running = yield from running_sum(totals[lane] if lane < len(totals) else 0, lane)
    return Totals(running, (yield *WARP, running)[LANES - 1])


def running_sum(x: int, lane: int) -> Thread:
    """The sum of x over this lane and the ones below it."""
    step = 1
    while step < LANES:
        of_lanes = yield *WARP, x
        if lane >= step:
            x += of_lanes[lane - step]
        step *= 2
    return x


# --- mail between the blocks of a cluster -----------------------------------------------------


@dataclass
class Mailbox:
    """In a block's shared memory: a letter from each block of the cluster."""

    missing: int
    """Letters that have not arrived yet."""
    letters: dict[int, int] = field(default_factory=dict)
    """By the sender's rank."""


def open_mailbox(senders: int) -> Mailbox:
    """Expect a letter from each of so many blocks."""
    return Mailbox(missing=senders)


def send(mailbox: Mailbox, sender: int, letter: int) -> None:
    """The letter carries its own signal: it is there, and it is counted."""
    mailbox.letters[sender] = letter
    mailbox.missing -= 1


# --- a launch ---------------------------------------------------------------------------------

KERNELS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "thread_per_sequence": thread_per_sequence,
        "block_per_sequence": block_per_sequence,
        "split_vocabulary": split_vocabulary,
        "cluster": cluster,
    }
)
"""Name to function, in the order of :data:`rsk.KERNELS`."""


def launch(
    name: str,
    draft_tokens: Tensor,
    draft_probs: Tensor,
    target_probs: Tensor,
    *,
    seed: int | Tensor,
    position: int | Tensor = 0,
    order: int = 0,
) -> tuple[RejectionSamples, list[Load]]:
    """Run a kernel, one thread at a time.

    Args:
        name: of the kernel, one of :data:`KERNELS`.
        draft_tokens: as for :func:`rsk.rejection_sample`, as are the next four.
        draft_probs: may not be ``None``.
        target_probs: [B, K+1, V].
        seed: int or int64 [B].
        position: int or int64 [B].
        order: seed of the order in which threads take turns.

    Returns:
        The result, and what each thread loaded, in that thread's order.

    Raises:
        ValueError: an unknown kernel.
        RuntimeError: threads wait for others that never come.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {name!r}")
    batch_size, spec_len = draft_tokens.shape
    call = Call(
        draft_tokens.tolist(),
        target_probs.float().numpy(),
        draft_probs.float().numpy(),
        per_request(seed, batch_size, step=1),
        per_request(position, batch_size, step=0),
        torch.full((batch_size, spec_len + 1), -7),  # whatever is not written shows
        torch.full((batch_size,), -7),
    )
    turns = random.Random(order)
    together = SPLIT if name == "cluster" else 1  # blocks that surely run at the same time
    if name == "thread_per_sequence":
        blocks, threads = -(-batch_size // LANES), LANES
    else:
        blocks = batch_size * (SPLIT if name in ("split_vocabulary", "cluster") else 1)
        threads = WARPS * LANES
    workspace: dict[Any, int] = {}
    groups = [range(first, first + together) for first in range(0, blocks, together)]
    turns.shuffle(groups)
    for group in groups:
        shared: list[dict[Any, Any]] = [{} for _ in group]
        fibers: dict[tuple[int, int], Thread] = {}
        for block in group:
            memory = {
                "thread_per_sequence": (),
                "block_per_sequence": (shared[0],),
                "split_vocabulary": (shared[0], workspace),
                "cluster": (shared,),
            }[name]
            for thread in range(threads):
                fibers[block, thread] = _fiber(KERNELS[name], block, thread, call, memory)
        _run_together(fibers, call, turns)
    return RejectionSamples(call.tokens, call.num_accepted), call.loads


def _fiber(
    kernel: Callable[..., Any], block: int, thread: int, call: Call, memory: tuple[Any, ...]
) -> Thread:
    started = kernel(block, thread, call, *memory)
    if started is not None:  # else it waits for nobody, and has run to its end
        yield from started


def _run_together(fibers: dict[tuple[int, int], Thread], call: Call, turns: random.Random) -> None:
    """Run threads to their end; those that wait go on when all of their group wait."""
    inbox: dict[tuple[int, int], Any] = dict.fromkeys(fibers)  # of those that can go on
    waiting: dict[tuple[int, int], tuple[Any, ...]] = {}
    while fibers:
        ready = list(inbox)
        turns.shuffle(ready)
        for who in ready:
            call.running = who
            try:
                waiting[who] = fibers[who].send(inbox.pop(who))
            except StopIteration:
                del fibers[who]
        for who in [
            w for w, what in waiting.items() if what[:1] == LETTERS and not what[1].missing
        ]:
            inbox[who] = waiting.pop(who)[1]
        for scope, group_of in _GROUPS.items():
            groups: dict[Any, list[tuple[int, int]]] = {}
            for who in fibers:
                groups.setdefault(group_of(*who), []).append(who)
            for group in groups.values():
                if all(who in waiting and waiting[who][0] == scope for who in group):
                    values = {who[1] % LANES: waiting.pop(who)[-1] for who in group}
                    for who in group:
                        inbox[who] = [values.get(lane) for lane in range(LANES)]
        if fibers and not inbox:
            raise RuntimeError("a barrier was not reached by all threads")


_GROUPS: Mapping[str, Callable[[int, int], Any]] = {
    "warp": lambda block, thread: (block, thread // LANES),
    "block": lambda block, thread: block,
    "cluster": lambda block, thread: None,
}
