"""The four CUDA kernels as Python functions of a block and a thread index, on a tiny GPU.

They follow ``cuda/*.cu`` line by line, return the same tokens bit for bit, and log every
probability that they load, which is what the drawings of the course are made from. What waits for
others in CUDA is a ``yield`` here: ``yield WARP, x`` gives x to the lanes of the warp and returns
theirs; ``yield BLOCK`` is ``__syncthreads()``; ``yield CLUSTER`` is ``cluster.sync()``. Left out
are the refusal of values that are not finite, and drafts without probabilities.

A GPU's warp has 32 lanes that load 16 bytes each; here it has 4 lanes that load 8, so that a warp's
load is one memory sector of 32 bytes.
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

from rsk.baseline import per_request
from rsk.sampler import RejectionSamples
from rsk.words import SAMPLE, coin, word

LANES = 4
PACK = 2
"""Neighbouring probabilities that a lane loads at once."""
CHUNK = LANES * PACK
"""What a warp loads at once."""
WARPS = 2
"""Of a block, where a block has more than one."""
SPLIT = 2
"""Blocks that share a request, where several do."""

WARP, BLOCK, CLUSTER = ("warp",), ("block",), ("cluster",)
ACCEPTED, REJECTED, ENDED, INVALID = "accepted", "rejected", "ended", "invalid"

Thread = Generator[tuple[Any, ...], Any, Any]


class Load(NamedTuple):
    """One probability that a thread loaded to sum or to search a row."""

    block: int
    thread: int
    load: int
    """Which of the thread's loads; the probabilities that come together share it."""
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
    load_counts: dict[tuple[int, int], int] = field(default_factory=dict)

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

    def load(self, begin: int, end: int) -> list[int]:
        """Load a few neighbouring probabilities and return their weights."""
        call, who = self.call, self.call.running
        number = call.load_counts[who] = call.load_counts.get(who, -1) + 1
        call.loads += [Load(*who, number, self.b, v) for v in range(begin, end)]
        w = call.p[self.b, self.n, begin:end]
        if self.is_residual:
            w = w - call.q[self.b, self.n, begin:end]  # float32, rounded once
        return [int(float(x) * 2**42) for x in np.clip(w, 0, 1)]


class Piece(NamedTuple):
    """Part of a row."""

    begin: int
    end: int


def piece_of_row(size: int, i: int, count: int) -> Piece:
    """Piece i of a row that is cut into ``count``: whole chunks, so only the end is ragged."""
    chunks = -(-size // CHUNK)
    length = -(-chunks // count) * CHUNK
    return Piece(min(i * length, size), min((i + 1) * length, size))


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
            total += row.load(v, v + 1)[0]
        if total > 0:
            rest, token = call.threshold(b, n, total), -1
            while rest >= 0:
                token += 1
                rest -= row.load(token, token + 1)[0]
            break
        if not row.is_residual:
            break
        row.is_residual = False  # the residual is empty: sample from p
    call.write_result(b, n, token)


def block_per_sequence(block: int, thread: int, call: Call, shared: dict[int, int]) -> Thread:
    """Step 2: the warps of a block share the row of a request."""
    b, (warp, lane) = block, divmod(thread, LANES)
    n, verdict = yield from walk_drafts(call, b, lane)
    if verdict == INVALID:
        if thread == 0:
            call.write_result(b, n, -1)
        return
    row = call.row_to_sample(b, n, verdict)
    piece = piece_of_row(call.vocab_size, warp, WARPS)

    while True:
        shared[warp] = yield from sum_piece(row, piece, lane)
        yield BLOCK
        total, chosen, rest = choose_piece(call, b, n, [shared[i] for i in range(WARPS)])
        if total > 0 or not row.is_residual:
            break
        row.is_residual = False
        yield BLOCK  # before the totals are overwritten
    if warp != chosen:
        return
    token = (yield from find_token(row, piece, rest, lane)) if total > 0 else -1
    if lane == 0:
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
    count, mine = SPLIT * WARPS, part * WARPS + warp
    piece = piece_of_row(call.vocab_size, mine, count)
    workspace["total", b, mine] = yield from sum_piece(row, piece, lane)
    yield BLOCK
    if thread == 0:  # atomicAdd: take a ticket
        ticket = workspace.get(("ticket", b), 0)
        workspace["ticket", b] = ticket + 1
        shared["is last"] = ticket == SPLIT - 1
    yield BLOCK
    if not shared["is last"]:
        return

    totals = [workspace["total", b, i] for i in range(count)]
    total, chosen, rest = choose_piece(call, b, n, totals)
    if total == 0 and row.is_residual:  # rare: this block alone sums p
        row.is_residual = False
        count = WARPS
        shared[warp] = yield from sum_piece(row, piece_of_row(call.vocab_size, warp, count), lane)
        yield BLOCK
        total, chosen, rest = choose_piece(call, b, n, [shared[i] for i in range(count)])
    if warp != 0:
        return
    piece = piece_of_row(call.vocab_size, chosen, count)
    token = (yield from find_token(row, piece, rest, lane)) if total > 0 else -1
    if lane == 0:
        call.write_result(b, n, token)


def cluster(
    block: int, thread: int, call: Call, shared_of_blocks: Sequence[dict[Any, int]]
) -> Thread:
    """Step 4: the blocks of a request write to each other's shared memory, and meet once."""
    (b, part), (warp, lane) = divmod(block, SPLIT), divmod(thread, LANES)
    n, verdict = yield from walk_drafts(call, b, lane)
    row = call.row_to_sample(b, n, verdict)
    count, mine = SPLIT * WARPS, part * WARPS + warp
    piece = piece_of_row(call.vocab_size, mine, count)

    total, chosen, rest = -1, 0, 0
    for round_number in range(2 if verdict != INVALID else 0):
        sum_of_piece = yield from sum_piece(row, piece, lane)
        if lane < SPLIT:  # lane i tells block i
            shared_of_blocks[lane][round_number, mine] = sum_of_piece
        yield CLUSTER
        totals = [shared_of_blocks[part][round_number, i] for i in range(count)]
        total, chosen, rest = choose_piece(call, b, n, totals)
        if total > 0 or not row.is_residual:
            break
        row.is_residual = False
    if mine != chosen:
        return
    token = (yield from find_token(row, piece, rest, lane)) if total > 0 else -1
    if lane == 0:
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


def sum_piece(row: Row, piece: Piece, lane: int) -> Thread:
    """The lanes load side by side; returns the sum of the piece's weights."""
    total = 0
    for v in range(piece.begin + lane * PACK, piece.end, CHUNK):
        total += sum(row.load(v, min(v + PACK, piece.end)))
    return sum((yield *WARP, total))


def choose_piece(call: Call, b: int, n: int, totals: Sequence[int]) -> tuple[int, int, int]:
    """The row's total, the piece that the token is in, and the threshold inside that piece."""
    total = sum(totals)
    rest = call.threshold(b, n, total)
    for chosen, piece_total in enumerate(totals):
        if piece_total > rest:
            return total, chosen, rest
        rest -= piece_total
    return 0, 0, 0  # no weight


def find_token(row: Row, piece: Piece, rest: int, lane: int) -> Thread:
    """The lane whose running sum goes beyond ``rest`` looks closer."""
    for start in range(piece.begin, piece.end, CHUNK):
        begin = start + lane * PACK
        weights = row.load(begin, min(begin + PACK, piece.end))
        sums = yield *WARP, sum(weights)
        for first in range(LANES):
            if sums[first] > rest:
                v = begin
                if lane == first:
                    while weights[v - begin] <= rest:
                        rest -= weights[v - begin]
                        v += 1
                return (yield *WARP, v)[first]
            rest -= sums[first]
    raise AssertionError("the piece was chosen because the token is in it")


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
