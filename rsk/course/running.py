"""Running the course: every notebook in order through papermill, then the export.

Nothing heavy is imported at the top, because the notebooks and the publishing helper ask this
module for the run's folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsk.base import folders, machine
from rsk.course.jupyter_kernel import RUN_DIR_VARIABLE, START_S, Kernel, register_engine, started
from rsk.course.parameters import declared_parameters, match_parameters
from rsk.course.progress import Progress, Stage
from rsk.export.document import MIME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

REPORT = "08_report.ipynb"
"""The notebook that the report is made from; it is the last one."""

_TRACEBACK_LINES = 16


class CourseError(RuntimeError):
    """A notebook could not be run. The message names the notebook, the cell and the reason."""


def run_dir() -> Path:
    """The folder of this run's output: executed notebooks, results, the report.

    ``$RSK_RUN_DIR`` if it is set, else ``report/build`` in a checkout, else ``./rsk-run``.
    The folder need not exist yet.
    """
    chosen = os.environ.get(RUN_DIR_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().resolve()
    top = folders.checkout()
    return Path.cwd() / "rsk-run" if top is None else top / "report" / "build"


def notebooks(only: Iterable[str] = (), folder: Path | None = None) -> list[Path]:
    """The course's notebooks in order.

    Args:
        only: names or the beginnings of names (``"06"``, ``"06_benchmarks"``); none means all.
        folder: where to look; by default the course's own notebooks.

    Raises:
        ValueError: a name in ``only`` belongs to no notebook.
    """
    folder = folders.notebooks_dir() if folder is None else folder
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not every:
        raise ValueError(f"no notebook (NN_name.ipynb) in {folder}")
    chosen = set()
    for name in only:
        found = [path for path in every if name and path.stem.startswith(name)]
        if not found:
            known = ", ".join(path.stem for path in every)
            raise ValueError(f"no notebook is called {name!r}; there are {known}")
        chosen.update(found)
    return [path for path in every if path in chosen] if chosen else every


# --- one notebook -----------------------------------------------------------------------------


def run_notebook(
    source: Path,
    folder: Path,
    parameters: Mapping[str, Any] | None = None,
    on_cell: Callable[[int, int], None] | None = None,
    kernel: Kernel | None = None,
) -> Path:
    """Run one notebook and keep the executed copy, whether it succeeds or not.

    Args:
        source: the notebook.
        folder: the run's folder; the copy goes to ``folder/notebooks``.
        parameters: values that replace those of the cell tagged ``parameters``.
        on_cell: called before each code cell with its number, from 1, and the number of cells.
        kernel: what it runs in; one of its own by default.

    Returns:
        The executed copy.

    Raises:
        CourseError: a cell raised an exception or the kernel died.
        KeyboardInterrupt: the copy of an earlier run stays.
    """
    import logging

    import nbformat
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    logging.getLogger("papermill").addHandler(logging.NullHandler())  # errors are raised, once
    target = folder.resolve() / "notebooks" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"unfinished_{source.name}")
    cells = nbformat.read(source, as_version=4).cells
    total = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells)
    total += bool(parameters)  # papermill adds a cell for them
    begun = 0

    def count(**_: Any) -> None:
        nonlocal begun
        begun += 1
        if on_cell is not None:
            on_cell(begun, total)

    own = ExitStack()
    kernel = own.enter_context(started(folder)) if kernel is None else kernel
    try:
        kernel.clear()
        papermill.execute_notebook(
            str(source.resolve()),
            str(unfinished),
            engine_name=register_engine(),
            parameters=dict(parameters or {}),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=str(target.parent),
            start_timeout=START_S,
            on_cell_execute=count,
            km=kernel.manager,
        )
    except papermill.PapermillExecutionError as error:
        reason = error.ename + (f": {error.evalue}" if error.evalue else "")
        detail = _short_traceback(error.traceback)
        raise CourseError(
            f"{source.name}: cell {error.exec_count or begun} of {total} failed\n"
            f"{detail or reason}\nThe notebook up to there: {target}"
        ) from error
    except (DeadKernelError, CellTimeoutError, RuntimeError) as error:
        raise CourseError(
            f"{source.name}: {kernel.death(error)} in cell {begun} of {total}\n"
            f"The notebook up to there: {target}"
        ) from error
    except KeyboardInterrupt:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        own.close()
        if unfinished.exists():
            unfinished.replace(target)
    return target


def undone(executed: Path) -> list[str]:
    """What an executed notebook could not do, as :func:`rsk.course.publish.undone` noted it."""
    published = [output.get("data", {}).get(MIME, {}) for output in _outputs(executed)]
    return list(dict.fromkeys(content["undone"] for content in published if "undone" in content))


def strange_lines(executed: Path) -> list[str]:
    """Lines on standard error in an executed notebook that rsk itself did not write there.

    Such as a library's warnings: a reader can do nothing about them.
    """
    texts = [output.text for output in _outputs(executed) if output.get("name") == "stderr"]
    lines = "".join(texts).splitlines()
    return [line for line in lines if line.strip() and not line.startswith("rsk: ")]


def _outputs(executed: Path) -> list[Any]:
    import nbformat

    cells = nbformat.read(executed, as_version=4).cells
    return [output for cell in cells for output in cell.get("outputs", [])]


def _short_traceback(lines: Iterable[str]) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(lines)).rstrip().splitlines()
    if len(plain) > _TRACEBACK_LINES:
        plain = ["[...]", *plain[-_TRACEBACK_LINES:]]
    return "\n".join(f"    {line}" for line in plain)


# --- the whole course -------------------------------------------------------------------------


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse to write into a folder that another run is writing into."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        raise CourseError(
            f"another run is writing to {folder}; wait for it, or use --output"
        ) from None


def run_course(
    parameters: Mapping[str, Any] | None = None,
    *,
    only: Iterable[str] = (),
    output: Path | None = None,
    sources: Path | None = None,
    export: bool = True,
    ready: Callable[[], object] | None = None,
    more: Callable[[Path], list[Path]] | None = None,
    console: Console | None = None,
) -> list[Stage]:
    """Run the notebooks in order, export the report, and print where it is and what took how long.

    Args:
        parameters: passed to every notebook that declares a parameter of that name.
        only: notebooks to run (see :func:`notebooks`); the others' executed copies stay.
        output: the run's folder, by default :func:`run_dir`.
        sources: folder of the notebooks, by default the course's own.
        export: whether to make the report and the pages; they are made once ``08_report`` has run.
        ready: called before anything is run, if ``08_report`` is to be: raises if what the report
            is made from is not there.
        more: called with the run's folder after the export; returns the files that it made.
        console: where progress is printed.

    Returns:
        The stages of the run with their times.

    Raises:
        ValueError: an unknown notebook or parameter, or a value of the wrong type or out of range.
        CourseError: a notebook failed, or could not do a part of its work.
        rsk.export.ExportError: the executed notebooks cannot be exported.
        KeyboardInterrupt: whatever was made before, in this run or an earlier one, is still there.
    """
    import nbformat
    from rich.console import Console

    from rsk.measure.publishable_runs import recorded

    console = Console() if console is None else console
    folder = run_dir() if output is None else Path(output).expanduser().resolve()
    chosen = notebooks(only, sources)
    declared = {
        path.stem: declared_parameters(nbformat.read(path, as_version=4), path.name)
        for path in chosen
    }
    matched = match_parameters(parameters or {}, declared)
    if "device" in (parameters or {}):
        machine.device(str((parameters or {})["device"]))
    if chosen[-1].name == REPORT and ready is not None:
        ready()
    export = export and chosen[-1].name == REPORT

    progress = Progress(console, len(chosen) + export)
    executed: list[Path] = []
    written: list[Path] = []
    left_out = recorded()[1]
    try:
        with _alone(folder), started(folder) as kernel:
            (folder / "results").mkdir(exist_ok=True)
            for path in chosen:
                with progress.stage(path.stem) as on_cell:
                    given = matched[path.stem]
                    executed.append(run_notebook(path, folder, given, on_cell, kernel))
            kernel.stop()
            if export:
                with progress.stage("export"):
                    written += _export(folder)
                    written += more(folder) if more is not None else []
    except KeyboardInterrupt:
        progress.say(
            f"Interrupted after {len(progress.done)} of {progress.stages} stages. What they made, "
            f"and what earlier runs made of the others, is in {folder}"
        )
        raise
    failures = [f"{path.name}: {line}" for path in executed for line in undone(path)]
    ending = "All done" if not failures else "Not all was done"
    progress.say(f"{ending} in {sum(stage.seconds for stage in progress.done):.0f} s:")
    for path in [folder / "notebooks", *written]:
        progress.say(f"  {path}")
    for line in left_out:
        progress.say(f"  left out: {line}")
    if failures:
        raise CourseError("a part of the work could not be done:\n  " + "\n  ".join(failures))
    return progress.done


def _export(folder: Path) -> list[Path]:
    """Make the report and the pages of a run; returns the report's files and the first page."""
    from rsk.export import export_report, export_site

    reports = export_report(folder)
    return [*reports, export_site(folder)[0]]
