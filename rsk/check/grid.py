"""Bit-for-bit agreement of the CUDA kernels over the whole grid of shapes, on a GPU.

``python -m rsk.check.grid`` compares every kernel with ``vectorized`` on the whole batch and with
``baseline`` on some of its requests (a request does not depend on its batch), for cases that cover
every pair of values of B, K, V and dtype; then ragged, certain and strided batches, drafts with
another vocabulary and dtype, several streams at once, and a captured graph. It needs nothing but
PyTorch. ``python -m rsk.measure.agreement --save FILE`` saves what it finds.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rsk.base import terminal
from rsk.check.synthetic import make_batch
from rsk.sampler.api import RejectionSamples, rejection_sample
from rsk.sampler.kernels import KERNELS

AXES: dict[str, tuple[Any, ...]] = {
    "batch_size": (1, 2, 3, 16, 64, 132, 300, 1000, 1024),
    "spec_len": (*range(17), 128),
    "vocab_size": (7, 129, 32000, 32768, 128256, 151936, 262144),
    "dtype": ("float32", "bfloat16", "float16"),
}
KINDS_VOCAB_SIZES = (129, 9001, 32000)
BASELINE_REQUESTS = 8
SECONDS, GIB = 240.0, 60.0
NO_GPU = "rsk.check.grid needs an NVIDIA GPU; without one, the tests run the kernels in an emulator"


def cases(axes: dict[str, tuple[Any, ...]], max_bytes: int) -> list[dict[str, Any]]:
    """Cases that hold every pair of values at least once, where one fits into ``max_bytes``."""
    rng = random.Random(0)
    names = list(axes)
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(names, 2)
        for x in axes[a]
        for y in axes[b]
    }
    found = []
    while missing:
        wanted = min(missing, key=str)
        best: tuple[int, dict[str, Any]] | None = None
        for _ in range(60):
            case = {name: rng.choice(values) for name, values in axes.items()} | dict(wanted)
            if bytes_of(case) <= max_bytes:
                gain = len(_pairs(case) & missing)
                if best is None or gain > best[0]:
                    best = gain, case
        if best is None:
            smallest = {name: min(values, key=str) for name, values in axes.items()}
            smallest |= {name: min(axes[name]) for name in names if name != "dtype"}
            case = smallest | dict(wanted)
            if bytes_of(case) > max_bytes:
                missing.discard(wanted)  # no such case is small enough
                continue
            best = 0, case
        found.append(best[1])
        missing -= _pairs(best[1])
    return found


def bytes_of(case: dict[str, Any]) -> int:
    """Memory of the probabilities of a case."""
    width = getattr(torch, case["dtype"]).itemsize
    rows = case["batch_size"] * (2 * case["spec_len"] + 1)
    return int(rows * case["vocab_size"] * width)


def _pairs(case: dict[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return set(itertools.combinations(case.items(), 2))


def differences(
    draft_tokens: Tensor, draft_probs: Tensor | None, target_probs: Tensor, seed: int
) -> list[str]:
    """The names of the implementations that disagree on this batch; and whether it is in vain."""
    batch_size = draft_tokens.shape[0]
    batch = draft_tokens, draft_probs, target_probs
    seeds = torch.arange(batch_size, device=draft_tokens.device) + seed
    expected = rejection_sample(*batch, seed=seeds, position=seed, backend="vectorized")
    some = torch.randperm(batch_size)[:BASELINE_REQUESTS].tolist()
    wrong = nothing_valid(expected.num_accepted)
    for b in some:
        row = slice(b, b + 1)
        alone = rejection_sample(
            draft_tokens[row],
            None if draft_probs is None else draft_probs[row],
            target_probs[row],
            seed=seeds[row],
            position=seed,
            backend="baseline",
        )
        if not _equal(alone, RejectionSamples(*(each[row] for each in expected))):
            wrong.append("vectorized")
            break
    runs = {"fused": rejection_sample} | dict(KERNELS)
    for name, run in runs.items():
        if not _equal(run(*batch, seed=seeds, position=seed), expected):
            wrong.append(name)
    return wrong


def nothing_valid(num_accepted: Tensor) -> list[str]:
    """A fault of the case itself: all refuse all of its requests, and nothing is compared."""
    return [] if bool((num_accepted >= 0).any()) else ["no request is valid"]


def _equal(a: RejectionSamples, b: RejectionSamples) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.num_accepted, b.num_accepted)


def check_cases(device: str, max_bytes: int, seconds: float) -> dict[str, Any]:
    """Run the grid, largest cases last; stop after ``seconds``."""

    def check(case: dict[str, Any], seed: int) -> list[str]:
        shape = case["batch_size"], case["spec_len"], case["vocab_size"]
        batch = make_batch(*shape, dtype=getattr(torch, case["dtype"]), device=device, seed=seed)
        return differences(*batch, seed=seed * 7919)

    return run_cases(cases(AXES, max_bytes), check, seconds)


def run_cases(
    chosen: list[dict[str, Any]],
    check: Callable[[dict[str, Any], int], list[str]],
    seconds: float,
) -> dict[str, Any]:
    """Check cases, largest last, until ``seconds`` are over.

    Args:
        chosen: the cases, as from :func:`cases`.
        check: given a case and a seed, names what is wrong.
        seconds: after which no case is begun.
    """
    start = time.monotonic()
    planned = sorted(chosen, key=bytes_of)
    done: list[dict[str, Any]] = []
    largest = 0
    for i, case in enumerate(planned):
        if time.monotonic() - start > seconds:
            break
        done.append(case | {"wrong": check(case, i)})
        largest = max(largest, case["batch_size"] * (case["spec_len"] + 1) * case["vocab_size"])
        if done[-1]["wrong"]:
            print("wrong:", done[-1], flush=True)
    return {
        "planned": len(planned),
        "done": len(done),
        "largest_tensor": largest,
        "seconds": round(time.monotonic() - start, 1),
        "wrong": [case for case in done if case["wrong"]],
        "cases": [case for case in done if not case["wrong"]],
    }


def check_kinds_of_input(device: str, batch_size: int = 64) -> dict[str, list[str]]:
    """Ragged and certain drafts, int32 tokens, padded and shifted rows, invalid requests, and
    drafts whose vocabulary and dtype are not the target's.
    """
    found = {}
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for dtype, other in zip(dtypes, dtypes[1:] + dtypes[:1], strict=True):
        for vocab_size in KINDS_VOCAB_SIZES:
            draft_tokens, q, p = make_batch(batch_size, 6, vocab_size, dtype=dtype, device=device)
            name = f"{str(dtype).removeprefix('torch.')} V={vocab_size}"
            ragged = draft_tokens.clone()
            ragged[torch.arange(batch_size), torch.arange(batch_size) % 6] = -1
            found[f"ragged {name}"] = differences(ragged, q, p, 5)
            found[f"certain {name}"] = differences(draft_tokens.int(), None, p, 6)
            size = batch_size, 7, vocab_size + 8
            padded = torch.full(size, torch.nan, dtype=dtype, device=device)
            for shift in (0, 1, 8):
                view = padded[:, :, shift : shift + vocab_size]
                view.copy_(p)
                found[f"strided by {shift} {name}"] = differences(draft_tokens, q, view, 7)
                found[f"strided by {shift} and certain {name}"] = differences(
                    draft_tokens, None, view, 7
                )
                padded.fill_(torch.nan)
            broken = p.clone()
            broken[::3, :, vocab_size - 1] = torch.nan
            broken[1::3] = 0
            found[f"invalid {name}"] = differences(draft_tokens, q, broken, 8)
            equal = p[:, :6] * 2  # q above p everywhere: the residual is empty
            found[f"empty residual {name}"] = differences(draft_tokens, equal, p, 9)
            for more in (-8, 0, 8):
                rows = torch.nn.functional.pad(q, (0, more), value=2.0**-10).to(other)
                tokens = draft_tokens.clone()
                tokens[::5, 1] = vocab_size + max(more, 0) - 1  # the last one that there is
                tokens[1::5, 1] += 1  # perhaps none
                kind = f"{more:+} columns of {str(other).removeprefix('torch.')}, target {name}"
                found[kind] = differences(tokens, rows.contiguous(), p, 10)
    return found


def check_streams_and_graphs() -> dict[str, list[str]]:
    """No call may disturb another: streams at once, graphs replayed, inputs overwritten."""
    found: dict[str, list[str]] = {"streams": [], "graph": [], "chain": []}
    batches = [make_batch(32, 4, 32000, device="cuda", seed=i) for i in range(4)]
    expected = [rejection_sample(*batch, seed=i) for i, batch in enumerate(batches)]
    for name, run in KERNELS.items():
        streams = [torch.cuda.Stream() for _ in batches]
        torch.cuda.synchronize()
        for _ in range(20):
            results = []
            for i, (batch, stream) in enumerate(zip(batches, streams, strict=True)):
                with torch.cuda.stream(stream):
                    results.append(run(*batch, seed=i))
            torch.cuda.synchronize()
            if not all(map(_equal, results, expected)):
                found["streams"].append(name)
                break
        inputs = [x.clone() for x in batches[0]]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run(*inputs, seed=0)
        for i, batch in enumerate(batches):
            for x, y in zip(inputs, batch, strict=True):
                x.copy_(y)
            graph.replay()
            torch.cuda.synchronize()
            if not _equal(result, rejection_sample(*batch, seed=0, backend="vectorized")):
                found["graph"].append(f"{name} on batch {i}")
        # Each call reads what the kernel just before it wrote, which the next one overwrites.
        results = []
        for i, batch in enumerate(batches * 20):
            for x, y in zip(inputs, batch, strict=True):
                x.copy_(y)
            results.append(run(*inputs, seed=i % len(batches)))
        torch.cuda.synchronize()
        if not all(map(_equal, results, expected * 20)):
            found["chain"].append(name)
    return found


def run(seconds: float = SECONDS, gib: float = GIB) -> dict[str, Any]:
    """All of it: the kinds of input, what goes on at once, and the grid of shapes.

    Args:
        seconds: for the grid of shapes.
        gib: memory of the largest case.
    """
    return {
        "inputs": check_kinds_of_input("cuda"),
        "concurrency": check_streams_and_graphs(),
        "grid": check_cases("cuda", int(gib * 2**30), seconds),
    }


def wrong(result: dict[str, Any]) -> dict[str, Any]:
    """What in the result of :func:`run` does not agree."""
    found = {k: v for part in ("inputs", "concurrency") for k, v in result[part].items() if v}
    return found | ({"grid": result["grid"]["wrong"]} if result["grid"]["wrong"] else {})


def summary(result: dict[str, Any]) -> str:
    """The result of :func:`run` in a line."""
    grid = result["grid"]
    return (
        f"grid: {grid['done']} of {grid['planned']} cases in {grid['seconds']} s, largest tensor "
        f"{grid['largest_tensor']} elements, {len(result['inputs'])} kinds of input, streams and "
        f"graphs: {wrong(result) or 'all right'}"
    )


def parser() -> argparse.ArgumentParser:
    """The options that every command with this grid has."""
    made = argparse.ArgumentParser(description="Bit-for-bit agreement on a GPU.")
    made.add_argument("--seconds", type=float, default=SECONDS, help="for the grid of shapes")
    made.add_argument("--gib", type=float, default=GIB, help="largest case")
    return made


def main() -> int:
    """Run everything and print a summary."""
    return command("", parser(), run, lambda: check_kinds_of_input("cuda", 4))


def command(
    about: str,
    options: argparse.ArgumentParser,
    run_all: Callable[[float, float], dict[str, Any]],
    run_few: Callable[[], dict[str, list[str]]],
) -> int:
    """Run a grid as a command; returns the exit status.

    Args:
        about: what stands before "grid:" where there is more than one.
        options: as from :func:`parser`.
        run_all: as :func:`run`.
        run_few: checks a few small batches; names what is wrong in each kind.
    """
    terminal.accept_any_text()
    options.add_argument(
        "--few",
        action="store_true",
        help="only a few small batches, to be run by compute-sanitizer",
    )
    arguments = options.parse_args()
    if not torch.cuda.is_available():
        print(NO_GPU)
        return 2
    if arguments.few:
        few = {kind: who for kind, who in run_few().items() if who}
        print(f"{about}grid: {few or 'all right'}")
        return 1 if few else 0
    result = run_all(arguments.seconds, arguments.gib)
    print(f"{about}{summary(result)}")
    return 1 if wrong(result) else 0


if __name__ == "__main__":
    sys.exit(main())
