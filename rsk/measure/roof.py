"""The memory roof: how fast this machine reads so many bytes and does nothing else.

A kernel of our own reads them (``cuda/roof.cu``, ``cuda/roof_cpu.cpp``): in vectors, launched as
the sampler's are, on the same threads, from buffers in rotation as the sampler's inputs are. It is
tried with all its launch shapes, and the best one counts, so that no sampler which reads as much
can be faster. A time that is, by more than ``TOLERANCE``, is an error (:func:`check_above`).

``python -m rsk.measure.roof --save FILE`` measures it over a range of sizes and prints GB/s beside
the figure of the GPU's data sheet.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rsk.base import machine, terminal
from rsk.measure import clocks
from rsk.measure.provenance import provenance
from rsk.measure.record_files import RecordFile
from rsk.measure.records import TOLERANCE, Provenance, RecordError, Spread, check_schema
from rsk.sampler import build

SCHEMA = "rsk-roof/1"
FINALISTS = 3
"""Launch shapes that are timed in full; the others have had a glance."""
GLANCES = 5
BLOCKS_PER_MULTIPROCESSOR = 1, 2, 4, 8
THREADS = 256, 512, 1024
LOADS = 1, 2, 4, 8
STREAMS = 1, 2, 4
AHEAD = 0, 1024
SCATTER = -1640531527
"""Odd, and with bits all over."""
SIZES = tuple(1 << power for power in range(17, 29))
COLD = 4
"""With cold caches the buffers of a survey hold so many times the last-level cache."""
MAX_BUFFERS = 256

DATA_SHEETS: dict[str, tuple[float, str]] = {
    "NVIDIA H100 80GB HBM3": (3350, "NVIDIA H100 data sheet, H100 SXM"),
    "NVIDIA H100 PCIe": (2000, "NVIDIA H100 data sheet, H100 PCIe"),
    "NVIDIA H200": (4800, "NVIDIA H200 data sheet, H200 SXM"),
    "NVIDIA A100-SXM4-80GB": (2039, "NVIDIA A100 data sheet, A100 80GB SXM"),
    "NVIDIA A100-SXM4-40GB": (1555, "NVIDIA A100 data sheet, A100 40GB SXM"),
    "NVIDIA L40S": (864, "NVIDIA L40S data sheet"),
    "NVIDIA L4": (300, "NVIDIA L4 data sheet"),
}
"""By name, what a GPU's data sheet gives as memory bandwidth in GB/s, and which one it is."""


class Shape(NamedTuple):
    """How the kernel is launched.

    On a GPU blocks, threads of a block, and loads in flight; on a CPU pieces that threads share
    out, places at which each is read, and bytes that are fetched ahead.
    """

    parts: int
    width: int
    depth: int


@dataclass(frozen=True, kw_only=True)
class Roof:
    """The time to read so many bytes in one cache state, and how it was reached."""

    n_bytes: int
    n_sets: int
    """Buffers that were read in rotation."""
    shape: tuple[int, ...]
    """The best :class:`Shape`; empty where no compiler is, and PyTorch's sum stands in for it."""
    time: Spread
    """Back to back: on a GPU the share of a graph of many launches, which may overlap."""
    isolated: Spread | None
    """One launch of the same shape on an idle device, for which another shape may be better: no
    bound on other times. ``None`` on a CPU, where calls never overlap."""

    @property
    def gb_per_s(self) -> float:
        """10^9 bytes a second."""
        return self.n_bytes / self.time.median_us / 1e3

    def least(self, n_bytes: int) -> Spread:
        """What reading so many bytes takes at least: of fewer, their share of the time."""
        share = min(1.0, n_bytes / self.n_bytes)
        time = {
            name: share * getattr(self.time, name) for name in ("q25_us", "median_us", "q75_us")
        }
        return dataclasses.replace(self.time, **time)


class _Reader(NamedTuple):
    shape: tuple[int, ...]
    read: Callable[[Tensor], Tensor]


def data_sheet(gpu: str | None) -> tuple[float, str] | None:
    """GB/s that a GPU's data sheet promises, and its name; ``None`` for one that is not known."""
    return DATA_SHEETS.get(gpu or "")


def check_above(name: str, taken: Spread, roof: Spread) -> None:
    """Refuse a time that is below the roof of the same bytes by more than ``TOLERANCE``.

    A share of a graph is the least time that there is on a GPU, and so bounds times on its other
    clocks too. Else nothing is said of times on different clocks, nor where other processes
    disturbed the roof.

    Raises:
        RecordError: names both.
    """
    if roof.busy or roof.clock not in (taken.clock, "graph replay"):
        return
    if taken.median_us < roof.median_us * (1 - TOLERANCE):
        raise RecordError(
            f"{name}: {taken.median_us:.4g} us is {1 - taken.median_us / roof.median_us:.1%} below "
            f"the memory roof, {roof.median_us:.4g} us ({roof.clock}, same bytes and cache state): "
            f"expected at most {TOLERANCE:.0%}; one of the two is wrong"
        )


def measure(
    n_bytes: int,
    n_sets: int,
    device: torch.device,
    *,
    budget_s: float = 0.1,
    isolated: bool = False,
) -> Roof:
    """Time to read ``n_bytes``, rounded down to 16, and do nothing else.

    Args:
        n_bytes: how many bytes each call reads.
        n_sets: how many buffers to rotate over: as many as the sampler's input sets, so that the
            cache is in the same state.
        device: where to read.
        budget_s: seconds to spend on the finalists; as much again the first time, to find them.
        isolated: time isolated launches too, on a GPU.

    Raises:
        RecordError: the kernel did not read what is there.
    """
    words = max(4, n_bytes // 16 * 4)
    data = torch.arange(n_sets * words, dtype=torch.int32, device=device).view(n_sets, words)
    data *= SCATTER  # or the sum of neighbours would often be 0
    ranked = _ranked(data, torch.get_num_threads())
    timed = [
        (_time(reader, data, clocks.back_to_back(device), budget_s / len(ranked)), reader)
        for reader in ranked
    ]
    best, reader = min(timed, key=lambda one: one[0].median_us)
    alone = None
    if isolated and device.type == "cuda":
        alone = _time(reader, data, clocks.time_isolated, budget_s / 2)
    return Roof(n_bytes=4 * words, n_sets=n_sets, shape=reader.shape, time=best, isolated=alone)


def checksum(words: Tensor) -> int:
    """All words combined by exclusive or, an int32: what the partial sums of a reader come to."""
    while len(words) > 1:
        half = len(words) // 2
        rest = words[2 * half :]
        words = torch.cat([words[:half] ^ words[half : 2 * half], rest])
    return int(words[0])


def _time(
    reader: _Reader,
    data: Tensor,
    timer: Callable[..., tuple[Spread, list[Any]]],
    budget_s: float,
) -> Spread:
    spread, outputs = timer(
        [functools.partial(reader.read, row) for row in data], budget_s=budget_s
    )
    if reader.shape and checksum(outputs[0].flatten()) != checksum(data[0]):
        raise RecordError(f"roof: the reading kernel {reader.shape} did not read what is there")
    return spread


_found: dict[tuple[str, int, int, int], list[_Reader]] = {}


def _ranked(data: Tensor, threads: int) -> list[_Reader]:
    """The readers that took the least time at a glance; remembered, so that it is taken once."""
    key = str(data.device), *data.shape, threads
    if key not in _found:
        readers = _readers(data.device, data.shape[1], threads)
        glanced = sorted((_glance(reader, data), i) for i, reader in enumerate(readers))
        _found[key] = [readers[i] for _, i in glanced[:FINALISTS]]
    return _found[key]


def _readers(device: torch.device, words: int, threads: int) -> list[_Reader]:
    try:
        build.load("roof cpu")  # it has the schemas of both operators
        if device.type == "cuda":
            build.load("roof cuda")
    except build.BuildError:
        return [_Reader((), torch.sum)]
    operator = (
        torch.ops.rsk.read_in_blocks if device.type == "cuda" else torch.ops.rsk.read_in_pieces
    )
    return [
        _Reader(shape, functools.partial(_call, operator, shape))
        for shape in shapes(device, words, threads)
    ]


def _call(operator: Callable[..., Tensor], shape: Shape, row: Tensor) -> Tensor:
    return operator(row, *shape)


def shapes(device: torch.device, words: int, threads: int) -> list[Shape]:
    """The launch shapes to try, without repetition, for so many words of 4 bytes.

    Args:
        device: where.
        words: how many are read.
        threads: that PyTorch uses on a CPU.
    """
    if device.type == "cpu":
        pieces = sorted({1, threads})
        return [Shape(p, streams, ahead) for p in pieces for streams in STREAMS for ahead in AHEAD]
    resident = torch.cuda.get_device_properties(device).multi_processor_count
    found = []
    for width in THREADS:
        for loads in LOADS:
            needed = -(-words // (4 * width * loads))  # blocks with something to read
            for each in BLOCKS_PER_MULTIPROCESSOR:
                found.append(Shape(min(needed, each * resident), width, loads))
            found.append(Shape(needed, width, loads))  # a block for each tile, as many as it takes
    return list(dict.fromkeys(found))


def _glance(reader: _Reader, data: Tensor) -> float:
    """The least of a few times of one rotation, in nanoseconds or milliseconds."""
    if data.device.type == "cpu":
        least = float("inf")
        for _ in range(GLANCES):
            start = time.perf_counter_ns()
            for row in data:
                reader.read(row)
            least = min(least, time.perf_counter_ns() - start)
        return least
    reader.read(data[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with clocks.capturing(graph):
        kept = [
            reader.read(row) for _ in range(-(-clocks.GRAPH_CALLS // len(data))) for row in data
        ]
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    least = float("inf")
    for _ in range(GLANCES):
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        least = min(least, first.elapsed_time(last) / len(kept))
    return least


@dataclass(frozen=True, kw_only=True)
class RoofRecord(RecordFile):
    """A file of ``data/roof/``."""

    SCHEMA = SCHEMA
    schema: str
    provenance: Provenance
    data_sheet_gb_per_s: float | None
    data_sheet: str | None
    runs: tuple[tuple[Roof, ...], ...]
    """Each whole run over all sizes and both cache states."""

    def __post_init__(self) -> None:
        check_schema(self.schema, SCHEMA)
        if not self.runs or not all(self.runs):
            raise RecordError("runs: expected at least one with a roof")

    @property
    def memory_gb_per_s(self) -> float:
        """What is read from memory in a second: of the largest size, the median over the runs."""
        largest = [max(run, key=lambda roof: (roof.n_bytes, roof.n_sets)) for run in self.runs]
        return statistics.median(roof.gb_per_s for roof in largest)


def survey(device: torch.device, *, sizes: Sequence[int], runs: int, budget_s: float) -> RoofRecord:
    """The roof over a range of sizes, with warm and cold caches, in whole runs.

    Warm is one buffer that is read again and again. Cold are as many as hold ``COLD`` times the
    cache; of sizes that would take more than ``MAX_BUFFERS``, only warm times are taken.
    """
    cache = machine.last_level_cache(device)

    def one_run() -> tuple[Roof, ...]:
        found = []
        for n_bytes in sizes:
            needed = max(1, -(-COLD * cache // n_bytes))
            for n_sets in dict.fromkeys((1, needed if needed <= MAX_BUFFERS else 1)):
                roof = measure(n_bytes, n_sets, device, budget_s=budget_s, isolated=True)
                alone = f", alone {roof.isolated.median_us:.2f} us" if roof.isolated else ""
                print(f"{n_bytes:>10} bytes x {n_sets}: {roof.time.median_us:.2f} us, "
                      f"{roof.gb_per_s:.0f} GB/s{alone}, {roof.shape}", flush=True)  # fmt: skip
                found.append(roof)
        return tuple(found)

    place = provenance(device)
    promised, source = data_sheet(place.gpu) or (None, None)
    return RoofRecord(
        schema=SCHEMA,
        provenance=place,
        data_sheet_gb_per_s=promised,
        data_sheet=source,
        runs=tuple(one_run() for _ in range(runs)),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as a program."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m rsk.measure.roof")
    parser.add_argument("--save", type=Path, required=True, help="the file to write")
    parser.add_argument("--runs", type=int, default=5, help="whole runs (default: 5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dry", action="store_true", help="two small sizes: a trial")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu measures the processor")
    found = survey(
        torch.device(chosen.device),
        sizes=SIZES[:2] if chosen.dry else SIZES,
        runs=chosen.runs,
        budget_s=0.002 if chosen.dry else 0.1,
    )
    found.save(chosen.save)
    if found.data_sheet_gb_per_s is not None:
        rate = found.memory_gb_per_s
        print(f"data sheet: {found.data_sheet_gb_per_s:.0f} GB/s ({found.data_sheet}); read from "
              f"memory: {rate:.0f} GB/s, {rate / found.data_sheet_gb_per_s:.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
