"""Measure the sharded sampler against gathering the rows and sampling: ``rsk benchmark --sharded``.

With as many GPUs as ranks the backend is nccl, and each point is timed: as the share of a call in a
captured graph of many, collectives included, and as a call by itself until its result is there.

Without the GPUs the backend is gloo, on the CPU: the tokens are compared and nothing is timed.
Either way random calls of every kind are compared first.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from rsk.base import machine
from rsk.base.numbers import byte_size, us
from rsk.measure import sharded_rank
from rsk.measure.provenance import provenance
from rsk.measure.records import parse
from rsk.measure.sharded_clocks import clock_mhz
from rsk.measure.sharded_records import SCHEMA, Sharded
from rsk.sampler import build


class RankError(RuntimeError):
    """A rank of a measurement failed; the message is its error."""


def run(ranks: int, *, quick: bool = False, console: Console | None = None) -> Sharded:
    """Start the ranks, measure, and return the record.

    Args:
        ranks: R. With so many GPUs each rank has one, else all are processes on the CPU.
        quick: fewer cases.
        console: where to say what is being done.

    Raises:
        ValueError: less than one rank; or GPUs whose clock nvidia-smi does not tell.
        rsk.BuildError: the kernels for the GPUs do not compile.
        RankError: a rank failed.
    """
    if ranks < 1:
        raise ValueError(f"--sharded: expected at least 1 rank, got {ranks}")
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= ranks
    device_type = "cuda" if on_gpu else "cpu"
    # Once, before any rank waits for another.
    if on_gpu:
        for library in ("cuda", "sharded cuda", "roof cpu", "roof cuda"):
            build.load(library)
        clock_mhz()  # what it raises is better known now than after everything was compared
    is_built = build.available(device_type)  # what is compared on a CPU needs no compiler
    if console is not None:
        console.print(describe(ranks, on_gpu))
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(sharded_rank.measure_on, (ranks, folder, on_gpu, quick), nprocs=ranks)
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise RankError(f"a rank failed: {error}") from None
        found = json.loads((Path(folder) / sharded_rank.RESULT).read_text())
    data = {
        "schema": SCHEMA,
        "provenance": dataclasses.asdict(provenance(device_type)),
        "backend": "nccl" if on_gpu else "gloo",
        "ranks": ranks,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None,
        "topology": _topology() if on_gpu else "one host",
        "rival": "fused" if is_built else "vectorized",
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
            *(byte_size(record.sent_bytes), byte_size(record.gathered_bytes)),
        ]
        if record.sharded is not None and record.gathered is not None:
            row += [us(record.sharded.graph), us(record.gathered.graph)]
            row += [f"{record.speedup:.2f}", us(record.sharded.call), us(record.gathered.call)]
        table.add_row(*row)
    console.print(table)
    if not timed:
        console.print("A correctness run: nothing was timed.")


def _topology() -> str:
    """The rows of ``nvidia-smi topo -m`` that tell how the GPUs are connected."""
    lines = machine.output_of("nvidia-smi", "topo", "-m").splitlines()
    rows = [" ".join(line.split()) for line in lines if "GPU" in line.split("\t")[0]]
    return "; ".join(rows) or "unknown"
