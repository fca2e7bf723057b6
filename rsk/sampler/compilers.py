"""The compilers of this machine: which there are, their flags, and what they say when they fail."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path


class BuildError(RuntimeError):
    """A kernel could not be compiled or loaded; the message says what to do about it."""


def find_compiler() -> list[str] | None:
    """The C++ compiler's command: ``$CXX`` if it is set, else the first of the usual ones.

    The command may have several words, such as ``CXX="ccache g++"``; the first is a whole path.
    """
    if chosen := os.environ.get("CXX"):
        # A path with a space in it is one word, if there is such a file.
        words = [chosen] if shutil.which(chosen) or sys.platform == "win32" else _split(chosen)
        paths = [shutil.which(word) for word in words[:1]]
        return [paths[0], *words[1:]] if paths and paths[0] else None
    usual = ("cl",) if sys.platform == "win32" else ("c++", "g++", "clang++")
    return next(([path] for path in map(shutil.which, usual) if path), None)


def host_compiler() -> list[str]:
    """As :func:`find_compiler`.

    Raises:
        BuildError: there is none.
    """
    if (found := find_compiler()) is not None:
        return found
    wanted = f"CXX={os.environ['CXX']}" if os.environ.get("CXX") else "a C++ compiler"
    raise BuildError(f"{wanted} was not found; 'rsk doctor' says what to install")


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # a quotation mark without its other half
        return []


def check_emulated() -> None:
    """Check that the CUDA kernels can run in the emulator here.

    Raises:
        BuildError: they cannot.
    """
    if sys.platform == "win32":
        raise BuildError("the CUDA emulator needs Linux or macOS, or WSL on Windows")


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


@functools.cache
def version_of(*command: str) -> str:
    """What a compiler says of its version, after its command; two that differ there are two."""
    told = shlex.join(command)
    if Path(command[0]).stem == "cl":  # which knows no --version
        return told
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError:  # it will fail again where that is told
        return told
    return f"{told}\n{done.stdout}"


def processor() -> str:
    """What ``-march=native`` depends on: the processor's name and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))}))


def failure(what: str, output: str, command: str = "") -> BuildError:
    """The error of a failed compilation: its first line says why, the second with which command.

    Args:
        what: such as "the cpu kernels did not compile".
        output: all that ninja or the compiler printed.
        command: the command, if ninja does not name it in its output.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    failed = [i for i, line in enumerate(lines) if line.startswith("FAILED: ")]
    if not command and failed and failed[0] + 1 < len(lines):
        command = lines[failed[0] + 1]
    told = [line for line in lines[failed[0] + 1 if failed else 0 :] if line != command]
    told = [line for line in told if not line.startswith("ninja: build stopped")]
    complaint = r"\b(error|fatal|cannot|undefined|denied|terminated|killed)\b|no space|not found"
    wrong = [line for line in told if re.search(complaint, line, re.IGNORECASE)]
    reason = (wrong or told or ["the compiler failed without a word"])[0]
    by = [f"the command was: {command}"] if command else []
    return BuildError("\n".join([f"{what}: {reason}", *by, *lines]))
