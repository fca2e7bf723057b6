"""The package: what it declares, what is pinned, and the wheel in an environment of its own."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rsk.base import folders

TOP = folders.checkout()
pytestmark = pytest.mark.skipif(TOP is None, reason="needs the source checkout")

PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"] if TOP else {}
EXTRAS = PROJECT.get("optional-dependencies", {})


def declared(*extras):
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in found if r.name != "rsk"}


def pins():
    lines = (TOP / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


# --- pyproject.toml and environment.yml


def test_version_is_the_same_everywhere():
    import rsk

    citation = yaml.safe_load((TOP / "CITATION.cff").read_text())
    assert rsk.__version__ == PROJECT["version"] == citation["version"]
    assert PROJECT["license"] == citation["license"] == "MIT"


def test_every_dependency_says_why_it_is_there():
    text = (TOP / "pyproject.toml").read_text()
    for line in [*PROJECT["dependencies"], *EXTRAS["course"], *EXTRAS["models"], *EXTRAS["dev"]]:
        if not line.startswith("rsk["):
            assert re.search(rf'^    "{re.escape(line)}", +# \S', text, re.M), line


def test_conda_environment_is_in_step_with_pyproject():
    environment = yaml.safe_load((TOP / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip[-1] == "--editable ."
    found = {}
    for entry in [*conda, *pip[:-1]]:
        requirement = Requirement(entry)
        name = canonicalize_name(requirement.name)
        found["torch" if name == "pytorch" else name] = str(requirement.specifier)
    python = found.pop("python")
    assert python == PROJECT["requires-python"]
    del found["pip"], found["cxx-compiler"]
    assert found == {name: str(r.specifier) for name, r in declared("course").items()}


PEERS = {
    "flashinfer",
    "vllm",
    "sgl_kernel",
    "sglang",
    "triton",
}  # used when they happen to be there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "extras"), [("rsk", ["course"]), ("notebooks", ["course"]), ("tests", ["dev"])]
)
def test_what_is_imported_is_declared(folder, extras):
    names = set()
    for path in (TOP / folder).rglob("*.py"):
        names |= imported(path.read_text(encoding="utf-8"))
    for path in (TOP / folder).glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                names |= imported(cell.source)
    ours = {"rsk", *(path.stem for path in (TOP / folder).rglob("*.py"))}
    names -= ours | PEERS | set(sys.stdlib_module_names)
    where = metadata.packages_distributions()
    allowed = set(declared("course", *extras))
    undeclared = {
        name
        for name in names
        if not allowed & {canonicalize_name(d) for d in where.get(name, [name])}
    }
    assert not undeclared, f"{folder}/ imports {sorted(undeclared)}: add it to pyproject.toml"


def imported(source):
    """Top-level names of the modules that a source imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found


# --- constraints.txt


def test_constraints_are_exact_versions_and_nothing_else():
    for pin in pins():
        assert pin.url is None, f"{pin}: a constraint names no address"
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{pin}: not one exact version"
        assert "+" not in specifier.version, f"{pin}: a local version is one machine's"
        assert "*" not in specifier.version
    assert ("torch", "2.13.0") in {(p.name, next(iter(p.specifier)).version) for p in pins()}


def test_constraints_fit_the_declared_requirements():
    for name, requirement in declared("course", "models", "dev").items():
        found = [pin for pin in pins() if canonicalize_name(pin.name) == name]
        assert found, f"{name} is not in constraints.txt"
        for pin in found:
            (specifier,) = pin.specifier
            assert requirement.specifier.contains(specifier.version), f"{pin} breaks {requirement}"


def test_constraints_pin_every_dependency_of_this_environment():
    pinned = {canonicalize_name(p.name) for p in pins() if p.marker is None or p.marker.evaluate()}
    seen = needed("course", "models", "dev")
    assert len(seen) > 100  # the walk went somewhere
    assert not seen - pinned, f"not in constraints.txt: {sorted(seen - pinned)}"


def needed(*extras):
    """All that the package needs: a walk through the metadata of what is installed."""
    environment = {**default_environment(), "extra": ""}
    queue = list(declared(*extras).values())
    seen = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        for line in metadata.requires(name) or []:
            child = Requirement(line)
            extras = ["", *requirement.extras]
            if child.marker is None or any(
                child.marker.evaluate({**environment, "extra": extra}) for extra in extras
            ):
                queue.append(child)
    return {name for name, *_ in seen}


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--quiet", "--wheel-dir", str(folder), str(TOP)], check=True)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"rsk", f"rsk-{PROJECT['version']}.dist-info"}
    for folder, room in (("cuda", "_cuda"), ("notebooks", "_notebooks"), ("data", "_data")):
        for path in (TOP / folder).rglob("*.*"):
            parts = path.relative_to(TOP / folder).parts
            if path.is_file() and not any(part.startswith((".", "__")) for part in parts):
                assert "/".join(("rsk", room, *parts)) in names
    assert "rsk/_cuda/specification.h" in names
    notebooks = len(list((TOP / "notebooks").glob("*.ipynb")))
    assert sum(name.endswith(".ipynb") for name in names) == notebooks
    assert {"rsk/_report/style/report.typ", "rsk/_report/en/talk.md"} <= set(names)
    assert not [name for name in names if name.startswith("rsk/_report/build")]
    assert not [name for name in names if re.fullmatch(r"rsk/_report/[^/]+", name)], "no copies"
    assert not [name for name in names if re.search(r"__pycache__|\.(so|o|lock)$|/tests?/", name)]


SAMPLE = """
import torch, rsk
from pathlib import Path
from rsk.base import folders
from rsk.check.synthetic import make_batch
assert folders.checkout() is None, folders.checkout()
assert Path(rsk.__file__).parent in folders.notebooks_dir().parents
assert len(list(folders.notebooks_dir().glob("*.ipynb"))) == 9
batch = make_batch(4, 3, 1000)
fused = rsk.rejection_sample(*batch, seed=1, backend="fused")
baseline = rsk.rejection_sample(*batch, seed=1, backend="baseline")
assert torch.equal(fused.tokens, baseline.tokens)
assert torch.equal(fused.num_accepted, baseline.num_accepted)
print("fused agrees:", fused.num_accepted.tolist())
"""


@pytest.fixture
def environment_of_dependencies(tmp_path):
    """One that has what the package needs, linked from here, and nothing else."""
    folder = tmp_path / "environment"
    venv.create(folder)
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    for name in needed():
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():  # of a namespace that several share
                (packages / top).symlink_to(distribution.locate_file(top))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_installs_and_samples_with_what_it_declares(
    wheel, environment_of_dependencies, tmp_path
):
    folder = environment_of_dependencies
    bin_dir = folder / ("Scripts" if os.name == "nt" else "bin")
    python = str(bin_dir / "python")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment["RSK_CACHE_DIR"] = str(tmp_path / "cache")  # nothing compiled before
    environment["RSK_CPU_FLAGS"] = "-O1"

    def run(*command, status=0):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    install = ("install", "--quiet", "--disable-pip-version-check", "--no-index")
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, *install, "--constraint", str(TOP / "constraints.txt"), str(wheel))
    assert "fused agrees: [" in run(python, "-c", SAMPLE)

    rsk = str(bin_dir / "rsk")
    findings = " ".join(run(rsk, "doctor").split())
    assert re.search(r"warning extra 'course' missing: .*papermill", findings)
    demo = run(rsk, "demo", "--batch-sizes", "1,2", "--vocab-size", "1000", "--device", "cpu")
    assert "baseline, vectorized and fused return the same tokens" in " ".join(demo.split())
    message = run(rsk, "report", status=1)
    assert "pip install 'rsk[course]'" in message
    assert "Traceback" not in message
