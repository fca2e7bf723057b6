"""The one measuring function: the demo, the notebooks and the command line all time with it.

How a time is made:

- The inputs come from a pool of synthetic batches, drafts drawn from q
  (:mod:`rsk.measure.workload`). With a warm cache the few input sets that are timed fit in the
  last-level cache together; with a cold one they rotate, and what they touch adds up to at least
  twice the cache.
- On a CPU the clock is the wall clock, with a pinned number of threads. On a GPU the device's
  time is one call's share of a captured graph of at least 20, between CUDA events. The time of
  the Python call and the time to its result are taken separately, by the wall clock; a call that
  waits for the device cannot be captured, and the time to its result is its only one. Where it is
  asked for, one launch on an idle device is timed too (:mod:`rsk.measure.clocks`).
- Before and after, fresh inputs are run with every new tensor poisoned, and the outputs of the
  timed calls themselves are compared with the expected tokens.
- The memory roof is a kernel that only reads as many bytes, in the same cache state and on the same
  clock. A result more than 2 % below it is refused (:mod:`rsk.measure.roof`).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.functional import pad

from rsk.measure.clocks import Thunk, time_eager, time_graph, time_isolated, time_wall
from rsk.measure.implementations import Implementation
from rsk.measure.records import Operations, Record, Spread
from rsk.measure.roof import check_above
from rsk.measure.workload import Inputs, Pool, Workload
from rsk.sampler.api import RejectionSamples


class MeasurementError(RuntimeError):
    """What was timed did not do its work; the message says what came instead."""


def measure(
    implementation: Implementation,
    workload: Workload,
    *,
    budget_s: float = 0.5,
    run: int = 0,
    isolated: bool = False,
) -> Record:
    """Time one implementation on one workload, and check that it did the work.

    Args:
        implementation: from :mod:`rsk.measure.implementations` or :mod:`rsk.measure.peers`.
        workload: from :meth:`rsk.measure.workload.Pool.workload`.
        budget_s: seconds to spend; more if the fewest samples take longer.
        run: index of the whole run that this belongs to.
        isolated: on a GPU, time isolated launches too, if the calls can be captured.

    Raises:
        MeasurementError: a result is not the expected one, before, during or after timing.
        RecordError: the time is impossible, see :class:`rsk.measure.records.Record` and
            :func:`rsk.measure.roof.check_above`.
    """
    calls = [implementation.bind(inputs) for inputs in workload.inputs]
    fresh = [
        (implementation.bind(workload.probe), workload.probe, workload.probe_expected),
        (calls[0], workload.inputs[0], workload.expected[0]),
    ]

    def check_fresh(when: str) -> None:
        for call, inputs, expected in fresh:
            with poisoned_memory():
                output = call()
            _check(implementation, output, inputs, expected, when)

    def check_timed(outputs: list[Any]) -> None:
        for output, inputs, expected in zip(
            outputs, workload.inputs, workload.expected, strict=False
        ):
            _check(implementation, output, inputs, expected, "in the timed calls")

    check_fresh("before timing")
    alone: Spread | None = None
    if workload.device.type == "cuda":
        host, call, outputs = time_eager(calls, budget_s=budget_s / 2)
        device = call  # it waits for the device itself
        if implementation.capturable:
            check_timed(outputs)
            if isolated:
                alone, outputs = time_isolated(calls, budget_s=budget_s / 2)
                check_timed(outputs)
            device, outputs = time_graph(calls, budget_s=budget_s / 2)
    else:
        device, outputs = time_wall(calls, budget_s=budget_s)
        host = call = device
    check_timed(outputs)
    check_fresh("after timing")
    check_above(implementation.name, device, workload.roof)
    times = {"device": device, "host": host, "call": call, "isolated": alone}
    return _record(implementation.name, workload, run, times)


def roof_record(name: str, pool: Pool, batch_size: int, spec_len: int) -> Record:
    """The memory roof as a record: its time is that of reading what has to be read, and no more.

    Args:
        name: what to call it.
        pool: of the inputs.
        batch_size: B, one of those that the pool was made for.
        spec_len: K, at most the pool's.
    """
    workload = pool.quiet_workload(batch_size, spec_len)
    return _record(name, workload, 0, dict.fromkeys(("device", "host", "call"), workload.roof))


def _record(name: str, workload: Workload, run: int, times: Mapping[str, Any]) -> Record:
    return Record(
        implementation=name,
        run=run,
        batch_size=workload.batch_size,
        spec_len=workload.spec_len,
        vocab_size=workload.vocab_size,
        dtype=workload.dtype,
        acceptance=workload.acceptance,
        accepted=float(torch.cat([s.num_accepted for s in workload.expected]).double().mean()),
        cache=workload.cache,
        **times,
        bytes_moved=workload.bytes_moved,
        roof=workload.roof,
        floor_us=workload.floor_us,
    )


def _check(
    implementation: Implementation,
    output: Any,
    inputs: Inputs,
    expected: RejectionSamples,
    when: str,
) -> None:
    try:
        result = implementation.result(output)
        fault = difference(result, expected) if implementation.exact else malformed(result, inputs)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise MeasurementError(
            f"{implementation.name}: its result {when} cannot be read: {error}"
        ) from error
    if fault:
        raise MeasurementError(f"{implementation.name}: wrong result {when}: {fault}")


def difference(result: RejectionSamples, expected: RejectionSamples) -> str:
    """Where a result first differs from the expected one, in words; empty if nowhere."""
    for name, got, want in zip(expected._fields, result, expected, strict=True):
        if got.shape != want.shape or got.dtype != want.dtype:
            return (
                f"{name}: expected {want.dtype} {list(want.shape)}, "
                f"got {got.dtype} {list(got.shape)}"
            )
        if not torch.equal(got, want):
            b = int((got != want).reshape(len(got), -1).any(1).nonzero()[0])
            return f"{name}[{b}]: expected {want[b].tolist()}, got {got[b].tolist()}"
    return ""


def malformed(result: RejectionSamples, inputs: Inputs) -> str:
    """What is wrong with the form of a result whose random numbers are its own."""
    tokens, num_accepted = result
    batch_size, spec_len = inputs.draft_tokens.shape
    if tokens.shape != (batch_size, spec_len + 1) or num_accepted.shape != (batch_size,):
        return f"shapes {list(tokens.shape)} and {list(num_accepted.shape)}"
    column = torch.arange(spec_len + 1, device=tokens.device)
    n = num_accepted[:, None]
    in_vocab = (tokens >= 0) & (tokens < inputs.target_probs.shape[2])
    accepted = tokens == pad(inputs.draft_tokens, (0, 1), value=-1)
    right = torch.where(column < n, accepted, torch.where(column == n, in_vocab, tokens == -1))
    right &= (n >= 0) & (n <= spec_len)
    if bool(right.all()):
        return ""
    b = int((~right).any(1).nonzero()[0])
    return f"request {b}: tokens {tokens[b].tolist()} with {int(num_accepted[b])} accepted"


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """New tensors start as NaN or the largest integer, so that what is never written shows."""
    mode = torch.get_deterministic_debug_mode()
    fill = _deterministic.fill_uninitialized_memory
    # The fill comes with a mode that also warns of operators whose order of summing may vary.
    torch.set_deterministic_debug_mode("warn")
    _deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        _deterministic.fill_uninitialized_memory = fill
        torch.set_deterministic_debug_mode(mode)


_deterministic: Any = torch.utils.deterministic
_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def count_operations(call: Thunk, device: torch.device | str) -> dict[str, Any]:
    """Count what one call asks of PyTorch and of the device, with PyTorch's profiler.

    Returns:
        The counts of :class:`rsk.measure.records.Operations`: ``operators``, ``launches``,
        ``synchronizations`` and ``allocated_bytes``.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it reports its start and stop
    # torch.profiler wraps this one; it would import the compiler, in 4 s, to ask it something, and
    # in PyTorch 2.11 warn of a loss of events in a second cycle that there is not.
    from torch.autograd.profiler import profile, record_function

    on_gpu = torch.device(device).type == "cuda"
    call()  # the first call may build, load and allocate
    if on_gpu:
        torch.cuda.synchronize()
    marker = "rsk.counted"
    where = "cuda" if on_gpu else None
    with (
        profile(use_device=where, profile_memory=True, use_kineto=True) as profiler,
        record_function(marker),
    ):
        call()
    on_host = [e for e in profiler.function_events if e.device_type.name == "CPU"]
    (counted,) = (e for e in on_host if e.name == marker)
    # The profiler itself waits for the device when it stops: only what lies within the call counts.
    inside = [
        e
        for e in on_host
        if e is not counted
        and counted.time_range.start <= e.time_range.start
        and e.time_range.end <= counted.time_range.end
    ]
    operators = [e for e in inside if "::" in e.name]
    if on_gpu:
        launches = sum(e.name.startswith(_LAUNCHES) for e in inside)
        waits = sum(e.name.startswith(_WAITS) for e in inside)
        allocated = [e.self_device_memory_usage for e in operators]
    else:
        launches = None
        waits = sum(e.name == "aten::_local_scalar_dense" for e in inside)
        allocated = [e.self_cpu_memory_usage for e in operators]
    return {
        "operators": sum(e.cpu_parent in (None, counted) for e in operators),
        "launches": launches,
        "synchronizations": waits,
        "allocated_bytes": sum(max(size, 0) for size in allocated),
    }


def operations(implementation: Implementation, workload: Workload) -> Operations:
    """Count the operations of one implementation on the first inputs of a workload."""
    return Operations(
        implementation=implementation.name,
        batch_size=workload.batch_size,
        spec_len=workload.spec_len,
        vocab_size=workload.vocab_size,
        **count_operations(implementation.bind(workload.inputs[0]), workload.device),
    )
