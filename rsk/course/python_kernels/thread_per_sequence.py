"""Step 1, as in ``cuda/thread_per_sequence.cu``."""

from __future__ import annotations

from rsk.course.python_kernels.call import ACCEPTED, ENDED, INVALID, KernelCall
from rsk.course.python_kernels.gpu import LANES, Memory


def thread_per_sequence(block: int, thread: int, call: KernelCall, _: Memory) -> None:
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
