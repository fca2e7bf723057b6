"""Tables of recorded times: kernels rung by rung, from logits, on several GPUs, of decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rsk.base.numbers import (
    DASH,
    between,
    byte_size,
    digits,
    duration,
    fixed,
    general,
    over_runs,
    percent,
    share,
)
from rsk.decode.decoding_speeds import BOTH, MEASURED, PLAIN, DecodingSpeeds
from rsk.decode.loading import NGRAM
from rsk.decode.speculation_length import AUTO
from rsk.figures.plotting import CLOCKS
from rsk.figures.tables import DataTable
from rsk.measure.comparison import usual_line
from rsk.measure.logits_benchmark import LogitsBenchmark, Result
from rsk.measure.model_step import ModelStepRecord, Step
from rsk.measure.over_runs import OverRuns, Series
from rsk.measure.peer_records import OURS, PeersRecord
from rsk.measure.records import Benchmark
from rsk.measure.sharded_records import Sharded, Times
from rsk.sampler import registry

if TYPE_CHECKING:
    from pandas import DataFrame

BATCH_SIZES = (1, 64, 1024)
"""Of the table of kernels: a request alone, a usual batch, one that more than fills a GPU."""
NEAR = 0.05
"""A range over runs that is no wider than this part of its median goes without saying."""
WARM = " †"
"""Marks a time with a warm cache."""


def rungs(benchmark: Benchmark, run: object) -> DataTable:
    """Time of each kernel on the device at a small, a usual and a large batch size.

    Of the smallest, where it was taken, the time of an isolated launch stands beside it.
    """
    import pandas as pd

    line = usual_line(benchmark)
    sizes = [size for size in BATCH_SIZES if size in line]
    alone = f"B = {sizes[0]}, {CLOCKS['isolated launch']}"
    rows = []
    for name in registry.KERNELS:
        row = {"kernel": name}
        for size in sizes:
            record = line[size].get(name)
            row[f"B = {size:,}"] = over_runs(record.device) if record else DASH
        first = line[sizes[0]].get(name)
        row[alone] = over_runs(first.isolated) if first and first.isolated else DASH
        rows.append(row)
    frame = pd.DataFrame(rows)
    is_taken = bool((frame[alone] != DASH).any())
    if not is_taken:
        frame = frame.drop(columns=alone)
    record = next(iter(line[sizes[-1]].values()))
    return DataTable(frame, "tab-rungs", {"record": record, "run": run, "is_isolated": is_taken})


def from_logits(found: LogitsBenchmark) -> DataTable:
    """One row for each shape and dtype, one column for each way, with and without draft laws."""
    import pandas as pd

    cells: dict[tuple[int, int, str], dict[str, list[Result]]] = {}
    for result in found.results:
        record = result.record
        row = cells.setdefault((record.batch_size, record.vocab_size, record.dtype), {})
        row.setdefault(_way(result), []).append(result)
    frame = pd.DataFrame(
        {"B": b, "V": v, "logits": dtype} | {name: _time(runs) for name, runs in row.items()}
        for (b, v, dtype), row in cells.items()
    )
    first = found.results[0]
    values = {
        "k": first.record.spec_len,
        "acceptance": first.record.acceptance,
        "temperature": first.ways.temperature,
        "runs": found.runs,
        "near": NEAR,
        "warm": WARM.strip(),
    }
    return DataTable(frame, "tab-from-logits", values)


def _way(result: Result) -> str:
    ways = result.ways
    name = "temperature"
    if ways.top_k or ways.top_p < 1:
        name = f"top-k {ways.top_k}, top-p {ways.top_p:g}"
    return name + (", laws given" if result.draft_laws else "")


def _time(runs: Sequence[Result]) -> str:
    one = Series(tuple(result.record for result in runs))
    part = DASH if one.roof_share is None else _unless_near(one.roof_share, percent)
    return f"{_unless_near(one.device, digits)}, {part}" + WARM * (runs[0].record.cache == "warm")


def _unless_near(value: OverRuns, write: Callable[[Any], str]) -> str:
    """A number over runs, its range only where that is wider than ``NEAR`` of the median."""
    is_near = value.most - value.least <= NEAR * value.median
    return write(value.median) if is_near else over_runs(value, write)


def sharded(found: Sharded, vocab_size: int) -> DataTable:
    """What the sharded sampler takes and sends, beside gathering the rows, for each kind of batch.

    Args:
        found: measured with NCCL.
        vocab_size: of the rows to show.
    """
    import pandas as pd

    rows = [
        {
            "from": record.start,
            "B": record.batch_size,
            "logits or p": record.dtype,
            "sharded": _graph(record.sharded),
            "gathered": _graph(record.gathered),
            "times": DASH if record.speedup is None else digits(record.speedup, 2),
            "a rank sends": byte_size(record.sent_bytes),
            "a rank receives to gather": byte_size(record.gathered_bytes),
        }
        for record in found.records
        if record.vocab_size == vocab_size
    ]
    frame: DataFrame = pd.DataFrame(rows)
    values = {"ranks": found.ranks, "record": found.records[0], "vocab_size": vocab_size}
    return DataTable(frame, "tab-sharded", values)


def _graph(times: Times | None) -> str:
    return DASH if times is None else duration(times.graph.median_us)


def rivals(benchmark: Benchmark, run: object, names: Sequence[str]) -> DataTable:
    """Time of ours, of the PyTorch versions, of Triton and of the peers, at three batch sizes.

    Args:
        benchmark: of a GPU.
        run: for the caption.
        names: of the implementations, in the order of the rows; those not measured are left out.
    """
    import pandas as pd

    line = usual_line(benchmark)
    sizes = [size for size in BATCH_SIZES if size in line]
    rows = []
    for name in names:
        found = {size: line[size][name] for size in sizes if name in line[size]}
        if not found:
            continue
        row = {"sampler": name}
        for size in sizes:
            one = found.get(size)
            is_timed = one is not None and one.device.clock != one.call.clock
            row[f"B = {size:,}"] = over_runs(one.device) if one and is_timed else DASH
        smallest = found[min(found)]
        row[f"B = {smallest.batch_size}, call time"] = over_runs(smallest.call)
        rows.append(row)
    record = next(iter(line[sizes[-1]].values()))
    return DataTable(pd.DataFrame(rows), "tab-rivals", {"record": record, "run": run})


PROMISES = {
    "repeats": "same call, same result",
    "seeds": "a seed for each request",
    "batch_invariant": "same tokens in another batch",
    "ragged": "drafts of different lengths",
    "equal_laws": "rejected where p = q",
    "nan": "a row of NaN",
}
"""Columns of the table of what was tried; keys as in :class:`rsk.measure.peers.traits`."""


def promises(found: PeersRecord) -> DataTable:
    """What each interface keeps, as it was tried: a row for each sampler."""
    import pandas as pd

    rows = [
        {"sampler": one.name}
        | {heading: _in_short(getattr(one.traits, key)) for key, heading in PROMISES.items()}
        for one in found.found
        if one.traits is not None
    ]
    versions = {one.name: one.version for one in found.found if one.version}
    return DataTable(pd.DataFrame(rows), "tab-promises", {"versions": versions})


def _in_short(told: str) -> str:
    """What came of a trial, without its details."""
    first = told.split(":")[0]
    if first.endswith("Error"):
        return "an error"
    return "a token all the same" if "accepted, tokens [" in first else first


def rivals_from_logits(found: PeersRecord, time: str = "call") -> DataTable:
    """Ours and the peers from logits, a row for each kind of batch.

    A dash stands where one was not timed, and on the device for one that waits for it. A range
    within ``NEAR`` of its median is left out, so that the table is not mostly ranges.

    Args:
        found: measured or loaded.
        time: ``"call"`` or ``"device"``.
    """
    import pandas as pd

    rows = []
    for batch_size, vocab_size, ways in found.kinds:
        filters = ways.removeprefix("temperature").removeprefix(", ") or "none"
        row: dict[str, object] = {"B": batch_size, "V": vocab_size, "filters": filters}
        for name in found.names:
            taken = found.times(name, (batch_size, vocab_size, ways), time)
            is_timed = taken is not None and not (time == "device" and found.waits(name))
            row[name] = _unless_near(taken, digits) if taken and is_timed else DASH
        rows.append(row)
    frame = pd.DataFrame(rows)
    nothing = [name for name in frame if (frame[name] == DASH).all()]
    values = {"runs": found.runs, "ours": OURS, "spec_len": found.from_logits[0].spec_len}
    label = "tab-rivals-logits" + ("" if time == "call" else f"-{time}")
    return DataTable(frame.drop(columns=nothing), label, {**values, "near": NEAR})


def shares_of_a_step(found: ModelStepRecord) -> DataTable:
    """What a decoding step takes with each sampler, and the sampler's part of it."""
    import pandas as pd

    cells: dict[tuple[str, int], dict[str, list[Step]]] = {}
    for step in found.steps:
        of_pair = cells.setdefault((step.pair, step.batch_size), {})
        of_pair.setdefault(step.sampler, []).append(step)
    rows = []
    for (pair, batch_size), by_sampler in cells.items():
        row: dict[str, object] = {"models": _in_full(pair), "B": batch_size}
        for name, steps in by_sampler.items():
            whole = OverRuns({step.run: step.step.median_us for step in steps})
            part = OverRuns({step.run: step.share for step in steps})
            row[name] = f"{duration(whole.median)}, {share(part)}"
        rows.append(row)
    first = found.steps[0]
    values = {"spec_len": first.spec_len, "context": first.context}
    return DataTable(pd.DataFrame(rows), "tab-step-shares", values)


def _in_full(pair: str) -> str:
    """A pair of models, "1.1 B with 68 M", without letters that mean something else in a table."""
    return pair.replace(" B", " billion").replace(" M", " million").replace("with", "+")


def public_model(records: Sequence[DecodingSpeeds]) -> DataTable:
    """What each way of drafting brings: a row for each machine, temperature, draft and K."""
    import pandas as pd

    rows = []
    for speeds in records:
        for temperature in speeds.temperatures:
            for draft, spec_len in speeds.ways(temperature):
                way = (temperature, draft, spec_len)
                gains, rate = speeds.speed_ups(*way), speeds.acceptance(*way)
                gain = speeds.speed_up(*way)
                span = between(min(gains), max(gains), lambda number: fixed(number, 2))
                plain = draft == PLAIN
                rows.append(
                    {
                        "on": speeds.provenance.kind,
                        "temperature": general(temperature),
                        "draft": {NGRAM: "lookup", BOTH: "lookup or model"}.get(draft, draft),
                        "K": DASH if plain else AUTO if spec_len == MEASURED else str(spec_len),
                        "accepted": DASH if plain else fixed(rate, 2),
                        "tokens per pass": fixed(speeds.tokens_per_pass(*way), 2),
                        "time per token": duration(speeds.seconds_per_token(*way) * 1e6),
                        "speed-up": DASH if plain else f"{fixed(gain, 2)} ({span})",
                    }
                )
    frame = pd.DataFrame(rows)
    if len(records) == 1:
        frame = frame.drop(columns="on")
    return DataTable(frame, "tab-public-model", {"records": records})
