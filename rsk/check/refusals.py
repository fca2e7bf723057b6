"""Bad calls: each must end in an exception that says so, however the extension was compiled.

python -m rsk.check.refusals             every bad call in a process of its own, on the CPU
python -m rsk.check.refusals --emulator  with the CUDA kernels' operator in the emulator, too
python -m rsk.check.refusals --together  all in one process: quicker, but a crash has no name
python -m rsk.check.refusals cuda        on the GPU

A public function raises ``ValueError`` or ``TypeError``, an operator under it whatever PyTorch
makes of a refusal, and a good call afterwards still works.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

import rsk
from rsk.base import terminal
from rsk.sampler import build
from rsk.sampler.fused import tensor_and_int

Arguments = dict[str, Any]  # wrong ones, so of any type
Call = Callable[[], object]

SECONDS = 120
"""For one call and the start of its process."""


def good_arguments(device: str) -> Arguments:
    """Arguments of :func:`rsk.rejection_sample` with which nothing is wrong."""
    return {
        "draft_tokens": torch.zeros(2, 3, dtype=torch.int64, device=device),
        "draft_probs": torch.full((2, 3, 5), 0.2, device=device),
        "target_probs": torch.full((2, 4, 5), 0.2, device=device),
        "seed": torch.arange(2, device=device),
        "position": 0,
    }


def bad_arguments(device: str) -> Iterator[tuple[str, Arguments]]:
    """Each fault: its name, and the arguments that it puts in place of the good ones."""
    good = good_arguments(device)
    tensors = {name: value for name, value in good.items() if isinstance(value, Tensor)}
    probs = {name: value for name, value in tensors.items() if name.endswith("probs")}
    for name, tensor in tensors.items():
        yield f"{name} of int16", {name: tensor.to(torch.int16)}
        yield f"{name} of complex64", {name: tensor.to(torch.complex64)}
        yield f"{name} without dimensions", {name: tensor.new_zeros(())}
        yield f"{name} of a dimension more", {name: tensor[None]}
        yield f"{name} of a batch more", {name: torch.cat([tensor, tensor])}
        yield f"{name} of no batch", {name: tensor[:0]}
        yield f"{name} on meta", {name: tensor.to("meta")}
        yield f"{name} on another device", {name: tensor.to("meta" if device == "cpu" else "cpu")}
        yield f"{name} with gaps", {name: torch.stack([tensor, tensor], -1)[..., 0]}
        yield f"{name} sparse", {name: tensor.to_sparse()}
        yield f"{name} a list", {name: tensor.tolist()}
        yield f"{name} a str", {name: "3"}
        yield f"{name} a float", {name: 1.5}
    for name, tensor in probs.items():
        yield f"{name} of float64", {name: tensor.double()}
        yield f"{name} of no vocabulary", {name: tensor[..., :0]}
        yield f"{name} of too large a vocabulary", {name: tensor[..., :1].expand(2, -1, 1 << 21)}
        yield f"{name} of a position less", good | {name: tensor[:, :-1]}
    yield "all of float64", {name: tensor.double() for name, tensor in probs.items()}
    yield "target_probs missing", {"target_probs": None}
    yield "draft_tokens missing", {"draft_tokens": None}
    yield (
        "too long a draft",
        {
            "draft_tokens": torch.zeros(2, 129, dtype=torch.int64, device=device),
            "draft_probs": None,
            "target_probs": torch.ones(2, 130, 5, device=device),
        },
    )
    for name in ("seed", "position"):
        yield f"{name} of int32", {name: torch.zeros(2, dtype=torch.int32, device=device)}
        yield f"{name} beyond int64", {name: 1 << 63}
        yield f"{name} far below int64", {name: -(1 << 70)}
        yield f"{name} a list of floats", {name: [1.5]}


def bad_calls(device: str) -> dict[str, Call]:
    """The faults in the functions that take them, by function and fault.

    The kernels are among them if they are loaded: for CPU tensors, the emulator's.
    """
    calls: dict[str, Call] = {}
    operators = torch.ops.rsk
    kernel = list(rsk.KERNELS.values())[-1]
    has_kernels = build.is_loaded("cuda" if device == "cuda" else "emulator")
    for fault, changed in bad_arguments(device):
        arguments = good_arguments(device) | changed
        numbers = {name: arguments[name] for name in ("seed", "position")}
        operands = [part for value in numbers.values() for part in _operands(value)]
        tensors = [arguments[name] for name in ("draft_tokens", "draft_probs", "target_probs")]
        functions: dict[str, Call] = {
            "rsk.rejection_sample": partial(rsk.rejection_sample, *tensors, **numbers),
            "rsk.rejection_sample_from_logits": partial(
                rsk.rejection_sample_from_logits, *tensors, **numbers
            ),
            "torch.ops.rsk.rejection_sample": partial(
                operators.rejection_sample, *tensors, *operands
            ),
        }
        if has_kernels:
            functions["rsk.KERNELS"] = partial(kernel, *tensors, **numbers)
            functions["torch.ops.rsk.launch"] = partial(operators.launch, 0, *tensors, *operands)
        if changed.keys() <= {"target_probs", "seed", "position"}:
            rows = _rows(arguments["target_probs"])
            functions["rsk.sample"] = partial(rsk.sample, rows, **numbers)
            functions["rsk.sample_from_logits"] = partial(rsk.sample_from_logits, rows, **numbers)
            functions["torch.ops.rsk.sample"] = partial(operators.sample, rows, *operands)
        calls |= {f"{name}, {fault}": function for name, function in functions.items()}
    if has_kernels:
        tensors = list(good_arguments(device).values())[:3]
        for index in (-2, len(rsk.KERNELS), 1 << 40):
            calls[f"torch.ops.rsk.launch, kernel {index}"] = partial(
                operators.launch, index, *tensors, None, 0, None, 0
            )
    return calls


def _operands(value: Any) -> tuple[Any, Any]:
    return tensor_and_int(value) if isinstance(value, (Tensor, int)) else (value, 0)


def _rows(target_probs: Any) -> Any:
    """The same fault for a function that takes one row a request, where it is one there."""
    if not isinstance(target_probs, Tensor) or target_probs.dim() != 3:
        return target_probs
    return target_probs[:, 0] if target_probs.layout == torch.strided else target_probs


def make(name: str, device: str) -> str:
    """Make one bad call, then a good one; return what is wrong with that, or nothing."""
    try:
        result = bad_calls(device)[name]()
    except (ValueError, TypeError):
        pass
    except Exception as error:
        if not name.startswith("torch.ops"):
            return f"raised {type(error).__name__}: {error}"
    else:
        return f"was accepted and returned {result}"
    good = partial(rsk.rejection_sample, **good_arguments(device))
    if not torch.equal(good(backend="fused").tokens, good(backend="baseline").tokens):
        return "was refused, but the good call after it went wrong"
    return ""


def _answer(name: str, device: str, emulator: bool, answer: Connection) -> None:
    _load(device, emulator)
    answer.send(make(name, device))


def _load(device: str, emulator: bool) -> None:
    build.load(device)
    if emulator:
        build.load("emulator")


def make_apart(name: str, device: str, emulator: bool) -> str:
    """:func:`make` in a process of its own, whose end is an answer too."""
    # A fork has all libraries already, but CUDA does not survive one; so for CUDA the forks are of
    # a server that has only imported them.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["rsk.check.refusals"])
    context = server if device == "cuda" else multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(name, device, emulator, sender))
    process.start()
    sender.close()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        return f"did not end in {SECONDS} s"
    if process.exitcode < 0:
        return f"killed the process: {signal.Signals(-process.exitcode).name}"
    try:
        return str(receiver.recv())
    except EOFError:
        return f"left with status {process.exitcode}"


def main(arguments: list[str] | None = None) -> int:
    """Make every bad call; the exit status is 1 if one was not refused."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(
        prog="python -m rsk.check.refusals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("device", nargs="?", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--emulator", action="store_true", help="load the emulator, too")
    parser.add_argument("--together", action="store_true", help="in one process")
    options = parser.parse_args(arguments)
    _load(options.device, options.emulator)
    names = list(bad_calls(options.device))
    if options.together:
        found = [make(name, options.device) for name in names]
    elif options.device == "cpu":
        found = [make_apart(name, "cpu", options.emulator) for name in names]
    else:  # each process starts CUDA anew
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
            found = list(pool.map(partial(make_apart, device="cuda", emulator=False), names))
    wrong = {name: fault for name, fault in zip(names, found, strict=True) if fault}
    for name, fault in wrong.items():
        print(f"{name}: {fault}")
    print(f"{len(names)} bad calls, {len(wrong)} not refused")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
