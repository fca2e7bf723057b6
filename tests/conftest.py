"""What every test starts from: no run folder from outside, no labels, and a fixed seed."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import setuptools  # noqa: F401  torch.compile imports it late, and with distutils it can fail then
import torch

from rsk.base import machine, programs
from rsk.course import labels

# Before any test imports nbformat: with this package, jsonschema spends seconds on a grammar for
# addresses in other scripts, which no notebook of ours holds.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


class WholeCourse(NamedTuple):
    """A run of all notebooks: its folder, its parts, and what it printed."""

    folder: Path
    parts: list[str]
    printed: str


COURSE = "course"
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
"""How many processes share the tests (``pytest -n``); 0 if it is this one alone."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--alone``: what the processes of ``pytest -n`` leave out."""
    parser.addoption("--alone", action="store_true", help="only the tests marked alone")


def pytest_configure() -> None:
    """Give each of several processes, and those that it starts, its share of the cores."""
    programs.interruptible()
    if WORKERS:
        threads = max(1, (os.cpu_count() or 1) // WORKERS)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--alone``, do not even import the files without such a test."""
    if not config.getoption("--alone") or collection_path.suffix != ".py":
        return None
    return "mark.alone" not in collection_path.read_text(encoding="utf-8") or None


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has to run alone, or all else; group what shares what is slow to make."""
    if WORKERS or config.getoption("--alone"):
        alone = [item for item in items if item.get_closest_marker("alone")]
        others = [item for item in items if not item.get_closest_marker("alone")]
        items[:], left_out = (others, alone) if WORKERS else (alone, others)
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))
        if WORKERS:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    if WORKERS:  # what takes longest first: last, it would leave the other processes idle
        slow = Counter(_group(item) for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[_group(item)])
    items.sort(key=lambda item: _group(item) != COURSE)


def _group(item: pytest.Item) -> str:
    """What one process does: the tests of a file, or those that share the run of the course."""
    return COURSE if "whole_course" in getattr(item, "fixturenames", ()) else item.path.name


@pytest.fixture(autouse=True)
def _clean_slate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RSK_RUN_DIR", raising=False)
    monkeypatch.delenv("RSK_DEBUG", raising=False)
    labels.reset()  # as in a new kernel
    torch.manual_seed(0)
    if torch.are_deterministic_algorithms_enabled():  # which a test may have left on
        torch.use_deterministic_algorithms(False)
    folder = Path.cwd()
    yield
    os.chdir(folder)  # which a command called in this process may have left


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only lose by sharing their work."""
    with machine.pinned_threads(1):
        yield


@pytest.fixture(scope="session")
def whole_course(tmp_path_factory: pytest.TempPathFactory) -> WholeCourse:
    """The course, run once for all tests from an empty folder, and exported to ``run`` in it.

    Its exercises are attempted.
    """
    from exercises import with_attempts
    from rich.console import Console

    from rsk.course import running

    sources = tmp_path_factory.mktemp("notebooks")
    for path in running.notebooks():
        with_attempts(path, sources)
    folder = tmp_path_factory.mktemp("course")
    console = Console(file=io.StringIO(), width=100)
    with contextlib.chdir(folder):
        parts = running.run_course(sources=sources, output=folder / "run", console=console)
    return WholeCourse(folder / "run", [part.name for part in parts], console.file.getvalue())


@pytest.fixture
def write_notebook(tmp_path: Path) -> Callable[..., Path]:
    """Write a small notebook: a cell tagged ``parameters``, then the given code cells."""

    def write(name: str, *cells: str, parameters: str = "quick = True") -> Path:
        import nbformat
        from nbformat import v4

        first = v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        notebook = v4.new_notebook(cells=[first, *map(v4.new_code_cell, cells)])
        notebook.metadata["kernelspec"] = {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
        path = tmp_path / "sources" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return write
