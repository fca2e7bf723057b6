"""Look at this machine and say what works, what does not, and what to do about it."""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from rsk.base import folders, templates
from rsk.sampler import build

if TYPE_CHECKING:
    from rich.console import Console

OLDEST_PYTHON = (3, 11)
TESTED_TORCH = ((2, 11), (2, 13))
_ANOTHER_CACHE = "set RSK_CACHE_DIR to a folder that can be written"


@dataclass(frozen=True)
class Diagnosis:
    """One thing looked at.

    ``ok``: nothing to do. ``warning``: works, but something is slower or left out. ``problem``:
    something will fail. The advice says what to do, and is empty if there is nothing to do.
    """

    name: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    advice: str = ""


def examine() -> list[Diagnosis]:
    """Look at everything that this package needs; changes nothing and never raises."""
    return [
        check_python(),
        check_torch(),
        check_compiler(),
        check_ninja(),
        check_gpu(),
        check_nvcc(),
        check_cache(),
        check_leftovers(),
        check_own_files(),
        check_records(),
        *check_extras(),
    ]


def check_python() -> Diagnosis:
    """The interpreter's version."""
    detail = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST_PYTHON:
        return Diagnosis("Python", "problem", detail, "install Python 3.11 or newer")
    return Diagnosis("Python", "ok", detail)


def check_torch() -> Diagnosis:
    """PyTorch's version and what it was built for."""
    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    detail = f"{torch.__version__} ({kind}), {torch.get_num_threads()} threads"
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    oldest, newest = TESTED_TORCH
    if version < oldest:
        return Diagnosis("PyTorch", "problem", detail, "pip install 'torch>=2.11,<2.14'")
    if version > newest:
        return Diagnosis("PyTorch", "warning", detail, "2.11 to 2.13 were tried, this was not")
    return Diagnosis("PyTorch", "ok", detail)


def check_compiler() -> Diagnosis:
    """The C++ compiler, by compiling a few lines with it."""
    name = "C++ compiler"
    advice = {
        "darwin": "xcode-select --install",
        "win32": "install the Visual Studio Build Tools and start from their command prompt",
    }.get(
        sys.platform,
        "install g++ (Debian and Ubuntu: apt-get install g++, Fedora: dnf install gcc-c++)",
    )
    compiler = build.find_compiler()
    if compiler is None:
        without = "not found: 'vectorized' is used in place of 'fused'"
        return Diagnosis(name, "warning", without, advice)
    told = shlex.join(compiler)
    if Path(compiler[0]).stem == "cl":
        return Diagnosis(name, "ok", told)  # cl compiles only inside its command prompt
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <cstdint>\n#include <vector>\nstd::vector<std::int64_t> v;\n")
        command = [*compiler, "-std=c++17", "-fPIC", "-shared", str(source)]
        status, output = _run([*command, "-o", str(source.with_suffix(".so"))])
    if status != 0:
        return Diagnosis(name, "problem", f"{told} fails: {_first_line(output)}", advice)
    return Diagnosis(name, "ok", f"{_first_line(_run([*compiler, '--version'])[1])} ({told})")


def check_ninja() -> Diagnosis:
    """The ninja program, which PyTorch's extension builder calls."""
    advice = "pip install ninja"
    try:
        import ninja
    except ImportError:
        return Diagnosis("ninja", "problem", "the package is not installed", advice)
    status, output = _run([str(Path(ninja.BIN_DIR) / "ninja"), "--version"])
    if status != 0:
        return Diagnosis("ninja", "problem", _first_line(output), advice)
    return Diagnosis("ninja", "ok", _first_line(output))


def check_gpu() -> Diagnosis:
    """The GPU and its driver, as PyTorch and ``nvidia-smi`` see them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    status, output = _run(query) if shutil.which(query[0]) else (1, "")
    listed = "; ".join(output.strip().splitlines()) if status == 0 else ""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        detail = f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"
        return Diagnosis("GPU", "ok", f"{detail} ({listed})" if listed else detail)
    if not listed:
        return Diagnosis("GPU", "ok", "no NVIDIA GPU: everything runs on the CPU")
    if torch.version.cuda is None:
        advice = "install a CUDA build of PyTorch to use the GPU (see pytorch.org)"
    else:
        advice = f"update the driver to one that supports CUDA {torch.version.cuda}"
    return Diagnosis("GPU", "warning", f"{listed}, but PyTorch cannot use it", advice)


def check_nvcc() -> Diagnosis:
    """The CUDA compiler, needed only where there is a GPU."""
    needed = torch.cuda.is_available()
    nvcc = build.find_nvcc()
    if nvcc is None:
        if not needed:
            return Diagnosis("nvcc", "ok", "not found, and not needed without a GPU")
        advice = f"install the CUDA toolkit {torch.version.cuda}, or set CUDA_HOME to it"
        without = "not found: 'vectorized' is used on the GPU in place of 'fused'"
        return Diagnosis("nvcc", "warning", without, advice)
    status, output = _run([nvcc, "--version"])
    release = re.search(r"release (\d+)\.(\d+)", output)
    if status != 0 or release is None:
        return Diagnosis(
            "nvcc", "problem" if needed else "warning", f"{nvcc} fails", "reinstall it"
        )
    detail = f"{release[1]}.{release[2]} ({nvcc})"
    if not needed:
        return Diagnosis("nvcc", "ok", f"{detail}, not needed without a GPU")
    if torch.version.cuda and torch.version.cuda.split(".")[0] != release[1]:
        advice = f"install the CUDA toolkit {torch.version.cuda}, or set CUDA_HOME to it"
        return Diagnosis("nvcc", "problem", f"{detail}; PyTorch has {torch.version.cuda}", advice)
    return Diagnosis("nvcc", "ok", detail)


def check_cache() -> Diagnosis:
    """Where compiled kernels are kept, how large they are, and whether it can be written."""
    try:
        folder = build.cache_dir()
    except build.BuildError as error:
        return Diagnosis("build cache", "problem", str(error), _ANOTHER_CACHE)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = f"{folder}: {error.strerror or error}"
        return Diagnosis("build cache", "problem", reason, _ANOTHER_CACHE)
    libraries = [path for path in folder.glob("*") if path.suffix in (".so", ".pyd", ".dll")]
    if not libraries:
        return Diagnosis("build cache", "ok", f"{folder}: empty, the first use compiles")
    size = sum(path.stat().st_size for path in libraries) / 2**20
    kinds = [path.name.removeprefix("rsk_").split("-")[0] for path in libraries]
    built = ", ".join(f"{kinds.count(kind)} for {kind}" for kind in sorted(set(kinds)))
    return Diagnosis("build cache", "ok", f"{folder}: {built}, {size:.1f} MiB")


def check_leftovers() -> Diagnosis:
    """Builds that were killed and left a folder, with a lock in it, that nobody holds."""
    try:
        folders = build.leftovers()
    except build.BuildError as error:
        return Diagnosis("stale locks", "problem", str(error), _ANOTHER_CACHE)
    if not folders:
        return Diagnosis("stale locks", "ok", "none")
    names = ", ".join(str(folder) for folder in folders)
    advice = "nothing waits for them; delete them, or let the next build do it"
    return Diagnosis("stale locks", "warning", f"left by interrupted builds: {names}", advice)


def check_own_files() -> Diagnosis:
    """The project's own files beside the package: kernels, notebooks, data, words, style."""
    name, missing = "own files", []
    for find, inside in (
        (folders.cuda_dir, ("specification.h",)),
        (folders.notebooks_dir, ()),
        (folders.data_dir, ("benchmarks", "models", "prompts.json")),
        (folders.style_dir, ("report.typ",)),
        (folders.report_dir, (f"{templates.LANGUAGE}/talk.md",)),
    ):
        try:
            folder = find()
        except FileNotFoundError as error:
            missing.append(str(error))
        else:
            missing += [
                f"{folder / one} is missing" for one in inside if not (folder / one).exists()
            ]
    if not missing:
        return Diagnosis(name, "ok", "kernels, notebooks, data, words and style are there")
    return Diagnosis(name, "problem", "; ".join(missing), _restore())


def _restore() -> str:
    top = folders.checkout()
    return "install rsk again" if top is None else f"see git -C {top} status, and restore them"


def check_records() -> Diagnosis:
    """The recorded runs that the notebooks and the talk draw on."""
    from rsk.measure.publishable_runs import recorded

    name = "recorded runs"
    try:
        runs, refused = recorded()
    except FileNotFoundError:
        return Diagnosis(name, "problem", "there is no folder data", _restore())
    if not runs:
        return Diagnosis(name, "warning", "none, so no talk can be made", _restore())
    machines = ", ".join(sorted({run.provenance.machine for run in runs}))
    if refused:
        advice = "update rsk, or move them out of data/benchmarks"
        return Diagnosis(name, "warning", f"left out: {'; '.join(refused)}", advice)
    return Diagnosis(name, "ok", f"{len(runs)}, of {machines}")


def check_extras() -> list[Diagnosis]:
    """The optional packages: ``course`` for notebooks and report, ``dev`` for the tests."""
    diagnoses = []
    for extra in ("course", "dev"):
        needed = requirements(extra)
        missing = [name for name in needed if not _is_installed(name)]
        if missing:
            detail = f"missing: {', '.join(missing)}"
            advice = f"pip install 'rsk[{extra}]'"
            diagnoses.append(Diagnosis(f"extra {extra!r}", "warning", detail, advice))
        else:
            diagnoses.append(Diagnosis(f"extra {extra!r}", "ok", f"all {len(needed)} packages"))
    return diagnoses


def requirements(extra: str) -> list[str]:
    """Names of the packages that an extra adds."""
    top = folders.checkout()
    if top is not None:
        import tomllib

        project = tomllib.loads((top / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        lines = project["optional-dependencies"][extra]
    else:
        marker = re.compile(rf"""extra == ['"]{extra}['"]""")
        lines = [line for line in _installed_requirements() if marker.search(line)]
    names = [re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0] for line in lines]
    return [name for name in names if name != "rsk"]


def _installed_requirements() -> list[str]:
    try:
        return metadata.requires("rsk") or []
    except metadata.PackageNotFoundError:  # the folder was copied, not installed
        return []


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _run(command: list[str]) -> tuple[int, str]:
    """Exit status and output; a program that cannot be run or hangs counts as failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no output")


def show(diagnoses: Iterable[Diagnosis], console: Console) -> None:
    """Print a table of diagnoses, then what to do."""
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warning": "yellow", "problem": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for diagnosis in diagnoses:
        detail = Text(diagnosis.detail)
        if diagnosis.advice:
            detail.append(f"\n-> {diagnosis.advice}", style="bold")
        table.add_row(
            Text(diagnosis.status, style=colours[diagnosis.status]), diagnosis.name, detail
        )
    console.print(table)
