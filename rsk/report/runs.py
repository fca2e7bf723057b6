"""``cpu`` and ``gpu`` of the templates: what a benchmark's records say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rsk.course import demo
from rsk.course.demo import Loss
from rsk.figures import plotting
from rsk.figures.plotting import Growth
from rsk.measure import comparison
from rsk.measure.comparison import (
    BASELINE,
    Repeatability,
    Repeated,
    Sizes,
    SpeedUp,
    ratio,
    usual_line,
)
from rsk.measure.records import Benchmark, Operations, Point, Record, RecordError
from rsk.report.measurements import Source
from rsk.sampler.api import BACKENDS
from rsk.sampler.kernels import KERNELS


class Span(NamedTuple):
    """The least and the most of several ratios."""

    least: float
    most: float


class Half(NamedTuple):
    """Time with bfloat16 probabilities over that with float32."""

    ratio: float
    point: Point


class Peer(NamedTuple):
    """Another project's sampler where it was fastest, beside ours at that point."""

    name: str
    version: str
    record: Record
    fused: Record


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
    def cache_bytes(self) -> int:
        """Of the device's last-level cache."""
        return self.benchmark.provenance.cache_bytes

    @cached_property
    def line(self) -> dict[int, dict[str, Record]]:
        """Records by batch size and implementation, at the usual values."""
        return usual_line(self.benchmark)

    @property
    def smallest(self) -> dict[str, Record]:
        """Records by implementation at the smallest batch size of the line."""
        return self.line[min(self.line)]

    @property
    def largest(self) -> dict[str, Record]:
        """Records by implementation at the largest batch size of the line."""
        return self.line[max(self.line)]

    @property
    def counted(self) -> dict[str, Operations]:
        """What one call of each backend asks for at the largest batch size that was counted."""
        return counted_at(self.benchmark, max(c.batch_size for c in self.benchmark.operations))

    @property
    def gain(self) -> Span:
        """Speed-ups of fused over the baseline, along the line."""
        return span([ratio(r[BASELINE], r["fused"]) for r in self.line.values()])

    @property
    def gain_over_vectorized(self) -> Span:
        """The same over vectorized."""
        return span([ratio(r["vectorized"], r["fused"]) for r in self.line.values()])

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
        return plotting.growth(plotting.lines(self.benchmark, "spec_len"), "spec_len")

    @property
    def by_vocab_size(self) -> Growth:
        """How times grow with V."""
        return plotting.growth(plotting.lines(self.benchmark, "vocab_size"), "vocab_size")

    @property
    def speed_ups(self) -> list[SpeedUp]:
        """Of vectorized and fused over the baseline, over all points."""
        found = {row.implementation: row for row in comparison.speed_ups(self.benchmark.records)}
        return [found[name] for name in BACKENDS[1:]]

    @property
    def repeatability(self) -> list[Repeatability]:
        """How far whole runs differ, by implementation."""
        return comparison.repeatability(self.benchmark.records)

    @property
    def repeated(self) -> Repeated:
        """At how many points whole runs can be compared."""
        return comparison.repeated(self.benchmark.records)

    @property
    def bfloat16(self) -> Half | None:
        """What 16-bit probabilities change at the largest batch size; ``None`` if not measured."""
        merged = comparison.merged(self.benchmark.records)
        found = []
        for point, by_name in merged.items():
            full = merged.get(point._replace(dtype="float32"), {})
            if point.dtype == "bfloat16" and "fused" in by_name and "fused" in full:
                found.append(Half(ratio(by_name["fused"], full["fused"], "device"), point))
        return max(found, key=lambda half: half.point.batch_size, default=None)

    @property
    def peers(self) -> list[Peer]:
        """Other projects' samplers that were measured."""
        merged = comparison.merged(self.benchmark.records).values()
        found = []
        for name, version in sorted(self.benchmark.provenance.packages.items()):
            pairs = [Peer(name, version, r[name], r["fused"]) for r in merged if name in r]
            if pairs:
                found.append(min(pairs, key=lambda peer: peer.record.call.median_us))
        return found

    @property
    def kernels(self) -> list[Record]:
        """The CUDA kernels that were measured, at the largest batch size, in the course's order."""
        return [self.largest[name] for name in KERNELS if name in self.largest]

    @property
    def fastest_kernel(self) -> Record:
        """The one of them that takes the least time on the device."""
        return min(self.kernels, key=lambda record: record.device.median_us)

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
        """At how many of all points fused is faster than vectorized, and of how many."""
        merged = comparison.merged(self.benchmark.records).values()
        pairs = [ratio(r["vectorized"], r["fused"]) for r in merged if "vectorized" in r]
        return sum(pair > 1 for pair in pairs), len(pairs)


def counted_at(benchmark: Benchmark, batch_size: int) -> dict[str, Operations]:
    """What one call of each backend asks for at a batch size.

    Raises:
        RecordError: a backend was not counted there.
    """
    found = {c.implementation: c for c in benchmark.operations if c.batch_size == batch_size}
    if missing := [name for name in BACKENDS if name not in found]:
        raise RecordError(f"operations: {missing[0]} was not counted at B = {batch_size}")
    return {name: found[name] for name in BACKENDS}


def span(ratios: Sequence[float]) -> Span:
    """Of some ratios."""
    return Span(min(ratios), max(ratios))


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
        which = f" ({'; '.join(instances)})" if all(instances) else ""
        lines.append(f"{kind}{which}: {reason}" if reason else kind)
    return lines
