"""What a measurement of the sharded sampler is made of: the schema of ``data/sharded``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rsk.measure.record_files import (
    RecordError,
    RecordFile,
    at_least,
    check_schema,
    one_of,
    positive,
)
from rsk.measure.records import Provenance, Spread

SCHEMA = "rsk-sharded/1"
STARTS = ("probabilities", "logits", "logits, top-k and top-p")
"""What a call starts from; the last two at a temperature of 0.8, the last with k = 50, p = 0.9."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """What the GPUs and the link between them do, measured in the same run."""

    ranks: int
    gather_us: float
    """An all_gather of the shortest message, in a replayed graph."""
    reduce_us: float
    """An all_reduce of as many words."""
    gather_bytes_us: float
    """Bytes that one rank receives in a microsecond of a large all_gather."""
    memory_bytes_us: float
    """Bytes that one GPU reads in a microsecond."""
    launch_us: float
    """The smallest kernel in a graph."""
    lanes: int
    """Single-precision lanes of a GPU: 128 for each multiprocessor."""
    clock_mhz: float

    def __post_init__(self) -> None:
        at_least("ranks", self.ranks, 1)
        at_least("lanes", self.lanes, 1)
        for field in dataclasses.fields(self):
            positive(field.name, getattr(self, field.name))


@dataclass(frozen=True, kw_only=True)
class Times:
    """One way to get the tokens, in one case."""

    graph: Spread
    """The share of one call in a replayed graph of many."""
    call: Spread
    """One call without a graph, until its result is there."""


@dataclass(frozen=True, kw_only=True)
class ShardedRecord:
    """Sharded sampling against gathering the rows and sampling, for one kind of batch."""

    start: str
    batch_size: int
    spec_len: int
    vocab_size: int
    dtype: str
    acceptance: float
    accepted: float
    """Draft tokens accepted per request."""
    collectives: int
    sent_bytes: int
    """What one rank sends in a sharded call; so much it receives from each other rank."""
    gathered_bytes: int
    """What it receives if the rows are gathered."""
    equal: bool
    """Whether every rank returned the tokens of the whole rows, in each way."""
    sharded: Times | None
    gathered: Times | None
    """``None`` on a CPU, where times would say nothing about a link."""

    def __post_init__(self) -> None:
        one_of("start", self.start, STARTS)
        for name in ("batch_size", "vocab_size", "collectives", "sent_bytes", "gathered_bytes"):
            at_least(name, getattr(self, name), 1)
        at_least("spec_len", self.spec_len, 0)
        if not 0 <= self.accepted <= self.spec_len:
            raise RecordError(f"accepted: expected 0 to {self.spec_len}, got {self.accepted}")

    @property
    def speedup(self) -> float | None:
        """How many times as fast as gathering, in a graph."""
        if self.sharded is None or self.gathered is None:
            return None
        return self.gathered.graph.median_us / self.sharded.graph.median_us


@dataclass(frozen=True, kw_only=True)
class Sharded(RecordFile):
    """One file of ``data/sharded``: a run of ``rsk benchmark --sharded N`` on one machine."""

    SCHEMA = SCHEMA
    schema: str
    provenance: Provenance
    backend: str
    """``nccl``; or ``gloo``: a run that checks the tokens and measures nothing."""
    ranks: int
    nccl: str | None
    topology: str
    """How the GPUs are connected, as nvidia-smi says."""
    rival: str
    """The backend that samples gathered logits: ``fused``; ``vectorized`` where it cannot."""
    link: Link | None
    records: tuple[ShardedRecord, ...]

    def __post_init__(self) -> None:
        check_schema(self.schema, SCHEMA)
        one_of("backend", self.backend, ("gloo", "nccl"))
        at_least("ranks", self.ranks, 1)
        for i, record in enumerate(self.records):
            if (self.backend == "nccl") != (record.sharded is not None):
                raise RecordError(f"records[{i}].sharded: times are of nccl, and of nccl alone")
