"""What a warp asks for before it waits, as in ``cuda/tile.h``."""

from __future__ import annotations

from rsk.course.python_kernels.call import Row
from rsk.course.python_kernels.gpu import CHUNK, CHUNKS, LANES, PACK, WARP, Thread
from rsk.course.python_kernels.warp import running_sum


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
