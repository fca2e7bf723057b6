"""How many bytes must be on their way from memory, and how many threads it takes to ask."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from rsk.base import folders
from rsk.course import publish
from rsk.course.kernel_records import KernelTimes
from rsk.measure.comparison import megabytes

if TYPE_CHECKING:
    from rsk.course.lesson import Prediction

KERNEL = "loads_in_flight"
"""The one whose loads are counted."""
PACK_BYTES = 16
MULTIPROCESSORS = {"NVIDIA H100 80GB HBM3": 132, "NVIDIA H200": 132}
"""Of GPUs that runs were recorded on, from the vendor's data sheets."""


def show(times: KernelTimes, guess: Prediction, latency_us: float) -> None:
    """Show how many bytes must be on their way from memory, and who asks for them.

    Args:
        times: of the run whose roof is taken, from :func:`rsk.course.kernel_records.kernel_times`.
        guess: of the megabytes on their way, from :func:`rsk.course.lesson.predict`.
        latency_us: until memory answers while it is busy: an estimate, and shown as one.
    """
    asked = () if times.benchmark is None else times.benchmark.records
    known = [one for one in asked if one.implementation == KERNEL and not one.roof.busy]
    if times.benchmark is None or not known:
        publish.prose(
            "**Not measured yet on a GPU.** How fast its memory is read would come from a run "
            "there. The prediction waits."
        )
        return
    record = max(known, key=lambda one: one.bytes_moved)
    if times.is_recorded:
        publish.banner("recorded", times.benchmark.provenance)
    rate = record.bytes_moved / record.roof.median_us  # bytes a microsecond
    pair = 2 * PACK_BYTES
    packs = _packs_in_flight()
    publish.prose(
        """Reading {{bytes}} and doing nothing else takes {{roof}} µs here: {{rate:.1f}} TB/s.
        Memory answers after some {{latency:g}} µs while it is busy; that is our estimate, not a
        measurement. So {{rate:.1f}} TB/s × {{latency:g}} µs = {{flight}} have to be on their
        way at every moment. A thread that waits for one pair of {{pack}}-byte loads has
        {{pair}} bytes on their way: it takes {{one}} such threads, all waiting and none
        computing. With {{packs}} pairs a thread it takes {{many}}. The law gives the least
        that is needed: a thread that computes has nothing on its way.""",
        bytes=megabytes(record.bytes_moved),
        roof=record.roof.median_us,
        rate=rate / 1e6,
        latency=latency_us,
        flight=megabytes(rate * latency_us),
        pack=PACK_BYTES,
        pair=pair,
        one=f"{_rounded(rate * latency_us / pair):,}",
        packs=packs,
        many=f"{_rounded(rate * latency_us / (packs * pair)):,}",
    )
    multiprocessors = _multiprocessors(times.benchmark.provenance.gpu, times.is_recorded)
    if multiprocessors:
        threads = _resident_threads(KERNEL)
        publish.prose(
            """Seen from one of the {{multiprocessors}} multiprocessors: {{share}} must be on
            their way. `{{name}}` runs {{threads:,}} threads on each. With one pair a thread
            that is {{one}} at the very best, if no thread ever computed; with {{packs}} pairs
            it is {{many}}, which {{verdict}}.""",
            multiprocessors=multiprocessors,
            share=megabytes(rate * latency_us / multiprocessors),
            verdict="leaves time for the rest of the work"
            if threads * packs * pair > rate * latency_us / multiprocessors
            else "is not enough either",
            name=KERNEL,
            threads=threads,
            one=megabytes(threads * pair),
            packs=packs,
            many=megabytes(threads * packs * pair),
        )
    flight = rate * latency_us / 1e6
    publish.prose(
        "**{{name}}** — predicted: {{predicted:g}} {{unit}}; by this run and the estimate: "
        "{{flight}} {{unit}}. {{verdict}}",
        name=guess.name[:1].upper() + guess.name[1:],
        predicted=guess.value,
        unit=guess.unit,
        flight=flight,
        verdict=guess.verdict(flight),
    )
    publish.prose(
        """At B = {{batch}}, K = {{spec}}, V = {{vocab}}, {{dtype}}, `{{name}}` takes
        {{ratio:.2f}} times as long as only reading the bytes.""",
        batch=record.batch_size,
        spec=record.spec_len,
        vocab=record.vocab_size,
        dtype=record.dtype,
        name=KERNEL,
        ratio=1 / record.roof_share,
    )


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
