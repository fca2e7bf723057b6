"""Bit-for-bit agreement from logits over the whole grid of shapes and filters, on a GPU.

``python -m rsk.check.logits_grid`` compares ``fused`` with ``vectorized`` on the whole batch and
with ``baseline``, on the GPU and on the CPU, on some of its requests, for cases that cover every
pair of values of B, K, V, dtype and filters: tokens, laws, probabilities, with the draft's laws and
without. Then every kind of input, several streams at once, captured graphs, torch.compile and
opcheck. ``--few`` does a few small ones, for compute-sanitizer.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rsk.check import grid
from rsk.check.calls import FILTERS, Call
from rsk.check.synthetic import make_batch
from rsk.sampler.fused import tensor_and_int
from rsk.sampler.logits import probabilities, rejection_sample_from_logits, sample_from_logits

AXES: dict[str, tuple[Any, ...]] = {
    "batch_size": (1, 2, 3, 16, 64, 132, 300),
    "spec_len": (0, 1, 2, 4, 7, 16, 128),
    "vocab_size": (7, 129, 32000, 32768, 128256, 151936, 262144),
    "dtype": ("float32", "bfloat16", "float16"),
    "filters": ("none", "temperature", "greedy", "top-k", "top-p", "min-p", "all", "per request"),
}
DTYPES = (torch.float16, torch.float32, torch.bfloat16)
KINDS_VOCAB_SIZES = (129, 9001, 32000)
KINDS_FILTERS = ("temperature", "all", "per request")
GIB = 16.0
"""Of one case's logits; the other tensors of a comparison take several times as much."""

_FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "temperature": {"temperature": 0.8},
    "greedy": {"temperature": 0.0},
    "top-k": {"temperature": 1.2, "top_k": 50},
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.02},
    "all": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
}
_VECTORIZED = partial(rejection_sample_from_logits, backend="vectorized")
_FUSED = partial(rejection_sample_from_logits, backend="fused")
_BASELINE = partial(rejection_sample_from_logits, backend="baseline")


def filters(name: str, batch_size: int, device: str, seed: int = 0) -> dict[str, Any]:
    """The filters of this name; "per request" are tensors, in columns of one table."""
    if name != "per request":
        return _FILTERS[name]
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(batch_size, 4, generator=generator)
    table[:, 0] = (2 * table[:, 0]).where(table[:, 0] > 0.2, torch.tensor(0.0))
    table[:, 2] = table[:, 2].sqrt()
    table[::3, 2], table[1::3, 3] = 1, 0  # off
    table = table.to(device)
    top_k = (table[:, 1] * 90).int() * (table[:, 1] > 0.3)
    return {
        "temperature": table[:, 0],
        "top_k": top_k,
        "top_p": table[:, 2],
        "min_p": table[:, 3] ** 4,
    }


def make_call(
    shape: tuple[int, int, int],
    name: str = "none",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cuda",
    seed: int = 0,
) -> Call:
    """A call with logits like a language model's, and the filters of this name."""
    draft_tokens, draft, target = make_batch(*shape, dtype=dtype, device=device, seed=seed)
    request = torch.arange(shape[0], device=device)
    seeds, positions = request * 7919 + seed, request * 5 + seed
    chosen = filters(name, shape[0], device, seed)
    return Call(draft_tokens, draft.log_(), target.log_(), seeds, positions, chosen)


def differences(call: Call) -> list[str]:
    """What disagrees with ``vectorized`` on this call; and whether it has no valid request."""
    expected = call.run(_VECTORIZED)
    wrong = grid.nothing_valid(expected[1])
    if not _equal(call.run(_FUSED), expected):
        wrong.append("fused")
    for index in torch.randperm(call.shape[0])[: grid.BASELINE_REQUESTS].split(1):
        index = index.to(call.draft_tokens.device)
        alone, wanted = call.rows(index), [result[index] for result in expected]
        if not _equal(alone.run(_BASELINE), wanted):
            wrong.append("baseline")
        elsewhere = alone.map(lambda tensor: tensor.cpu())
        if not _equal(elsewhere.run(_FUSED), [result.cpu() for result in wanted]):
            wrong.append("fused on the CPU")
    few = call.rows(torch.arange(min(4, call.shape[0]), device=call.draft_tokens.device))
    chosen: Any = call.filters or {}
    chosen_few: Any = few.filters or {}
    if not _same(*(probabilities(few.target_rows, backend=b, **chosen_few) for b in _BACKENDS)):
        wrong.append("probabilities")
    if call.draft_rows is None or call.shape[1] == 0:
        return sorted(set(wrong))
    laws = []
    for k in range(call.shape[1]):
        row = call.draft_rows[:, k]
        options = {"seed": call.seed, "position": call.position, "return_laws": True, **chosen}
        drawn = [sample_from_logits(row, backend=backend, **options) for backend in _BACKENDS]
        if not all(map(_same, *drawn)):
            wrong.append("sample_from_logits")
        laws.append(drawn[1][1])
    for name in _BACKENDS:
        with_laws = partial(
            rejection_sample_from_logits, backend=name, draft_laws=torch.stack(laws, 1)
        )
        if not _equal(call.run(with_laws), expected):
            wrong.append(f"{name} with laws")
    return sorted(set(wrong))


_BACKENDS = ("vectorized", "fused")


def _equal(one: Any, other: Any) -> bool:
    return all(map(torch.equal, one, other))


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal, where a NaN equals another."""
    nan = one.isnan()
    return torch.equal(nan, other.isnan()) and torch.equal(one[~nan], other[~nan])


def check_cases(device: str, max_bytes: int, seconds: float) -> dict[str, Any]:
    """Run the grid, largest cases last; stop after ``seconds``."""

    def check(case: dict[str, Any], seed: int) -> list[str]:
        shape = case["batch_size"], case["spec_len"], case["vocab_size"]
        dtype = getattr(torch, case["dtype"])
        return differences(make_call(shape, case["filters"], dtype=dtype, device=device, seed=seed))

    return grid.run_cases(grid.cases(AXES, max_bytes), check, seconds)


def check_kinds_of_input(
    device: str,
    batch_size: int = 48,
    names: tuple[str, ...] = KINDS_FILTERS,
    *,
    all_sizes: bool = True,
) -> dict[str, list[str]]:
    """Ragged and certain drafts, masks, ties, strides, bad rows and parameters, mixed dtypes.

    Each dtype with each vocabulary size, or with one of its own.
    """
    found = {}
    for i, (dtype, other) in enumerate(zip(DTYPES, DTYPES[1:] + DTYPES[:1], strict=True)):
        for vocab_size in KINDS_VOCAB_SIZES if all_sizes else KINDS_VOCAB_SIZES[i : i + 1]:
            for name in names:
                shape = batch_size, 5, vocab_size
                call = make_call(shape, name, dtype=dtype, device=device, seed=i)
                title = f"{name}, {str(dtype).removeprefix('torch.')} V={vocab_size}"
                for kind, changed in _kinds(call, other).items():
                    found[f"{kind}, {title}"] = differences(changed)
    return found


def _kinds(call: Call, other: torch.dtype) -> dict[str, Call]:
    replace = dataclasses.replace
    batch_size, spec_len, vocab_size = call.shape
    draft, target = call.draft_rows, call.target_rows
    assert draft is not None
    request = torch.arange(batch_size, device=target.device)
    ragged = call.draft_tokens.clone()
    ragged[request, request % spec_len] = -1
    masked = target.clone()
    masked[..., ::3] = -math.inf
    masked[1::7, 2] = -math.inf  # nothing is left
    broken = target.clone()
    broken[::3, 1, vocab_size - 1] = math.nan
    broken[1::3, 2, 0] = math.inf
    wide = torch.nn.functional.pad(target, (0, 8), value=math.nan)
    found = {
        "plain": call,
        "ragged": replace(call, draft_tokens=ragged.int()),
        "certain": replace(call, draft_rows=None),
        "masked": replace(call, target_rows=masked),
        "broken": replace(call, target_rows=broken),
        "tied": replace(call, draft_rows=draft.round(), target_rows=target.round()),
        "flat": replace(call, draft_rows=draft * 0, target_rows=target * 0),
        "huge": replace(call, draft_rows=draft * 1000, target_rows=target * 1000),
        "padded": replace(call, target_rows=wide[..., :vocab_size]),
        "no draft": replace(
            call, draft_tokens=ragged[:, :0], draft_rows=draft[:, :0], target_rows=target[:, :1]
        ),
    }
    for shift in (1, 8):
        moved = torch.nn.functional.pad(target, (shift, 8 - shift), value=math.nan)
        found[f"moved by {shift}"] = replace(
            call, target_rows=moved[..., shift : vocab_size + shift]
        )
    for more in (-8, 0, 8):
        rows = torch.nn.functional.pad(draft, (0, more), value=-9.0).to(other).contiguous()
        tokens = call.draft_tokens.clone()
        tokens[::5, 1] = vocab_size + max(more, 0) - 1  # the last one that there is
        tokens[1::5, 1] += 1  # perhaps none
        name = f"{more:+} columns of {str(other).removeprefix('torch.')}"
        found[name] = replace(call, draft_tokens=tokens, draft_rows=rows)
    for name, values in (
        ("temperature", (math.nan, -1.0, 2.0**-21)),
        ("top_p", (math.nan, 1.5, 0.0)),
        ("min_p", (math.nan, -0.5, 1.0)),
        ("top_k", (-1, 1, 2**31 - 1)),
    ):
        each = torch.full((batch_size,), FILTERS[name], device=target.device)
        each[: len(values)] = torch.tensor(values, device=target.device)[:batch_size]
        found[f"{name} at its limits"] = replace(call, filters={**(call.filters or {}), name: each})
    return found


def check_streams_and_graphs() -> dict[str, list[str]]:
    """No call may disturb another: streams at once, graphs replayed, inputs overwritten."""
    found: dict[str, list[str]] = {"streams": [], "graph": [], "chain": []}
    for name in KINDS_FILTERS:
        calls = [make_call((32, 4, 32000), name, seed=i) for i in range(4)]
        expected = [call.run(_VECTORIZED) for call in calls]
        streams = [torch.cuda.Stream() for _ in calls]
        torch.cuda.synchronize()
        for _ in range(20):
            results = []
            for call, stream in zip(calls, streams, strict=True):
                with torch.cuda.stream(stream):
                    results.append(call.run(_FUSED))
            torch.cuda.synchronize()
            if not all(map(_equal, results, expected)):
                found["streams"].append(name)
                break
        inputs = calls[0].map(torch.clone)
        for backend, sampler in (("fused", _FUSED), ("vectorized", _VECTORIZED)):
            inputs.run(sampler)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = inputs.run(sampler)
            for i, call in enumerate(calls):
                _overwrite(inputs, call)
                graph.replay()
                torch.cuda.synchronize()
                if not _equal(result, expected[i]):
                    found["graph"].append(f"{backend}, {name}, batch {i}")
        # Each call reads what the kernel just before it wrote, which the next one overwrites.
        results = []
        for call in calls * 20:
            _overwrite(inputs, call)
            results.append(inputs.run(_FUSED))
        torch.cuda.synchronize()
        if not all(map(_equal, results, expected * 20)):
            found["chain"].append(name)
    return found


def _overwrite(inputs: Call, call: Call) -> None:
    for name, tensor in inputs.tensors().items():
        tensor.copy_(call.tensors()[name])


def check_compiled(device: str) -> dict[str, list[str]]:
    """Whether torch.compile returns the same bits."""
    found = []
    for name in ("all", "per request"):
        call = make_call((6, 3, 1000), name, device=device)
        for backend in _BACKENDS:
            torch._dynamo.reset()
            sampler = partial(rejection_sample_from_logits, backend=backend)
            compiled = torch.compile(sampler, fullgraph=True)
            if not _equal(call.run(compiled), call.run(sampler)):
                found.append(f"{backend}, {name}")
    return {"torch.compile": found}


def check_operators(device: str) -> dict[str, list[str]]:
    """Whether the operators are what torch.compile takes them for."""
    found = []
    for name in ("all", "per request"):
        call = make_call((6, 3, 1000), name, device=device)
        given: dict[str, Any] = {**FILTERS, **(call.filters or {})}
        chosen = [part for value in given.values() for part in tensor_and_int(value)]
        words = *chosen, *tensor_and_int(call.seed), *tensor_and_int(call.position)
        rows = call.draft_rows, None, call.target_rows
        for operator, arguments in (
            (torch.ops.rsk.probabilities, (call.target_rows, *chosen)),
            (torch.ops.rsk.sample_from_logits, (call.target_rows[:, 0], *words)),
            (torch.ops.rsk.rejection_sample_from_logits, (call.draft_tokens, *rows, *words)),
        ):
            try:
                torch.library.opcheck(operator.default, arguments)
            except Exception as error:
                found.append(f"{operator}, {name}: {error}")
    return {"opcheck": found}


def run(seconds: float = grid.SECONDS, gib: float = GIB) -> dict[str, Any]:
    """All of it: the kinds of input, what goes on at once, and the grid of shapes.

    Args:
        seconds: for the grid of shapes.
        gib: memory of the largest case.
    """
    return {
        "inputs": check_kinds_of_input("cuda"),
        "concurrency": check_streams_and_graphs()
        | check_operators("cuda")
        | check_compiled("cuda"),
        "grid": check_cases("cuda", int(gib * 2**30), seconds),
    }


def main() -> int:
    """Run everything and print a summary."""
    options = grid.parser()
    options.set_defaults(gib=GIB)
    names = "temperature", "per request"
    few = partial(check_kinds_of_input, "cuda", 4, names, all_sizes=False)
    return grid.command("from logits, ", options, run, few)


if __name__ == "__main__":
    sys.exit(main())
