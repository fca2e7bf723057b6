"""What each CUDA kernel takes of a multiprocessor, as ``nvcc`` reports it: no GPU is needed.

``python -m rsk.measure.resources --save`` compiles every kernel for every architecture and writes
the table to ``data/kernels/resources.json``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

from rsk.base import terminal
from rsk.base.folders import cuda_dir, data_dir
from rsk.measure.record_files import RecordError, RecordFile
from rsk.sampler import build, registry

ARCHITECTURES = ("75", "80", "86", "89", "90a", "100")
"""Compute capabilities: from the GPU that most learners can borrow to the newest."""

_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")
_DTYPES = {"If": "float32", "BFloat16": "bfloat16", "Float16": "float16", "Mixed": "mixed"}
"""By what the compiler makes of the name of the type; mixed: target and draft differ."""


@dataclass(frozen=True)
class Resources:
    """One kernel, compiled for one dtype and one architecture."""

    kernel: str
    dtype: str
    architecture: str
    registers: int
    """per thread"""
    shared_bytes: int
    """per block"""
    stack_bytes: int
    """per thread"""
    spill_stores: int
    """bytes"""
    spill_loads: int
    """bytes"""


@dataclass(frozen=True)
class ResourceTable(RecordFile):
    """The file that ``--save`` writes."""

    nvcc: str
    flags: str
    kernels: tuple[Resources, ...]

    @property
    def spilled_bytes(self) -> int:
        """Over all kernels, dtypes and architectures."""
        return sum(one.spill_stores + one.spill_loads for one in self.kernels)

    @property
    def architectures(self) -> list[str]:
        """Those that the kernels were compiled for, oldest first."""
        return sorted({one.architecture for one in self.kernels}, key=_capability)


def load() -> ResourceTable:
    """Read the recorded table.

    Raises:
        RecordError: it is missing, or not what it should be; names the file and the field.
    """
    path = _path()
    if not path.is_file():
        raise RecordError(f"{path} is missing; python -m rsk.measure.resources --save makes it")
    return ResourceTable.load(path)


def _path() -> Path:
    return data_dir() / "kernels" / "resources.json"


def supported(nvcc: str) -> list[str]:
    """The architectures among :data:`ARCHITECTURES` that this ``nvcc`` compiles for."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    codes = {code.strip().removeprefix("sm_") for code in listed.stdout.split()}
    return [x for x in ARCHITECTURES if x in codes or x.rstrip("a") in codes]


def compile_resources(kernel: str, architectures: Iterable[str], nvcc: str) -> list[Resources]:
    """Compile one kernel with ``nvcc`` and read what it reports.

    Raises:
        rsk.BuildError: it does not compile; the message is the compiler's.
    """
    # ptxas makes all of a generation from one PTX: what the sources tell apart are generations,
    # and the compiler before it takes most of the time.
    generations = {x: list(of) for x, of in groupby(architectures, lambda x: _capability(x)[0])}
    flags = [
        f"-gencode=arch=compute_{of[0]},code=[{','.join(f'sm_{x}' for x in of)}]"
        for of in generations.values()
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *build.CUDA_FLAGS, *flags, "-Xptxas=-v", "--threads=2", "-fatbin"]
        command += [str(cuda_dir() / f"{kernel}.cu"), "-o", str(Path(folder) / "kernel.fatbin")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise build.BuildError(f"{kernel}.cu does not compile:\n{done.stderr}")
    rows = _parse(kernel, done.stdout + done.stderr)
    needed = registry.KERNELS[kernel].capability  # below it, the kernel is empty
    return [x for x in rows if _capability(x.architecture) >= needed]


def _parse(kernel: str, report: str) -> Iterable[Resources]:
    """The rows of ptxas's report: three lines a kernel, the first of which names it."""
    entry: re.Match[str] | None = None
    stack = (0, 0, 0)
    for line in report.splitlines():
        if found := _ENTRY.search(line):
            entry = found
        elif found := _STACK.search(line):
            stack = (int(found[1]), int(found[2]), int(found[3]))
        elif entry is not None and (found := _USED.search(line)):
            dtype = next(dtype for mark, dtype in _DTYPES.items() if mark in entry["name"])
            yield Resources(
                kernel=kernel,
                dtype=dtype,
                architecture=entry["architecture"],
                registers=int(found[1]),
                shared_bytes=int(found[2] or 0),
                stack_bytes=stack[0],
                spill_stores=stack[1],
                spill_loads=stack[2],
            )
            entry = None


def _capability(architecture: str) -> tuple[int, int]:
    return divmod(int(architecture.rstrip("a")), 10)


def measure() -> ResourceTable:
    """Compile every kernel for every architecture that the compiler knows.

    Raises:
        rsk.BuildError: there is no ``nvcc``, or a kernel does not compile.
    """
    nvcc = build.find_nvcc()
    if nvcc is None:
        raise build.BuildError("nvcc was not found: install the CUDA toolkit")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release [\d.]+, V([\d.]+)", version.stdout)
    order = list(registry.KERNELS)
    rows = [row for name in order for row in compile_resources(name, supported(nvcc), nvcc)]
    rows.sort(key=lambda x: (order.index(x.kernel), _capability(x.architecture), x.dtype))
    return ResourceTable(
        release[1] if release else "unknown", " ".join(build.CUDA_FLAGS), tuple(rows)
    )


def main() -> None:
    """Print the table; with ``--save``, write it to ``data/kernels/resources.json``."""
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(description="Registers, shared memory and spills.")
    parser.add_argument("--save", action="store_true", help="write data/kernels/resources.json")
    save = parser.parse_args().save
    table = measure()
    if save:
        table.save(_path())
        print(f"wrote {_path()}")
    else:
        print(json.dumps(asdict(table), indent=1))


if __name__ == "__main__":
    main()
