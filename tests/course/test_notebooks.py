"""The notebooks: their form, and that each runs, with its exercises solved and unsolved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("papermill")
import nbformat
from exercises import exercises, read, tags, wrong_answer
from nbformat import NotebookNode
from rich.console import Console

from rsk.base import folders
from rsk.course import running
from rsk.course.jupyter_kernel import Kernel, started
from rsk.course.parameters import declared_parameters

if TYPE_CHECKING:
    from conftest import WholeCourse

NOTEBOOKS = sorted(folders.notebooks_dir().glob("[0-9][0-9]_*.ipynb"))
LESSONS = [path for path in NOTEBOOKS if path.name != running.REPORT]
PARAMETERS = {"language", "quick", "device", "seed", "batch_sizes", "spec_lens", "vocab_size"}
TINY = {"quick": True, "seed": 1, "batch_sizes": [1, 2], "spec_lens": [2, 1], "vocab_size": 1009}
RHYTHM = ["Goal", "Predict", "Code", "Check", "Measure", "Explain", "Exercise", "The ladder"]
CHECKED_LATER = ["Goal", "Predict", "Code", "Measure", "Check", *RHYTHM[5:]]
SEVERAL_STEPS = "04_cuda_kernel"
"""Goes through the rhythm once for each kernel."""
UNSOLVED, SOLVED = "not solved yet", ": solved."


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


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


def printed(cell: NotebookNode) -> str:
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


@named(LESSONS)
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_its_solutions_pass_its_checks(path: Path, whole_course: WholeCourse) -> None:
    """And what is wrong does not, nor what was left as it is."""
    notebook = read(path)
    executed = read(whole_course.folder / "notebooks" / path.name)
    by_id = {cell.id: i for i, cell in enumerate(executed.cells)}
    for skeleton, check, _ in exercises(notebook):
        start = by_id[notebook.cells[check].id]
        assert UNSOLVED in printed(executed.cells[start])
        following = executed.cells[start + 1 :]
        if wrong_answer(notebook.cells[skeleton].source):
            assert printed(following[1]).startswith("refused")
            following = following[2:]
        assert SOLVED in printed(following[1])


@pytest.mark.slow
def test_what_takes_sizes_runs_with_others(tmp_path: Path) -> None:
    """And so does the report on what was measured with them; chapter 07 takes no sizes.

    The demo runs with others in test_plain_papermill_runs_a_notebook_from_any_folder.
    """
    declared = {path.stem: declared_parameters(read(path), path.name) for path in NOTEBOOKS}
    demo, *chosen = [name for name, its in declared.items() if "batch_sizes" in its]
    assert demo == "00_quick_demo" and len(chosen) == len(NOTEBOOKS) - 3
    only = [*chosen, Path(running.REPORT).stem]
    running.run_course(TINY, only=only, output=tmp_path, export=False, console=Console(quiet=True))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One for several notebooks."""
    with started(tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel


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
    parameters: dict[str, Any], message: str, tmp_path: Path, kernel: Kernel
) -> None:
    with pytest.raises(running.CourseError, match=message):
        running.run_notebook(NOTEBOOKS[0], tmp_path, parameters, kernel=kernel)
