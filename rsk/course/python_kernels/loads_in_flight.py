"""Step 3, as in ``cuda/loads_in_flight.cu``."""

from __future__ import annotations

from rsk.course.python_kernels.call import INVALID, KernelCall
from rsk.course.python_kernels.gpu import BLOCK, LANES, WARPS, Memory, Thread
from rsk.course.python_kernels.piece import cut_row, find_token, piece_of_row, sum_piece
from rsk.course.python_kernels.tile import Tile
from rsk.course.python_kernels.warp import add_totals, walk_drafts


def loads_in_flight(block: int, thread: int, call: KernelCall, memory: Memory) -> Thread:
    """Step 3: a thread asks for all that it can before it waits for any of it."""
    b, (warp, lane) = block, divmod(thread, LANES)
    shared = memory.shared
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
