"""What a measurement is made of: the schema of the files in ``data/benchmarks``.

A time is a record: the median with its quartiles, the number of samples, the clock, the state of
the cache, the shape, the bytes that had to move, and the machine. Files are checked when they are
read; one with a missing, unknown or impossible field is refused with that field's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple

from rsk.measure.record_files import RecordError as RecordError
from rsk.measure.record_files import RecordFile, at_least, not_empty, one_of, positive
from rsk.measure.record_files import check_schema as check_schema
from rsk.measure.record_files import parse as parse

SCHEMA = "rsk-benchmark/1"

CLOCKS = ("wall", "graph replay", "isolated launch")
CACHES = ("warm", "cold")
DTYPES = ("float32", "bfloat16", "float16")
TOLERANCE = 0.02
"""A time may be this share below the memory roof before it is refused: noise in both times."""


class Point(NamedTuple):
    """One kind of batch: what is measured, whoever does it and however often."""

    batch_size: int
    spec_len: int
    vocab_size: int
    dtype: str
    acceptance: float
    cache: str


_of_point = attrgetter(*Point._fields)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Repeated samples of one time, in microseconds."""

    median_us: float
    q25_us: float
    q75_us: float
    samples: int
    """How many the median is over; each is a mean over one rotation of the inputs or more."""
    disturbed: float
    """Share of all samples in which other processes took the processor: those are set aside, but
    for the least disturbed ones if too few are left."""
    clock: str
    """One of ``CLOCKS``. A graph replay is the share of one call in a captured graph of many, whose
    launches may overlap; an isolated launch is one call on an idle device, which is waited for."""

    def __post_init__(self) -> None:
        for name in ("q25_us", "median_us", "q75_us"):
            positive(name, getattr(self, name))
        if not self.q25_us <= self.median_us <= self.q75_us:
            raise RecordError(
                f"median_us: expected a value between the quartiles {self.q25_us} and "
                f"{self.q75_us}, got {self.median_us}"
            )
        at_least("samples", self.samples, 1)
        if not 0 <= self.disturbed <= 1:
            raise RecordError(f"disturbed: expected a share in [0, 1], got {self.disturbed}")
        one_of("clock", self.clock, CLOCKS)

    @property
    def busy(self) -> bool:
        """Whether other processes disturbed most samples: such a time is too long, if anything."""
        return self.disturbed > 0.5

    @property
    def relative(self) -> float:
        """Interquartile range over the median."""
        return (self.q75_us - self.q25_us) / self.median_us


@dataclass(frozen=True, kw_only=True)
class Record:
    """How long one implementation takes for one kind of batch.

    On a CPU a call returns when its work is done, so ``device``, ``host`` and ``call`` are one
    measurement there.
    """

    implementation: str
    run: int
    """Which of several whole runs of the sweep, from 0."""
    batch_size: int
    spec_len: int
    vocab_size: int
    dtype: str
    acceptance: float
    """The acceptance rate that the inputs were made for."""
    accepted: float
    """Draft tokens that were accepted per request, on average over the timed inputs."""
    cache: str
    device: Spread
    """Time on the device, without launch latency where the clock is graph replay."""
    host: Spread
    """Time until the Python call returns."""
    call: Spread
    """Time until the results of the call are there."""
    bytes_moved: int
    """Bytes to move in one call: see :func:`rsk.measure.workload.bytes_to_move`."""
    roof: Spread
    """Time to read that many bytes, in the same cache state, and do nothing else."""
    floor_us: float
    """Time of the smallest possible operation (one element written): what a launch costs."""
    isolated: Spread | None = None
    """Time of one launch on an idle GPU, which is waited for; ``None`` on a CPU, where it was not
    taken, and of a call that cannot be captured in a graph."""

    def __post_init__(self) -> None:
        not_empty("implementation", self.implementation)
        one_of("dtype", self.dtype, DTYPES)
        one_of("cache", self.cache, CACHES)
        for name, low in (("run", 0), ("batch_size", 1), ("spec_len", 0), ("vocab_size", 1)):
            at_least(name, getattr(self, name), low)
        at_least("bytes_moved", self.bytes_moved, 1)
        positive("floor_us", self.floor_us)
        if self.isolated is not None:
            one_of("isolated.clock", self.isolated.clock, ("isolated launch",))
        if not 0 <= self.acceptance <= 1:
            raise RecordError(f"acceptance: expected a rate in [0, 1], got {self.acceptance}")
        if not 0 <= self.accepted <= self.spec_len:
            raise RecordError(
                f"accepted: expected 0 to spec_len = {self.spec_len} tokens, got {self.accepted}"
            )
        # Below the floor there is no time to start; below the roof less a launch, none to read the
        # bytes. In between, small batches are bound by latency and the roof says nothing. Nor does
        # a roof that was itself measured on a busy machine.
        least = self.floor_us
        if not self.roof.busy:
            least = max(least, self.roof.median_us - self.floor_us)
        if self.device.median_us < least * (1 - TOLERANCE):
            raise RecordError(
                f"device.median_us: {self.implementation} took {self.device.median_us:.3g} us for "
                f"{self.bytes_moved} bytes, but only reading them takes {self.roof.median_us:.3g} "
                f"us and the smallest operation {self.floor_us:.3g} us (same run, {self.cache} "
                f"cache): expected at least {least * (1 - TOLERANCE):.3g} us"
            )

    @property
    def point(self) -> Point:
        """What was measured, whoever did it and in whichever run."""
        return Point._make(_of_point(self))

    @property
    def roof_share(self) -> float | None:
        """Fraction of the memory roof that was reached: 1 is as fast as only reading.

        ``None`` if other programs disturbed the roof, which is then too slow, or if the two times
        are of different clocks: neither says anything.
        """
        if self.roof.busy or self.roof.clock != self.device.clock:
            return None
        return self.roof.median_us / self.device.median_us


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What one call asks of PyTorch and of the device, counted by PyTorch's profiler."""

    implementation: str
    batch_size: int
    spec_len: int
    vocab_size: int
    operators: int
    """PyTorch operators called from Python (not those that they call in turn)."""
    launches: int | None
    """Kernels, copies and fills put on the GPU; ``None`` on a CPU, which has no launches."""
    synchronizations: int
    """Times that the host waits for the device to read a value."""
    allocated_bytes: int
    """Memory that the call allocates on the device, results included."""

    def __post_init__(self) -> None:
        not_empty("implementation", self.implementation)
        for name, least in (("batch_size", 1), ("spec_len", 0), ("vocab_size", 1)):
            at_least(name, getattr(self, name), least)
        for name in ("operators", "synchronizations", "allocated_bytes"):
            at_least(name, getattr(self, name), 0)
        if self.launches is not None:
            at_least("launches", self.launches, 0)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where and with what a run was made."""

    date: str
    """UTC, ISO 8601."""
    device: str
    """``cpu`` or ``cuda``."""
    cpu: str
    cores: int
    """Cores that the process may use."""
    threads: int
    """Threads that PyTorch was pinned to."""
    instructions: str
    """The widest vector instructions that PyTorch uses on this CPU."""
    cache_bytes: int
    """The last-level cache of the device: L3 of a CPU, L2 of a GPU."""
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    cuda: str | None
    os: str
    python: str
    torch: str
    rsk: str
    packages: dict[str, str]
    """Versions of the peers that were measured."""
    commit: str
    """The commit, with ``+changes`` if files differed from it; ``none`` outside a checkout."""
    sources: str
    """SHA-256 over the source files of the samplers and kernels, so that a run outside of a
    commit can be traced too; see :func:`rsk.measure.provenance.sources`."""

    def __post_init__(self) -> None:
        one_of("device", self.device, ("cpu", "cuda"))
        try:
            aware = datetime.fromisoformat(self.date).tzinfo is not None
        except ValueError:
            aware = False
        if not aware:
            raise RecordError(f"date: expected ISO 8601 with a time zone, got {self.date!r}")
        for name in ("cores", "threads", "cache_bytes"):
            at_least(name, getattr(self, name), 1)
        names = ["cpu", "instructions", "os", "python", "torch", "rsk", "commit", "sources"]
        if self.device == "cuda":
            names += ["gpu", "compute_capability", "driver", "cuda"]
        for name in names:
            not_empty(name, getattr(self, name))

    @property
    def machine(self) -> str:
        """The device in a few words, for labels."""
        if self.gpu is not None and self.device == "cuda":
            return self.gpu
        return f"{self.cpu}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def slug(self) -> str:
        """The device's name as it stands in names of files."""
        name = self.gpu if self.device == "cuda" else f"cpu {self.cpu}"
        return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")

    @property
    def kind(self) -> str:
        """Of the device: GPU or CPU."""
        return "GPU" if self.device == "cuda" else "CPU"

    @property
    def label(self) -> str:
        """Machine, versions and date: what a recorded figure is never shown without."""
        driver = f", driver {self.driver}" if self.device == "cuda" else ""
        return f"{self.machine}{driver}, PyTorch {self.torch}, {self.date[:10]}"


@dataclass(frozen=True, kw_only=True)
class Benchmark(RecordFile):
    """One file of ``data/benchmarks``: a run of ``rsk benchmark`` on one machine."""

    SCHEMA = SCHEMA
    schema: str
    provenance: Provenance
    settings: dict[str, Any]
    """The sweep that was asked for, as on the command line."""
    complete: bool
    """False if the run was interrupted or ran out of time."""
    records: tuple[Record, ...]
    operations: tuple[Operations, ...]
    skipped: tuple[str, ...]
    """What was not measured, and why."""
    refused: tuple[str, ...]
    """Results that were wrong or times that were impossible."""

    def __post_init__(self) -> None:
        check_schema(self.schema, SCHEMA)
        if self.provenance.device == "cpu":
            for i, record in enumerate(self.records):
                if record.isolated is not None:
                    raise RecordError(
                        f"records[{i}].isolated: expected none for a run on a CPU, got one"
                    )
                for name in ("device", "host", "call", "roof"):
                    spread = getattr(record, name)
                    if spread.clock != "wall":
                        raise RecordError(
                            f"records[{i}].{name}.clock: expected 'wall' for a run on a CPU, "
                            f"got {spread.clock!r}"
                        )
