"""The emulator catches what a GPU would not forgive: missing barriers and reads out of bounds."""

from __future__ import annotations

import functools
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
