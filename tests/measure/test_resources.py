"""Every kernel compiles for every architecture and keeps its variables in registers."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import pytest

import rsk
from rsk.base.folders import data_dir
from rsk.measure import resources
from rsk.sampler import build, registry

nvcc = build.find_nvcc()
DTYPES = {"float32", "bfloat16", "float16", "mixed"}


def recorded():
    return json.loads((data_dir() / "kernels" / "resources.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(nvcc is None, reason="nvcc is not installed")
@pytest.mark.parametrize("name", rsk.KERNELS)
def test_no_kernel_spills(name):
    """On the oldest architecture that it is for, and the newest; on all: the recorded table."""
    needed = registry.KERNELS[name].capability
    architectures = resources.supported(nvcc)
    architectures = [x for x in architectures if divmod(int(x.rstrip("a")), 10) >= needed]
    architectures = [architectures[0], architectures[-1]]
    rows = resources.compile_resources(name, architectures, nvcc)
    assert {(x.dtype, x.architecture) for x in rows} == {
        (dtype, architecture) for dtype in DTYPES for architecture in architectures
    }
    for row in rows:
        assert row.spill_stores == row.spill_loads == row.stack_bytes == 0, row
        assert 0 < row.registers <= 255
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    if f"V{recorded()['nvcc']}" in version.stdout:
        stale = [row for row in map(dataclasses.asdict, rows) if row not in recorded()["kernels"]]
        assert not stale, "record them again with: python -m rsk.measure.resources --save"


def test_the_recorded_table_is_complete():
    rows = recorded()["kernels"]
    assert {row["kernel"] for row in rows} == set(rsk.KERNELS)
    assert {row["dtype"] for row in rows} == DTYPES
    assert {row["architecture"] for row in rows} == set(resources.ARCHITECTURES)
    assert not any(row["spill_stores"] or row["spill_loads"] for row in rows)
    assert recorded()["flags"] == " ".join(build.CUDA_FLAGS)


@pytest.mark.skipif(nvcc is None, reason="nvcc is not installed")
def test_a_kernel_that_does_not_compile_is_reported(tmp_path, monkeypatch):
    (tmp_path / "broken.cu").write_text("nonsense;")
    monkeypatch.setattr(resources, "cuda_dir", lambda: tmp_path)
    with pytest.raises(rsk.BuildError, match=r"broken.cu does not compile:(.|\n)*nonsense"):
        resources.compile_resources("broken", ["80"], nvcc)


def test_a_spill_is_read_from_the_report():
    report = (
        "ptxas info    : Compiling entry function '_ZN3rsk4stepI8BFloat16EE' for 'sm_80'\n"
        "    8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 1 barriers, 8 bytes cumulative stack size, "
        "256 bytes smem, 488 bytes cmem[0]\n"
    )
    assert list(resources._parse("k", report)) == [
        resources.Resources("k", "bfloat16", "80", 32, 256, 8, 16, 24)
    ]
