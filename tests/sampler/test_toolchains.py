"""Other compilers, flags, paths and Pythons than those of this machine: what users have.

A compiler that is not here is skipped; .ci/run installs g++-11 and clang where it can.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm

from rsk.base.folders import cuda_dir
from rsk.sampler import build

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="for Linux")]

TOP = Path(__file__).parents[2]
STATIC = "-static-libstdc++ -static-libgcc"
"""As the compilers of Conda, of many clusters and of manylinux do it."""
HARDENED = "-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 -fstack-protector-strong"
"""As Ubuntu's g++ does it, and with what else distributions add."""
if platform.machine() == "x86_64":
    HARDENED += " -fstack-clash-protection -fcf-protection=full"
elif platform.machine() == "aarch64":
    HARDENED += " -fstack-clash-protection -mbranch-protection=standard"
ODD = "空 间 é'"


def compiler(name, *flags):
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    return " ".join([name, *flags])


def run(*arguments, python=sys.executable, top=TOP, **environment):
    paths = os.pathsep.join(filter(None, [str(top), os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"} | environment
    done = subprocess.run(
        [python, *map(str, arguments)],
        env=os.environ | environment,
        cwd=top,
        capture_output=True,
        encoding="utf-8",
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


# --- the library and the C++ library that it is linked with --------------------------------------


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("g++-11", f"{STATIC} -Wl,--exclude-libs,ALL"),
        ("clang++", f"{STATIC} {HARDENED}"),
        ("g++", f"{STATIC} {HARDENED} -D_GLIBCXX_USE_CXX11_ABI=0"),
    ],
)
def test_every_bad_call_is_refused(name, flags, tmp_path):
    """In one process, which a crash would end; ``make gpu-check`` gives each one of its own."""
    environment = {"CXX": compiler(name, flags), "RSK_CPU_FLAGS": "-O1"}
    environment["RSK_CACHE_DIR"] = str(tmp_path)
    code = "from rsk.check import bad_calls; bad_calls.main(['--together'])"
    done = warm.run(code, os.environ | environment)
    assert done.returncode == 0 and ", 0 not refused" in done.stdout, done


def test_the_library_has_no_part_in_streams_or_exceptions():
    build.load("cpu")
    library = build._library_path("cpu").read_bytes()
    assert b"aoti_torch_check" in library
    if b"libstdc++.so" not in library:
        pytest.skip("this compiler links libstdc++ statically, all of whose parts name the others")
    for symbol in (b"__cxa_throw\0", b"ios_base", b"basic_ostream", b"runtime_error"):
        assert symbol not in library, symbol


@pytest.mark.parametrize("differs", [False, True])
def test_the_declarations_are_those_of_pytorch(differs, tmp_path):
    include = Path(torch.__file__).parent / "include"
    header = (cuda_dir() / "binding.h").read_text()
    if differs:
        assert "int32_t aoti_torch_get_dim(" in header
        header = header.replace("int32_t aoti_torch_get_dim(", "int64_t aoti_torch_get_dim(")
    text = f"#include <torch/csrc/stable/c/shim.h>\n{header.replace('#pragma once', '')}"
    (tmp_path / "both.cpp").write_text(text)
    flags = ["-std=c++17", "-fsyntax-only", "-DUSE_CUDA"]
    command = [*build.find_compiler(), *flags, f"-I{include}", str(tmp_path / "both.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) is differs, done.stderr
    assert ("aoti_torch_get_dim" in done.stderr) is differs


# --- the emulator --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flags", "runner"),
    [
        ("g++", HARDENED, ""),
        ("g++-11", HARDENED, ""),
        ("clang++", HARDENED, ""),
        ("g++", "-DRSK_SWAPCONTEXT", ""),  # where the processor is unknown, or has a shadow stack
        ("aarch64-linux-gnu-g++", "-static -mbranch-protection=standard", "qemu-aarch64"),
    ],
)
def test_kernels_switch_stacks(name, flags, runner, tmp_path):
    """Every kernel, in a program of its own; all its shapes only where that costs little."""
    program = tmp_path / "program"
    command = [*shlex.split(compiler(name, "-O1 -std=c++17 -DRSK_CUDA", flags))]
    command += [f"-I{cuda_dir() / 'emulator'}", f"-I{cuda_dir()}"]
    command += [str(Path(__file__).parent / "memory_check.cpp"), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if runner and shutil.which(runner) is None:
        pytest.skip(f"it compiles, but there is no {runner} to run it")
    few = ["few"] if runner or "SWAPCONTEXT" in flags else []
    command = [*filter(None, [runner]), str(program), *few]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "checked" in done.stdout, done.stderr


KERNELS = """
import sys; sys.path[:0] = ["tests", "tests/sampler"]
import torch, rsk, test_sampler
from rsk.base.folders import cuda_dir
from rsk.sampler import emulator
for size in (9, 1500):
    test_sampler.both(test_sampler.random_batch(2, 2, size), seed=size, kernels=True)
text = (cuda_dir() / "block_per_sequence.cu").read_text(encoding="utf-8")
kernel = emulator.compile_kernel(text, "rsk::block_per_sequence::launch")
batch = test_sampler.random_batch(2, 2, 700)
assert kernel(*batch, seed=1).tokens.equal(rsk.rejection_sample(*batch, seed=1).tokens)
print(rsk.__file__)
"""


# --- paths ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_checkout(tmp_path_factory):
    """A checkout in a folder with a space, Chinese letters, an accent and a quotation mark."""
    top = tmp_path_factory.mktemp("odd") / ODD / "rsk"
    unwanted = shutil.ignore_patterns("__pycache__", "build", ".*", "tests")
    shutil.copytree(TOP, top, ignore=unwanted)
    (top / "tests").symlink_to(TOP / "tests")
    (top / "torch").symlink_to(Path(torch.__file__).parent)  # as in a .venv of this checkout
    return top


def test_a_hardened_compiler_and_a_checkout_and_a_cache_with_odd_names(odd_checkout):
    """Kernels on CPU tensors; the two at once, for each needs libraries of its own."""
    cache = odd_checkout.parent / "缓存 dir"
    flags = {"CXX": compiler("g++", HARDENED, STATIC), "RSK_CPU_FLAGS": "-O1"}
    flags["RSK_CACHE_DIR"] = str(cache)
    printed = run("-c", KERNELS, top=odd_checkout, **flags)
    assert ODD in printed and {x.suffix for x in cache.glob("*.so")} == {".so"}


def test_a_locale_that_knows_no_such_letters(tmp_path):
    """PyTorch writes such a path in the locale's encoding: Python's own, unless one insists."""
    flags = {"RSK_CPU_FLAGS": "-O0", "RSK_CACHE_DIR": str(tmp_path / ODD)}
    code = "import torch, rsk; print(rsk.sample(torch.ones(2, 3), seed=0, backend={!r}).sum())"
    assert "tensor" in run("-c", code.format("auto"), **flags, LC_ALL="C", PYTHONUTF8="0")
    assert not list(tmp_path.glob("*/*.so"))  # but a sampler is there
    assert "tensor" in run("-c", code.format("fused"), **flags, LC_ALL="C")
    assert list(tmp_path.glob("*/*.so"))


EXPORT = """
import sys
from pathlib import Path
import nbformat
from nbformat import v4
from rsk.export import export_report
notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# Title\\n\\nText and $x^2$.")])
notebook.metadata["kernelspec"] = {"display_name": "Python", "name": "python3"}
folder = Path(sys.argv[1])
folder.mkdir()
nbformat.write(notebook, folder / "08_report.ipynb")
print(*export_report(folder / "08_report.ipynb", folder / "out"))
"""


def test_a_report_in_an_odd_place(odd_checkout):
    folder = odd_checkout.parent / "报告 out"
    run("-c", EXPORT, folder, top=odd_checkout)
    assert (folder / "out/report.html").is_file() and (folder / "out/report.pdf").is_file()


# --- other Pythons -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_another_python(version, tmp_path):
    """Import, build and the sampler's tests.

    RSK_PYTHONS names interpreters, as PATH does folders, that have PyTorch and pytest.
    """
    given = os.environ.get("RSK_PYTHONS", "").split(os.pathsep)
    for python in filter(None, [*given, shutil.which(f"python{version}")]):
        code = "import sys, torch, pytest, hypothesis, rsk; print(*sys.version_info[:2], sep='.')"
        done = subprocess.run(
            [python, "-c", code], cwd=TOP, capture_output=True, text=True, check=False
        )
        if (
            done.stdout.strip() == version
            and Path(python).resolve() != Path(sys.executable).resolve()
        ):
            tests = ["test_sampler.py", "test_random_words.py", "test_build.py", "test_logits.py"]
            tests = [f"tests/sampler/{name}" for name in tests]
            options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not alone"]
            run("-m", "pytest", *options, *tests, python=python, RSK_CACHE_DIR=str(tmp_path))
            return
    pytest.skip(f"no other Python {version} with PyTorch and pytest here")
