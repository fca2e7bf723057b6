"""A tiny GPU: how many threads there are, and how they wait for one another.

A GPU's warp has 32 lanes that load up to 16 bytes each, four times before they wait, and memory
moves sectors of 32 bytes. Here a warp has 4 lanes that load up to 8 bytes, twice, and a sector has
16 bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LANES = 4
SECTOR = 4
"""Probabilities (float32) that memory moves at least."""
PACK = 2
"""Neighbouring probabilities that a lane can load at once."""
CHUNK = LANES * PACK
"""What a warp can load at once."""
CHUNKS = 2
"""Loads of a lane that are on their way together."""
TILE = CHUNKS * CHUNK
"""What a warp asks for before it waits."""
WARPS = 2
"""Of a block, where a block has more than one."""
SPLIT = 2
"""Blocks that share a request, where several do."""

WARP, BLOCK, CLUSTER, LETTERS = ("warp",), ("block",), ("cluster",), ("letters",)
"""What a thread waits for: see :mod:`rsk.course.python_kernels`."""

Thread = Generator[tuple[Any, ...], Any, Any]
Who = tuple[int, int]
"""Block and thread."""


@dataclass
class Memory:
    """What the threads of a block write to, besides the result."""

    shared: dict[Any, Any]
    """The block's own."""
    of_cluster: Sequence[dict[Any, Any]]
    """The shared memory of each block of the cluster, its own included."""
    workspace: dict[Any, Any]
    """Of all blocks."""


def run(threads: dict[Who, Thread], turns: random.Random, begin: Callable[[Who], None]) -> None:
    """Run threads to their end; those that wait go on when all of their group wait.

    Args:
        threads: those that run at the same time.
        turns: decides in which order they take turns.
        begin: called with each thread as its turn begins.

    Raises:
        RuntimeError: threads wait for others that never come.
    """
    inbox: dict[Who, Any] = dict.fromkeys(threads)  # of those that can go on
    waiting: dict[Who, tuple[Any, ...]] = {}
    while threads:
        ready = list(inbox)
        turns.shuffle(ready)
        for who in ready:
            begin(who)
            try:
                waiting[who] = threads[who].send(inbox.pop(who))
            except StopIteration:
                del threads[who]
        for who in [
            w for w, what in waiting.items() if what[:1] == LETTERS and not what[1].missing
        ]:
            inbox[who] = waiting.pop(who)[1]
        for scope, group_of in _GROUPS.items():
            groups: dict[Any, list[Who]] = {}
            for who in threads:
                groups.setdefault(group_of(*who), []).append(who)
            for group in groups.values():
                if all(who in waiting and waiting[who][0] == scope for who in group):
                    values = {who[1] % LANES: waiting.pop(who)[-1] for who in group}
                    for who in group:
                        inbox[who] = [values.get(lane) for lane in range(LANES)]
        if threads and not inbox:
            raise RuntimeError("a barrier was not reached by all threads")


_GROUPS: Mapping[str, Callable[[int, int], Any]] = {
    "warp": lambda block, thread: (block, thread // LANES),
    "block": lambda block, thread: block,
    "cluster": lambda block, thread: None,
}
