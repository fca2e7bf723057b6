"""Step 4, as in ``cuda/split_vocabulary.cu``."""

from __future__ import annotations

from rsk.course.python_kernels.call import INVALID, KernelCall
from rsk.course.python_kernels.gpu import BLOCK, LANES, SPLIT, WARP, WARPS, Memory, Thread
from rsk.course.python_kernels.piece import cut_row, find_token, piece_of_row, sum_piece
from rsk.course.python_kernels.tile import Tile
from rsk.course.python_kernels.warp import add_totals, walk_drafts


def split_vocabulary(block: int, thread: int, call: KernelCall, memory: Memory) -> Thread:
    """Step 4: several blocks share the row; the last to arrive finishes the request."""
    (b, part), (warp, lane) = divmod(block, SPLIT), divmod(thread, LANES)
    shared, workspace = memory.shared, memory.workspace
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
