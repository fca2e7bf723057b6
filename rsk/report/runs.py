"""``cpu`` and ``gpu`` of the templates: what a benchmark's records say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rsk.base.numbers import Span, span
from rsk.course import demo
from rsk.course.demo import Loss
from rsk.figures import curves
from rsk.figures.curves import Growth
from rsk.measure import comparison, peers
from rsk.measure.comparison import Repeatability, Repeated, Sizes, SpeedUp, usual_line
from rsk.measure.over_runs import OverRuns, Series, Time, comparable, ratio
from rsk.measure.records import Benchmark, Operations, Point, RecordError
from rsk.measure.roof import data_sheet
from rsk.report.measurements import Source
from rsk.sampler.api import BACKENDS
from rsk.sampler.kernels import KERNELS


class Half(NamedTuple):
    """Time with bfloat16 probabilities over that with float32, on the device."""

    ratio: OverRuns
    point: Point


SHOWN = (*BACKENDS, "compiled", "idiomatic", "triton", "FlashInfer", "SGLang", "vLLM V2")
"""In the figures of the GPU: more lines than these cannot be told apart."""


class Rival(NamedTuple):
    """Another sampler beside ours at one point, by one clock."""

    one: Series
    fused: Series
    time: str
    """``"call"`` or ``"device"``."""
    version: str = ""

    @property
    def gain(self) -> OverRuns:
        """How many times as fast ours is."""
        return ratio(self.one, self.fused, self.time)

    @property
    def taken(self) -> Time:
        """What it takes, by the clock."""
        return self.one.time(self.time)

    @property
    def ours(self) -> Time:
        """What ours takes."""
        return self.fused.time(self.time)


@dataclass(frozen=True)
class Run:
    """One benchmark: ``cpu`` or ``gpu`` in the templates."""

    source: Source[Benchmark]

    @property
    def benchmark(self) -> Benchmark:
        """The records."""
        return self.source.value

    @property
    def recorded(self) -> bool:
        """Whether it was recorded; else this run measured it."""
        return self.source.recorded

    @property
    def label(self) -> str:
        """Machine, versions and date."""
        return self.source.label

    @property
    def machine(self) -> str:
        """The device in a few words."""
        return self.benchmark.provenance.machine

    @property
    def instructions(self) -> str:
        """The widest vector instructions of a CPU."""
        return self.benchmark.provenance.instructions

    @property
    def cache_bytes(self) -> int:
        """Of the device's last-level cache."""
        return self.benchmark.provenance.cache_bytes

    @property
    def in_cache(self) -> list[int]:
        """Batch sizes of the line whose bytes fit into it: there the roof is the cache's."""
        return [
            n for n, found in self.line.items() if found["fused"].bytes_moved <= self.cache_bytes
        ]

    @property
    def read_rate(self) -> float:
        """Bytes a second of only reading, at the largest batch size of the line."""
        last = self.largest["fused"]
        return last.bytes_moved / last.roof.median * 1e6

    @property
    def data_sheet_rate(self) -> float | None:
        """What the GPU's data sheet promises; ``None`` for a CPU, and where it is not known."""
        promised = data_sheet(self.benchmark.provenance.gpu)
        return promised and promised[0] * 1e9

    @property
    def runs(self) -> int:
        """Whole runs of the sweep."""
        return comparison.runs_of(self.benchmark.records)

    @cached_property
    def line(self) -> dict[int, dict[str, Series]]:
        """What was measured by batch size and implementation, at the usual values."""
        return usual_line(self.benchmark)

    @property
    def smallest(self) -> dict[str, Series]:
        """What was measured by implementation at the smallest batch size of the line."""
        return self.line[min(self.line)]

    @property
    def largest(self) -> dict[str, Series]:
        """What was measured by implementation at the largest batch size of the line."""
        return self.line[max(self.line)]

    @property
    def counted(self) -> dict[str, Operations]:
        """What one call of each backend asks for at the largest batch size that was counted."""
        return counted_at(self.benchmark, max(c.batch_size for c in self.benchmark.operations))

    @property
    def over_pytorch(self) -> list[Rival]:
        """The best PyTorch version beside fused, call to result, at each batch size of the line."""
        return self._rivals(comparison.best_pytorch, "call")

    @property
    def over_pytorch_on_device(self) -> list[Rival]:
        """The same on the device; on a CPU that is the same measurement."""
        return self._rivals(comparison.best_pytorch, "device")

    @property
    def over_peers(self) -> list[Rival]:
        """The best of other projects' samplers beside fused, call to result, where one was."""
        return self._rivals(comparison.best_peer, "call")

    @property
    def over_peers_on_device(self) -> list[Rival]:
        """The same on the device."""
        return self._rivals(comparison.best_peer, "device")

    def _rivals(
        self, best: Callable[[Mapping[str, Series], str], Series | None], time: str
    ) -> list[Rival]:
        found = ((best(by_name, time), by_name) for by_name in self.line.values())
        return [Rival(one, by_name["fused"], time) for one, by_name in found if one is not None]

    @property
    def over_loop(self) -> SpeedUp:
        """How fused compares with the loop over all points, call to result."""
        return self._speed_ups["fused"]

    @property
    def vectorized_over_loop(self) -> SpeedUp:
        """How vectorized does."""
        return self._speed_ups["vectorized"]

    @cached_property
    def _speed_ups(self) -> dict[str, SpeedUp]:
        return {row.implementation: row for row in comparison.speed_ups(self.benchmark.records)}

    @property
    def roof_shares(self) -> Span:
        """The least and the most share of the roof that fused reaches along the line, of medians.

        Raises:
            RecordError: no share is known there.
        """
        known = [share.median for r in self.line.values() if (share := r["fused"].roof_share)]
        if not known:
            raise RecordError("roof: it was disturbed at every batch size")
        return span(known)

    @property
    def vectorized(self) -> Sizes:
        """Batch sizes of the line at which vectorized beats the baseline, and the others."""
        return comparison.against_baseline(self.benchmark, "vectorized")

    @property
    def losses(self) -> list[Loss]:
        """Those others, with what explains each."""
        return demo.losses(self.benchmark)

    @property
    def by_spec_len(self) -> Growth:
        """How times grow with K."""
        return curves.growth(curves.lines(self.benchmark, "spec_len"), "spec_len")

    @property
    def by_vocab_size(self) -> Growth:
        """How times grow with V."""
        return curves.growth(curves.lines(self.benchmark, "vocab_size"), "vocab_size")

    @property
    def repeatability(self) -> list[Repeatability]:
        """How far whole runs differ from call to result, by implementation."""
        return comparison.repeatability(self.benchmark.records, "call")

    @property
    def repeatability_on_device(self) -> list[Repeatability]:
        """How far they differ on the device, where that is another clock."""
        rows = comparison.repeatability(self.benchmark.records, "device")
        return [row for row in rows if row.clock != "wall"]

    @property
    def repeated(self) -> Repeated:
        """At how many points whole runs can be compared."""
        return comparison.repeated(self.benchmark.records)

    @property
    def cold(self) -> bool:
        """Whether times from a cold cache were measured."""
        return any(record.cache == "cold" for record in self.benchmark.records)

    def _bfloat16(self) -> list[Series]:
        """Fused with bfloat16 at the usual vocabulary and draft length, by batch size."""
        middle = comparison.usual(self.benchmark.settings)._replace(dtype="bfloat16")
        found = comparison.by_point(self.benchmark.records)
        points = [middle._replace(batch_size=size) for size in self.line]
        return [found[point]["fused"] for point in points if "fused" in found.get(point, {})]

    @property
    def bfloat16(self) -> Half | None:
        """What 16-bit probabilities change at the largest batch size; ``None`` if not measured."""
        for one in reversed(self._bfloat16()):
            full = self.line[one.batch_size]["fused"]
            if comparable(one, full, "device"):
                return Half(ratio(one, full, "device"), one.point)
        return None

    @property
    def peers(self) -> list[Rival]:
        """Other projects' samplers, each at its largest batch size of the line."""
        versions = self.benchmark.provenance.packages
        found = {}
        for by_name in self.line.values():
            for name, (package, *_) in peers.MAKERS.items():
                if name in by_name:
                    version = versions.get(package, "")
                    found[name] = Rival(by_name[name], by_name["fused"], "call", version)
        return list(found.values())

    @property
    def kernels(self) -> list[Series]:
        """The CUDA kernels that were measured, at the largest batch size, in the course's order."""
        return [self.largest[name] for name in KERNELS if name in self.largest]

    @property
    def split(self) -> dict[int, dict[int, OverRuns]]:
        """By batch size and vocabulary, in float32 from a warm cache, what splitting a row does.

        The time of ``split_vocabulary`` on the device over that of ``loads_in_flight``, at the
        usual draft length.
        """
        middle = comparison.usual(self.benchmark.settings)
        found: dict[int, dict[int, OverRuns]] = {}
        for point, by_name in comparison.by_point(self.benchmark.records).items():
            one, other = by_name.get("split_vocabulary"), by_name.get("loads_in_flight")
            same = middle._replace(batch_size=point.batch_size, vocab_size=point.vocab_size)
            if point == same and one and other and comparable(one, other, "device"):
                gains = found.setdefault(point.batch_size, {})
                gains[point.vocab_size] = ratio(one, other, "device")
        return found

    @property
    def fastest_kernel(self) -> Series:
        """The one of them that takes the least time on the device, in the median over runs."""
        return min(self.kernels, key=lambda one: one.device.median)

    @property
    def times(self) -> int:
        """How many times were measured."""
        return len(self.benchmark.records)

    @property
    def disturbed(self) -> int:
        """How many of them other programs disturbed."""
        return sum(record.call.busy for record in self.benchmark.records)

    @property
    def skipped(self) -> list[str]:
        """What was not measured, with what has one kind and one reason in one line."""
        return gathered(self.benchmark.skipped)

    @property
    def beats_vectorized(self) -> tuple[int, int]:
        """Points at which fused is faster than vectorized in every run, and all points."""
        found = comparison.by_point(self.benchmark.records).values()
        gains = [
            ratio(r["vectorized"], r["fused"])
            for r in found
            if "vectorized" in r and "fused" in r and comparable(r["vectorized"], r["fused"])
        ]
        return sum(gain.least > 1 for gain in gains), len(gains)


def counted_at(benchmark: Benchmark, batch_size: int) -> dict[str, Operations]:
    """What one call of each backend asks for at a batch size.

    Raises:
        RecordError: a backend was not counted there.
    """
    found = {c.implementation: c for c in benchmark.operations if c.batch_size == batch_size}
    if missing := [name for name in BACKENDS if name not in found]:
        raise RecordError(f"operations: {missing[0]} was not counted at B = {batch_size}")
    return {name: found[name] for name in BACKENDS}


def gathered(skipped: Sequence[str]) -> list[str]:
    """What was not measured, with what has one kind and one reason in one line.

    Args:
        skipped: lines ``kind: instance: reason``, or others, which stay as they are.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for line in skipped:
        kind, _, rest = line.partition(": ")
        instance, _, reason = rest.rpartition(": ")
        found.setdefault((kind, reason), []).append(instance)
    lines = []
    for (kind, reason), instances in found.items():
        which = f" ({_grouped('; '.join(instances))})" if all(instances) else ""
        lines.append(f"{kind}{which}: {reason}" if reason else kind)
    return lines


def _grouped(text: str) -> str:
    """The same text with thousands separators in its whole numbers."""
    return re.sub(r"(?<![\d.-])\d{4,}(?![\d.-])", lambda number: f"{int(number[0]):,}", text)
