"""Running notebooks: order, parameters, failures, dead kernels, folders."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys

import filelock
import nbformat
import pytest
import torch
import warm
from processes import has_ended
from rich.console import Console

import rsk
from rsk.base import folders
from rsk.course import progress, running
from rsk.measure import publishable_runs
from rsk.measure.records import RecordError

pytestmark = pytest.mark.timeout(120)


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.text for cell in cells for out in cell.get("outputs", []) if "text" in out)


def console():
    return Console(file=io.StringIO(), width=200)


# --- folders


def test_run_dir_in_a_checkout_is_the_ignored_build_folder():
    assert running.run_dir() == folders.checkout() / "report" / "build"


def test_run_dir_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RSK_RUN_DIR", str(tmp_path / "here"))
    assert running.run_dir() == tmp_path / "here"


def test_run_dir_of_an_installed_package(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert running.run_dir() == tmp_path / "rsk-run"


def test_notebooks_are_chosen_by_name(write_notebook):
    folder = write_notebook("00_first").parent
    write_notebook("01_second")
    assert [path.stem for path in running.notebooks(["01"], folder)] == ["01_second"]
    with pytest.raises(ValueError, match=r"'02'; there are 00_first, 01_second"):
        running.notebooks(["02"], folder)
    with pytest.raises(ValueError, match="no notebook"):
        running.notebooks(folder=folder.parent)


# --- running


@pytest.mark.slow
def test_notebooks_run_in_order_and_hand_results_on(write_notebook, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    hand_on = (
        "from pathlib import Path\nfrom rsk.course.running import run_dir\n"
        "results = run_dir() / 'results'"
    )
    sources = write_notebook(
        "00_first",
        hand_on + "\n(results / 'first.json').write_text(str(scale))",
        parameters="scale = 2",
    ).parent
    write_notebook(
        "01_second",
        hand_on + "\nprint('read', (results / 'first.json').read_text(), quick)",
        "import sys, os\nprint('python', sys.executable)\nprint('cwd', os.getcwd())",
    )
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "rsk").mkdir(parents=True)  # a folder that must not be taken for the package
    monkeypatch.chdir(elsewhere)

    printed = console()
    given = {"scale": 5, "quick": False}
    parts = running.run_course(given, sources=sources, output=folder, console=printed)

    assert [part.name for part in parts] == ["00_first", "01_second"]
    assert all(part.seconds > 0 for part in parts)
    text = outputs(folder / "notebooks" / "01_second.ipynb")
    assert "read 5 False" in text
    assert f"python {sys.executable}\n" in text
    progress = printed.file.getvalue()
    assert "1/2 00_first: done in" in progress
    assert "2/2 01_second: done in" in progress
    assert str(folder / "notebooks") in progress
    assert list(elsewhere.iterdir()) == [elsewhere / "rsk"]


@pytest.mark.slow
def test_notebooks_of_a_run_share_a_process_and_nothing_else(write_notebook, tmp_path):
    """What one left, its names, history, labels and parameters, the next does not find."""
    sources = write_notebook(
        "00_first",
        "import os; from rsk.course import lesson, publish\nleft = lesson.begin(device)",
        "publish.tokens([('a', 'prompt')], label='lst-a', caption='C.'); print(os.getpid())",
        parameters="device = 'cpu'\nquick = True",
    ).parent
    write_notebook(
        "01_second",
        "assert 'left' not in globals() and len(In) == 3 + injected, In",
        "import os; from rsk.course import beginning, lesson, publish\nassert not beginning._here",
        "lesson.begin()",
        "publish.tokens([('a', 'prompt')], label='lst-a', caption='C.'); print(os.getpid())",
        parameters="injected = False\nquick = True",
    )
    for given, extra in (({}, 0), ({"quick": False, "injected": True}, 1)):
        running.run_course(given, sources=sources, output=tmp_path / "out", console=console())
        texts = [outputs(path) for path in sorted((tmp_path / "out" / "notebooks").iterdir())]
        assert texts[0].splitlines()[-1] == texts[1].splitlines()[-1]
        counts = [
            cell.execution_count
            for cell in nbformat.read(tmp_path / "out/notebooks/01_second.ipynb", 4).cells
        ]
        assert counts == list(range(1, 6 + extra))


def test_cells_are_counted_as_they_run(write_notebook, tmp_path):
    path = write_notebook("00_a", "1", "", "2")
    seen = []
    running.run_notebook(path, tmp_path, {"quick": False}, lambda *cell: seen.append(cell))
    assert seen == [(n, 4) for n in (1, 2, 3, 4)]  # parameters, injected, two with code


def test_the_kernel_is_this_interpreter_whatever_is_registered(
    write_notebook, tmp_path, monkeypatch
):
    kernels = tmp_path / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(
        '{"argv": ["/nonexistent/python"], "display_name": "x", "language": "python"}'
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = write_notebook("00_a", "import sys; print(sys.executable)")
    assert outputs(running.run_notebook(path, tmp_path / "out")) == f"{sys.executable}\n"


@pytest.mark.slow
def test_a_failing_cell_stops_the_run_and_keeps_the_notebook(write_notebook, tmp_path):
    sources = write_notebook(
        "00_a", "print('before')", "def f():\n    return 1 / 0", "f()", "print('after')"
    ).parent
    write_notebook("01_b", "print('never')")
    with pytest.raises(running.CourseError) as error:
        running.run_course(sources=sources, output=tmp_path / "out", console=console())
    message = str(error.value)
    assert message.startswith("00_a.ipynb: cell 4 of 5 failed\n")
    assert "ZeroDivisionError: division by zero" in message
    assert "return 1 / 0" in message
    assert "\x1b" not in message
    kept = tmp_path / "out" / "notebooks" / "00_a.ipynb"
    assert str(kept) in message
    assert outputs(kept) == "before\n"
    assert not kept.with_name("01_b.ipynb").exists()


def test_a_long_traceback_is_cut(write_notebook, tmp_path):
    deep = "\n".join(f"def f{n}(): return f{n + 1}()" for n in range(30))
    deep += "\ndef f30(): raise KeyError('deep')"
    path = write_notebook("00_a", deep, "f0()")
    with pytest.raises(running.CourseError) as error:
        running.run_notebook(path, tmp_path)
    assert "KeyError: 'deep'" in str(error.value)
    assert len(str(error.value).splitlines()) <= 20


@pytest.mark.slow
def test_a_stale_copy_does_not_survive_a_failure(write_notebook, tmp_path):
    running.run_notebook(write_notebook("00_a", "print('old')"), tmp_path)
    with pytest.raises(running.CourseError):
        running.run_notebook(write_notebook("00_a", "1 / 0", "print('new')"), tmp_path)
    assert outputs(tmp_path / "notebooks" / "00_a.ipynb") == ""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_kernel_is_reported_as_such(write_notebook, tmp_path):
    path = write_notebook(
        "00_a", "print('alive')", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    with pytest.raises(running.CourseError) as error:
        running.run_notebook(path, tmp_path)
    assert "00_a.ipynb: the kernel was killed by SIGKILL" in str(error.value)
    assert "memory" in str(error.value)
    assert "in cell 3 of 3" in str(error.value)
    assert outputs(tmp_path / "notebooks" / "00_a.ipynb") == "alive\n"


@pytest.mark.slow
def test_a_kernel_that_exits_is_reported_as_such(write_notebook, tmp_path):
    path = write_notebook("00_a", "import os; os._exit(7)")
    with pytest.raises(running.CourseError, match="ended by itself with status 7 in cell 2 of 2"):
        running.run_notebook(path, tmp_path)


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(write_notebook, tmp_path):
    sources = write_notebook("00_a", "1").parent
    folder = tmp_path / "out"
    folder.mkdir()
    with (
        filelock.FileLock(folder / ".lock"),
        pytest.raises(running.CourseError, match="another run is writing"),
    ):
        running.run_course(sources=sources, output=folder, console=console())


def test_wrong_parameters_stop_the_run_before_it_starts(write_notebook, tmp_path):
    sources = write_notebook("00_a", "1").parent
    with pytest.raises(ValueError, match="no notebook has a parameter 'fast'"):
        running.run_course(
            {"fast": True}, sources=sources, output=tmp_path / "o", console=console()
        )
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_the_export_follows_the_report_notebook(write_notebook, tmp_path, monkeypatch):
    import rsk.export

    sources = write_notebook("00_a", "1").parent
    write_notebook("08_report", "2")
    seen = []
    made = [tmp_path / "report.html", tmp_path / "report.pdf"]
    monkeypatch.setattr(rsk.export, "export_report", lambda folder: seen.append(folder) or made)
    monkeypatch.setattr(rsk.export, "export_site", lambda folder: [folder / "site" / "index.html"])

    running.run_course(sources=sources, output=tmp_path, only=["00"], console=console())
    running.run_course(sources=sources, output=tmp_path, export=False, console=console())
    assert seen == []
    printed = console()
    parts = running.run_course(sources=sources, output=tmp_path, console=printed)
    assert [part.name for part in parts] == ["00_a", "08_report", "export"]
    assert seen == [tmp_path]
    lines = printed.file.getvalue().splitlines()
    assert re.fullmatch(r"All done in \d+ s:", lines[-5])
    files = [tmp_path / "notebooks", *made, tmp_path / "site" / "index.html"]
    assert [line.strip() for line in lines[-4:]] == list(map(str, files))


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_progress_names_notebook_cell_and_time(write_notebook, tmp_path, monkeypatch, terminal):
    sources = write_notebook("00_slow", "import time", *["time.sleep(0.3)"] * 3).parent
    monkeypatch.setattr(progress, "ALIVE_S", 0.5)
    printed = Console(file=io.StringIO(), width=120, force_terminal=terminal)
    running.run_course(sources=sources, output=tmp_path / "out", console=printed)
    text = printed.file.getvalue()
    assert "1/1 00_slow" in text
    assert re.search(r"cell [345]/5", text)
    assert re.search(r"0:00:0\d" if terminal else r"cell \d/5, \d s", text)
    assert re.search(r"1/1 00_slow: done in [1-9]\.\d s", text)


# --- what could not be done


@pytest.mark.slow
def test_a_part_that_could_not_be_done_is_a_failure_of_the_run(write_notebook, tmp_path):
    sources = write_notebook(
        "00_a",
        "from rsk.course import publish",
        "for name in ('one', 'two', 'one'):\n"
        "    publish.undone(name, RuntimeError('it did not compile:\\n  error: no such header'))",
        "print('the rest')",
    ).parent
    write_notebook("01_b", "print('the next')")
    printed = console()
    with pytest.raises(running.CourseError) as error:
        running.run_course(sources=sources, output=tmp_path / "out", console=printed)
    because = "it did not compile: error: no such header"
    assert str(error.value).splitlines()[1:] == [
        f"  00_a.ipynb: one: {because}",
        f"  00_a.ipynb: two: {because}",
    ]
    text = outputs(tmp_path / "out" / "notebooks" / "00_a.ipynb")
    assert text.endswith("the rest\n")
    assert "the next" in outputs(tmp_path / "out" / "notebooks" / "01_b.ipynb")
    assert "Not all was done" in printed.file.getvalue()


@pytest.mark.slow
def test_chapter_04_says_what_it_could_not_run(tmp_path, monkeypatch):
    """A compiler that fails: every kernel of the chapter is named, and the rest is there."""
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'error: the disk is full' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("RSK_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(running.CourseError, match="could not be done") as error:
        running.run_course(
            {"batch_sizes": [2], "vocab_size": 500, "device": "cpu"},
            only=["04"],
            output=tmp_path / "out",
            console=console(),
        )
    for name in rsk.KERNELS:
        assert f"04_cuda_kernel.ipynb: {name}: " in str(error.value)


def test_a_bad_record_is_named(write_notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(publishable_runs, "recorded", lambda: ([], ["data/x.json: schema: newer"]))
    sources = write_notebook("00_a", "1").parent
    printed = console()
    running.run_course(sources=sources, output=tmp_path, console=printed)
    assert printed.file.getvalue().endswith("  left out: data/x.json: schema: newer\n")


@pytest.mark.slow
def test_without_records_the_report_is_refused_before_anything_runs(write_notebook, tmp_path):
    def ready():
        raise RecordError("data/benchmarks: expected a run on cuda")

    sources = write_notebook("00_a", "1").parent
    write_notebook("08_report", "1")
    options = {"sources": sources, "output": tmp_path / "o", "ready": ready, "console": console()}
    with pytest.raises(RecordError, match="expected a run on cuda"):
        running.run_course(**options)
    assert not (tmp_path / "o").exists()
    running.run_course(**options, only=["00"])  # which needs none


def test_a_device_that_is_not_there_stops_the_run_before_it_starts(
    write_notebook, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sources = write_notebook("00_a", "1", parameters="device = 'auto'").parent
    given = {"device": "cuda"}
    with pytest.raises(ValueError, match="PyTorch finds no NVIDIA GPU"):
        running.run_course(given, sources=sources, output=tmp_path / "o", console=console())
    assert not (tmp_path / "o").exists()


# --- interruptions


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("whole_group", [True, False])
def test_an_interrupted_run_keeps_the_last_good_state(write_notebook, tmp_path, whole_group):
    """As Ctrl-C sends the signal (to the whole group), and as ``kill -INT`` does."""
    folder = tmp_path / "out"
    (folder / "notebooks").mkdir(parents=True)
    good = write_notebook("00_a", "print('good')").read_bytes()
    (folder / "notebooks" / "00_a.ipynb").write_bytes(good)  # of an earlier run
    sources = write_notebook(
        "00_a", "import os; print(os.getpid())", "import time; open('at', 'w'); time.sleep(99)"
    ).parent
    code = (
        "from pathlib import Path; from rsk.base import folders; from rsk import cli\n"
        f"folders.notebooks_dir = lambda: Path({str(sources)!r})\n"
        f"cli.app(['report', '--output', {str(folder)!r}])"
    )
    process = warm.Process(code, os.environ)
    waiting = folder / "notebooks" / "at"
    process.wait_until(waiting.exists)
    partial = nbformat.read(folder / "notebooks" / "unfinished_00_a.ipynb", as_version=4)
    kernel = int(partial.cells[1].outputs[0].text)
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    done = process.wait(180)
    assert done.returncode == 130
    assert "rsk: interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Interrupted after 0 of 1 stages. What they made, and what earlier runs" in done.stdout
    waiting.unlink()
    assert [path.name for path in (folder / "notebooks").iterdir()] == ["00_a.ipynb"]
    assert (folder / "notebooks" / "00_a.ipynb").read_bytes() == good
    assert has_ended(kernel)


# --- the course itself


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_course_runs_and_is_exported(whole_course):
    folder = whole_course.folder
    names = [path.stem for path in running.notebooks()]
    assert whole_course.parts == [*names, "export"], whole_course.printed
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            assert all(out.output_type != "error" for out in cell.get("outputs", []))
        assert running.strange_lines(path) == []
        assert running.undone(path) == []
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(folder.parent.iterdir()) == [folder]  # nothing is written where one happens to be


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_plain_papermill_runs_a_notebook_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RSK_RUN_DIR", str(tmp_path / "run"))
    source = folders.notebooks_dir() / "00_quick_demo.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(source), "out.ipynb"]
    subprocess.run(
        [*command, "-p", "seed", "3", "-y", "{batch_sizes: [1, 2], vocab_size: 999}"],
        cwd=tmp_path,
        check=True,
        timeout=500,
    )
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    (injected,) = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert "seed = 3" in injected.source
