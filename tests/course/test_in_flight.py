"""The bytes on their way from memory: computed from the roof, and from the text of the kernel."""

from __future__ import annotations

import dataclasses

import pytest
from measured import GPU_PROVENANCE, record, spread, story

from rsk.course import in_flight, kernel_records, lesson


def test_the_bytes_on_their_way_follow_from_the_roof(capsys):
    fast = record(
        "loads_in_flight",
        60.0,
        bytes_moved=200_000_000,
        roof=spread(50.0),
        batch_size=1024,
    )
    slow = record("loads_in_flight", 12.0, bytes_moved=1_000_000, roof=spread(10.0), batch_size=1)
    disturbed = spread(1.0, disturbed=0.9)
    busy = record("loads_in_flight", 40.0, bytes_moved=900_000_000, roof=disturbed)
    run = dataclasses.replace(story(gpu=True), records=(slow, fast, busy))
    gpu = dataclasses.replace(GPU_PROVENANCE, gpu="NVIDIA H200")
    for provenance in (GPU_PROVENANCE, gpu):
        run = dataclasses.replace(run, provenance=provenance)
        times = kernel_records.KernelTimes(run, is_recorded=True)
        in_flight.show(times, lesson.predict("megabytes", 2, "MB"), latency_us=0.5)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("4.0 TB/s × 0.5 µs = 2.00 MB have to be on their way") == 2
    assert said.count("it takes 62,000 such threads") == 2
    assert said.count("the 132 multiprocessors: 15.2 kB must be on their way") == 1
    assert "Exactly as predicted" in said
    assert "At B = 1,024" in said and "takes 1.2 times as long as only reading" in said


def test_the_bytes_on_their_way_wait_for_a_run_of_the_kernel(capsys):
    times = kernel_records.KernelTimes(story(gpu=True), is_recorded=False)
    in_flight.show(times, lesson.predict("megabytes", 2, "MB"), latency_us=0.5)
    assert "Not measured yet on a GPU" in capsys.readouterr().out


def test_the_numbers_of_the_kernels_are_found():
    """They are read from the CUDA text, which somebody may rewrite."""
    assert 1 <= in_flight._packs_in_flight() <= 16
    assert in_flight._resident_threads(in_flight.KERNEL) in range(256, 2049, 128)
    with pytest.raises(ValueError, match=r"expected __launch_bounds__.*thread_per_sequence.cu"):
        in_flight._resident_threads("thread_per_sequence")
