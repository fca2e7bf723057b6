"""Every kernel compiles for every architecture and keeps its variables in registers."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import pytest

import rsk
from rsk.base.folders import data_dir
from rsk.measure import resources
from rsk.measure.record_files import RecordError
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


def test_a_table_that_is_saved_is_read_again(tmp_path, monkeypatch, capsys):
    shipped = data_dir() / "kernels" / "resources.json"
    table = resources.load()
    monkeypatch.setattr(resources, "data_dir", lambda: tmp_path / "data")
    with pytest.raises(RecordError, match="resources.json is missing; python -m"):
        resources.load()
    monkeypatch.setattr(resources, "measure", lambda: table)
    monkeypatch.setattr("sys.argv", ["resources", "--save"])
    resources.main()
    assert resources.load() == table
    saved = tmp_path / "data" / "kernels" / "resources.json"
    assert saved.read_text() == shipped.read_text() and list(saved.parent.iterdir()) == [saved]
    saved.write_bytes(b"\xff")
    with pytest.raises(RecordError, match="resources.json: expected a JSON file"):
        resources.load()
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["resources"])
    resources.main()
    assert capsys.readouterr().out == shipped.read_text()


@pytest.mark.skipif(nvcc is None, reason="nvcc is not installed")
def test_what_is_measured_is_such_a_table(monkeypatch):
    numbers = 1, 2, 3, 4, 5
    rows = {k: resources.Resources(k, "float32", "90a", *numbers) for k in rsk.KERNELS}
    monkeypatch.setattr(resources, "compile_resources", lambda name, *more: [rows[name]])
    found = resources.measure()
    assert found.kernels == tuple(rows.values()) and found.spilled_bytes == 9 * len(rows)
    assert found.nvcc != "unknown" and found.flags == " ".join(build.CUDA_FLAGS)


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
