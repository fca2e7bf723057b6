"""The exercises of a notebook, and copies of the notebook in which they are attempted."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode, v4

SOLUTION = re.compile(r"<details>\s*<summary>[^<]*[Ss]olution.*?```python\n(.*?)```", re.DOTALL)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def exercises(notebook: NotebookNode) -> list[tuple[int, int, str]]:
    """For each exercise the indices of its skeleton and its check, and the solution's code."""
    found = []
    for i, cell in enumerate(notebook.cells):
        if "exercise" not in tags(cell):
            continue
        later = list(enumerate(notebook.cells))[i + 1 :]
        check = next(j for j, other in later if "exercise-check" in tags(other))
        (solution,) = SOLUTION.findall(
            next(c.source for _, c in later if c.cell_type == "markdown")
        )
        found.append((i, check, solution))
    return found


def with_attempts(path: Path, folder: Path) -> Path:
    """A copy in which each exercise is tried again: with a wrong answer, then with the solution.

    After that its skeleton is there again, so that what follows runs as if nobody had tried.
    """
    notebook = read(path)
    for skeleton, check, solution in reversed(exercises(notebook)):
        source = notebook.cells[check].source
        attempts = [solution, source, notebook.cells[skeleton].source]
        if wrong := wrong_answer(notebook.cells[skeleton].source):
            attempts = [wrong, expecting_refusal(source), *attempts]
        notebook.cells[check + 1 : check + 1] = map(v4.new_code_cell, attempts)
    copy = folder / path.name
    nbformat.write(notebook, copy)
    return copy


def wrong_answer(skeleton: str) -> str:
    """The skeleton with functions that return nothing at all; empty if it has no function."""
    tree = ast.parse(skeleton)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        function.body = [ast.Return(ast.Constant(None))]
    return ast.unparse(ast.fix_missing_locations(tree)) if functions else ""


def expecting_refusal(check: str) -> str:
    return (
        f"try:\n    exec({check!r})\n"
        "except Exception as error:\n    print('refused', type(error).__name__)\n"
        "else:\n    raise RuntimeError('the check accepts a wrong answer')"
    )
