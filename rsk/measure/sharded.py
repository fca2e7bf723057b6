"""Measure the sharded sampler against gathering the rows and sampling: ``rsk benchmark --sharded``.

With as many GPUs as ranks the backend is nccl, and each case is timed: as the share of a call in a
captured graph of many, collectives included, and as a call by itself until its result is there.
The rival gathers the rows of all ranks on each (one all_gather for each tensor, and the copy that
puts the columns side by side) and samples there with the fused kernel, so that every rank has the
tokens, as after a sharded call.

Without the GPUs the backend is gloo, on the CPU: the tokens are compared and nothing is timed.
Either way random calls of every kind are compared first.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

import rsk
from rsk.base import machine
from rsk.check.sharded import compare_random_calls, compare_random_logit_calls
from rsk.check.synthetic import make_batch
from rsk.measure import clocks
from rsk.measure import roof as memory_roof
from rsk.measure.provenance import provenance
from rsk.measure.records import Spread, parse
from rsk.measure.sharded_model import LISTED, Case
from rsk.measure.sharded_records import (
    SCHEMA,
    STARTS,
    Link,
    Sharded,
    ShardedRecord,
    Times,
)
from rsk.sampler import build, fused, sharded
from rsk.sampler.api import RejectionSamples
from rsk.sampler.channel import WORDS, channel_of

SPEC_LEN = 4
ACCEPTANCE = 0.7
TEMPERATURE, TOP_P = 0.8, 0.9
CALLS = 40
"""Random calls of each sort that are compared first."""
SAMPLES = 15
SET_BYTES = 200 << 20
"""The inputs of a case rotate over so many bytes, so that no cache holds them."""
TIMEOUT_S = 120


class RankError(RuntimeError):
    """A rank of a measurement failed; the message is its error."""


def run(ranks: int, *, quick: bool = False, console: Console | None = None) -> Sharded:
    """Start the ranks, measure, and return the record.

    Args:
        ranks: R. With so many GPUs each rank has one, else all are processes on the CPU.
        quick: fewer cases.
        console: where to say what is being done.

    Raises:
        ValueError: less than one rank.
        RankError: a rank failed.
    """
    if ranks < 1:
        raise ValueError(f"--sharded: expected at least 1 rank, got {ranks}")
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= ranks
    for library in ("cuda", "sharded cuda") if on_gpu else ("cpu",):
        build.load(library)  # once, before any rank waits for another
    if console is not None:
        console.print(describe(ranks, on_gpu))
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_rank, (ranks, folder, on_gpu, quick), nprocs=ranks)
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise RankError(f"a rank failed: {error}") from None
        found = json.loads((Path(folder) / "result.json").read_text())
    data = {
        "schema": SCHEMA,
        "provenance": dataclasses.asdict(provenance("cuda" if on_gpu else "cpu")),
        "backend": "nccl" if on_gpu else "gloo",
        "ranks": ranks,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None,
        "topology": _topology() if on_gpu else "one host",
        "rival": "fused" if fused.takes_logits("cuda" if on_gpu else "cpu") else "vectorized",
        **found,
    }
    return parse(Sharded, data)


def describe(ranks: int, on_gpu: bool) -> str:
    """What is about to be measured, in a line."""
    if on_gpu:
        return f"{ranks} GPUs, nccl: tokens and times"
    return (
        f"{ranks} processes on the CPU, gloo: a correctness run. The tokens are compared and the "
        "bytes told; times would say nothing about GPUs and the link between them."
    )


def cases(ranks: int, on_gpu: bool, quick: bool) -> list[Case]:
    """What is measured."""
    vocab_sizes: tuple[int, ...] = (128256, 262144) if on_gpu else (32000, 128256)
    batch_sizes: tuple[int, ...] = (1, 16, 64, 256) if on_gpu else (1, 4)
    if quick:
        vocab_sizes, batch_sizes = vocab_sizes[:1], batch_sizes[:2]
    return [
        Case(start, batch_size, SPEC_LEN, vocab_size, ranks, 4 if "prob" in start else 2)
        for start in STARTS
        for vocab_size in vocab_sizes
        for batch_size in batch_sizes
    ]


def show(result: Sharded, console: Console) -> None:
    """Print the record."""
    timed = result.link is not None
    table = Table(title=f"{result.ranks} ranks, {result.backend}, {result.provenance.label}")
    for name in ("from", "V", "B", "equal", "collectives", "sent", "gathering receives"):
        table.add_column(name, justify="left" if name == "from" else "right")
    if timed:
        for name in ("sharded", "gathered", "times as fast", "sharded, call", "gathered, call"):
            table.add_column(name, justify="right")
    for record in result.records:
        row = [
            *(record.start, str(record.vocab_size), str(record.batch_size)),
            *("yes" if record.equal else "NO", str(record.collectives)),
            *(_bytes(record.sent_bytes), _bytes(record.gathered_bytes)),
        ]
        if record.sharded is not None and record.gathered is not None:
            row += [_us(record.sharded.graph), _us(record.gathered.graph)]
            row += [f"{record.speedup:.2f}", _us(record.sharded.call), _us(record.gathered.call)]
        table.add_row(*row)
    console.print(table)
    if not timed:
        console.print("A correctness run: nothing was timed.")


def _line(record: ShardedRecord) -> str:
    words = [record.start, f"V={record.vocab_size}", f"B={record.batch_size}"]
    if record.sharded is not None and record.gathered is not None:
        words += [_us(record.sharded.graph), "against", _us(record.gathered.graph)]
    return " ".join([*words, "equal" if record.equal else "NOT EQUAL"])


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _us(spread: Spread) -> str:
    return f"{spread.median_us:.1f} us"


def _topology() -> str:
    """The rows of ``nvidia-smi topo -m`` that tell how the GPUs are connected."""
    lines = machine.output_of("nvidia-smi", "topo", "-m").splitlines()
    rows = [" ".join(line.split()) for line in lines if "GPU" in line.split("\t")[0]]
    return "; ".join(rows) or "unknown"


# --- one rank ------------------------------------------------------------------------------------


def _rank(rank: int, ranks: int, folder: str, on_gpu: bool, quick: bool) -> None:
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.FileStore(  # type: ignore[attr-defined]
            str(Path(folder) / "store"), ranks
        ),
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=TIMEOUT_S),
        device_id=device if on_gpu else None,
    )
    try:
        compare_random_calls(CALLS, 1, device)
        compare_random_logit_calls(CALLS, 2, device)
        link = _measure_link(ranks, device) if on_gpu else None
        records = []
        for case in cases(ranks, on_gpu, quick):
            records.append(_measure(case, rank, device))
            if rank == 0:  # the table comes last, and a run may not come so far
                print(_line(records[-1]), file=sys.stderr, flush=True)
        if rank == 0:
            found = {
                "link": None if link is None else dataclasses.asdict(link),
                "records": [dataclasses.asdict(record) for record in records],
            }
            (Path(folder) / "result.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


def _measure(case: Case, rank: int, device: torch.device) -> ShardedRecord:
    """Check one case, and on a GPU time it."""
    sets = _inputs(case, device)
    expected = [_whole(case, *one) for one in sets]
    parts = [_part(case, rank, *one) for one in sets]
    kept = sum(each.clamp(min=0).float().mean().item() for _, each in expected) / len(expected)
    del sets
    ways: list[Callable[[int], RejectionSamples]] = [
        lambda i: _sharded(case, *parts[i]),
        lambda i: _gathered(case, *parts[i]),
    ]
    times: list[Times | None] = []
    equal = True
    channel = channel_of(None)
    sharded.forget()  # a larger batch before it would leave longer messages
    ways[0](0)
    before = channel.collectives, channel.sent_bytes
    ways[0](0)
    collectives, sent_bytes = channel.collectives - before[0], channel.sent_bytes - before[1]
    for way in ways:
        outputs = [way(i) for i in range(len(parts))]
        equal = equal and _same(outputs, expected)
        if device.type == "cuda":
            graph, outputs = _time_graph(way, len(parts), case.batch_size)
            equal = equal and _same(outputs, expected)
            times.append(Times(graph=graph, call=_time_calls(way, len(parts))))
        else:
            times.append(None)
    told = torch.tensor([int(equal)], device=device)
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return ShardedRecord(
        start=case.start,
        batch_size=case.batch_size,
        spec_len=case.spec_len,
        vocab_size=case.vocab_size,
        dtype="float32" if case.item_bytes == 4 else "bfloat16",
        acceptance=case.acceptance,
        accepted=kept,
        collectives=collectives,
        sent_bytes=sent_bytes,
        gathered_bytes=max(1, case.gathered_bytes),
        equal=bool(told.item()),
        sharded=times[0],
        gathered=times[1],
    )


Inputs = tuple[Tensor, Tensor, Tensor, int]
"""Draft tokens, the draft's rows, the target's, and the seed."""


def _inputs(case: Case, device: torch.device) -> list[Inputs]:
    """Whole rows, the same on every rank."""
    row_bytes = case.vocab_size * case.item_bytes
    each = case.batch_size * (2 * case.spec_len + 1) * row_bytes // case.ranks
    count = max(1, min(16, math.ceil(SET_BYTES / each))) if device.type == "cuda" else 2
    found = []
    for i in range(count):
        tokens, q, p = make_batch(
            case.batch_size,
            case.spec_len,
            case.vocab_size,
            device=device,
            acceptance=case.acceptance,
            seed=i,
        )
        if case.from_logits:
            q, p = (rows.log_().bfloat16() for rows in (q, p))
            drawn = [
                rsk.sample_from_logits(q[:, k], seed=i, position=k, **_filters(case))
                for k in range(case.spec_len)
            ]
            tokens = torch.stack([each for each in drawn if isinstance(each, Tensor)], 1)
        found.append((tokens, q, p, i))
    return found


def _filters(case: Case) -> dict[str, Any]:
    if not case.from_logits:
        return {}
    if not case.listed:
        return {"temperature": TEMPERATURE}
    return {"temperature": TEMPERATURE, "top_k": LISTED, "top_p": TOP_P}


def _whole(
    case: Case, tokens: Tensor, draft: Tensor, target: Tensor, seed: int
) -> RejectionSamples:
    call = rsk.rejection_sample_from_logits if case.from_logits else rsk.rejection_sample
    return call(tokens, draft, target, seed=seed, **_filters(case))


def _slices(case: Case) -> list[tuple[int, int]]:
    bounds = [case.vocab_size * rank // case.ranks for rank in range(case.ranks + 1)]
    return list(itertools.pairwise(bounds))


def _part(
    case: Case, rank: int, tokens: Tensor, draft: Tensor, target: Tensor, seed: int
) -> Inputs:
    """One rank's columns, in memory of their own."""
    begin, end = _slices(case)[rank]
    return (
        tokens,
        draft[..., begin:end].contiguous(),
        target[..., begin:end].contiguous(),
        seed,
    )


def _sharded(
    case: Case, tokens: Tensor, draft: Tensor, target: Tensor, seed: int
) -> RejectionSamples:
    if case.from_logits:
        call = sharded.rejection_sample_from_logits
        return call(tokens, draft, target, seed=seed, **_filters(case))
    return sharded.rejection_sample(tokens, draft, target, seed=seed)


def _gathered(
    case: Case, tokens: Tensor, draft: Tensor, target: Tensor, seed: int
) -> RejectionSamples:
    draft, target = (_gather_columns(rows, case) for rows in (draft, target))
    return _whole(case, tokens, draft, target, seed)


def _gather_columns(part: Tensor, case: Case) -> Tensor:
    """All ranks' columns of rows, [B, N, V], on each of them."""
    sizes = [end - begin for begin, end in _slices(case)]
    missing = max(sizes) - part.shape[2]  # a collective takes them of one size
    filled = F.pad(part, (0, missing)) if missing else part.contiguous()
    received = filled.new_empty((case.ranks * len(filled), *filled.shape[1:]))
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(received, filled)
    columns = received.view(case.ranks, *filled.shape)
    if len(set(sizes)) == 1:
        return columns.movedim(0, 2).flatten(2)
    return torch.cat([one[..., :size] for one, size in zip(columns, sizes, strict=True)], 2)


def _same(outputs: list[RejectionSamples], expected: list[RejectionSamples]) -> bool:
    return all(
        torch.equal(one[j], expected[i % len(expected)][j])
        for i, one in enumerate(outputs)
        for j in range(2)
    )


# --- clocks --------------------------------------------------------------------------------------


def _time_graph(
    way: Callable[[int], Any], sets: int, batch_size: int
) -> tuple[Spread, list[RejectionSamples]]:
    """The share of a call in a graph of many: the same number of calls and samples on all ranks."""
    calls = max(2, 24 // max(1, batch_size // 16))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(3):
            way(i % sets)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # NCCL's own thread asks the device about events meanwhile, which only this mode allows.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = [way(i % sets) for i in range(calls)]
    for output in outputs:
        for tensor in output:
            tensor.fill_(-7)
    samples = []
    for i in range(SAMPLES + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            samples.append(start.elapsed_time(end) * 1e3 / calls)
    return _spread(samples, "graph replay"), outputs


def _time_calls(way: Callable[[int], Any], sets: int) -> Spread:
    samples = []
    for i in range(2 * SAMPLES + 5):
        dist.barrier()
        torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        way(i % sets)
        torch.cuda.synchronize()
        if i >= 5:
            samples.append((time.perf_counter_ns() - begin) / 1e3)
    return _spread(samples, "wall")


def _spread(samples: list[float], clock: str) -> Spread:
    q25, median, q75 = (float(q) for q in np.percentile(samples, (25, 50, 75)))
    return Spread(
        median_us=median, q25_us=q25, q75_us=q75, samples=len(samples), disturbed=0.0, clock=clock
    )


def _measure_link(ranks: int, device: torch.device) -> Link:
    """What the GPUs and the link do: latencies of the shortest messages, and rates."""
    short = torch.zeros(WORDS, dtype=torch.int64, device=device)
    half = torch.zeros(WORDS // 2, dtype=torch.int64, device=device)
    large = torch.zeros(16 << 20, dtype=torch.int64, device=device)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

    def gathering(message: Tensor) -> Callable[[int], tuple[Tensor]]:
        received = message.new_empty(ranks * len(message))

        def call(_: int) -> tuple[Tensor]:
            gather(received, message)
            return (received,)

        return call

    def reducing(_: int) -> tuple[Tensor]:
        dist.all_reduce(half, dist.ReduceOp.MAX)
        return (half,)

    gather_us = _time_graph(gathering(short), 1, 1)[0].median_us
    reduce_us = _time_graph(reducing, 1, 1)[0].median_us
    large_us = _time_graph(gathering(large), 1, 256)[0].median_us
    read = 1 << 28
    roof = memory_roof.measure(read, 1, device, budget_s=0.3).time
    query = machine.output_of("nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader")
    return Link(
        ranks=ranks,
        gather_us=gather_us,
        reduce_us=reduce_us,
        gather_bytes_us=max(1, ranks - 1) * large.nbytes / large_us,
        memory_bytes_us=read / roof.median_us,
        launch_us=clocks.launch_floor(device),
        lanes=128 * torch.cuda.get_device_properties(device).multi_processor_count,
        clock_mhz=float(query.split()[0]),
    )
