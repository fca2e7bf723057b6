"""The emulator catches what a GPU would not forgive: missing barriers and reads out of bounds."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_sampler import random_batch

import rsk
from rsk.base.folders import cuda_dir
from rsk.sampler import build, emulator

SOURCES = cuda_dir()
ORDERS = 24
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the emulator needs Linux or macOS")


def kernel_text(name: str) -> str:
    return (SOURCES / f"{name}.cu").read_text()


@functools.cache
def whole_kernel(name: str):
    """The kernel as it is, which gives the right tokens in every order of threads."""
    kernel = emulator.compile_kernel(kernel_text(name), f"rsk::{name}::launch")
    batch = random_batch(3, 3, 30000)
    expected = rsk.rejection_sample(*batch, seed=1, backend="baseline").tokens.tolist()
    with pytest.MonkeyPatch.context() as patch:
        assert run_in_orders(kernel, batch, patch) == [expected] * ORDERS
    return batch, expected


def run_in_orders(kernel, batch, monkeypatch, orders=ORDERS):
    """The results of several orders of threads; an error counts as one."""
    results = []
    for order in range(orders):
        monkeypatch.setenv("RSK_EMULATOR_SEED", str(order))
        try:
            results.append(kernel(*batch, seed=1).tokens.tolist())
        except RuntimeError as error:
            results.append(str(error))
    return results


class TestBarriers:
    @pytest.mark.parametrize(
        ("name", "barrier", "occurrence"),
        [
            ("block_per_sequence", "__syncthreads();", 0),
            ("block_per_sequence", "__syncthreads();", 1),
            ("loads_in_flight", "__syncthreads();", 0),
            ("split_vocabulary", "__syncthreads();", 0),
            ("split_vocabulary", "__syncthreads();", 1),
            ("cluster", "__syncthreads();", 0),
            ("cluster", "wait_for_letters(mailbox);", 0),
            ("cluster", "if (round == 0) wait_for_mailboxes();", 0),
        ],
    )
    @pytest.mark.slow
    def test_a_missing_barrier_is_caught(self, name, barrier, occurrence, monkeypatch):
        batch, expected = whole_kernel(name)
        text = kernel_text(name)
        parts = text.split(barrier)
        assert len(parts) > occurrence + 1, f"{name}.cu has no such barrier any more"
        before, after = parts[: occurrence + 1], parts[occurrence + 1 :]
        broken = emulator.compile_kernel(
            barrier.join(before) + barrier.join(after), f"rsk::{name}::launch"
        )
        assert any(result != expected for result in run_in_orders(broken, batch, monkeypatch))

    def test_the_barrier_before_totals_are_overwritten(self, monkeypatch):
        """It matters only when the residual is empty and the block goes round once more."""
        target = torch.rand(4, 2, 5000) / 5000
        draft = target[:, :1] * 10
        batch = torch.zeros(4, 1, dtype=torch.int64), draft, target
        result = rsk.rejection_sample(*batch, seed=1, backend="baseline")
        assert 0 in result.num_accepted
        text = kernel_text("loads_in_flight")
        head, tail = text.rsplit("__syncthreads();", 1)
        broken = emulator.compile_kernel(head + tail, "rsk::loads_in_flight::launch")
        expected = rsk.rejection_sample(*batch, seed=1, backend="baseline").tokens.tolist()
        assert any(result != expected for result in run_in_orders(broken, batch, monkeypatch))

    def test_a_barrier_that_some_threads_never_reach_is_an_error(self):
        text = kernel_text("block_per_sequence").replace(
            "__syncthreads();", "if (lane == 0) __syncwarp(); else __syncthreads();", 1
        )
        kernel = emulator.compile_kernel(text, "rsk::block_per_sequence::launch")
        with pytest.raises(RuntimeError, match="does not end"):
            kernel(*random_batch(1, 1, 100), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [1 << 20, (1 << 20) - 1, 300004])
@pytest.mark.parametrize("name", list(rsk.KERNELS)[1:])
def test_a_piece_may_have_more_tiles_than_a_warp_has_lanes(name, vocab_size):
    """Then a lane keeps the sum of several of them, and the search goes through these."""
    batch = random_batch(1, 1, vocab_size, torch.bfloat16)
    for seed in range(8):
        expected = rsk.rejection_sample(*batch, seed=seed, backend="baseline")
        assert torch.equal(rsk.KERNELS[name](*batch, seed=seed).tokens, expected.tokens)


PROBE = """
#include "arguments.h"
#include "launch.h"
#include "mailbox.h"

namespace probe {

enum Wrong { LETTER_FROM_A_STACK, LETTER_TO_NOBODY, TOO_MANY_BLOCKS, TOO_MANY_THREADS };

__global__ void kernel(int64_t wrong) {
  rsk::Mailbox& mailbox = rsk::shared_memory<rsk::Mailbox>();
  rsk::Mailbox elsewhere;
  if (wrong == LETTER_FROM_A_STACK) rsk::send(elsewhere, 0, 0, 1);
  if (wrong == LETTER_TO_NOBODY && rsk::rank_in_cluster() == 0) {
    for (int i = 0; i < 1000; ++i) __nanosleep(32);  // the other block has returned by then
    rsk::send(mailbox, 1, 0, 1);
  }
}

cudaError_t launch(const rsk::Batch& batch, void*, cudaStream_t stream) {
  const int64_t wrong = batch.seed;
  auto config = rsk::launch_config(wrong == TOO_MANY_BLOCKS ? (1ll << 32) + 2 : 2,
                                   wrong == TOO_MANY_THREADS ? 2048 : 32, stream);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = 2;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, wrong);
  if (wrong != TOO_MANY_THREADS) return error;
  const bool is_refused = rsk::check_launch(error) != nullptr;
  return is_refused && cudaGetLastError() == cudaSuccess ? cudaErrorNotSupported : cudaSuccess;
}

}  // namespace probe
"""


SMALL_CLUSTERS = """
#include <cuda_runtime.h>

inline cudaError_t second_device(int* device) {
  *device = 1;
  return cudaSuccess;
}
inline cudaError_t attribute_of_second(int* value, cudaDeviceAttr attribute, int device) {
  const cudaError_t error = cudaDeviceGetAttribute(value, attribute, device);
  if (attribute == cudaDevAttrComputeCapabilityMajor) *value = 12;
  return error;
}
template <class... Arguments>
cudaError_t launch_on_second(const cudaLaunchConfig_t* config, Arguments&&... arguments) {
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id != cudaLaunchAttributeClusterDimension) continue;
    if (attribute.val.clusterDim.x > 8) return cudaErrorInvalidConfiguration;
    if (attribute.val.clusterDim.x < 8) return cudaErrorInvalidValue;  // the test wants the limit
  }
  return cudaLaunchKernelEx(config, arguments...);
}
#define cudaGetDevice second_device
#define cudaDeviceGetAttribute attribute_of_second
#define cudaLaunchKernelEx launch_on_second
"""


class TestLaunches:
    """What a GPU refuses, or does not survive; and what the binding makes of it."""

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (0, "not possible on a GPU"),
            (1, "not possible on a GPU"),
            (2, "invalid configuration"),  # and not the number of blocks modulo 2^32
            (3, "not supported"),  # what the probe returns if no error is left behind
        ],
    )
    def test_what_is_wrong_is_an_error(self, wrong, message, monkeypatch):
        monkeypatch.setenv("CPATH", str(Path(torch.__file__).parent / "include"))
        probe = emulator.compile_kernel(PROBE, "probe::launch")
        with pytest.raises(RuntimeError, match=message):
            probe(*random_batch(1, 1, 10), seed=wrong)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["cluster", "from_logits"])
    def test_a_device_of_small_clusters_gets_no_larger_ones(self, name):
        """Compute capability 12.0: it has clusters, but not of 16 blocks."""
        entry, call = "rsk::small::launch", "batch"
        if name == "from_logits":
            call = "LogitsBatch{batch, {nullptr, nullptr, nullptr, nullptr, {}, 0, 1, 1, 0, false}}"
        launch = f"""
namespace rsk::small {{
cudaError_t launch(const Batch& batch, void* workspace, cudaStream_t stream) {{
  return {name}::launch({call}, workspace, stream);
}}
}}"""
        kernel = emulator.compile_kernel(SMALL_CLUSTERS + kernel_text(name) + launch, entry)
        batch = random_batch(1, 1, 150_000)
        of_package = rsk.rejection_sample
        if name == "from_logits":
            of_package = rsk.rejection_sample_from_logits
        assert torch.equal(kernel(*batch, seed=1).tokens, of_package(*batch, seed=1).tokens)

    def test_old_gpus_see_no_function_that_they_lack(self):
        """As the preprocessor says: no compiler of today makes code for all of them."""
        lacking = {
            600: ["__nanosleep"],
            700: ["__reduce_max_sync", "__reduce_add_sync", "cp.async"],
        }
        for capability, names in lacking.items():
            command = [*build.find_compiler(), "-E", "-P", "-x", "c++", "-"]
            command += ["-DRSK_CUDA", "-D__CUDACC__", f"-D__CUDA_ARCH__={capability}"]
            kernels = sorted(path.name for path in SOURCES.glob("*.cu"))
            lines = [line for name in kernels for line in included(name, set())]
            text = "".join(line for line in lines if not line.lstrip().startswith("#include"))
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
            assert "wait_for_those_before" in done.stdout
            assert [name for name in names if name in done.stdout] == []


def included(name: str, seen: set[str]) -> list[str]:
    """The lines of a file of cuda/ and of those that it includes, each once."""
    lines = []
    for line in (SOURCES / name).read_text().splitlines(keepends=True):
        found = re.match(r'#include "(.+)"', line)
        if found is None:
            lines.append(line)
        elif found[1] not in seen:
            seen.add(found[1])
            lines += included(found[1], seen)
    return lines


class TestCompileKernel:
    @pytest.mark.slow
    def test_the_result_is_that_of_the_package(self):
        batch = random_batch(4, 3, 300, torch.float16)
        seeds, positions = torch.arange(4) * 9, torch.arange(4) + 2
        for name in rsk.KERNELS:
            kernel = emulator.compile_kernel(kernel_text(name), f"rsk::{name}::launch")
            got = kernel(*batch, seed=seeds, position=positions)
            expected = rsk.rejection_sample(*batch, seed=seeds, position=positions)
            assert torch.equal(got.tokens, expected.tokens)
            assert torch.equal(got.num_accepted, expected.num_accepted)

    def test_a_mistake_shows_the_compilers_message(self):
        with pytest.raises(rsk.BuildError, match="nonsense"):
            emulator.compile_kernel("nonsense;", "launch")


class TestMemory:
    """AddressSanitizer on buffers of the exact size, in a program of its own."""

    def run(self, folder: Path, level: str, change: tuple[str, str, str] | None = None):
        sources = folder / "cuda"
        shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("binding.*"))
        if change:
            header, *texts = change
            text = (sources / header).read_text()
            assert texts[0] in text
            (sources / header).write_text(text.replace(*texts))
        program = folder / "program"
        command = [*build.find_compiler(), level, "-g1", "-fsanitize=address", "-std=c++17"]
        command += ["-DRSK_CUDA", f"-I{sources / 'emulator'}", f"-I{sources}"]
        command += [str(Path(__file__).parent / "memory_check.cpp"), "-o", str(program)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if "cannot find" in built.stderr and "asan" in built.stderr:
            pytest.skip("the compiler has no AddressSanitizer")
        assert built.returncode == 0, built.stderr
        return subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)

    @pytest.mark.slow
    def test_the_kernels_stay_inside_their_buffers(self, tmp_path):
        done = self.run(tmp_path, "-O1")
        assert done.returncode == 0 and "checked" in done.stdout, done.stderr[-3000:]

    @pytest.mark.parametrize(
        ("header", "old", "new"),
        [
            ("pack.h", "if (i < end) to_p", "if (i <= end) to_p"),
            ("pack.h", "if (i + j < end) to_p", "if (i + j <= end) to_p"),
            ("specification.h", "if (v >= size) return 0.0f;", "if (v > size) return 0.0f;"),
        ],
    )
    @pytest.mark.slow
    def test_a_read_behind_the_end_is_caught(self, header, old, new, tmp_path):
        done = self.run(tmp_path, "-O0", (header, old, new))  # it soon ends
        assert done.returncode != 0
        assert "heap-buffer-overflow" in done.stderr and header in done.stderr
