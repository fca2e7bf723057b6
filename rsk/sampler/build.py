"""Compile the kernels in ``cuda/`` on first use and keep the result in a cache.

The sources are compiled by ``torch.utils.cpp_extension.load_inline`` and use PyTorch's C interface
alone, which takes seconds where PyTorch's own headers take half a minute. A library is known by its
sources, flags, versions and processor, so a change of any of them compiles anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rsk.base.folders import cuda_dir

if TYPE_CHECKING:
    from filelock import BaseFileLock

CUDA_FLAGS = ["-O3", "-std=c++17", "-fmad=false", "-DRSK_CUDA"]
"""For ``nvcc``, besides the architecture; never ``--use_fast_math``."""
_loaded: set[str] = set()
_failed: dict[str, BuildError] = {}
_mutex = threading.RLock()


class BuildError(RuntimeError):
    """A kernel could not be compiled or loaded; the message says what to do about it."""


def available(device_type: str) -> bool:
    """Whether the fused kernel runs on this device; compiles it if needed.

    The first time that it cannot be had, one line on standard error says why.

    Args:
        device_type: "cpu" or "cuda".
    """
    if device_type in _loaded:
        return True
    if device_type in _failed:
        return False
    try:
        load(device_type)
    except BuildError as error:
        reason = str(error).splitlines()[0]
        _say(f"no fused kernel on {device_type}, using 'vectorized' instead: {reason}")
        return False
    return True


def is_loaded(device_type: str) -> bool:
    """Whether the kernels for "cpu", "cuda" or "emulator" are in this process already."""
    return device_type in _loaded


def load(device_type: str) -> None:
    """Make ``torch.ops.rsk`` available for "cpu" or "cuda" tensors, compiling if needed.

    "emulator" adds the CUDA kernels on CPU tensors, which is for learning and testing.

    Raises:
        BuildError: there is no compiler, or it failed. The failure is remembered: a process does
            not try twice.
    """
    if device_type in _loaded:
        return
    with _mutex:
        if device_type in _loaded:
            return
        if device_type in _failed:
            raise _failed[device_type]
        try:
            if device_type != "cpu":
                load("cpu")  # it defines the operators that the others implement
            _load_library(device_type)
            if device_type == "cpu":
                _register_fakes()
        except BuildError as error:
            _failed[device_type] = error
            raise
        _loaded.add(device_type)


# torch.compile calls these two while it traces, and takes their result as a constant. This is all
# that torch.compiler.assume_constant_result does, but for importing the compiler: that takes 1 s.
available._dynamo_marked_constant = load._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cache_dir() -> Path:
    """The folder of compiled kernels: ``$RSK_CACHE_DIR``, or the user's cache folder."""
    if override := os.environ.get("RSK_CACHE_DIR"):
        return Path(override)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "rsk"


def find_compiler() -> str | None:
    """The C++ compiler's path: ``$CXX`` if it is set, else the first of the usual ones."""
    if chosen := os.environ.get("CXX"):
        return shutil.which(chosen)
    usual = ("cl",) if sys.platform == "win32" else ("c++", "g++", "clang++")
    return next(filter(None, map(shutil.which, usual)), None)


def find_nvcc() -> str | None:
    """The CUDA compiler's path: ``$CUDA_HOME/bin/nvcc`` if that is set, else the one on PATH."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def cpu_flags() -> list[str]:
    """Compiler flags for the processor: ``$RSK_CPU_FLAGS``, or those for the one we run on.

    For instance ``RSK_CPU_FLAGS=-march=x86-64-v3`` builds for AVX2, and ``-DRSK_SCALAR`` without
    vector types.
    """
    chosen = os.environ.get("RSK_CPU_FLAGS")
    if chosen is not None:
        return chosen.split()
    if sys.platform == "win32":
        return []
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i686")
    return ["-march=native" if is_x86 else "-mcpu=native"]


def leftovers() -> list[Path]:
    """Folders of builds that were interrupted: nobody holds the lock of their library."""
    found = []
    for folder in sorted(cache_dir().glob("*.building")):
        lock = _lock(folder.with_suffix(""))
        try:
            with lock.acquire(timeout=0):
                if folder.is_dir():
                    found.append(folder)
        except TimeoutError:
            pass  # being built right now
    return found


def _load_library(device_type: str) -> None:
    """Load the library of one device; compile it first unless it is in the cache."""
    library = _library_path(device_type)
    try:
        if library.exists():
            try:
                torch.ops.load_library(str(library))
                return
            except OSError:  # cut short by a full disk, say
                library.unlink()
        library.parent.mkdir(parents=True, exist_ok=True)
        with _held(_lock(library), device_type):
            if not library.exists():
                _compile(device_type, library)  # which loads it, too
                return
        torch.ops.load_library(str(library))
    except OSError as error:
        raise BuildError(
            f"cannot use the build cache {cache_dir()}: {error}; "
            "set RSK_CACHE_DIR to a folder that can be written"
        ) from error


def _library_path(device_type: str) -> Path:
    _, flags, cuda_flags = _recipe(device_type)
    return cache_dir() / f"rsk_{device_type}-{_fingerprint(flags, cuda_flags)}.so"


def _recipe(device_type: str) -> tuple[list[str], list[str], list[str]]:
    """Sources, C++ flags and CUDA flags; raises BuildError if a compiler is missing."""
    if find_compiler() is None:
        wanted = f"CXX={os.environ['CXX']}" if os.environ.get("CXX") else "a C++ compiler"
        raise BuildError(f"{wanted} was not found; 'rsk doctor' says what to install")
    if sys.platform == "win32":
        flags = ["/O2", "/fp:precise", "/std:c++17", *cpu_flags()]
    else:
        flags = ["-O3", "-ffp-contract=off", "-std=c++17", *cpu_flags()]
    if device_type == "cpu":
        return ["fused_cpu.cpp", "binding.cpp"], flags, []
    if device_type == "emulator":
        if sys.platform == "win32":
            raise BuildError("the CUDA emulator needs Linux or macOS, or WSL on Windows")
        shims = f"-I{cuda_dir() / 'emulator'}"
        flags = [*flags, "-DRSK_CUDA", "-DRSK_EMULATED", shims]
        return [*_cuda_sources(), "binding.cpp"], flags, []
    if find_nvcc() is None:
        raise BuildError("nvcc was not found: install the CUDA toolkit of PyTorch's version")
    capabilities = {
        torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())
    }
    architectures = [
        f"-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}"
        for major, minor in sorted(capabilities)
    ]
    flags = [*flags, "-DRSK_CUDA", "-DUSE_CUDA"]
    return ["binding.cpp"], flags, [*CUDA_FLAGS, *architectures]


def _cuda_sources() -> list[str]:
    return sorted(path.name for path in cuda_dir().glob("*.cu"))


def _fingerprint(flags: list[str], cuda_flags: list[str]) -> str:
    """A hash of all that a library depends on."""
    digest = hashlib.sha256()
    for path in sorted(cuda_dir().rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    parts = [torch.__version__, sys.platform, platform.machine(), *flags, *cuda_flags]
    parts.append(_version_of(find_compiler()))
    if cuda_flags:
        parts.append(_version_of(find_nvcc()))
    if any("native" in flag for flag in flags):
        parts.append(_processor())
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:16]


@functools.cache
def _version_of(compiler: str | None) -> str:
    if compiler is None or Path(compiler).stem == "cl":  # cl knows no --version
        return str(compiler)
    return subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=False
    ).stdout


def _processor() -> str:
    """What ``-march=native`` depends on: the processor's name and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))}))


def _lock(library: Path) -> BaseFileLock:
    from filelock import FileLock  # here, because most processes find everything built

    return FileLock(library.with_suffix(".lock"))


@contextlib.contextmanager
def _held(lock: BaseFileLock, device_type: str) -> Iterator[None]:
    """Hold an operating-system lock, which ends with its process, however that ends."""
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        _say(f"waiting for another process that compiles the {device_type} kernels")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _compile(device_type: str, library: Path) -> None:
    """Compile into a folder of our own, then move the library to its name in one step."""
    from torch.utils import cpp_extension

    # An interrupted build leaves its folder, with a lock of PyTorch's on which load_inline would
    # wait for ever. We hold the lock of this library, so nobody is working in it.
    folder = library.with_suffix(".building")
    if folder.exists():
        _say(f"removing what an interrupted build left: {folder}")
        shutil.rmtree(folder)
    folder.mkdir()
    _say(f"compiling the {device_type} kernels (once)")
    start = time.perf_counter()
    sources, flags, cuda_flags = _recipe(device_type)
    cuda_sources = _cuda_sources() if cuda_flags else []
    name = library.stem.replace("-", "_")
    try:
        with _toolchain():
            cpp_extension.load_inline(
                name=name,
                cpp_sources=[f'#include "{source}"' for source in sources],
                cuda_sources=[f'#include "{source}"' for source in cuda_sources] or None,
                extra_cflags=flags,
                extra_cuda_cflags=cuda_flags,
                extra_include_paths=[str(cuda_dir())],
                build_directory=str(folder),
                is_python_module=False,
                no_implicit_headers=True,
            )
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the {device_type} kernels did not compile:\n{error}") from error
    (folder / f"{name}{cpp_extension.LIB_EXT}").replace(library)
    shutil.rmtree(folder, ignore_errors=True)
    _say(f"compiled in {time.perf_counter() - start:.1f} s into {library}")


@contextlib.contextmanager
def _toolchain() -> Iterator[None]:
    """Let ``cpp_extension`` find the compiler that we found, and the ninja package's program."""
    import ninja

    before = dict(os.environ)
    os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")])
    os.environ["CXX"] = str(find_compiler())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _register_fakes() -> None:
    """Tell ``torch.compile`` the shapes that the operators return."""

    def check_devices(arguments: tuple[object, ...]) -> None:
        devices = {x.device for x in arguments if isinstance(x, Tensor)}
        torch._check(len(devices) == 1, lambda: f"expected one device, got {devices}")

    def fake_samples(*arguments: object) -> tuple[Tensor, Tensor]:
        check_devices(arguments)
        draft_tokens, _, target_probs, *_ = arguments
        assert isinstance(draft_tokens, Tensor) and isinstance(target_probs, Tensor)
        batch_size, spec_len = draft_tokens.shape
        return (
            target_probs.new_empty((batch_size, spec_len + 1), dtype=torch.int64),
            target_probs.new_empty((batch_size,), dtype=torch.int64),
        )

    torch.library.register_fake("rsk::rejection_sample", fake_samples)

    @torch.library.register_fake("rsk::launch")
    def _(kernel: int, *arguments: object) -> object:
        return fake_samples(*arguments)

    @torch.library.register_fake("rsk::sample")
    def _(probs: Tensor, *arguments: object) -> object:
        check_devices((probs, *arguments))
        return probs.new_empty((probs.shape[0],), dtype=torch.int64)


def _say(message: str) -> None:
    print(f"rsk: {message}", file=sys.stderr, flush=True)
