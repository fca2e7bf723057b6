"""The doctor says what is true of this machine, and what to do where something is missing."""

from __future__ import annotations

import io
import platform
import stat
import sys
from importlib import metadata
from pathlib import Path

import measured
import pytest
import torch
from rich.console import Console

from rsk import doctor
from rsk.base import folders
from rsk.sampler import build


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RSK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.slow
def test_every_finding_has_advice_unless_it_is_ok(cache):
    diagnoses = doctor.examine()
    names = [diagnosis.name for diagnosis in diagnoses]
    assert names[:10] == [
        "Python",
        "PyTorch",
        "C++ compiler",
        "ninja",
        "GPU",
        "nvcc",
        "build cache",
        "stale locks",
        "own files",
        "recorded runs",
    ]
    assert all(bool(diagnosis.advice) == (diagnosis.status != "ok") for diagnosis in diagnoses)
    assert not cache.exists()  # looking changes nothing


def test_versions_are_those_of_this_process():
    assert platform.python_version() in doctor.check_python().detail
    assert sys.executable in doctor.check_python().detail
    assert torch.__version__ in doctor.check_torch().detail
    assert metadata.version("ninja").startswith(doctor.check_ninja().detail.split(".git")[0])


@pytest.mark.parametrize(
    ("version", "status"),
    [("2.10.1", "problem"), ("2.11.0+cu130", "ok"), ("2.13.9", "ok"), ("2.14.0a0", "warning")],
)
def test_torch_outside_the_supported_range(monkeypatch, version, status):
    monkeypatch.setattr(torch, "__version__", version)
    assert doctor.check_torch().status == status


def test_an_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 9, "final", 0))
    assert doctor.check_python().status == "problem"


def test_the_compiler_is_tried(monkeypatch):
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    diagnosis = doctor.check_compiler()
    assert diagnosis.status == "ok"
    assert build.find_compiler()[0] in diagnosis.detail


def test_a_missing_compiler_is_a_warning_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    diagnosis = doctor.check_compiler()
    assert diagnosis.status == "warning"
    assert "vectorized" in diagnosis.detail
    assert "install" in diagnosis.advice


@pytest.mark.skipif(sys.platform == "win32", reason="shell script")
def test_a_broken_compiler_is_a_problem(tmp_path, monkeypatch):
    broken = script(tmp_path / "c++", "echo 'fatal error: no headers' >&2; exit 1")
    monkeypatch.setattr(build, "find_compiler", lambda: [str(broken)])
    diagnosis = doctor.check_compiler()
    assert diagnosis.status == "problem"
    assert "fatal error: no headers" in diagnosis.detail


@pytest.mark.skipif(sys.platform == "win32", reason="shell script")
def test_a_gpu_that_pytorch_cannot_use_is_a_warning(tmp_path, monkeypatch):
    script(tmp_path / "nvidia-smi", "echo 'NVIDIA H200, 580.1, 143771 MiB'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    diagnosis = doctor.check_gpu()
    assert diagnosis.status == "warning"
    assert "NVIDIA H200, 580.1" in diagnosis.detail
    assert "CUDA build" in diagnosis.advice
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "driver" in doctor.check_gpu().advice


def test_without_a_gpu_neither_it_nor_nvcc_is_missed(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert doctor.check_gpu().status == "ok"
    assert doctor.check_nvcc().status == "ok"


@pytest.mark.skipif(sys.platform == "win32", reason="shell script")
@pytest.mark.parametrize(
    ("release", "status"), [("13.1", "ok"), ("12.8", "problem"), (None, "problem")]
)
def test_nvcc_must_match_pytorch_on_a_gpu_machine(tmp_path, monkeypatch, release, status):
    text = f"echo 'Cuda compilation tools, release {release}, V0'" if release else "exit 1"
    nvcc = script(tmp_path / "nvcc", text)
    monkeypatch.setattr(build, "find_nvcc", lambda: str(nvcc))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert doctor.check_nvcc().status == status
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert doctor.check_nvcc().status == "warning"


def test_the_cache_lists_what_is_built(cache):
    assert "empty" in doctor.check_cache().detail
    cache.mkdir()
    (cache / "rsk_cpu-0123.so").write_bytes(b"x" * 2**20)
    (cache / "rsk_cpu-4567.so").write_bytes(b"x" * 2**20)
    (cache / "rsk_cpu-4567.lock").touch()
    diagnosis = doctor.check_cache()
    assert diagnosis.status == "ok"
    assert diagnosis.detail == f"{cache}: 2 for cpu, 2.0 MiB"


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RSK_CACHE_DIR", str(tmp_path / "file" / "cache"))
    diagnosis = doctor.check_cache()
    assert diagnosis.status == "problem"
    assert "RSK_CACHE_DIR" in diagnosis.advice


def test_no_home_folder_is_a_problem(monkeypatch):
    for name in ("RSK_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for check in (doctor.check_cache, doctor.check_leftovers):
        diagnosis = check()
        assert diagnosis.status == "problem" and "no home folder" in diagnosis.detail
        assert "RSK_CACHE_DIR" in diagnosis.advice


def test_an_interrupted_build_is_found(cache):
    assert doctor.check_leftovers().status == "ok"
    folder = cache / "rsk_cpu-0123.building"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    diagnosis = doctor.check_leftovers()
    assert diagnosis.status == "warning"
    assert str(folder) in diagnosis.detail
    assert folder.exists()


@pytest.mark.parametrize(
    "gone", ["data", "data/models", "data/prompts.json", "notebooks", "report/en/talk.md"]
)
def test_missing_files_of_our_own_are_a_problem(tmp_path, monkeypatch, gone):
    rooms = ("cuda", "notebooks", "data/models", "data/benchmarks", "report/en", "report/style")
    for name in rooms:
        (tmp_path / name).mkdir(parents=True)
    files = ("cuda/specification.h", "data/prompts.json", "report/en/talk.md")
    for name in (*files, "report/style/report.typ"):
        (tmp_path / name).touch()
    monkeypatch.setattr(folders, "checkout", lambda: tmp_path)
    assert doctor.check_own_files().status == "ok"
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    diagnosis = doctor.check_own_files()
    assert diagnosis.status == "problem"
    assert f"{tmp_path / gone} is missing" in diagnosis.detail
    assert diagnosis.advice
    assert doctor.check_records().status == ("problem" if gone == "data" else "warning")


def test_a_record_that_is_left_out_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "checkout", lambda: tmp_path)
    (tmp_path / "data" / "benchmarks").mkdir(parents=True)
    measured.story().save(tmp_path / "data" / "benchmarks" / "run.json")
    assert doctor.check_records().detail == "1, of a processor, 2 threads"
    (tmp_path / "data" / "benchmarks" / "bad.json").write_text("{}")
    diagnosis = doctor.check_records()
    assert diagnosis.status == "warning"
    assert "bad.json: schema: missing" in diagnosis.detail


def test_a_missing_extra_is_named(monkeypatch):
    def version(name):
        if name == "papermill":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    course, dev = doctor.check_extras()
    assert course.status == "warning"
    assert course.detail == "missing: papermill"
    assert course.advice == "pip install 'rsk[course]'"
    assert dev.status == "ok"


def test_requirements_from_metadata_are_those_of_pyproject(monkeypatch):
    from_checkout = doctor.requirements("course")
    assert "papermill" in from_checkout
    try:
        metadata.requires("rsk")
    except metadata.PackageNotFoundError:
        pytest.skip("rsk is not installed here")
    monkeypatch.setattr(folders, "checkout", lambda: None)
    assert sorted(map(str.lower, doctor.requirements("course"))) == sorted(
        name.lower().replace("_", "-") for name in from_checkout
    )


def test_the_table_shows_status_and_advice():
    file = io.StringIO()
    diagnoses = [
        doctor.Diagnosis("Python", "ok", "3.11"),
        doctor.Diagnosis("nvcc", "warning", "[red]", "do this"),
    ]
    doctor.show(diagnoses, Console(file=file, width=100))
    text = file.getvalue()
    assert "ok       Python  3.11" in text
    assert "warning  nvcc    [red]" in text  # no markup
    assert "-> do this" in text
