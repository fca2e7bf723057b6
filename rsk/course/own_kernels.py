"""A reader's own kernels: real CUDA with a part written or changed, tried in the emulator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from rsk.base import templates
from rsk.base.folders import cuda_dir
from rsk.check import assert_agrees
from rsk.check.synthetic import Batch, make_batch
from rsk.course import publish, python_kernels
from rsk.measure.timing import difference
from rsk.sampler import build, emulator
from rsk.sampler.api import RejectionSamples, rejection_sample
from rsk.sampler.build import BuildError
from rsk.sampler.kernels import KERNELS, runs_on

if TYPE_CHECKING:
    from pandas import DataFrame

Kernel = Callable[..., RejectionSamples]

WARP_PER_SEQUENCE = """
#include "launch.h"
#include "warp.h"

namespace rsk::warp_per_sequence {

template <class Probability>
__global__ void kernel(Batch batch) {
  const int32_t b = (int32_t)blockIdx.x, lane = (int32_t)threadIdx.x;
  const Walk walk = walk_drafts<Probability>(batch, b, lane);
  const Row<Probability> row = row_to_sample<Probability>(batch, b, walk);
  bool finite = true;  // not looked at here
  const auto weight = [&](int32_t v) { return row.weight(v, finite); };

  int64_t total = 0;
  // YOUR LINES

  int64_t rest = threshold(sample_word(batch, b, walk.n), total);
  int32_t token = -1;
  for (int32_t start = 0; start < row.size && token < 0; start += 32) {
    const int32_t v = start + lane;
    const int64_t running = running_sum(v < row.size ? weight(v) : 0, lane);
    const uint32_t beyond = __ballot_sync(ALL_LANES, running > rest);
    if (beyond) token = start + __ffs(beyond) - 1;
    rest -= __shfl_sync(ALL_LANES, running, 31);
  }
  write_result_with_warp(batch, b, walk.n, token, lane);
}

cudaError_t launch(const Batch& batch, void*, cudaStream_t stream) {
  const auto config = launch_config(batch.batch_size, 32, stream);
  return with_probability_type(batch, [&](auto probability) {
    return cudaLaunchKernelEx(&config, kernel<decltype(probability)>, batch);
  });
}

}  // namespace rsk::warp_per_sequence
"""
"""Between the second step of the ladder and the third: one warp a request."""

IS_LAST = "atomicAdd(&workspace.tickets[b], 1u) == (uint32_t)split - 1"
SEND = "if (warp == 0 && lane < cluster_size) send(mailbox, lane, part, warps.all);"


def source(name: str) -> str:
    """The text of ``cuda/<name>.cu``."""
    return (cuda_dir() / f"{name}.cu").read_text(encoding="utf-8")


def replaced(text: str, old: str, new: str) -> str:
    """The text with the first ``old`` replaced.

    Raises:
        ValueError: ``old`` is not in it.
    """
    if old not in text:
        raise ValueError(f"expected {old!r} in the kernel's text")
    return text.replace(old, new, 1)


def compiled(text: str) -> Kernel:
    """Compile a kernel's text for the emulator.

    Args:
        text: with one ``namespace rsk::NAME {`` that holds its ``launch``.

    Raises:
        ValueError: there is no such namespace.
        rsk.BuildError: it does not compile; the message is the compiler's.
    """
    _, found, rest = text.partition("namespace rsk::")
    if not found:
        raise ValueError("expected 'namespace rsk::NAME {' in the kernel's text")
    return emulator.compile_kernel(text, f"rsk::{rest.split()[0]}::launch")


def warp_per_sequence(lines: str) -> Kernel:
    """Compile :data:`WARP_PER_SEQUENCE` with the reader's lines in their place."""
    return compiled(replaced(WARP_PER_SEQUENCE, "// YOUR LINES", lines))


def check_sectors(count: Callable[[list[int]], int]) -> None:
    """Check a reader's function from the addresses of a load to the sectors that it moves.

    Args:
        count: given the addresses of the first of 4 bytes for each lane, returns the number of
            memory sectors of 32 bytes that hold any of these bytes.

    Raises:
        AssertionError: it counts wrong; says for which load.
    """
    row = 4 * 32000
    loads = {
        "32 lanes, each in a row of its own": ([lane * row for lane in range(32)], 32),
        "32 neighbours": ([4 * lane for lane in range(32)], 4),
        "32 neighbours, backwards": ([4 * lane for lane in reversed(range(32))], 4),
        "32 neighbours that begin 4 bytes after a sector does": (
            [row + 4 + 4 * lane for lane in range(32)],
            5,
        ),
        "all lanes at one place": ([row + 8] * 32, 1),
        "every eighth number": ([32 * lane for lane in range(32)], 32),
        "half a warp": ([4 * lane for lane in range(16)], 2),
    }
    for name, (addresses, expected) in loads.items():
        found = count(list(addresses))
        assert found == expected, f"{name}: expected {expected} sectors, got {found}"


def faults(kernel: Kernel, batch: Batch, *, seed: int = 0, orders: int = 8) -> list[str]:
    """Run a kernel in several orders of its threads, and compare with the baseline.

    Returns:
        For each order what is wrong, or an empty text.
    """
    expected = rejection_sample(*batch, seed=seed, backend="baseline")
    found = []
    for order in range(orders):
        with _thread_order(order):
            try:
                found.append(difference(kernel(*batch, seed=seed), expected))
            except RuntimeError as error:
                found.append(str(error))
    return found


def by_order(
    kernels: Mapping[str, Kernel], batch: Batch, *, seed: int = 0, orders: int = 4
) -> DataFrame:
    """What :func:`faults` finds, one row for each order and one column for each kernel."""
    import pandas as pd

    columns = {
        name: [fault or "right" for fault in faults(kernel, batch, seed=seed, orders=orders)]
        for name, kernel in kernels.items()
    }
    return pd.DataFrame({"order of threads": range(orders), **columns})


def show_missing_barrier(text: str, barrier: str, batch: Batch, *, seed: int = 0) -> None:
    """Publish what a kernel returns with and without its first barrier, in several orders.

    Raises:
        AssertionError: the whole kernel is wrong, or the missing barrier is not noticed.
        ValueError: there is no such barrier.
    """
    try:
        whole, broken = compiled(text), compiled(replaced(text, barrier, ""))
    except BuildError as error:
        publish.undone("a kernel without its barrier", error)
        return
    frame = by_order({"whole kernel": whole, "without the barrier": broken}, batch, seed=seed)
    publish.table(
        frame,
        label="tab-orders",
        values={"barrier": barrier, "orders": len(frame)},
    )
    assert (frame["whole kernel"] == "right").all(), "the whole kernel depends on the order"
    assert (frame["without the barrier"] != "right").any(), "the missing barrier is not noticed"


def check_kernel(name: str, batch: Batch, *, seed: int = 0, examples: int = 15) -> None:
    """Check that a kernel's Python and CUDA versions return the baseline's tokens, and say so.

    A GPU that cannot run the kernel leaves it to the emulator. Where neither can be compiled, it
    says why not.

    Args:
        name: of the kernel, one of :data:`rsk.KERNELS`.
        batch: on the device to check on.
        seed: of the random numbers and the random calls.
        examples: number of random calls.

    Raises:
        AssertionError: they differ; says where.
    """
    device = batch.target_probs.device
    if not runs_on(name, device):
        device = torch.device("cpu")
        batch = Batch(*(tensor.cpu() for tensor in batch))
    try:
        build.load("cuda" if device.type == "cuda" else "emulator")
    except BuildError as error:
        publish.undone(name, error)
        return
    tiny = make_batch(4, 3, 33, acceptance=0.6, seed=seed)
    for inputs, samples in (
        (tiny, python_kernels.launch(name, *tiny, seed=seed, order=1)[0]),
        (batch, KERNELS[name](*batch, seed=seed)),
    ):
        fault = difference(samples, rejection_sample(*inputs, seed=seed, backend="baseline"))
        assert not fault, f"{name}: {fault}"
    calls = assert_agrees(
        KERNELS[name], examples=examples, large_vocabulary=False, seed=seed, device=device
    )
    values = {
        "name": name,
        "on_gpu": device.type == "cuda",
        "vocab_size": batch.target_probs.shape[2],
        "calls": calls,
    }
    print(templates.render("course.md#kernel-checked", values))


@contextmanager
def _thread_order(order: int) -> Iterator[None]:
    before = os.environ.get("RSK_EMULATOR_SEED")
    os.environ["RSK_EMULATOR_SEED"] = str(order)
    try:
        yield
    finally:
        if before is None:
            del os.environ["RSK_EMULATOR_SEED"]
        else:
            os.environ["RSK_EMULATOR_SEED"] = before
