"""What the lanes of a warp do together, as in ``cuda/warp.h``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rsk.course.python_kernels.call import ACCEPTED, ENDED, KernelCall
from rsk.course.python_kernels.gpu import LANES, WARP, Thread


def walk_drafts(call: KernelCall, b: int, lane: int) -> Thread:
    """Each lane judges a draft; returns how many are accepted and why the walk ended."""
    for start in range(0, call.spec_len, LANES):
        k = start + lane
        verdicts = yield *WARP, call.judge(b, k) if k < call.spec_len else ENDED
        for first, verdict in enumerate(verdicts):
            if verdict != ACCEPTED:
                return start + first, verdict
    return call.spec_len, ENDED


def running_sum(x: int, lane: int) -> Thread:
    """The sum of x over this lane and the ones below it."""
    step = 1
    while step < LANES:
        of_lanes = yield *WARP, x
        if lane >= step:
            x += of_lanes[lane - step]
        step *= 2
    return x


class Totals(NamedTuple):
    """The totals of the parts of a row, one a lane."""

    running: int
    """Over the parts up to this lane's."""
    all: int

    def choose(self, rest: int) -> Thread:
        """The part that the token is in, and the threshold within that part."""
        running = yield *WARP, self.running
        part = next((i for i in range(LANES) if running[i] > rest), -1)
        return part, rest - (running[part - 1] if part > 0 else 0)


def add_totals(totals: Sequence[int], lane: int) -> Thread:
    """The running sums and the sum of up to as many totals as a warp has lanes."""
    running = yield from running_sum(totals[lane] if lane < len(totals) else 0, lane)
    return Totals(running, (yield *WARP, running)[LANES - 1])
