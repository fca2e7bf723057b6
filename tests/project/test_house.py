"""Rules of the repository: its layout, what its notebooks look like, which way imports point."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import nbformat
import pytest

from rsk.base import folders
from rsk.course import running
from rsk.course.parameters import declared_parameters

TOP = folders.checkout()
pytestmark = pytest.mark.skipif(TOP is None, reason="needs the source checkout")

NOTEBOOKS = [
    "00_quick_demo",
    "01_problem",
    "02_baseline",
    "03_vectorized",
    "04_cuda_kernel",
    "05_from_logits",
    "06_benchmarks",
    "07_real_llm",
    "08_report",
]
LAYOUT = {
    *("notebooks", "rsk", "cuda", "data", "report", "tests", ".ci", "environment.yml", "README.md"),
    *(
        "README.zh-TW.md",
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
        ".gitignore",
    ),
}
COMMON_PARAMETERS = {
    "quick": bool,
    "device": str,
    "seed": int,
    "batch_sizes": list,
    "spec_lens": list,
    "vocab_size": int,
}


@cache
def committed() -> list[Path]:
    """Files that are committed or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [TOP / name for name in done.stdout.split("\0") if name and (TOP / name).is_file()]


def texts():
    for path in committed():
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


# --- layout


def test_the_top_level_is_as_agreed():
    assert {path.relative_to(TOP).parts[0] for path in committed()} == LAYOUT


def test_nothing_built_or_borrowed_is_committed():
    borrowed = {".js", ".mjs", ".map", ".woff", ".woff2", ".ttf", ".otf", ".eot"}
    built = {".so", ".o", ".pyc", ".pyd", ".dylib", ".dll", ".whl", ".egg", ".pt", ".bin", ".pkl"}
    own = {"report/style/rule.js"}  # the figure that can be tried
    names = {str(path.relative_to(TOP)) for path in committed()} - own
    assert not [name for name in names if Path(name).suffix.lower() in borrowed | built]
    assert not [name for name in names if ".egg-info/" in name or "__pycache__" in name]


def test_no_file_names_a_machine():
    # Written in two halves, so that this file does not name them either.
    home = re.compile(r"(?<![\w.~-])/" + r"(?:root|home|Users|work|tmp|mnt)/\w")
    hosts = ["pypi" + ".org", "python" + "hosted", "registry" + ".npmjs", "deb" + ".debian.org"]
    name = socket.gethostname()
    if len(name) > 5 and name != "localhost":
        hosts.append(name)
    quoted = {"prompts.json", "tokenizer.json"}  # the text of others
    for path, text in texts():
        if path.name in quoted:
            continue
        where = path.relative_to(TOP)
        found = home.search(text)
        assert not found, f"{where} holds an absolute path: {found.group()}"
        assert not [host for host in hosts if host in text], f"{where} names a host"


# --- notebooks


def notebook(name):
    return nbformat.read(TOP / "notebooks" / f"{name}.ipynb", as_version=4)


def code_cells(name):
    return [cell for cell in notebook(name).cells if cell.cell_type == "code"]


def test_the_notebooks_are_all_there():
    assert [path.stem for path in running.notebooks()] == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_sources_hold_no_outputs(name):
    nbformat.validate(notebook(name))
    for cell in code_cells(name):
        assert cell.outputs == []
        assert cell.execution_count is None
    for cell in notebook(name).cells:
        assert set(cell.metadata) <= {"tags", "jupyter"}, cell.metadata
        assert cell.metadata.get("jupyter", {}) in ({}, {"source_hidden": True})
    assert set(notebook(name).metadata) <= {"kernelspec", "language_info"}
    assert notebook(name).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_parameters_come_first_and_have_the_common_names(name):
    assert code_cells(name)[0].metadata.get("tags") == ["parameters"]
    parameters = declared_parameters(notebook(name), name)
    assert parameters["quick"] is True
    for parameter, value in parameters.items():
        if parameter in COMMON_PARAMETERS and value is not None:
            assert type(value) is COMMON_PARAMETERS[parameter], parameter


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_neither_exit_nor_shell_out(name):
    for cell in code_cells(name):
        assert "raises-exception" not in cell.metadata.get("tags", [])  # papermill fails on it
        assert not re.search(r"^\s*[!%]|sys\.exit|\bquit\(|\bexit\(", cell.source, re.M), (
            cell.source
        )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_hold_calls_and_no_classes(name):
    for cell in code_cells(name):
        defined = [
            node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.ClassDef)
        ]
        assert not defined, (
            f"{name} defines {defined[0].name}: move it to rsk/, where a test reaches it"
        )


# --- imports


@cache
def imports() -> dict[str, set[str]]:
    """Module of the package to the modules of the package that it imports, anywhere in it."""
    package = TOP / "rsk"
    paths = {
        path: ".".join(path.relative_to(TOP).with_suffix("").parts)
        for path in package.rglob("*.py")
    }
    names = {path: name.removesuffix(".__init__") for path, name in paths.items()}
    modules = set(names.values())
    graph = {}
    for path, name in names.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: imports are absolute"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.add(whole if whole in modules else str(node.module))
        graph[name] = (found & modules) - {"rsk", name}
    return graph


def reachable(name):
    seen, queue = set(), [name]
    while queue:
        for other in imports()[queue.pop()] - seen:
            seen.add(other)
            queue.append(other)
    return seen


def test_no_import_cycles():
    assert not [name for name in imports() if name in reachable(name)]


ROOMS = {
    "base": ("excerpt folders fonts machine numbers programs templates terminal"),
    "sampler": (
        "api arguments baseline baseline_logits build cache channel compilers "
        "distributions emulator fused "
        "headers idiomatic implementations kernels logits random_words registry row_law sharded "
        "sharded_call sharded_kernels slice_laws slices triton_kernels vectorized "
        "vectorized_logits"
    ),
    "check": (
        "agreement bad_calls calls cases decoding decoding_mutants grid logit_cases "
        "logit_mutants logit_recipes logits_grid lossless mutants recipes reproducible "
        "right_sampler sequential_test sharded shrink specimen synthetic verdict well_formed"
    ),
    "measure": (
        "agreement benchmark clocks comparison ideas implementations latency logit_inputs "
        "logits_benchmark model_step operators over_runs peer_records peers peers.checking "
        "peers.of_flashinfer peers.of_sglang peers.of_transformers peers.of_vllm_v1 "
        "peers.of_vllm_v2 peers.peer peers.traits provenance publishable_runs quoted "
        "record_files records resources "
        "result_tables roof run_files samples session sharded sharded_clocks sharded_point "
        "sharded_rank sharded_records step_models sweep timing whole_runs workload"
    ),
    "decode": (
        "arguments command_line custom_generate decoding_speeds distilled_draft drafting errors "
        "fetching generation greedy_check kv_cache lean_llama loading loop packing prompt_lookup "
        "sampling speculation_length speed step_counts study trials"
    ),
    "figures": (
        "benchmarks checks curves decoding device_times from_logits lessons memory_access "
        "plotting record_tables slides tables"
    ),
    "course": (
        "beginning demo exercise frames from_logits in_flight jupyter_kernel "
        "kernel_records labels ladder lesson own_kernels parameters prediction progress publish "
        "race python_kernels python_kernels.block_per_sequence python_kernels.call "
        "python_kernels.cluster python_kernels.gpu python_kernels.loads_in_flight "
        "python_kernels.piece python_kernels.selection python_kernels.split_vocabulary "
        "python_kernels.thread_per_sequence python_kernels.tile python_kernels.warp results "
        "running several_ranks tried_ideas"
    ),
    "report": (
        "chapters computed_here logit_times measurements published rival_times runs sharded_times "
        "step_shares talk values"
    ),
    "export": (
        "document formula html markdown navigation notebook pandoc pdf references slides talk"
    ),
}
"""Each room's modules. Imports point from a room to those before it; the last uses base alone."""
LINE = list(ROOMS)[:-1]
DOORS = {"rsk", "rsk.__main__", "rsk.cli", "rsk.doctor", "rsk.gpu_check", "rsk.options"}
LONGEST = 400


def test_the_map_of_the_rooms_is_the_house():
    text = (TOP / "rsk" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE) == list(ROOMS)
    assert len(text[text.index("## Words") :].splitlines()) <= 30, "a glossary is short"


def room_of(name):
    return name.split(".")[1]


def test_every_module_has_its_room():
    expected = DOORS | {f"rsk.{room}" for room in ROOMS}
    for room, modules in ROOMS.items():
        expected |= {f"rsk.{room}.{name}" for name in modules.split()}
    expected |= {
        name for name in imports() if name.endswith(".__main__") and room_of(name) in ROOMS
    }
    assert set(imports()) == expected


@pytest.mark.parametrize("name", sorted(set(imports()) - DOORS) if TOP else [])
def test_imports_point_one_way(name):
    room = room_of(name)
    for other in imports()[name]:
        assert other not in DOORS, f"{name} imports {other}, which is above all rooms"
        there = room_of(other)
        if there == room:
            continue
        if room == "export":
            assert there == "base", f"{name} imports {other}: export uses base alone"
        elif there == "export":
            assert room in ("course", "report"), f"{name} imports {other}"
        else:
            assert LINE.index(there) < LINE.index(room), f"{name} imports {other}, to its right"


def test_no_module_is_long():
    for name in imports():
        path = TOP.joinpath(*name.split("."))
        file = (
            path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        )
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert lines <= LONGEST, f"{name} has {lines} lines"


def test_base_needs_no_pytorch():
    code = "import sys, importlib\n" + "".join(
        f"importlib.import_module('rsk.base.{name}')\n" for name in ROOMS["base"].split()
    )
    # rsk/__init__.py itself imports the sampler, so the package is an empty one here.
    head = f"import types, sys; m = types.ModuleType('rsk'); m.__path__ = [{str(TOP / 'rsk')!r}]\n"
    code = head + "sys.modules['rsk'] = m\n" + code + "assert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.alone
@pytest.mark.slow
def test_importing_the_package_is_cheap():
    code = (
        "import sys, time, torch; start = time.perf_counter(); import rsk; "
        "print(time.perf_counter() - start); "
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    times = []
    for _ in range(3):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=True)
        seconds, modules = done.stdout.splitlines()
        times.append(float(seconds))
        if times[-1] <= 0.3:
            break
    heavy = {"pandas", "matplotlib", "seaborn", "transformers", "papermill", "nbformat", "IPython"}
    heavy |= {"scipy", "typer", "rich", "yaml", "nbconvert"}
    assert not heavy & set(modules.split())
    assert min(times) <= 0.3, f"import rsk took {min(times):.2f} s beyond torch"


def test_tests_that_share_something_slow_stay_in_one_process(request):
    """pytest-xdist writes the group behind a test's name, and sends a group to one process."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("no tests run side by side")
    assert "@" in request.node.nodeid
