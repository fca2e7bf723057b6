"""The CUDA kernels as Python functions of a block and a thread index, on a tiny GPU.

There is a module for each ``.cu`` file and for each of the headers ``warp.h``, ``tile.h`` and
``piece.h``. They follow the CUDA text step by step, return the same tokens bit for bit, and log
every probability that they load, which is what the drawings of the course are made from. What
waits for others in CUDA is a ``yield`` here: ``yield WARP, x`` gives x to the lanes of the warp and
returns theirs; ``yield BLOCK`` is ``__syncthreads()``; ``yield CLUSTER`` waits until all blocks of
the cluster are there; ``yield LETTERS, mailbox`` waits until the mailbox is complete. Left out are
the refusal of values that are not finite, drafts without probabilities, and rows of different
length.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from rsk.check.synthetic import make_batch
from rsk.course.python_kernels.block_per_sequence import block_per_sequence
from rsk.course.python_kernels.call import KernelCall
from rsk.course.python_kernels.cluster import cluster
from rsk.course.python_kernels.gpu import LANES, SECTOR, SPLIT, WARPS, Memory, Thread, Who, run
from rsk.course.python_kernels.loads_in_flight import loads_in_flight
from rsk.course.python_kernels.split_vocabulary import split_vocabulary
from rsk.course.python_kernels.thread_per_sequence import thread_per_sequence
from rsk.figures.memory_access import Load, Reading
from rsk.sampler.api import RejectionSamples
from rsk.sampler.baseline import per_request


@dataclass(frozen=True)
class PythonKernel:
    """A kernel, how it is launched, and where its sums meet."""

    function: Callable[[int, int, KernelCall, Memory], Thread | None]
    """Of block and thread; ``None``: it waits for nobody, and has run to its end."""
    blocks: int = 1
    """For each request; 0: each thread has a request of its own."""
    is_cluster: bool = False
    """Whether the blocks of a request surely run at the same time."""
    meeting: tuple[str, ...] = ()
    """Where the sums of a request's threads go, for the drawing; ``{block}`` stands for the number
    of its first block in the first text, of the next one in the next."""


_MAILBOX = "mailbox of block {block}:\na letter with each block's total"
KERNELS: Mapping[str, PythonKernel] = MappingProxyType(
    {
        "thread_per_sequence": PythonKernel(thread_per_sequence, blocks=0),
        "block_per_sequence": PythonKernel(
            block_per_sequence,
            meeting=("shared memory of block {block}: the sums of its threads, then of its warps",),
        ),
        "loads_in_flight": PythonKernel(
            loads_in_flight, meeting=("shared memory of block {block}: the totals of its warps",)
        ),
        "split_vocabulary": PythonKernel(
            split_vocabulary,
            SPLIT,
            meeting=("global memory: the totals of the blocks and their warps, and the tickets",),
        ),
        "cluster": PythonKernel(cluster, SPLIT, is_cluster=True, meeting=(_MAILBOX,) * SPLIT),
    }
)
"""Name to kernel, in the order of :data:`rsk.KERNELS`."""


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
    kernel = KERNELS[name]
    batch_size, spec_len = draft_tokens.shape
    call = KernelCall(
        draft_tokens.tolist(),
        target_probs.float().numpy(),
        draft_probs.float().numpy(),
        per_request(seed, batch_size, step=1),
        per_request(position, batch_size, step=0),
        torch.full((batch_size, spec_len + 1), -7),  # whatever is not written shows
        torch.full((batch_size,), -7),
    )
    turns = random.Random(order)
    together = kernel.blocks if kernel.is_cluster else 1
    blocks = batch_size * kernel.blocks or -(-batch_size // LANES)
    threads = LANES * (WARPS if kernel.blocks else 1)
    workspace: dict[Any, Any] = {}
    groups = [range(first, first + together) for first in range(0, blocks, together)]
    turns.shuffle(groups)
    for group in groups:
        shared: list[dict[Any, Any]] = [{} for _ in group]
        running: dict[Who, Thread] = {}
        for block, own in zip(group, shared, strict=True):
            memory = Memory(own, shared, workspace)
            for thread in range(threads):
                running[block, thread] = _started(kernel, block, thread, call, memory)
        run(running, turns, lambda who: setattr(call, "running", who))
    return RejectionSamples(call.tokens, call.num_accepted), call.loads


def _started(
    kernel: PythonKernel, block: int, thread: int, call: KernelCall, memory: Memory
) -> Thread:
    begun = kernel.function(block, thread, call, memory)
    if begun is not None:
        yield from begun


def reading(name: str, requests: int | None = None, vocab_size: int | None = None) -> Reading:
    """How a kernel reads the rows of a small batch to sum them: each probability once.

    Args:
        name: of the kernel.
        requests: B; by default few, so that they can be drawn.
        vocab_size: V, likewise.

    Raises:
        ValueError: an unknown kernel.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {name!r}")
    kernel = KERNELS[name]
    drawn = (2, 64) if kernel.blocks else (LANES, 32)
    batch = make_batch(requests or drawn[0], 1, vocab_size or drawn[1], acceptance=0.5)
    _, loads = launch(name, *batch, seed=0)
    first: dict[tuple[int, int], Load] = {}
    for load in loads:
        first.setdefault((load.request, load.v), load)
    return Reading(
        kernel=name,
        loads=sorted(first.values(), key=lambda load: (load.request, load.v)),
        lanes=LANES,
        warps=WARPS if kernel.blocks else 1,
        blocks=kernel.blocks,
        sector=SECTOR,
        meeting=kernel.meeting,
    )
