"""Timing calls on the CPU and the GPU: the clocks.

A sample is the mean over at least one rotation of the calls it is given; how many are taken is up
to :mod:`rsk.measure.samples`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rsk.measure.records import Spread
from rsk.measure.samples import sample_until_settled

Thunk = Callable[[], Any]
"""A call without arguments: what is timed."""

GRAPH_CALLS = 20
"""A captured graph holds at least this many calls, so that its own start is a small share."""
GRAPH_S = 0.05
"""Or as many as last this long: of slow calls, few do."""
SAMPLE_NS = 200_000
"""A sample of the wall clock lasts at least this long: the clock's own cost is 0.1 us."""
EAGER_SAMPLE = 16, 2e-3
"""A sample of single calls takes this many, or as many as last this many seconds: what happens
between two samples has emptied the processor's caches for the first of them."""
SPIN_CYCLES = 100_000
"""About 50 us of a GPU's clock: longer than the host takes to queue two events and a graph."""
WARM_UP_S = 0.02
"""A GPU that had little to do takes some milliseconds to raise its clocks."""


def time_wall(calls: Sequence[Thunk], *, budget_s: float) -> tuple[Spread, list[Any]]:
    """Time calls that return when their work is done, by the wall clock.

    Returns:
        The time of one call, each sample the mean over ``calls``; and the last outputs.
    """
    outputs: list[Any] = []

    def rotation() -> int:
        nonlocal outputs
        start = time.perf_counter_ns()
        outputs = [call() for call in calls]
        return time.perf_counter_ns() - start

    rotation()
    rounds = math.ceil(SAMPLE_NS / max(rotation(), 1))

    def sample() -> tuple[float]:
        return (sum(rotation() for _ in range(rounds)) / 1e3 / rounds / len(calls),)

    return sample_until_settled(sample, budget_s).spread("wall"), outputs


def time_eager(calls: Sequence[Thunk], *, budget_s: float) -> tuple[Spread, Spread, list[Any]]:
    """Time calls that put work on the GPU, by the wall clock, one at a time.

    Returns:
        Time until a call returns, time until its result is there, and the last outputs.
    """
    outputs: list[Any] = []
    begin = time.perf_counter()
    calls[0]()
    torch.cuda.synchronize()
    lasted = time.perf_counter() - begin
    rounds = math.ceil(min(EAGER_SAMPLE[0], EAGER_SAMPLE[1] / lasted) / len(calls))

    def sample() -> tuple[float, float]:
        nonlocal outputs
        host = total = 0
        for _ in range(rounds):
            outputs = []
            for call in calls:
                start = time.perf_counter_ns()
                outputs.append(call())
                returned = time.perf_counter_ns()
                torch.cuda.synchronize()
                total += time.perf_counter_ns() - start
                host += returned - start
        return total / 1e3 / rounds / len(calls), host / 1e3 / rounds / len(calls)

    samples = sample_until_settled(sample, budget_s)
    return samples.spread("wall", 1), samples.spread("wall", 0), outputs


def time_graph(calls: Sequence[Thunk], *, budget_s: float) -> tuple[Spread, list[Any]]:
    """Time calls on the GPU as their share of one captured graph: launch latency is hidden.

    The outputs are poisoned between capture and replay, so those returned were written by a
    replay.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # first calls allocate and load code, which cannot be captured
        for call in calls[:3]:
            call()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        calls[0]()
        torch.cuda.synchronize()
        lasted = time.perf_counter() - begin
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    rounds = math.ceil(min(GRAPH_CALLS, GRAPH_S / lasted) / len(calls))
    with capturing(graph):
        outputs = [call() for _ in range(rounds) for call in calls]
    for output in outputs:
        poison(output)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample() -> tuple[float]:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return (start.elapsed_time(end) * 1e3 / len(outputs),)

    begin = time.perf_counter()
    while time.perf_counter() - begin < WARM_UP_S:
        sample()
    # The device's clock does not care when the host loses its processor.
    samples = sample_until_settled(sample, budget_s, watch=False)
    return samples.spread("graph replay"), outputs


def time_isolated(calls: Sequence[Thunk], *, budget_s: float) -> tuple[Spread, list[Any]]:
    """Time calls on the GPU one launch at a time: nothing runs before or after it.

    Each is captured in a graph of its own, which is replayed on an idle device between two events,
    and waited for. The device is kept spinning until the events and the launch are in its queue, so
    that the host's time to put them there is not in it. What is in it, and hidden where launches
    follow each other, is the beginning and the end of a kernel.

    Returns:
        The time of one call, each sample the mean over ``calls``; and the outputs.
    """
    graphs, outputs = [], []
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # a first call allocates and loads code, which cannot be captured
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    for call in calls:
        graphs.append(torch.cuda.CUDAGraph())
        with capturing(graphs[-1]):
            outputs.append(call())
    for output in outputs:
        poison(output)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample() -> tuple[float]:
        total = 0.0
        for graph in graphs:
            torch.cuda._sleep(SPIN_CYCLES)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            total += start.elapsed_time(end)
        return (total * 1e3 / len(graphs),)

    return sample_until_settled(sample, budget_s, watch=False).spread("isolated launch"), outputs


def capturing(graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
    """Capture in a graph what is called inside.

    Other threads may ask the device about events meanwhile, as NCCL's own does.
    """
    return torch.cuda.graph(graph, capture_error_mode="thread_local")


def back_to_back(device: torch.device) -> Callable[..., tuple[Spread, list[Any]]]:
    """The clock of a device's own time: :func:`time_graph` on a GPU, else :func:`time_wall`."""
    return time_graph if device.type == "cuda" else time_wall


def poison(output: Any) -> None:
    """Overwrite the tensors of an output, so that what stands there later was written later."""
    for tensor in output if isinstance(output, tuple) else (output,):
        if isinstance(tensor, Tensor):
            tensor.fill_(-7)


def launch_floor(device: torch.device, *, budget_s: float = 0.05) -> float:
    """Microseconds of the smallest operation there is: writing one element."""
    one = torch.zeros(1, device=device)
    fill = functools.partial(one.fill_, 1.0)
    return back_to_back(device)([fill], budget_s=budget_s)[0].median_us
