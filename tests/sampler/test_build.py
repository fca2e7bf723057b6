"""The build: its cache, its locks, and what happens without a compiler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from rsk.sampler import build

SAMPLE = "import torch, rsk; print(rsk.sample(torch.ones(2, 4), seed=0, backend={backend!r}).sum())"


def run(cache, backend="fused", code=None, timeout=120, **environment):
    return subprocess.run(
        [sys.executable, "-c", code or SAMPLE.format(backend=backend)],
        env=os.environ | {"RSK_CACHE_DIR": str(cache)} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(cache):
    """A process that compiles, returned once the compiler runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", SAMPLE.format(backend="fused")],
        env=os.environ | {"RSK_CACHE_DIR": str(cache)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert "compiling the cpu kernels" in process.stderr.readline()
    deadline = time.monotonic() + 30
    while not list(cache.glob("*.building/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_cold_and_cached(tmp_path):
    timed = (
        "import time, torch, rsk\n"
        "start = time.perf_counter()\n"
        "rsk.sample(torch.ones(2, 4), seed=0, backend='fused')\n"
        "print(time.perf_counter() - start)"
    )
    cold = run(tmp_path, code=timed)
    assert "compiling the cpu kernels (once)" in cold.stderr and "compiled in" in cold.stderr
    assert float(cold.stdout) < 10
    cached = min(float(run(tmp_path, code=timed).stdout) for _ in range(2))
    assert cached < 1
    assert run(tmp_path).stderr == ""
    assert sorted(path.suffix for path in tmp_path.iterdir()) in ([".lock", ".so"], [".so"])


def test_a_killed_build_does_not_hang_the_next(tmp_path):
    process = start(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("*.building")) == list(_leftovers(tmp_path))
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "removing what an interrupted build left" in done.stderr
    assert "compiled in" in done.stderr
    assert _leftovers(tmp_path) == []


def test_a_stale_lock_of_pytorch_is_removed(tmp_path):
    """load_inline would wait for ever on a file called "lock" in its folder."""
    process = start(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (folder,) = tmp_path.glob("*.building")
    (folder / "lock").touch()
    assert run(tmp_path).returncode == 0


def test_two_processes_build_once(tmp_path):
    first = start(tmp_path)
    os.killpg(first.pid, signal.SIGSTOP)  # or it may be done before the other has begun
    try:
        second = subprocess.Popen(
            [sys.executable, "-c", SAMPLE.format(backend="fused")],
            env=os.environ | {"RSK_CACHE_DIR": str(tmp_path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "waiting for another process" in second.stderr.readline()
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    assert (first.wait(120), second.wait(120)) == (0, 0)
    assert second.stderr.read() == ""  # it compiled nothing


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


def test_no_compiler_on_the_path(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    done = run(tmp_path, "auto", PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "a C++ compiler was not found" in done.stderr


def test_a_compiler_that_fails(tmp_path):
    done = run(tmp_path, "auto", RSK_CPU_FLAGS="-march=no-such-processor")
    assert done.returncode == 0, done.stderr
    assert "the cpu kernels did not compile" in done.stderr
    done = run(tmp_path, "fused", RSK_CPU_FLAGS="-march=no-such-processor")
    assert "BuildError" in done.stderr and "no-such-processor" in done.stderr


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    done = run(tmp_path / "file" / "cache", "auto")
    assert done.returncode == 0, done.stderr
    assert "cannot use the build cache" in done.stderr and "RSK_CACHE_DIR" in done.stderr


def test_a_library_that_does_not_load(tmp_path):
    run(tmp_path)
    (library,) = tmp_path.glob("*.so")
    library.write_bytes(b"not a library")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "compiled in" in done.stderr


def test_flags_make_another_library(tmp_path, monkeypatch):
    monkeypatch.setenv("RSK_CPU_FLAGS", "-DONE")
    one = build._library_path("cpu")
    monkeypatch.setenv("RSK_CPU_FLAGS", "-DTWO")
    assert build._library_path("cpu") != one


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
