"""The notebooks: their form, and that each runs, with its exercises solved and unsolved."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("papermill")
import nbformat
from nbformat import NotebookNode, v4

from rsk.base import folders
from rsk.course import running
from rsk.course.parameters import declared_parameters

NOTEBOOKS = sorted(folders.notebooks_dir().glob("[0-9][0-9]_*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.name != running.REPORT]
PARAMETERS = {"language", "quick", "device", "seed", "batch_sizes", "spec_lens", "vocab_size"}
TINY = {"quick": True, "seed": 1, "batch_sizes": [1, 2], "spec_lens": [2, 1], "vocab_size": 1009}
RHYTHM = ["Goal", "Predict", "Code", "Check", "Measure", "Explain", "Exercise", "The ladder"]
CHECKED_LATER = ["Goal", "Predict", "Code", "Measure", "Check", *RHYTHM[5:]]
SEVERAL_STEPS = "04_cuda_kernel"
"""Goes through the rhythm once for each kernel."""
SOLUTION = re.compile(r"<details>\s*<summary>[^<]*[Ss]olution.*?```python\n(.*?)```", re.DOTALL)
UNSOLVED, SOLVED = "not solved yet", ": solved."


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


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


# --- form -------------------------------------------------------------------------------------


@named(NOTEBOOKS)
def test_sources_are_clean(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@named(NOTEBOOKS)
def test_the_first_code_cell_holds_known_parameters(path: Path) -> None:
    notebook = read(path)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "parameters" in tags(first)
    declared = declared_parameters(notebook, path.name)
    assert {"quick", "device", "seed"} <= set(declared) <= PARAMETERS
    assert (declared["quick"], declared["device"], declared["seed"]) == (True, "auto", 0)


@named(LESSONS)
def test_a_lesson_has_the_rhythm(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    headings = re.findall(r"^## +(.*)$", text, re.MULTILINE)
    assert (headings[0], headings[-1]) == ("Goal", "The ladder")
    if path.stem == SEVERAL_STEPS:
        assert sum(heading.startswith("Step ") for heading in headings) > 1
        return
    found = [word for heading in headings for word in RHYTHM if heading.startswith(word)]
    assert list(dict.fromkeys(found)) in (RHYTHM, CHECKED_LATER), headings


@named(LESSONS)
def test_a_lesson_predicts_and_ends_on_the_ladder(path: Path) -> None:
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    assert "lesson.begin(" in "\n".join(code[:3])
    assert any("lesson.predict(" in source for source in code)
    assert any(".compare(" in source for source in code)
    assert "lesson.ladder_row(" in code[-1] or "lesson.show_ladder(" in code[-1]


@named(LESSONS)
def test_a_lesson_has_exercises_with_solutions(path: Path) -> None:
    assert exercises(read(path))


# --- running ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, so that later notebooks find what earlier ones hand on."""
    return tmp_path_factory.mktemp("run")


def with_attempts(path: Path, folder: Path) -> Path:
    """A copy in which each exercise is tried again: with a wrong answer, then with the solution."""
    notebook = read(path)
    for skeleton, check, solution in reversed(exercises(notebook)):
        source = notebook.cells[check].source
        attempts = [solution, source]
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


def printed(cell: NotebookNode) -> str:
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


@named(NOTEBOOKS)
@pytest.mark.slow
def test_runs_and_its_solutions_pass_its_checks(
    path: Path, run_folder: Path, tmp_path: Path
) -> None:
    notebook = read(path)
    declared = declared_parameters(notebook, path.name)
    tiny = {name: value for name, value in TINY.items() if name in declared}
    executed = read(running.run_notebook(with_attempts(path, tmp_path), run_folder, tiny))

    by_id = {cell.id: i for i, cell in enumerate(executed.cells)}
    for skeleton, check, _ in exercises(notebook):
        start = by_id[notebook.cells[check].id]
        assert UNSOLVED in printed(executed.cells[start])
        following = executed.cells[start + 1 :]
        if wrong_answer(notebook.cells[skeleton].source):
            assert printed(following[1]).startswith("refused")
            following = following[2:]
        assert SOLVED in printed(following[1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batchsizes": [1]}, r"no notebook has a parameter 'batchsizes'[\s\S]*batch_sizes"),
        (
            {"batch_sizes": "1,4"},
            r"batch_sizes: expected a list .* papermill reads .* -y",
        ),
        ({"batch_sizes": []}, r"batch_sizes: expected a list of at least one value"),
        ({"seed": 1.5}, r"seed of this notebook must be an integer"),
    ],
)
@pytest.mark.slow
def test_plain_papermill_refuses_a_wrong_parameter(
    parameters: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(running.CourseError, match=message):
        running.run_notebook(NOTEBOOKS[0], tmp_path, parameters)
