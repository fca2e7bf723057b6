"""Records for tests: made up, to test what is computed from them; never shown to anybody."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rsk.measure.model_step import SAMPLERS, ModelStepRecord, Pass, Step
from rsk.measure.model_step import SCHEMA as STEP_SCHEMA
from rsk.measure.over_runs import Series
from rsk.measure.records import SCHEMA, Benchmark, Operations, Provenance, Record, Spread

CPU_PROVENANCE = Provenance(
    date="2026-01-02T03:04:05+00:00",
    device="cpu",
    cpu="a processor",
    cores=2,
    threads=2,
    instructions="AVX2",
    cache_bytes=32 << 20,
    gpu=None,
    compute_capability=None,
    driver=None,
    cuda=None,
    os="an operating system",
    python="3.11.0",
    torch="2.13.0",
    rsk="0.1.0",
    packages={},
    commit="none",
    sources="0" * 64,
)
GPU_PROVENANCE = dataclasses.replace(
    CPU_PROVENANCE,
    device="cuda",
    gpu="a GPU",
    compute_capability="9.0",
    driver="1.2.3",
    cuda="13.0",
)


def spread(median_us: float, clock: str = "wall", **changes: object) -> Spread:
    """A time with quartiles 5 % away."""
    fields = {
        "median_us": median_us,
        "q25_us": 0.95 * median_us,
        "q75_us": 1.05 * median_us,
        "samples": 20,
        "disturbed": 0.0,
        "clock": clock,
    }
    return Spread(**{**fields, **changes})  # type: ignore[arg-type]


def record(implementation: str, time_us: float, **changes: object) -> Record:
    """A record at the usual values."""
    time = spread(time_us)
    fields = {
        "implementation": implementation,
        "run": 0,
        "batch_size": 4,
        "spec_len": 4,
        "vocab_size": 32000,
        "dtype": "float32",
        "acceptance": 0.7,
        "accepted": 2.0,
        "cache": "warm",
        "device": time,
        "host": time,
        "call": time,
        "bytes_moved": 1_000_000,
        "roof": spread(10.0),
        "floor_us": 1.0,
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


def benchmark(
    records: Sequence[Record], operations: Sequence[Operations] = (), **changes: object
) -> Benchmark:
    """A file around records, with the settings that match :func:`record`."""
    settings = {
        "batch_sizes": sorted({r.batch_size for r in records}) or [1],
        "spec_lens": [4, 1, 8],
        "vocab_sizes": [32000, 1000],
        "dtypes": ["float32"],
        "acceptances": [0.7],
        "caches": ["warm"],
    }
    fields = {
        "schema": SCHEMA,
        "provenance": CPU_PROVENANCE,
        "settings": settings,
        "complete": True,
        "records": tuple(records),
        "operations": tuple(operations),
        "skipped": (),
        "refused": (),
    }
    return Benchmark(**{**fields, **changes})  # type: ignore[arg-type]


def story(gpu: bool = False) -> Benchmark:
    """A whole sweep: the baseline slow, vectorized in between, fused fast."""
    names = {"baseline": 40.0, "vectorized": 200.0, "fused": 12.0}
    if gpu:
        names |= {"thread_per_sequence": 90.0, "cluster": 11.5}
    records, operations = [], []
    for name, base in names.items():
        growth = 1.0 if name == "baseline" else 0.1
        for b in (1, 4, 16):
            clock = "graph replay" if gpu and name != "baseline" else "wall"
            clock = "wall" if gpu and name == "baseline" else clock
            time = base * (1 + growth * (b - 1))
            records.append(
                record(
                    name,
                    time,
                    batch_size=b,
                    device=spread(time, clock),
                    bytes_moved=250_000 * b,
                    roof=spread(2.5 * b**0.5, "graph replay" if gpu else "wall"),
                )
            )
            operations.append(
                Operations(
                    implementation=name,
                    batch_size=b,
                    spec_len=4,
                    vocab_size=32000,
                    operators={"baseline": 60 * b, "vectorized": 168}.get(name, 1),
                    launches={"baseline": 70 * b, "vectorized": 180}.get(name, 1) if gpu else None,
                    synchronizations=12 * b if name == "baseline" else 0,
                    allocated_bytes={"baseline": 10**6, "vectorized": 10**7}.get(name, 48),
                )
            )
        for k in (1, 8):
            records.append(record(name, base * 4 * (1 + 0.02 * k), spec_len=k, accepted=1.0))
        records.append(record(name, base, vocab_size=1000, bytes_moved=30_000, roof=spread(1.5)))
    return benchmark(records, operations, provenance=GPU_PROVENANCE if gpu else CPU_PROVENANCE)


def twice(benchmark: Benchmark, **factors: float) -> Benchmark:
    """The same sweep, run a second time: as a run that may be published.

    Args:
        benchmark: run once.
        factors: by clock (``call``, ``device``, ``host``, ``roof``), how many times as long the
            second run takes; 1 where none is given.
    """
    again = (
        dataclasses.replace(
            record,
            run=1,
            **{name: longer(getattr(record, name), factor) for name, factor in factors.items()},
        )
        for record in benchmark.records
    )
    return dataclasses.replace(benchmark, records=(*benchmark.records, *again))


def longer(time: Spread, factor: float) -> Spread:
    """A time that is so many times as long."""
    return spread(time.median_us * factor, time.clock, disturbed=time.disturbed)


def with_cold(benchmark: Benchmark) -> Benchmark:
    """The same sweep, with the usual line from a cold cache too, in twice the time."""
    cold = tuple(
        dataclasses.replace(r, cache="cold", device=longer(r.device, 2), roof=longer(r.roof, 3))
        for r in benchmark.records
        if r.spec_len == 4 and r.vocab_size == 32000
    )
    return dataclasses.replace(benchmark, records=(*benchmark.records, *cold))


def series(*records: Record) -> Series:
    """Records of whole runs."""
    return Series(records)


def step(sampler: str, run: int, whole_us: float, part_us: float) -> Step:
    """A decoding step of one request."""
    return Step(
        pair="1.1 B with 68 M",
        run=run,
        batch_size=1,
        spec_len=4,
        vocab_size=97,
        context=16,
        sampler=sampler,
        accepted=1.0,
        step=spread(whole_us),
        sampling=spread(part_us),
    )


def one_pass(positions: int, us: float, run: int) -> Pass:
    """A pass of the target for one request."""
    return Pass(
        pair="1.1 B with 68 M",
        model="target",
        parameters=10,
        run=run,
        batch_size=1,
        positions=positions,
        context=16,
        static_cache=True,
        call=spread(us),
        device=spread(us),
        not_captured="",
    )


def steps_record(passes: Sequence[Pass] = (), steps: Sequence[Step] = ()) -> ModelStepRecord:
    """A file around passes and steps, or around one of each kind."""
    if not passes and not steps:
        passes = [one_pass(positions, 10.0 + positions, 0) for positions in (1, 5, 9)]
        steps = [step(name, 0, 100.0, 50.0) for name in SAMPLERS]
    return ModelStepRecord(
        schema=STEP_SCHEMA,
        provenance=GPU_PROVENANCE,
        settings={},
        complete=True,
        failed=(),
        passes=tuple(passes),
        steps=tuple(steps),
    )
