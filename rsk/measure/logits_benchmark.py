"""Times of the sampler that begins with logits.

``python -m rsk.measure.logits_benchmark --save FILE``, on a machine with a GPU. It is timed at the
sizes of models in use, in bfloat16 and float32, with a temperature alone and with top-k and top-p
as well, with and without the draft's row laws at hand. Beside each time stands the time to read
the rows that are needed and do nothing else.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rsk.base import machine, terminal
from rsk.measure import clocks, roof
from rsk.measure.logit_inputs import (
    ACCEPTANCE,
    FILTERED,
    TEMPERATURE,
    LogitInputs,
    Ways,
    make_sets,
    mean_needed_bytes,
)
from rsk.measure.provenance import provenance
from rsk.measure.record_files import RecordFile
from rsk.measure.records import Provenance, Record, RecordError, check_schema
from rsk.sampler import logits
from rsk.sampler.api import RejectionSamples

SCHEMA = "rsk-from-logits/1"
SHAPES = (1, 32000), (1, 128256), (16, 128256), (64, 32000), (64, 128256), (256, 128256)
"""B and V."""
DRY_SHAPES = (1, 500), (3, 700)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One time, and what it is a time of."""

    ways: Ways
    draft_laws: bool
    """Whether the laws of the draft's rows were given."""
    record: Record


@dataclass(frozen=True, kw_only=True)
class LogitsBenchmark(RecordFile):
    """A file of ``data/logits/``."""

    SCHEMA = SCHEMA
    schema: str
    provenance: Provenance
    runs: int
    results: tuple[Result, ...]

    def __post_init__(self) -> None:
        check_schema(self.schema, SCHEMA)
        if not self.results or self.runs < 1:
            raise RecordError("results: expected at least one run with results")


def calls_of(
    sets: Sequence[LogitInputs], ways: Ways, draft_laws: bool, backend: str
) -> list[Callable[[], RejectionSamples]]:
    """Calls of the sampler, one for each set of inputs."""
    return [
        functools.partial(
            logits.rejection_sample_from_logits,
            *some[:3],
            **ways.arguments,
            seed=i,
            backend=backend,
            draft_laws=some.draft_laws if draft_laws else None,
        )
        for i, some in enumerate(sets)
    ]


def time_calls(
    sets: Sequence[LogitInputs],
    ways: Ways,
    *,
    draft_laws: bool = False,
    backend: str = "auto",
    run: int = 0,
    budget_s: float = 0.05,
) -> Record:
    """Time the sampler on inputs in rotation, and check what it returned.

    Raises:
        RecordError: it returned other tokens than ``backend="vectorized"``, or sooner than it
            takes to read the rows.
    """
    inputs = sets[0]
    target, device = inputs.target_logits, inputs.target_logits.device
    calls = calls_of(sets, ways, draft_laws, backend)
    if device.type == "cuda":
        host, total, outputs = clocks.time_eager(calls, budget_s=budget_s / 2)
        on_device = total  # the loop waits for the device itself, and cannot be captured
        if backend != "baseline":
            on_device, outputs = clocks.time_graph(calls, budget_s=budget_s)
    else:
        on_device, outputs = clocks.time_wall(calls, budget_s=budget_s)
        total = host = on_device
    few = LogitInputs(*(tensor[:4] for tensor in inputs))
    (again,) = calls_of([few], ways, False, "vectorized")
    for found, expected in zip(outputs[0], again(), strict=True):
        if not torch.equal(found[:4], expected):
            raise RecordError(f"{backend}: expected the tokens of the vectorised sampler")
    accepted = [samples[1] for samples in outputs[: len(sets)]]
    n_bytes = mean_needed_bytes(sets, accepted, draft_laws)
    floor = roof.measure(n_bytes, len(sets), device, budget_s=budget_s).time
    roof.check_above(backend, on_device, floor)
    is_cold = len(sets) * n_bytes > 2 * machine.last_level_cache(device)
    return Record(
        implementation="fused" if backend == "auto" else backend,
        run=run,
        batch_size=target.shape[0],
        spec_len=inputs.draft_tokens.shape[1],
        vocab_size=target.shape[2],
        dtype=str(target.dtype).removeprefix("torch."),
        acceptance=ACCEPTANCE,
        accepted=float(torch.cat(accepted).double().mean()),
        cache="cold" if is_cold else "warm",
        device=on_device,
        host=host,
        call=total,
        bytes_moved=n_bytes,
        roof=floor,
        floor_us=clocks.launch_floor(device, budget_s=budget_s / 4),
    )


def measure(
    device: torch.device, *, shapes: Sequence[tuple[int, int]], runs: int, budget_s: float
) -> tuple[LogitsBenchmark, list[str]]:
    """Time all shapes, dtypes and ways, in whole runs; and why times were refused, if any were."""
    refused: list[str] = []

    def results() -> Iterator[Result]:
        for run in range(runs):
            for ways, dtype, sets in cases:
                for draft_laws in (False, True):
                    try:
                        record = time_calls(
                            sets, ways, draft_laws=draft_laws, run=run, budget_s=budget_s
                        )
                    except RecordError as error:  # the other times are as good without it
                        shape = tuple(sets[0].target_logits.shape)
                        refused.append(f"run {run}, {shape}, {dtype}, {ways}: {error}")
                        print(refused[-1], flush=True)
                        continue
                    print(f"run {run}, B = {record.batch_size}, V = {record.vocab_size}, {dtype}, "
                          f"top_k = {ways.top_k}, laws {draft_laws}: "
                          f"{record.device.median_us:.1f} us, roof {record.roof.median_us:.1f} us",
                          flush=True)  # fmt: skip
                    yield Result(ways=ways, draft_laws=draft_laws, record=record)

    cases = [
        (ways, dtype, make_sets(*shape, ways, dtype, device))
        for shape in shapes
        for dtype in (torch.bfloat16, torch.float32)
        for ways in (TEMPERATURE, FILTERED)
    ]
    found = LogitsBenchmark(
        schema=SCHEMA, provenance=provenance(device), runs=runs, results=tuple(results())
    )
    return found, refused


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program; the exit status is 1 if a time was refused."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(prog="python -m rsk.measure.logits_benchmark")
    parser.add_argument("--save", type=Path, required=True, help="the file to write")
    parser.add_argument("--runs", type=int, default=5, help="whole runs (default: 5)")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU: a trial")
    chosen = parser.parse_args(arguments)
    if not chosen.dry and not torch.cuda.is_available():
        parser.error("there is no GPU here; --dry tries the program on the CPU")
    found, refused = measure(
        torch.device("cpu" if chosen.dry else "cuda"),
        shapes=DRY_SHAPES if chosen.dry else SHAPES,
        runs=chosen.runs,
        budget_s=0.002 if chosen.dry else 0.04,
    )
    found.save(chosen.save)
    return 1 if refused else 0


if __name__ == "__main__":
    raise SystemExit(main())
