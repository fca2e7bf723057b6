"""Compile the kernels in ``cuda/`` on first use and keep the result in a cache.

The sources are compiled by ``torch.utils.cpp_extension.load_inline`` and use PyTorch's C interface
alone, which takes seconds where its C++ headers take half a minute. A library is identified by its
sources, flags, versions and processor, so a change of any of them compiles anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsk.base.folders import cuda_dir
from rsk.sampler.cache import cache_dir, ensure, keep, leftovers, say, usable
from rsk.sampler.compilers import (
    BuildError,
    check_emulated,
    cpu_flags,
    failure,
    find_compiler,
    find_nvcc,
    host_compiler,
    processor,
    version_of,
)

__all__ = [
    "CUDA_FLAGS",
    "BuildError",
    "available",
    "cache_dir",
    "find_compiler",
    "find_nvcc",
    "is_loaded",
    "leftovers",
    "load",
]

CUDA_FLAGS = ["-O3", "-std=c++17", "-fmad=false", "-DRSK_CUDA"]
"""For ``nvcc``, besides the architecture; never ``--use_fast_math``."""
_BINDINGS = ("binding.cpp", "binding_logits.cpp")
# What has a library of its own: the kernels that only a group of ranks needs, and the memory roof.
_APART = ("sharded", "roof")
_loaded: set[str] = set()
_failed: dict[str, BuildError] = {}
_mutex = threading.RLock()


def available(device_type: str) -> bool:
    """Whether the fused kernel runs on this device; compiles it if needed.

    The first time that it cannot be had, a line or two on standard error say why.

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
        reason, *more = str(error).splitlines()
        say(f"no fused kernel on {device_type}, using 'vectorized' instead: {reason}")
        for command in (line for line in more[:1] if line.startswith("the command was")):
            say(command)
        return False
    return True


def is_loaded(device_type: str) -> bool:
    """Whether the kernels for "cpu", "cuda" or "emulator" are in this process already."""
    return device_type in _loaded


def load(device_type: str) -> None:
    """Make ``torch.ops.rsk`` available for "cpu" or "cuda" tensors, compiling if needed.

    "emulator" adds the CUDA kernels on CPU tensors, which is for learning and testing. "sharded
    cuda" and "sharded emulator" have what :mod:`rsk.sampler.sharded` needs, and nothing else; "roof
    cpu", and after it "roof cuda" or "roof emulator", what :mod:`rsk.measure.roof` needs.

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


# torch.compile calls these while it traces, and takes their result as a constant: nothing that it
# makes depends on whether a library was loaded before. This is all that
# torch.compiler.assume_constant_result does, but for importing the compiler: that takes 1 s.
available._dynamo_marked_constant = load._dynamo_marked_constant = True  # type: ignore[attr-defined]
is_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _load_library(device_type: str) -> None:
    """Load the library of one device; compile it first unless it is in the cache."""
    library = _library_path(device_type)
    waiting = f"waiting for another process that compiles the {device_type} kernels"
    with usable():
        if not ensure(library, lambda: _compile(device_type, library), waiting):
            torch.ops.load_library(str(library))  # which compiling does, too


def _library_path(device_type: str) -> Path:
    _, flags, cuda_flags = _recipe(device_type)
    name = device_type.replace(" ", "_")
    return cache_dir() / f"rsk_{name}-{fingerprint(flags, cuda_flags)}.so"


def _recipe(device_type: str) -> tuple[list[str], list[str], list[str]]:
    """Sources, C++ flags and CUDA flags; raises BuildError if a compiler is missing."""
    host_compiler()
    if sys.platform == "win32":
        flags = ["/O2", "/fp:precise", "/std:c++17", *cpu_flags()]
    else:
        flags = ["-O3", "-ffp-contract=off", "-std=c++17", *cpu_flags()]
    if device_type == "cpu":  # it has the schemas of all operators
        own = ["fused_cpu.cpp", "fused_cpu_logits.cpp"]
        return [*own, *_BINDINGS, "binding_sharded.cpp"], flags, []
    part = _part(device_type)
    bindings = [f"binding_{part}.cpp"] if part else [*_BINDINGS]
    if device_type == "roof cpu":
        return ["roof_cpu.cpp", *bindings], flags, []
    if device_type.endswith("emulator"):
        check_emulated()
        flags = [*flags, "-DRSK_CUDA", "-DRSK_EMULATED", "-Icuda/emulator"]
        return [*_cuda_sources(device_type), *bindings], flags, []
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
    side_by_side = "--split-compile=0"  # the kernels of the one file
    return bindings, flags, [*CUDA_FLAGS, side_by_side, *architectures]


def _cuda_sources(device_type: str) -> list[str]:
    names = sorted(path.name for path in cuda_dir().glob("*.cu"))
    return [name for name in names if _part(name) == _part(device_type)]


def _part(name: str) -> str:
    """Which library of its own a device type or a source belongs to; empty for the sampler's."""
    return next((part for part in _APART if name.startswith(part)), "")


def fingerprint(flags: list[str], cuda_flags: list[str], text: str = "") -> str:
    """A hash of all that a library depends on.

    Args:
        flags, cuda_flags: of the C++ compiler, and of nvcc if it is needed.
        text: what is compiled besides the files of ``cuda/``.
    """
    digest = hashlib.sha256()
    for path in sorted(cuda_dir().rglob("*")):
        if path.suffix in (".h", ".cpp", ".cu"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    parts = [torch.__version__, sys.platform, platform.machine(), *flags, *cuda_flags]
    parts += [version_of(*host_compiler()), text]
    if cuda_flags:
        parts.append(version_of(str(find_nvcc())))
    if any("native" in flag for flag in flags):
        parts.append(processor())
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:16]


def _cpp_extension() -> Any:
    """PyTorch's driver of the compilers, without its remark that nvcc is here and no GPU is."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from torch.utils import cpp_extension
    finally:
        logger.setLevel(level)
    return cpp_extension


def _compile(device_type: str, library: Path) -> None:
    """Compile into a folder of our own, then move the library to its name in one step."""
    cpp_extension = _cpp_extension()
    # An interrupted build leaves its folder, with a lock of PyTorch's on which load_inline would
    # wait for ever. We hold the lock of this library, so nobody is working in it; but the compilers
    # of a build that was killed may still write there, so our folder is another one.
    for left in _folders_of_builds(library):
        say(f"removing what an interrupted build left: {left}")
        shutil.rmtree(left, ignore_errors=True)
    folder = library.with_suffix(f".{os.getpid()}.building")
    # The sources go there too: compilers then see no path but "cuda", whatever ours are called.
    try:
        shutil.copytree(cuda_dir(), folder / "cuda")
    except shutil.Error as errors:
        raise OSError(errors.args[0][0][-1]) from errors
    say(f"compiling the {device_type} kernels (once)")
    start = time.perf_counter()
    sources, flags, cuda_flags = _recipe(device_type)
    cuda_sources = _cuda_sources(device_type) if cuda_flags else []
    name = library.stem.replace("-", "_")
    built = folder / f"{name}{cpp_extension.LIB_EXT}"
    try:
        with _toolchain(folder):
            cpp_extension.load_inline(
                name=name,
                cpp_sources=[f'#include "cuda/{source}"' for source in sources],
                cuda_sources=[f'#include "cuda/{source}"' for source in cuda_sources] or None,
                extra_cflags=flags,
                extra_cuda_cflags=cuda_flags,
                build_directory=str(folder),
                is_python_module=False,
                no_implicit_headers=True,
            )
    except (RuntimeError, OSError, UnicodeError, subprocess.SubprocessError) as error:
        if isinstance(error, OSError) and built.exists():
            raise  # it compiled, but cannot be loaded
        what, why = f"the {device_type} kernels did not compile", str(error.__cause__ or error)
        raise failure(what, str(error) if "FAILED: " in str(error) else why) from error
    keep(built, library)
    for left in _folders_of_builds(library):
        shutil.rmtree(left, ignore_errors=True)
    say(f"compiled in {time.perf_counter() - start:.1f} s into {library}")


def _folders_of_builds(library: Path) -> list[Path]:
    """Those of this library, whichever process made them."""
    return sorted(library.parent.glob(f"{library.stem}.*building"))


@contextlib.contextmanager
def _toolchain(folder: Path) -> Iterator[None]:
    """Let ``cpp_extension`` find the compiler that we found, and the ninja package's program.

    Args:
        folder: the build's, in which ninja runs.
    """
    import ninja

    cpp_extension = _cpp_extension()
    torch_folder, command = cpp_extension.TORCH_LIB_PATH, host_compiler()
    ours = {
        "PATH": os.pathsep.join([ninja.BIN_DIR, os.environ.get("PATH", "")]),
        "CXX": command[0],
        "TORCH_DONT_CHECK_COMPILER_ABI": "1",  # it is C's that we use, the same for all
        "TORCH_NO_COMPILER_WRAPPER": "1",  # CXX alone says whether to use ccache
    }
    if sys.platform != "win32":
        cpp_extension.TORCH_LIB_PATH = shlex.quote(torch_folder)  # it does not do that itself
        if len(command) > 1 or shlex.quote(command[0]) != command[0]:
            script = folder / "cxx"  # one word where PyTorch expects one
            script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n', encoding="utf-8")
            script.chmod(0o700)
            ours["CXX"] = "./cxx"
    # These alone are put back: other threads may change others meanwhile.
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        cpp_extension.TORCH_LIB_PATH = torch_folder
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _register_fakes() -> None:
    """Tell ``torch.compile`` the shapes that the operators return."""

    def check_devices(arguments: tuple[object, ...]) -> None:
        devices = {x.device for x in arguments if isinstance(x, Tensor)}
        torch._check(len(devices) == 1, lambda: f"expected one device, got {devices}")

    def fake_samples(*arguments: object) -> tuple[Tensor, Tensor]:
        check_devices(arguments)
        draft_tokens = arguments[0]
        assert isinstance(draft_tokens, Tensor)
        batch_size, spec_len = draft_tokens.shape
        return (
            draft_tokens.new_empty((batch_size, spec_len + 1), dtype=torch.int64),
            draft_tokens.new_empty((batch_size,), dtype=torch.int64),
        )

    def fake_sample(rows: Tensor, *arguments: object) -> Tensor:
        check_devices((rows, *arguments))
        return rows.new_empty((rows.shape[0],), dtype=torch.int64)

    def fake_sample_and_laws(rows: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
        laws = rows.new_empty((rows.shape[0], 4), dtype=torch.float32)
        return fake_sample(rows, *arguments), laws

    def fake_probabilities(rows: Tensor, *arguments: object) -> Tensor:
        check_devices((rows, *arguments))
        return rows.new_empty(rows.shape, dtype=torch.float32)

    from_logits: dict[str, Callable[..., object]] = {
        "probabilities": fake_probabilities,
        "sample_from_logits": fake_sample_and_laws,
        "rejection_sample_from_logits": fake_samples,
    }
    fakes = from_logits | {
        "rejection_sample": fake_samples,
        "launch": lambda kernel, *arguments: fake_samples(*arguments),
        "sample": fake_sample,
    }
    fakes |= {f"emulated_{name}": fake for name, fake in from_logits.items()}
    for name, fake in fakes.items():
        torch.library.register_fake(f"rsk::{name}", fake)
