"""The memory roof: it reads everything, it is plausible, and nothing passes below it."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

from rsk.base import machine
from rsk.measure import clocks, implementations, roof, timing, workload
from rsk.measure.records import RecordError, Spread
from rsk.sampler import build

CPU = torch.device("cpu")


def spread(us: float, clock: str = "wall", disturbed: float = 0.0) -> Spread:
    return Spread(median_us=us, q25_us=us, q75_us=us, samples=9, disturbed=disturbed, clock=clock)


def random_words(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)


@pytest.mark.parametrize("count", [1, 7, 64, 1021, 40_000])
def test_the_checksum_is_that_of_numpy(count: int) -> None:
    words = random_words(count)
    assert roof.checksum(words) == np.bitwise_xor.reduce(words.numpy())


@pytest.mark.parametrize("count", [4, 60, 64, 1020, 100_004])
def test_the_cpu_kernel_reads_every_word_in_every_shape(count: int) -> None:
    build.load("roof cpu")
    words = random_words(count)
    for threads in (1, 3):
        for shape in roof.shapes(CPU, count, threads):
            for changed in (0, count // 2, count - 1):
                other = words.clone()
                other[changed] ^= 1 << 30
                sums = torch.ops.rsk.read_in_pieces(other, *shape)
                assert len(sums) == shape.parts
                assert roof.checksum(sums) == roof.checksum(other) != roof.checksum(words), shape


@pytest.mark.parametrize("loads", roof.LOADS)
@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (3, 64), (2, 256)])
def test_the_gpu_kernel_reads_every_word_in_the_emulator(
    blocks: int, threads: int, loads: int
) -> None:
    build.load("roof cpu")
    build.load("roof emulator")
    for count in (4, 1020, 4 * blocks * threads * loads + 4):
        words = random_words(count)
        sums = torch.ops.rsk.read_in_blocks(words, blocks, threads, loads)
        assert len(sums) == blocks * threads // 32
        assert roof.checksum(sums) == roof.checksum(words)


@pytest.mark.parametrize(
    ("operator", "words", "shape", "message"),
    [
        ("read_in_pieces", torch.zeros(8), (1, 1, 0), "expected int32"),
        ("read_in_pieces", torch.zeros(8, dtype=torch.int32), (0, 1, 0), "pieces: expected 1"),
        ("read_in_pieces", torch.zeros(8, dtype=torch.int32), (1, 3, 0), "streams: expected 1, 2"),
        ("read_in_blocks", torch.zeros(7, dtype=torch.int32), (1, 32, 1), "packs of 16 bytes"),
        ("read_in_blocks", torch.zeros(8, dtype=torch.int32), (1, 33, 1), "whole warps"),
        ("read_in_blocks", torch.zeros(8, dtype=torch.int32), (1, 32, 3), "launch failed"),
    ],
)
def test_a_call_that_cannot_be_is_refused(operator, words, shape, message) -> None:
    build.load("roof cpu")
    build.load("roof emulator")
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.rsk, operator)(words, *shape)


def test_the_roof_is_plausible_beside_a_copy() -> None:
    """Reading is no slower than reading and writing, and no faster than registers can be filled."""
    n_bytes = 1 << 24
    with machine.pinned_threads(1):
        found = roof.measure(n_bytes, 1, CPU, budget_s=0.1)
        source, target = torch.ones(n_bytes // 4), torch.empty(n_bytes // 4)
        copy, _ = clocks.time_wall([functools.partial(target.copy_, source)], budget_s=0.1)
    assert (found.n_bytes, found.n_sets, found.isolated) == (n_bytes, 1, None)
    assert found.shape in roof.shapes(CPU, n_bytes // 4, 1)
    assert found.time.median_us < 1.2 * copy.median_us
    assert found.gb_per_s < 1000


def test_the_roof_grows_with_the_bytes() -> None:
    with machine.pinned_threads(1):
        small, large = (roof.measure(1 << n, 1, CPU, budget_s=0.03).time for n in (18, 26))
    assert large.median_us / small.median_us > 50


def test_a_kernel_that_reads_too_little_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(operator, shape, row):
        return operator(row[:-4], *shape)

    monkeypatch.setattr(roof, "_found", {})
    monkeypatch.setattr(roof, "_call", lazy)
    with pytest.raises(RecordError, match="did not read what is there"):
        roof.measure(4096, 1, CPU, budget_s=0.01)


def test_without_a_compiler_pytorch_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device_type: str) -> None:
        raise build.BuildError("no compiler")

    monkeypatch.setattr(roof, "_found", {})
    monkeypatch.setattr(build, "load", missing)
    assert roof.measure(4096, 1, CPU, budget_s=0.01).shape == ()


def test_a_time_below_the_roof_is_refused_with_both() -> None:
    with pytest.raises(RecordError, match=r"ours: 97 us is 3\.0% below .* 100 us \(wall"):
        roof.check_above("ours", spread(97), spread(100))
    roof.check_above("ours", spread(98.5), spread(100))
    roof.check_above("ours", spread(97, "graph replay"), spread(100))  # clocks do not compare
    roof.check_above("ours", spread(97), spread(100, disturbed=0.6))
    with pytest.raises(RecordError, match=r"3\.0% below .* \(graph replay"):
        roof.check_above("ours", spread(97), spread(100, "graph replay"))  # the least of its clocks


def test_the_least_time_of_fewer_bytes_is_their_share() -> None:
    found = roof.Roof(n_bytes=1000, n_sets=1, shape=(), time=spread(8.0), isolated=None)
    assert found.least(250) == spread(2.0)
    assert found.least(1000) == found.least(2000) == found.time


def test_a_planted_undercut_fails_the_measurement() -> None:
    with machine.pinned_threads(1):
        case = workload.Pool([(8, "warm")], 3, 500).workload(8, 3, budget_s=0.02)
        high = dataclasses.replace(case, roof=spread(1e6), floor_us=1e6)
        with pytest.raises(RecordError, match="vectorized: .* below the memory roof, 1e"):
            timing.measure(implementations.backend("vectorized"), high, budget_s=0.02)


def test_the_data_sheet_is_known_or_none() -> None:
    assert roof.data_sheet("NVIDIA H200") == (4800, "NVIDIA H200 data sheet, H200 SXM")
    assert roof.data_sheet("another") is roof.data_sheet(None) is None


def test_the_record_is_written_and_read(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "roof" / "cpu.json"
    with machine.pinned_threads(1):
        roof.main(["--device", "cpu", "--dry", "--runs", "2", "--save", str(path)])
    found = roof.RoofRecord.load(path)
    assert len(found.runs) == 2
    assert {one.n_bytes for one in found.runs[0]} == {1 << 17, 1 << 18}
    assert found.data_sheet_gb_per_s is None
    assert found.memory_gb_per_s == pytest.approx(
        np.median([run[-1].gb_per_s for run in found.runs])
    )
    assert "GB/s" in capsys.readouterr().out


def test_cold_buffers_hold_the_cache_four_times_or_are_not_read(monkeypatch) -> None:
    read = []

    def measured(n_bytes: int, n_sets: int, device, **options) -> roof.Roof:
        read.append((n_bytes, n_sets))
        return roof.Roof(n_bytes=n_bytes, n_sets=n_sets, shape=(), time=spread(1), isolated=None)

    monkeypatch.setattr(roof, "measure", measured)
    monkeypatch.setattr(machine, "last_level_cache", lambda device: 50 << 20)
    found = roof.survey(CPU, sizes=[1 << 18, 1 << 20, 1 << 28], runs=1, budget_s=0.0)
    assert read == [(1 << 18, 1), (1 << 20, 1), (1 << 20, 200), (1 << 28, 1)]
    assert found.memory_gb_per_s == pytest.approx((1 << 28) / 1e3)


@pytest.mark.gpu
@pytest.mark.alone
def test_the_roof_on_a_gpu() -> None:
    """Isolated launches take no less than shares of a graph, and memory no more than it can."""
    device = torch.device("cuda")
    n_bytes = 1 << 26
    sets = 4 * machine.last_level_cache(device) // n_bytes + 1
    found = roof.measure(n_bytes, sets, device, isolated=True)
    assert found.time.clock == "graph replay"
    assert found.isolated is not None
    assert found.isolated.clock == "isolated launch"
    assert found.isolated.median_us > found.time.median_us
    promised = roof.data_sheet(torch.cuda.get_device_name())
    if promised is not None:
        assert 0.7 < found.gb_per_s / promised[0] < 1.0
