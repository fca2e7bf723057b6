"""The build: its cache, its locks, and what happens without a compiler."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
import torch
import warm

from rsk.sampler import build, cache, compilers

QUICK = {"RSK_CPU_FLAGS": "-O0"}  # what is compiled does not matter here
SAMPLE = "import torch, rsk; print(rsk.sample(torch.ones(2, 4), seed=0, backend={backend!r}).sum())"


def environment_of(cache, **changes):
    return os.environ | QUICK | {"RSK_CACHE_DIR": str(cache)} | changes


def run(cache, backend="fused", code=None, **changes):
    code = code or SAMPLE.format(backend=backend)
    return warm.run(code, environment_of(cache, **changes))


def start(cache):
    """A process that compiles, returned once the compiler runs."""
    process = warm.Process(SAMPLE.format(backend="fused"), environment_of(cache))
    process.wait_for("compiling the cpu kernels")
    deadline = time.monotonic() + 30
    while not list(cache.glob("*.building/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_nothing_is_said_of_a_toolkit_without_a_gpu(monkeypatch, caplog):
    """As with ``CUDA_VISIBLE_DEVICES=`` on a GPU machine, where PyTorch's module says so."""
    name = "torch.utils.cpp_extension"

    class Remarking(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, wanted, *_):
            return importlib.machinery.ModuleSpec(name, self) if wanted == name else None

        def exec_module(self, module):
            logging.getLogger(name).warning("No CUDA runtime is found")
            module.remarked = True

    monkeypatch.setattr(sys, "meta_path", [Remarking(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(torch.utils, "cpp_extension", raising=False)
    assert build._cpp_extension().remarked and not caplog.records
    logging.getLogger(name).warning("any other")
    assert [record.message for record in caplog.records] == ["any other"]
    sys.modules.pop(name)
    del torch.utils.cpp_extension


@pytest.mark.alone
@pytest.mark.slow
def test_cold_and_cached(tmp_path, monkeypatch):
    timed = (
        "import time, torch, rsk\n"
        "start = time.perf_counter()\n"
        "rsk.sample(torch.ones(2, 4), seed=0, backend='fused')\n"
        "print(time.perf_counter() - start)"
    )
    monkeypatch.setitem(QUICK, "RSK_CPU_FLAGS", "-march=native")
    cold = run(tmp_path, code=timed)
    assert "compiling the cpu kernels (once)" in cold.stderr and "compiled in" in cold.stderr
    assert float(cold.stdout) < 10
    cached = min(float(run(tmp_path, code=timed).stdout) for _ in range(2))
    assert cached < 1
    assert run(tmp_path).stderr == ""
    assert {path.suffix for path in tmp_path.iterdir()} - {".lock"} == {".so", ".sum"}


@pytest.mark.slow
def test_a_killed_build_does_not_hang_the_next(tmp_path):
    process = start(tmp_path)
    process.kill()
    process.wait()
    assert list(tmp_path.glob("*.building")) == list(_leftovers(tmp_path))
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "removing what an interrupted build left" in done.stderr
    assert "compiled in" in done.stderr
    assert _leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_stale_lock_of_pytorch_is_removed(tmp_path):
    """load_inline would wait for ever on a file called "lock" in its folder."""
    process = start(tmp_path)
    process.kill()
    process.wait()
    (folder,) = tmp_path.glob("*.building")
    (folder / "lock").touch()
    assert run(tmp_path).returncode == 0


@pytest.mark.slow
def test_two_processes_build_once(tmp_path):
    first = start(tmp_path)
    first.kill(signal.SIGSTOP)  # or it may be done before the other has begun
    try:
        second = warm.Process(SAMPLE.format(backend="fused"), environment_of(tmp_path))
        second.wait_for("waiting for another process")
    finally:
        first.kill(signal.SIGCONT)
    assert first.wait().returncode == 0
    done = second.wait()
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1  # it compiled nothing


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_no_compiler(tmp_path, backend):
    done = run(tmp_path, backend, CXX="no-such-compiler")
    if backend == "auto":
        assert done.returncode == 0
        assert done.stderr.count("\n") == 1
        assert "no fused kernel on cpu, using 'vectorized' instead" in done.stderr
        assert "CXX=no-such-compiler was not found" in done.stderr
    else:
        assert done.returncode != 0
        assert "BuildError: CXX=no-such-compiler was not found; 'rsk doctor'" in done.stderr


@pytest.mark.slow
def test_no_compiler_on_the_path(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    done = run(tmp_path, "auto", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "a C++ compiler was not found" in done.stderr


@pytest.mark.parametrize(
    ("environment", "reason", "command"),
    [
        ({"CXX": "false"}, "failed without a word", "false"),
        ({"CXX": "sh -c 'echo nothing works today >&2; exit 3'"}, "nothing works today", "./cxx"),
        ({"RSK_CPU_FLAGS": "-march=no-such-processor"}, "error: .*no-such-processor", "-march"),
        ({"RSK_CPU_FLAGS": "-include no-such.h"}, "error: no-such.h", "-include no-such.h"),
        ({"CXX": "true"}, "cannot open shared object file", None),
    ],
)
def test_a_failed_compilation_says_why_and_with_what(tmp_path, environment, reason, command):
    both = SAMPLE.format(backend="auto") + "; rsk.sample(torch.ones(2, 4), backend='fused')"
    done = run(tmp_path, code=both, **environment)
    told, raised = done.stderr.split("Traceback", 1)
    first, *more = told.splitlines()[1:]
    failed = f"the cpu kernels did not compile: .*{reason}"
    assert re.search(f"using 'vectorized' instead: {failed}", first), done.stderr
    assert len(more) == (command is not None)
    assert command is None or re.match(f"rsk: the command was: .*{command}", more[0])
    assert re.search(f"BuildError: {failed}", raised)


def test_what_ninja_prints_is_understood():
    printed = (
        "Error building extension 'x': [1/2] g++ -c main.cpp -o main.o\n"
        "FAILED: [code=1] main.o \n"
        "g++ -Werror=fatal -c main.cpp -o main.o\n"
        "In file included from main.cpp:1:\n"
        "cuda/row.h:7:2: error: what is this?\n"
        "ninja: build stopped: subcommand failed.\n"
    )
    first, second, *rest = str(compilers.failure("it failed", printed)).splitlines()
    assert first == "it failed: cuda/row.h:7:2: error: what is this?"
    assert second == "the command was: g++ -Werror=fatal -c main.cpp -o main.o"
    assert len(rest) == 6
    assert str(compilers.failure("it failed", "a note\n", "cc -c x")).splitlines()[:2] == [
        "it failed: a note",
        "the command was: cc -c x",
    ]


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A small file system in memory, where the machine lets us mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("size=40k", "No space left on device"),  # no room for the sources
        ("size=600k", "No space left on device"),  # nor for what the compiler writes
        ("noexec", "failed to map segment.*RSK_CACHE_DIR"),
    ],
)
@pytest.mark.slow
def test_a_full_disk_and_one_without_programs(tmp_path, options, reason):
    folder = tmp_path / "cache"
    with mounted(folder, options):
        done = run(folder, "auto")
        assert done.returncode == 0, done.stderr
        (line,) = (x for x in done.stderr.splitlines() if "using 'vectorized' instead" in x)
        assert re.search(reason, line), done.stderr


@pytest.mark.parametrize(
    ("cxx", "used"),
    [
        ("{cxx} -DONE -DTWO='a b'", []),
        ("{tools}/c++", ["c++"]),
        ("launcher '{tools}/c++' -g0", ["c++", "launcher"]),
    ],
)
@pytest.mark.slow
def test_a_compiler_of_several_words(tmp_path, monkeypatch, cxx, used):
    """As in ``CXX="ccache g++"``; and a path with a space in it is one word."""
    tools, real = tmp_path / "my tools", build.find_compiler()[0]
    tools.mkdir()
    for name, command in {"launcher": '"$@"', "c++": f'"{real}" "$@"'}.items():
        (tools / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/{name}'\nexec {command}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    done = run(tmp_path / "cache", CXX=cxx.format(cxx=real, tools=tools))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == used


@pytest.mark.slow
def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    done = run(tmp_path / "file" / "cache", "auto")
    assert done.returncode == 0, done.stderr
    assert "cannot use the build cache" in done.stderr and "RSK_CACHE_DIR" in done.stderr


@pytest.mark.slow
def test_a_user_without_a_home(monkeypatch):
    """No HOME, and no entry in the system's list of users."""
    for name in ("RSK_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    with pytest.raises(build.BuildError, match="has no home folder; set RSK_CACHE_DIR"):
        cache.cache_dir()
    code = (
        "import pathlib\n"
        "def home(): raise RuntimeError('Could not determine home directory.')\n"
        f"pathlib.Path.home = home\n{SAMPLE.format(backend='auto')}"
    )
    done = run("", code=code)
    assert done.returncode == 0, done.stderr
    assert "using 'vectorized' instead: no folder for the build cache" in done.stderr


@pytest.mark.slow
def test_a_damaged_library_is_compiled_again(tmp_path):
    """Loading one cut short would end the process with a bus error."""
    run(tmp_path)
    (library,) = tmp_path.glob("*.so")
    whole = library.read_bytes()
    for damaged in (b"", whole[:1000], whole[: len(whole) // 2], whole[:-1], bytes(len(whole))):
        library.write_bytes(damaged)
        assert not cache.is_whole(library)
    library.write_bytes(whole)
    assert cache.is_whole(library)
    library.write_bytes(whole[: 3 * len(whole) // 4])
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "compiled in" in done.stderr and cache.is_whole(library)
    library.with_suffix(".sum").unlink()  # as an older version left it
    assert "compiled in" in run(tmp_path).stderr


def test_flags_and_compilers_make_another_library(monkeypatch):
    paths = set()
    for flags, compiler in (("-DONE", "c++"), ("-DTWO", "c++"), ("-DONE", "c++ -g")):
        monkeypatch.setenv("RSK_CPU_FLAGS", flags)
        monkeypatch.setenv("CXX", compiler)
        paths.add(build._library_path("cpu"))
    assert len(paths) == 3


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """Older versions of filelock say so by another error."""

    def acquire(self, timeout=None):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setenv("RSK_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(build.BuildError, match="does not appear to support flock; set RSK_CACHE"):
        build._load_library("cpu")
    (tmp_path / "rsk_cpu-0123.building").mkdir()
    with pytest.raises(build.BuildError, match="does not appear to support flock; set RSK_CACHE"):
        build.leftovers()


def test_a_build_leaves_the_environment_as_it_was(tmp_path, monkeypatch):
    """But for what somebody else has changed in the meantime."""
    monkeypatch.setenv("CXX", build.find_compiler()[0])
    monkeypatch.delenv("TORCH_NO_COMPILER_WRAPPER", raising=False)
    monkeypatch.setenv("RSK_TEST_BEFORE", "1")
    monkeypatch.delenv("RSK_TEST_MEANWHILE", raising=False)
    expected = os.environ | {"RSK_TEST_BEFORE": "2", "RSK_TEST_MEANWHILE": "3"}
    with build._toolchain(tmp_path):
        assert os.environ["TORCH_NO_COMPILER_WRAPPER"] == "1"
        assert os.environ["PATH"] != expected["PATH"]
        monkeypatch.setenv("RSK_TEST_BEFORE", "2")
        monkeypatch.setenv("RSK_TEST_MEANWHILE", "3")
    assert dict(os.environ) == expected


def _leftovers(cache):
    before = os.environ.get("RSK_CACHE_DIR")
    os.environ["RSK_CACHE_DIR"] = str(cache)
    try:
        return build.leftovers()
    finally:
        if before is None:
            del os.environ["RSK_CACHE_DIR"]
        else:
            os.environ["RSK_CACHE_DIR"] = before
