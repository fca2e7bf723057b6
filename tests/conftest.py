"""What every test starts from: no run folder from outside and a fixed seed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from rsk.base import machine


class WholeCourse(NamedTuple):
    """A run of all notebooks: its folder, its parts, and what it printed."""

    folder: Path
    parts: list[str]
    printed: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is no GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _clean_slate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RSK_RUN_DIR", raising=False)
    monkeypatch.delenv("RSK_DEBUG", raising=False)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models this small only lose by sharing their work."""
    with machine.pinned_threads(1):
        yield


@pytest.fixture(scope="session")
def whole_course(tmp_path_factory: pytest.TempPathFactory) -> WholeCourse:
    """The course, run once for all tests from an empty folder, and exported to ``run`` in it."""
    from rich.console import Console

    from rsk.course import running

    folder = tmp_path_factory.mktemp("course")
    console = Console(file=io.StringIO(), width=100)
    with contextlib.chdir(folder):
        parts = running.run_course(output=folder / "run", console=console)
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
