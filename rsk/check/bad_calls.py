"""Bad calls: each must end in an exception that says so, however the extension was compiled.

python -m rsk.check.bad_calls             in another process, so that a crash has a name; on the CPU
python -m rsk.check.bad_calls --emulator  with the CUDA kernels' operators in the emulator, too
python -m rsk.check.bad_calls --together  in this process: quicker, but a crash has no name
python -m rsk.check.bad_calls cuda        on the GPU

A public function raises ``ValueError`` or ``TypeError``, an operator under it whatever PyTorch
makes of a refusal, and a good call afterwards still works.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rsk
from rsk.base import terminal
from rsk.sampler import build
from rsk.sampler.channel import channel_of
from rsk.sampler.headers import HEADER
from rsk.sampler.random_words import SAMPLE
from rsk.sampler.row_law import Filters
from rsk.sampler.sharded_call import ShardedCall, run
from rsk.sampler.sharded_kernels import Kernels

Arguments = dict[str, Any]  # wrong ones, so of any type
Attempt = Callable[[], object]
Operators = dict[str, tuple[Any, list[Any]]]
"""By name: the operator, and arguments for it."""

OPERATOR = "torch.ops.rsk."
RIGHT = {("sharded_result", 2, "of a batch more")}
"""Operator, argument and fault that are none: a message may be longer than the batch."""
SECONDS = 120
"""For one call, and for the start of its process."""


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


@functools.cache
def bad_calls(device: str) -> dict[str, Attempt]:
    """The faults in every function that takes them, by function and fault.

    The kernels are among them if they are loaded, and those of the sharded sampler: for CPU
    tensors, the emulator's.
    """
    calls: dict[str, Attempt] = {}
    decide: list[Callable[..., object]] = [rsk.rejection_sample, rsk.rejection_sample_from_logits]
    draw: list[Callable[..., object]] = [rsk.sample, rsk.sample_from_logits]
    if _has_kernels(device):
        decide.append(list(rsk.KERNELS.values())[-1])
    for fault, changed in bad_arguments(device):
        arguments = good_arguments(device) | changed
        numbers = {name: arguments[name] for name in ("seed", "position")}
        tensors = [arguments[name] for name in ("draft_tokens", "draft_probs", "target_probs")]
        for function in decide:
            calls[f"{function.__name__}, {fault}"] = partial(function, *tensors, **numbers)
        if changed.keys() <= {"target_probs", "seed", "position"}:
            rows = _rows(arguments["target_probs"])
            for function in draw:
                calls[f"{function.__name__}, {fault}"] = partial(function, rows, **numbers)
    for name, (operator, given) in good_operator_calls(device).items():
        is_alone = sum(isinstance(value, Tensor) for value in given) == 1
        for place, value in enumerate(given):
            for fault, wrong in _bad_tensors(value, device, is_alone).items():
                if (name, place, fault) not in RIGHT:
                    changed_call = partial(operator, *given[:place], wrong, *given[place + 1 :])
                    calls[f"{OPERATOR}{name}, argument {place} {fault}"] = changed_call
        if name == "launch":
            for index in (-2, len(rsk.KERNELS), 1 << 40):
                calls[f"{OPERATOR}launch, kernel {index}"] = partial(operator, index, *given[1:])
        elif name in ("sharded_opening", "sharded_totals"):
            for place in (*range(10), 13):  # of sizes and indices among the numbers of the call
                for number in (-2, 1 << 40):
                    numbers_of_call = given[0].clone()
                    numbers_of_call[place] = number
                    attempt = partial(operator, numbers_of_call, *given[1:])
                    calls[f"{OPERATOR}{name}, number {place} is {number}"] = attempt
    return calls


def _has_kernels(device: str, of: str = "") -> bool:
    return build.is_loaded(of + ("cuda" if device == "cuda" else "emulator"))


ROOF = {"read_in_pieces": (1, 1, 0), "read_in_blocks": (1, 32, 1)}
"""The operators of the memory roof, each with a launch shape."""


@functools.cache
def good_operator_calls(device: str) -> Operators:
    """Every operator that is loaded, by name, with arguments as the public functions give it."""
    found: Operators = {}

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            key = "CUDA" if device == "cuda" else "CPU"
            if func.namespace == "rsk" and _is_implemented(func.name(), key):
                found[func.name().removeprefix("rsk::")] = func, list(args)
            return func(*args, **(kwargs or {}))

    good = good_arguments(device)
    tokens, draft, target = (good[name] for name in list(good)[:3])
    filters: Arguments = {
        "temperature": torch.ones(2, device=device),
        "top_p": torch.ones(2, device=device),
    }
    filters["top_k"] = torch.zeros(2, dtype=torch.int64, device=device)
    filters["min_p"] = torch.zeros(2, device=device)
    numbers: Arguments = dict.fromkeys(("seed", "position"), good["seed"])
    with Recorder():
        rsk.sample(target[:, 0], **numbers, backend="fused")
        rsk.rejection_sample(tokens, draft, target, **numbers, backend="fused")
        rsk.probabilities(target, **filters, backend="fused")
        drawn = rsk.sample_from_logits(target[:, 0], **filters, **numbers, return_laws=True)
        laws = drawn[1][:, None].expand(-1, 3, -1)
        rsk.rejection_sample_from_logits(
            tokens, draft, target, **filters, **numbers, draft_laws=laws, backend="fused"
        )
        if _has_kernels(device):
            next(iter(rsk.KERNELS.values()))(tokens, draft, target, **numbers)
        if _has_kernels(device, "sharded "):
            _call_sharded(tokens, draft, target, Filters(**filters), good["seed"])
        for name, launch_shape in ROOF.items():
            if _is_implemented(f"rsk::{name}", "CUDA" if device == "cuda" else "CPU"):
                memory = torch.zeros(64, dtype=torch.int32, device=device)
                getattr(torch.ops.rsk, name).default(memory, *launch_shape)
    for name, (_, given) in list(found.items()):
        if _is_implemented(f"rsk::emulated_{name}", "CPU") and device == "cpu":
            emulated = f"emulated_{name}"
            found[emulated] = getattr(torch.ops.rsk, emulated).default, given
    return found


def _call_sharded(
    tokens: Tensor, draft: Tensor, target: Tensor, filters: Filters, seed: Tensor
) -> None:
    """Call every kernel of the sharded sampler, as a group of one rank does."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        channel = channel_of(None)
        if not tokens.is_cuda:  # there all ranks look at the headers, and need not keep them
            channel.differing = torch.zeros((1, HEADER), dtype=torch.int64)
        # The kernels find laws without a threshold, or one of a list; with others, not all of them.
        for chosen in (filters._replace(top_k=0, top_p=1.0), filters):
            arguments = tokens, draft, target, seed, seed, SAMPLE, chosen
            call = ShardedCall("rejection_sample_from_logits", *arguments)
            run(call, Kernels(call, channel), channel, look=False)
    finally:
        dist.destroy_process_group()


def _is_implemented(name: str, key: str) -> bool:
    names = torch._C._dispatch_get_all_op_names()
    return name in names and torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def _bad_tensors(value: Any, device: str, is_alone: bool) -> Arguments:
    """What to put in place of a tensor; one alone may have any size and be anywhere."""
    if not isinstance(value, Tensor):
        return {}
    other = "meta" if device == "cpu" else "cpu" if value.is_cuda else "cuda"
    wrong: Arguments = {
        "of int16": value.to(torch.int16),
        "of complex64": value.to(torch.complex64),
        "without dimensions": value.new_zeros(()),
        "sparse": value.to_sparse(),
        "a list": value.tolist(),
        "a str": "3",
    }
    if not is_alone:
        wrong["on meta"] = value.to("meta")
        wrong["on another device"] = value.to(other)
        wrong["of a dimension more"] = value[None]
        wrong["of a batch more"] = torch.cat([value, value])
        wrong["of no batch"] = value[:0]
    return wrong


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
        if not name.startswith(OPERATOR):
            return f"raised {type(error).__name__}: {error}"
    else:
        return f"was accepted and returned {result}"
    good = partial(rsk.rejection_sample, **good_arguments(device))
    if not torch.equal(good(backend="fused").tokens, good(backend="baseline").tokens):
        return "was refused, but the good call after it went wrong"
    return ""


def _answer(names: list[str], device: str, emulator: bool, answers: Connection) -> None:
    _load(device, emulator)
    for name in names:
        answers.send(make(name, device))


def _load(device: str, emulator: bool) -> None:
    for library in ("emulator", "sharded emulator") if emulator else (device,):
        build.load(library)
    if device == "cuda":
        build.load("sharded cuda")


def make_apart(names: list[str], device: str, emulator: bool) -> dict[str, str]:
    """:func:`make` in another process, whose end is an answer too: what was wrong, by name.

    One process makes all calls, until one is wrong: the next has a process of its own again.
    """
    # A fork has all libraries already, but CUDA does not survive one; so for CUDA the forks are of
    # a server that has only imported them.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["rsk.check.bad_calls"])
    context = server if device == "cuda" else multiprocessing.get_context("fork")
    found: dict[str, str] = {}
    while left := [name for name in names if name not in found]:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(left, device, emulator, sender))
        process.start()
        sender.close()
        for name in left:
            found[name] = _fault(process, receiver)
            if found[name]:
                process.kill()
                break
        process.join()
    return found


def _fault(process: BaseProcess, receiver: Connection) -> str:
    """What was wrong with the call that a process makes now."""
    if not receiver.poll(SECONDS):
        return f"did not end in {SECONDS} s"
    try:
        return str(receiver.recv())
    except EOFError:
        process.join()
        status = process.exitcode or 0
    if status < 0:
        return f"killed the process: {signal.Signals(-status).name}"
    return f"left with status {status}"


def main(arguments: list[str] | None = None) -> int:
    """Make every bad call; the exit status is 1 if one was not refused."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(
        prog="python -m rsk.check.bad_calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("device", nargs="?", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--emulator", action="store_true", help="load the emulator, too")
    parser.add_argument("--together", action="store_true", help="in this process")
    options = parser.parse_args(arguments)
    _load(options.device, options.emulator)
    names = list(bad_calls(options.device))
    if options.together:
        found = {name: make(name, options.device) for name in names}
    else:
        found = make_apart(names, options.device, options.emulator)
    wrong = {name: fault for name, fault in found.items() if fault}
    for name, fault in wrong.items():
        print(f"{name}: {fault}")
    print(f"{len(names)} bad calls, {len(wrong)} not refused")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
