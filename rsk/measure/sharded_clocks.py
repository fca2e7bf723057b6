"""Clocks of a call that all ranks make together, and what the link between them does."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rsk.base import machine
from rsk.measure import clocks, roof
from rsk.measure.records import RecordError, Spread
from rsk.measure.samples import Samples
from rsk.measure.sharded_records import Link
from rsk.sampler.api import RejectionSamples
from rsk.sampler.channel import WORDS

SAMPLES = 15


def time_graph(
    way: Callable[[int], Any], sets: int, batch_size: int
) -> tuple[Spread, list[RejectionSamples]]:
    """The share of a call in a graph of many: the same number of calls and samples on all ranks."""
    calls = max(2, 24 // max(1, batch_size // 16))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(3):
            way(i % sets)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with clocks.capturing(graph):
        outputs = [way(i % sets) for i in range(calls)]
    for output in outputs:
        clocks.poison(output)
    samples = []
    for i in range(SAMPLES + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            samples.append(start.elapsed_time(end) * 1e3 / calls)
    return _spread(samples, "graph replay"), outputs


def time_calls(way: Callable[[int], Any], sets: int) -> Spread:
    """A call by itself until its result is there."""
    samples = []
    for i in range(2 * SAMPLES + 5):
        dist.barrier()
        torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        way(i % sets)
        torch.cuda.synchronize()
        if i >= 5:
            samples.append((time.perf_counter_ns() - begin) / 1e3)
    return _spread(samples, "wall")


def _spread(samples: list[float], clock: str) -> Spread:
    return Samples([(sample,) for sample in samples], 0.0).spread(clock)


def gather(own: Tensor, received: Tensor) -> None:
    """Write what all ranks have into one tensor; newer versions of PyTorch have a new name for it.

    Args:
        own: a tensor of the same size on every rank.
        received: as many times as large as there are ranks, whose own follow each other in it.
    """
    call = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    call(received, own)


def measure_link(ranks: int, device: torch.device) -> Link:
    """What the GPUs and the link do: latencies of the shortest messages, and rates."""
    short = torch.zeros(WORDS, dtype=torch.int64, device=device)
    half = torch.zeros(WORDS // 2, dtype=torch.int64, device=device)
    large = torch.zeros(16 << 20, dtype=torch.int64, device=device)

    def gathering(message: Tensor) -> Callable[[int], tuple[Tensor]]:
        received = message.new_empty(ranks * len(message))

        def call(_: int) -> tuple[Tensor]:
            gather(message, received)
            return (received,)

        return call

    def reducing(_: int) -> tuple[Tensor]:
        dist.all_reduce(half, dist.ReduceOp.MAX)
        return (half,)

    gather_us = time_graph(gathering(short), 1, 1)[0].median_us
    reduce_us = time_graph(reducing, 1, 1)[0].median_us
    large_us = time_graph(gathering(large), 1, 256)[0].median_us
    read = 1 << 28
    reading = roof.measure(read, 1, device, budget_s=0.3).time
    return Link(
        ranks=ranks,
        gather_us=gather_us,
        reduce_us=reduce_us,
        gather_bytes_us=max(1, ranks - 1) * large.nbytes / large_us,
        memory_bytes_us=read / reading.median_us,
        launch_us=clocks.launch_floor(device),
        lanes=128 * torch.cuda.get_device_properties(device).multi_processor_count,
        clock_mhz=clock_mhz(),
    )


def clock_mhz() -> float:
    """The highest clock of the first GPU's multiprocessors.

    Raises:
        RecordError: nvidia-smi is missing, or does not tell it.
    """
    told = machine.output_of("nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader")
    found = re.match(r"\d+(\.\d+)? MHz", told)
    if found is None:
        raise RecordError(f"clock_mhz: expected a clock in MHz from nvidia-smi, got {told!r}")
    return float(found[0].split()[0])
