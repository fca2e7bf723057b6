"""Step 5, as in ``cuda/cluster.cu`` and ``cuda/mailbox.h``."""

from __future__ import annotations

from dataclasses import dataclass, field

from rsk.course.python_kernels.call import INVALID, KernelCall
from rsk.course.python_kernels.gpu import (
    BLOCK,
    CLUSTER,
    LANES,
    LETTERS,
    SPLIT,
    WARPS,
    Memory,
    Thread,
)
from rsk.course.python_kernels.piece import cut_row, find_token, piece_of_row, sum_piece
from rsk.course.python_kernels.tile import Tile
from rsk.course.python_kernels.warp import add_totals, walk_drafts


def cluster(block: int, thread: int, call: KernelCall, memory: Memory) -> Thread:
    """Step 5: the blocks of a request write each other letters."""
    (b, part), (warp, lane) = divmod(block, SPLIT), divmod(thread, LANES)
    shared, mine = memory.shared, part * WARPS + warp
    if thread == 0:
        for round_number in range(2):
            shared["mailbox", round_number] = open_mailbox(SPLIT)

    n, verdict = yield from walk_drafts(call, b, lane)
    if verdict == INVALID:  # all blocks of the request agree
        if mine == 0 and lane == 0:
            call.write_result(b, n, -1)
        return
    row = call.row_to_sample(b, n, verdict)
    piece = piece_of_row(call.vocab_size, mine, cut_row(call.vocab_size, SPLIT * WARPS))

    tile = Tile()
    for round_number in range(2):
        shared["total", round_number, warp] = yield from sum_piece(row, piece, tile, lane)
        yield BLOCK
        totals = [shared["total", round_number, i] for i in range(WARPS)]
        warps = yield from add_totals(totals, lane)
        if round_number == 0:
            yield CLUSTER  # until the mailboxes of all blocks are open
        if warp == 0 and lane < SPLIT:  # lane i writes to block i
            send(memory.of_cluster[lane]["mailbox", round_number], part, warps.all)
        mailbox = shared["mailbox", round_number]
        yield *LETTERS, mailbox
        blocks = yield from add_totals([mailbox.letters[i] for i in range(SPLIT)], lane)
        if blocks.all != 0 or not row.is_residual:
            break
        row.is_residual = False  # the residual is empty: sample from p
    token, is_writer = -1, mine == 0  # nothing to sample from
    if blocks.all > 0:
        chosen, rest = yield from blocks.choose(call.threshold(b, n, blocks.all))
        inner, rest = yield from warps.choose(rest)
        is_writer = part == chosen and warp == inner
        if is_writer:
            token = yield from find_token(row, piece, tile, rest, lane)
    if is_writer and lane == 0:
        call.write_result(b, n, token)


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
