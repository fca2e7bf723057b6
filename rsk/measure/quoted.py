"""Tables that others published: shown beside measurements, never as measurements."""

from __future__ import annotations

from dataclasses import dataclass

from rsk.measure.record_files import RecordFile, at_least, check_schema, not_empty, positive

EARLIER_WORK = "earlier-work.json"
"""The file in ``data/benchmarks`` that is no run, but a table quoted from others."""
QUOTED_SCHEMA = "rsk-quoted/1"


@dataclass(frozen=True, kw_only=True)
class QuotedTime:
    """One row of a table that somebody else published, in milliseconds."""

    batch_size: int
    baseline_ms: float
    vectorized_ms: float
    fused_ms: float
    fused_speedup: float

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        for name in ("baseline_ms", "vectorized_ms", "fused_ms", "fused_speedup"):
            positive(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Quoted(RecordFile):
    """Figures of others: shown beside measurements, never as measurements."""

    SCHEMA = QUOTED_SCHEMA
    schema: str
    source: str
    """Who measured, on what, and what is not known about it."""
    times: tuple[QuotedTime, ...]
    vectorized_mean_speedup: float
    fused_mean_speedup: float
    fused_max_speedup: float

    def __post_init__(self) -> None:
        check_schema(self.schema, QUOTED_SCHEMA)
        not_empty("source", self.source)
        for name in ("vectorized_mean_speedup", "fused_mean_speedup", "fused_max_speedup"):
            positive(name, getattr(self, name))
