"""What a measurement is made of: the schema of the files in ``data/benchmarks``.

A time is a record: the median with its quartiles, the number of samples, the clock, the state of
the cache, the shape, the bytes that had to move, and the machine. Files are checked when they are
read; one with a missing, unknown or impossible field is refused with that field's name.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from rsk.base import folders

if TYPE_CHECKING:
    import pandas as pd

EARLIER_WORK = "earlier-work.json"
"""The file in ``data/benchmarks`` that is no run, but a table quoted from others."""
SCHEMA = "rsk-benchmark/1"
QUOTED_SCHEMA = "rsk-quoted/1"

CLOCKS = ("wall", "graph replay", "isolated launch")
CACHES = ("warm", "cold")
DTYPES = ("float32", "bfloat16", "float16")
TOLERANCE = 1.10
"""A result may beat the memory roof by this factor before it is refused: noise in both times."""

T = TypeVar("T")


class RecordError(ValueError):
    """A recorded field is missing, unknown or impossible; the message begins with its name."""


class Point(NamedTuple):
    """One kind of batch: what is measured, whoever does it and however often."""

    batch_size: int
    spec_len: int
    vocab_size: int
    dtype: str
    acceptance: float
    cache: str


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
            _positive(name, getattr(self, name))
        if not self.q25_us <= self.median_us <= self.q75_us:
            raise RecordError(
                f"median_us: expected a value between the quartiles {self.q25_us} and "
                f"{self.q75_us}, got {self.median_us}"
            )
        _at_least("samples", self.samples, 1)
        if not 0 <= self.disturbed <= 1:
            raise RecordError(f"disturbed: expected a share in [0, 1], got {self.disturbed}")
        _one_of("clock", self.clock, CLOCKS)

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

    def __post_init__(self) -> None:
        _not_empty("implementation", self.implementation)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("cache", self.cache, CACHES)
        for name, low in (("run", 0), ("batch_size", 1), ("spec_len", 0), ("vocab_size", 1)):
            _at_least(name, getattr(self, name), low)
        _at_least("bytes_moved", self.bytes_moved, 1)
        _positive("floor_us", self.floor_us)
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
        if self.device.median_us * TOLERANCE < least:
            raise RecordError(
                f"device.median_us: {self.implementation} took {self.device.median_us:.3g} us for "
                f"{self.bytes_moved} bytes, but only reading them takes {self.roof.median_us:.3g} "
                f"us and the smallest operation {self.floor_us:.3g} us (same run, {self.cache} "
                f"cache): expected at least {least / TOLERANCE:.3g} us"
            )

    @property
    def point(self) -> Point:
        """What was measured, whoever did it and in whichever run."""
        return Point(*(getattr(self, name) for name in Point._fields))

    @property
    def roof_share(self) -> float:
        """Fraction of the memory roof that was reached: 1 is as fast as only reading."""
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
        _not_empty("implementation", self.implementation)
        for name, least in (("batch_size", 1), ("spec_len", 0), ("vocab_size", 1)):
            _at_least(name, getattr(self, name), least)
        for name in ("operators", "synchronizations", "allocated_bytes"):
            _at_least(name, getattr(self, name), 0)
        if self.launches is not None:
            _at_least("launches", self.launches, 0)


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
    commit can be traced too."""

    def __post_init__(self) -> None:
        _one_of("device", self.device, ("cpu", "cuda"))
        try:
            aware = datetime.fromisoformat(self.date).tzinfo is not None
        except ValueError:
            aware = False
        if not aware:
            raise RecordError(f"date: expected ISO 8601 with a time zone, got {self.date!r}")
        for name in ("cores", "threads", "cache_bytes"):
            _at_least(name, getattr(self, name), 1)
        names = ["cpu", "instructions", "os", "python", "torch", "rsk", "commit", "sources"]
        if self.device == "cuda":
            names += ["gpu", "compute_capability", "driver", "cuda"]
        for name in names:
            _not_empty(name, getattr(self, name))

    @property
    def machine(self) -> str:
        """The device in a few words, for labels."""
        if self.gpu is not None and self.device == "cuda":
            return self.gpu
        return f"{self.cpu}, {self.threads} thread{'s' if self.threads > 1 else ''}"

    @property
    def label(self) -> str:
        """Machine, versions and date: what a recorded figure is never shown without."""
        driver = f", driver {self.driver}" if self.device == "cuda" else ""
        return f"{self.machine}{driver}, PyTorch {self.torch}, {self.date[:10]}"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
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
                for name in ("device", "host", "call", "roof"):
                    clock = getattr(record, name).clock
                    if clock != "wall":
                        raise RecordError(
                            f"records[{i}].{name}.clock: expected 'wall' for a run on a CPU, "
                            f"got {clock!r}"
                        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; one that was there before stays whole until the new one is complete."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Benchmark:
        """Read and check a file.

        Raises:
            RecordError: the file is not a benchmark; names the file and the field.
        """
        return _load(cls, path)

    def frame(self) -> pd.DataFrame:
        """The records as a table, one row each."""
        return frame(self.records)


@dataclass(frozen=True, kw_only=True)
class QuotedTime:
    """One row of a table that somebody else published, in milliseconds."""

    batch_size: int
    baseline_ms: float
    vectorized_ms: float
    fused_ms: float
    fused_speedup: float

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        for name in ("baseline_ms", "vectorized_ms", "fused_ms", "fused_speedup"):
            _positive(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Quoted:
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
        _not_empty("source", self.source)
        for name in ("vectorized_mean_speedup", "fused_mean_speedup", "fused_max_speedup"):
            _positive(name, getattr(self, name))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Quoted:
        """Read and check a file, as :meth:`Benchmark.load`."""
        return _load(cls, path)


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """Records as a table, one row each.

    A spread ``device`` becomes the columns ``device_us``, ``device_q25_us``, ``device_q75_us``,
    ``device_samples`` and ``device_clock``; ``roof_share`` is added.
    """
    import pandas as pd

    rows = []
    for record in records:
        row: dict[str, Any] = {}
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            if isinstance(value, Spread):
                row[f"{field.name}_us"] = value.median_us
                row[f"{field.name}_q25_us"] = value.q25_us
                row[f"{field.name}_q75_us"] = value.q75_us
                row[f"{field.name}_samples"] = value.samples
                row[f"{field.name}_clock"] = value.clock
            else:
                row[field.name] = value
        row["roof_share"] = record.roof_share
        rows.append(row)
    return pd.DataFrame(rows)


def operations_frame(operations: Iterable[Operations]) -> pd.DataFrame:
    """Operation counts as a table, one row each."""
    import pandas as pd

    return pd.DataFrame([dataclasses.asdict(count) for count in operations])


def _load(cls: type[T], path: str | os.PathLike[str]) -> T:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: expected a JSON file: {error}") from error
    try:
        return parse(cls, value)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from error


def recorded() -> tuple[list[Benchmark], list[str]]:
    """The runs in ``data/benchmarks``; one bad file does not keep the others from being used.

    Returns:
        The runs, oldest first; and for each file that is none a line that says which, and why.
    """
    found, refused = [], []
    for path in sorted((folders.data_dir() / "benchmarks").glob("*.json")):
        if path.name == EARLIER_WORK:
            continue
        try:
            found.append(Benchmark.load(path))
        except (RecordError, OSError) as error:
            refused.append(str(error))
    return sorted(found, key=lambda one: one.provenance.date), refused


def parse(cls: type[T], value: Any, where: str = "") -> T:
    """Turn JSON values into a dataclass of this module, refusing what does not fit.

    Raises:
        RecordError: begins with the field's name, for instance ``records[3].device.samples``.
    """
    if not isinstance(value, dict):
        raise RecordError(f"{where or cls.__name__}: expected an object, got {_shown(value)}")
    prefix = f"{where}." if where else ""
    schema: str | None = getattr(cls, "SCHEMA", None)
    if schema is not None and "schema" in value:  # first: another version has other fields
        check_schema(value["schema"], schema, f"{prefix}schema")
    hints = get_type_hints(cls)
    for name in hints:
        if name not in value:
            raise RecordError(f"{prefix}{name}: missing")
    for name in value:
        if name not in hints:
            raise RecordError(f"{prefix}{name}: unknown; expected {', '.join(hints)}")
    arguments = {name: _convert(hint, value[name], prefix + name) for name, hint in hints.items()}
    try:
        return cls(**arguments)
    except RecordError as error:
        raise RecordError(f"{prefix}{error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, where)  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (kind for kind in get_args(hint) if kind is not type(None))
        return _convert(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(f"{where}: expected a list, got {_shown(value)}")
        kind = get_args(hint)[0]
        return tuple(_convert(kind, item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise RecordError(f"{where}: expected an object, got {_shown(value)}")
        kind = get_args(hint)[1]
        return {key: _convert(kind, item, f"{where}.{key}") for key, item in value.items()}
    accepted = (int, float) if hint is float else (hint,)
    # bool is a subclass of int, and never what a number's field means
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise RecordError(f"{where}: expected {hint.__name__}, got {_shown(value)}")
    return value


def check_schema(found: Any, expected: str, name: str = "schema") -> None:
    """Raise :class:`RecordError` unless a file is of the version that is read here."""
    if found == expected:
        return
    kind, version = expected.split("/")
    newer = re.fullmatch(rf"{kind}/(\d+)", str(found))
    advice = "; it was written by a newer rsk" if newer and int(newer[1]) > int(version) else ""
    raise RecordError(f"{name}: expected {expected!r}, got {found!r}{advice}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise RecordError(f"{name}: expected a positive, finite number, got {value}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise RecordError(f"{name}: expected at least {least}, got {value}")


def _not_empty(name: str, value: str | None) -> None:
    if not value:
        raise RecordError(f"{name}: expected a name, got {value!r}")


def _one_of(name: str, value: str, expected: Sequence[str]) -> None:
    if value not in expected:
        raise RecordError(f"{name}: expected one of {', '.join(expected)}, got {value!r}")
