"""What one rank of a sharded measurement does: make its slice, call both ways, compare, time.

The rival gathers the rows of all ranks on each (one all_gather for each tensor, and the copy that
puts the columns side by side) and samples there with the fused kernel, so that every rank has the
tokens, as after a sharded call.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import rsk
from rsk.base.numbers import us
from rsk.check.sharded import compare_random_calls, compare_random_logit_calls
from rsk.check.synthetic import make_batch
from rsk.measure.sharded_clocks import gather, measure_link, time_calls, time_graph
from rsk.measure.sharded_point import LISTED, ShardedPoint
from rsk.measure.sharded_records import STARTS, ShardedRecord, Times
from rsk.sampler import sharded
from rsk.sampler.api import RejectionSamples
from rsk.sampler.channel import channel_of

SPEC_LEN = 4
TEMPERATURE, TOP_P = 0.8, 0.9
CALLS = 40
"""Random calls of each sort that are compared first."""
SET_BYTES = 200 << 20
"""The inputs of a point rotate over so many bytes, so that no cache holds them, or over
``MAX_SETS`` sets: of a single request a cache may hold those."""
MAX_SETS = 16
TIMEOUT_S = 120
RESULT = "result.json"
"""What the first rank writes."""


def points(ranks: int, on_gpu: bool, quick: bool) -> list[ShardedPoint]:
    """What is measured."""
    vocab_sizes: tuple[int, ...] = (128256, 262144) if on_gpu else (32000, 128256)
    batch_sizes: tuple[int, ...] = (1, 16, 64, 256) if on_gpu else (1, 4)
    if quick:
        vocab_sizes, batch_sizes = vocab_sizes[:1], batch_sizes[:2]
    return [
        ShardedPoint(start, batch_size, SPEC_LEN, vocab_size, ranks, 4 if "prob" in start else 2)
        for start in STARTS
        for vocab_size in vocab_sizes
        for batch_size in batch_sizes
    ]


def measure_on(rank: int, ranks: int, folder: str, on_gpu: bool, quick: bool) -> None:
    """Measure as one of the ranks; the first writes what was found to a file in ``folder``."""
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
        link = measure_link(ranks, device) if on_gpu else None
        records = []
        for point in points(ranks, on_gpu, quick):
            records.append(_measure(point, rank, device))
            if rank == 0:  # the table comes last, and a run may not come so far
                print(in_a_line(records[-1]), file=sys.stderr, flush=True)
        if rank == 0:
            found = {
                "link": None if link is None else dataclasses.asdict(link),
                "records": [dataclasses.asdict(record) for record in records],
            }
            (Path(folder) / RESULT).write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


def _measure(point: ShardedPoint, rank: int, device: torch.device) -> ShardedRecord:
    """Check one point, and on a GPU time it."""
    sets = _inputs(point, device)
    expected = [_whole(point, *one) for one in sets]
    slices = [_slice(point, rank, *one) for one in sets]
    kept = sum(each.clamp(min=0).float().mean().item() for _, each in expected) / len(expected)
    del sets
    ways: list[Callable[[int], RejectionSamples]] = [
        lambda i: _sharded(point, *slices[i]),
        lambda i: _gathered(point, *slices[i]),
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
        outputs = [way(i) for i in range(len(slices))]
        equal = equal and _same(outputs, expected)
        if device.type == "cuda":
            graph, outputs = time_graph(way, len(slices), point.batch_size)
            equal = equal and _same(outputs, expected)
            times.append(Times(graph=graph, call=time_calls(way, len(slices))))
        else:
            times.append(None)
    told = torch.tensor([int(equal)], device=device)
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return ShardedRecord(
        start=point.start,
        batch_size=point.batch_size,
        spec_len=point.spec_len,
        vocab_size=point.vocab_size,
        dtype="float32" if point.item_bytes == 4 else "bfloat16",
        acceptance=point.acceptance,
        accepted=kept,
        collectives=collectives,
        sent_bytes=sent_bytes,
        gathered_bytes=max(1, point.gathered_bytes),
        equal=bool(told.item()),
        sharded=times[0],
        gathered=times[1],
    )


RankInputs = tuple[Tensor, Tensor, Tensor, int]
"""Draft tokens, the draft's rows, the target's, and the seed."""


def _inputs(point: ShardedPoint, device: torch.device) -> list[RankInputs]:
    """Whole rows, the same on every rank."""
    row_bytes = point.vocab_size * point.item_bytes
    each = point.batch_size * (2 * point.spec_len + 1) * row_bytes // point.ranks
    count = max(1, min(MAX_SETS, math.ceil(SET_BYTES / each))) if device.type == "cuda" else 2
    found = []
    for i in range(count):
        tokens, q, p = make_batch(
            point.batch_size,
            point.spec_len,
            point.vocab_size,
            device=device,
            acceptance=point.acceptance,
            seed=i,
        )
        if point.from_logits:
            q, p = (rows.log_().bfloat16() for rows in (q, p))
            drawn = [
                rsk.sample_from_logits(q[:, k], seed=i, position=k, **_filters(point))
                for k in range(point.spec_len)
            ]
            tokens = torch.stack([each for each in drawn if isinstance(each, Tensor)], 1)
        found.append((tokens, q, p, i))
    return found


def _filters(point: ShardedPoint) -> dict[str, Any]:
    if not point.from_logits:
        return {}
    if not point.listed:
        return {"temperature": TEMPERATURE}
    return {"temperature": TEMPERATURE, "top_k": LISTED, "top_p": TOP_P}


def _whole(
    point: ShardedPoint, tokens: Tensor, draft: Tensor, target: Tensor, seed: int
) -> RejectionSamples:
    call = rsk.rejection_sample_from_logits if point.from_logits else rsk.rejection_sample
    return call(tokens, draft, target, seed=seed, **_filters(point))


def _bounds(point: ShardedPoint) -> list[tuple[int, int]]:
    bounds = [point.vocab_size * rank // point.ranks for rank in range(point.ranks + 1)]
    return list(itertools.pairwise(bounds))


def _slice(
    point: ShardedPoint, rank: int, tokens: Tensor, draft: Tensor, target: Tensor, seed: int
) -> RankInputs:
    """One rank's columns, in memory of their own."""
    begin, end = _bounds(point)[rank]
    return (
        tokens,
        draft[..., begin:end].contiguous(),
        target[..., begin:end].contiguous(),
        seed,
    )


def _sharded(
    point: ShardedPoint, tokens: Tensor, draft: Tensor, target: Tensor, seed: int
) -> RejectionSamples:
    if point.from_logits:
        call = sharded.rejection_sample_from_logits
        return call(tokens, draft, target, seed=seed, **_filters(point))
    return sharded.rejection_sample(tokens, draft, target, seed=seed)


def _gathered(
    point: ShardedPoint, tokens: Tensor, draft: Tensor, target: Tensor, seed: int
) -> RejectionSamples:
    draft, target = (_gather_columns(rows, point) for rows in (draft, target))
    return _whole(point, tokens, draft, target, seed)


def _gather_columns(own: Tensor, point: ShardedPoint) -> Tensor:
    """All ranks' columns of rows, [B, N, V], on each of them."""
    sizes = [end - begin for begin, end in _bounds(point)]
    missing = max(sizes) - own.shape[2]  # a collective takes them of one size
    filled = F.pad(own, (0, missing)) if missing else own.contiguous()
    received = filled.new_empty((point.ranks * len(filled), *filled.shape[1:]))
    gather(filled, received)
    columns = received.view(point.ranks, *filled.shape)
    if len(set(sizes)) == 1:
        return columns.movedim(0, 2).flatten(2)
    return torch.cat([one[..., :size] for one, size in zip(columns, sizes, strict=True)], 2)


def _same(outputs: list[RejectionSamples], expected: list[RejectionSamples]) -> bool:
    return all(
        torch.equal(one[j], expected[i % len(expected)][j])
        for i, one in enumerate(outputs)
        for j in range(2)
    )


def in_a_line(record: ShardedRecord) -> str:
    """A record while the others are still measured."""
    fields = [record.start, f"V={record.vocab_size}", f"B={record.batch_size}"]
    if record.sharded is not None and record.gathered is not None:
        fields += [us(record.sharded.graph), "against", us(record.gathered.graph)]
    return " ".join([*fields, "equal" if record.equal else "NOT EQUAL"])
