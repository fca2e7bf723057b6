"""How many bytes must be on their way from memory, and how many threads it takes to ask."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from rsk.base import folders
from rsk.course import publish
from rsk.course.kernel_records import KernelTimes
from rsk.measure import comparison

if TYPE_CHECKING:
    from rsk.course.prediction import Prediction

KERNEL = "loads_in_flight"
"""The one whose loads are counted."""
PACK_BYTES = 16
MULTIPROCESSORS = {"NVIDIA H100 80GB HBM3": 132, "NVIDIA H200": 132}
"""Of GPUs that runs were recorded on, from the vendor's data sheets."""


def show(times: KernelTimes, guess: Prediction, latency_us: float) -> None:
    """Show how many bytes must be on their way from memory, and who asks for them.

    Args:
        times: of the run whose roof is taken, from :func:`rsk.course.kernel_records.kernel_times`.
        guess: of the megabytes on their way, from :func:`rsk.course.prediction.predict`.
        latency_us: until memory answers while it is busy: an estimate, and shown as one.
    """
    found = comparison.by_point(times.benchmark.records).values()
    known = [by_name[KERNEL] for by_name in found if KERNEL in by_name]
    known = [one for one in known if not one.roof.busy]
    if not known:
        publish.passage("course.md#not-measured", name=KERNEL)
        return
    record = max(known, key=lambda one: one.bytes_moved)
    times.show_banner()
    rate = record.bytes_moved / record.roof.median_us  # bytes a microsecond
    flight, pair, packs = rate * latency_us, 2 * PACK_BYTES, _packs_in_flight()
    publish.passage(
        "course.md#in-flight",
        record=record,
        rate=rate / 1e6,
        latency_us=latency_us,
        flight=flight,
        pack=PACK_BYTES,
        pair=pair,
        packs=packs,
        threads=[_rounded(flight / pair), _rounded(flight / (packs * pair))],
    )
    multiprocessors = _multiprocessors(times.benchmark.provenance.gpu, times.is_recorded)
    if multiprocessors:
        threads = _resident_threads(KERNEL)
        publish.passage(
            "course.md#in-flight-of-one",
            multiprocessors=multiprocessors,
            share=flight / multiprocessors,
            name=KERNEL,
            threads=threads,
            one=threads * pair,
            packs=packs,
            many=threads * packs * pair,
        )
    publish.passage("course.md#in-flight-guessed", guess=guess, flight=flight / 1e6)
    publish.passage("course.md#beside-reading", record=record)


def _rounded(count: float) -> int:
    """To the two digits that an estimate has."""
    return int(float(f"{count:.1e}"))


def _packs_in_flight() -> int:
    """Packs of each row that a thread asks for before it waits: the chunks of its tile."""
    return _number("tile.h", r"constexpr int32_t CHUNKS = (\d+);")


def _resident_threads(kernel: str) -> int:
    """Threads that a multiprocessor runs at once, from the kernel's launch bounds."""
    blocks = _number(f"{kernel}.cu", r"__launch_bounds__\(THREADS, (\d+)\)")
    return blocks * _number(f"{kernel}.cu", r"constexpr int32_t THREADS = (\d+);")


def _number(file: str, pattern: str) -> int:
    """A number in a file of ``cuda/``."""
    found = re.search(pattern, (folders.cuda_dir() / file).read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"expected {pattern} in cuda/{file}")
    return int(found[1])


def _multiprocessors(gpu: str | None, is_recorded: bool) -> int | None:
    if is_recorded:
        return MULTIPROCESSORS.get(gpu or "")
    return int(torch.cuda.get_device_properties(0).multi_processor_count)
