"""A call of ``rsk.sharded`` on several processes of this machine, and what they send each other.

Each is a rank of a group with gloo and holds its columns of the logits. ``python -m
rsk.course.several_ranks FOLDER RANK SIZE`` is one of them; :func:`sample` starts them.
"""

from __future__ import annotations

import datetime
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from rsk.sampler import sharded
from rsk.sampler.api import RejectionSamples

TIMEOUT_S = 60


class Message(NamedTuple):
    """What one rank hands to a collective operation."""

    collective: str
    bytes: int


class Ranks(NamedTuple):
    """What the ranks of a group returned and sent."""

    samples: list[RejectionSamples]
    """Of each rank."""
    columns: list[tuple[int, int]]
    """Of the vocabulary: first and end, of each rank."""
    messages: list[Message]
    """Of a rank, in its second call: in the first, all agree on who has which columns."""
    rows_bytes: int
    """Of the logits that a rank would send instead, if all were to have all rows."""


def sample(
    draft_tokens: Tensor,
    draft_logits: Tensor,
    target_logits: Tensor,
    *,
    size: int = 2,
    **arguments: Any,
) -> Ranks:
    """Run :func:`rsk.sharded.rejection_sample_from_logits` on so many processes.

    Args:
        draft_tokens, draft_logits, target_logits: of the whole rows, on the CPU.
        size: number of ranks.
        arguments: the others of that function, but for ``group``; no tensors.

    Raises:
        RuntimeError: a process failed; with what it said.
    """
    vocab_size = target_logits.shape[2]
    bounds = [rank * vocab_size // size for rank in range(size + 1)]
    columns = list(itertools.pairwise(bounds))
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = {"tokens": draft_tokens, "draft": draft_logits, "target": target_logits}
        torch.save({**whole, "columns": columns, "arguments": arguments}, folder / "call.pt")
        command = [sys.executable, "-m", "rsk.course.several_ranks", name]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(size)],
                env={**os.environ, "PYTHONPATH": path},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        said = [process.communicate()[1] for process in ranks]
        for rank, process in enumerate(ranks):
            if process.returncode != 0:
                raise RuntimeError(f"rank {rank} failed: {said[rank][-2000:]}")
        answers = [torch.load(folder / f"{rank}.pt") for rank in range(size)]
    first, end = columns[0]
    rows = (draft_logits[..., first:end], target_logits[..., first:end])
    return Ranks(
        samples=[RejectionSamples(*answer["samples"]) for answer in answers],
        columns=columns,
        messages=[Message(*message) for message in answers[0]["messages"]],
        rows_bytes=sum(values.numel() * values.element_size() for values in rows),
    )


@contextmanager
def logged(messages: list[tuple[str, int]]) -> Iterator[None]:
    """Note what this process hands to the collectives that the sampler uses."""

    def noting(function: Callable[..., Any], name: str, sent: int) -> Callable[..., Any]:
        def collective(*args: Any, **more: Any) -> Any:
            messages.append((name, args[sent].numel() * args[sent].element_size()))
            return function(*args, **more)

        return collective

    places = {"all_gather_single": 1, "all_gather_into_tensor": 1, "all_reduce": 0}
    before = {name: getattr(dist, name) for name in places if hasattr(dist, name)}
    try:
        for name, function in before.items():
            kind = "all_gather" if name.startswith("all_gather") else name
            setattr(dist, name, noting(function, kind, places[name]))
        yield
    finally:
        for name, function in before.items():
            setattr(dist, name, function)


def be_a_rank(folder: Path, rank: int, size: int) -> None:
    """Hold this rank's columns, make the call twice, and leave the result in the folder."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(folder / "store"), size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=TIMEOUT_S),
    )
    call = torch.load(folder / "call.pt")
    own = slice(*call["columns"][rank])
    tensors = call["tokens"], call["draft"][..., own], call["target"][..., own]
    sharded.rejection_sample_from_logits(*tensors, **call["arguments"])
    messages: list[tuple[str, int]] = []
    with logged(messages):
        samples = sharded.rejection_sample_from_logits(*tensors, **call["arguments"])
    torch.save({"samples": tuple(samples), "messages": messages}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    be_a_rank(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
