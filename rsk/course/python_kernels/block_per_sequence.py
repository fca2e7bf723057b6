"""Step 2, as in ``cuda/block_per_sequence.cu``."""

from __future__ import annotations

from rsk.course.python_kernels.call import ACCEPTED, ENDED, INVALID, KernelCall
from rsk.course.python_kernels.gpu import BLOCK, LANES, WARPS, Memory, Thread


def block_per_sequence(block: int, thread: int, call: KernelCall, memory: Memory) -> Thread:
    """Step 2: the threads of a block share the row of a request."""
    b, (warp, lane) = block, divmod(thread, LANES)
    shared = memory.shared

    n, verdict = 0, ENDED
    while n < call.spec_len:  # all threads: they read the same numbers
        verdict = call.judge(b, n)
        if verdict != ACCEPTED:
            break
        n += 1

    row = call.row_to_sample(b, n, verdict)
    token = rest = -1
    begin, end = 0, call.vocab_size  # the token is in between
    while verdict != INVALID and token < 0:
        piece = -(-(end - begin) // WARPS)  # its length
        first = begin + warp * piece
        shared["sum", thread] = 0
        for v in range(first + lane, min(first + piece, end), LANES):
            shared["sum", thread] += row.weight(v)
        yield BLOCK
        if lane == 0:
            sums = [shared["sum", warp * LANES + i] for i in range(LANES)]
            shared["total", warp] = sum(sums)
        yield BLOCK

        totals = [shared["total", i] for i in range(WARPS)]
        if rest < 0:  # this was the whole row
            if sum(totals) == 0 and not row.is_residual:
                break  # nothing to sample from
            if sum(totals) == 0:
                row.is_residual = False  # the residual is empty: sample from p
                continue
            rest = call.threshold(b, n, sum(totals))
        chosen = 0
        while rest >= totals[chosen]:
            rest -= totals[chosen]
            chosen += 1
        begin += chosen * piece
        end = min(begin + piece, end)
        if end - begin == 1:
            token = begin
    if thread == 0:
        call.write_result(b, n, token)
