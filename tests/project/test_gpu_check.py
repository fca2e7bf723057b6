"""``make gpu-check``: a stage that fails or hangs is recorded, and the others go on."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import warm
from processes import has_ended

from rsk import gpu_check
from rsk.base import folders
from rsk.base.programs import FAILED, OUT_OF_TIME, PASSED, Program

TOP = folders.checkout()
pytestmark = pytest.mark.skipif(TOP is None, reason="needs the source checkout")


def program(name, code, **options):
    return Program(name, [sys.executable, "-c", code], **options)


def run(one, tmp_path, seconds=60.0):
    return one.run(tmp_path, time.monotonic() + seconds)


# --- one program


def test_a_program_that_ends_well_counts_as_one_thing(tmp_path):
    outcome = run(program("well", "print('fine')"), tmp_path)
    assert (outcome.status, outcome.counts, outcome.failures) == (PASSED, {PASSED: 1}, [])
    assert (tmp_path / "well.log").read_text() == "fine\n"


def test_a_failure_has_the_last_words(tmp_path):
    code = "print('a\\nrsk: chapter 04 failed\\n  because\\n'); raise SystemExit(3)"
    outcome = run(program("A chapter", code), tmp_path)
    assert (outcome.status, outcome.counts) == (FAILED, {FAILED: 1})
    assert outcome.failures == ["A chapter: failed: rsk: chapter 04 failed because"]
    silent = run(program("silent", "raise SystemExit(3)"), tmp_path)
    assert silent.failures == ["silent: failed: it printed nothing"]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ('File "/opt/me/rsk/a.py", line 3', 'File "a.py", line 3'),
        ("keep /srv/x-1/cache/models: no", "keep models: no"),
        ("1/2 of and/or https://a.org/b", "1/2 of and/or https://a.org/b"),
        ("tests/a/test_b.py::test_c: 3 / 4", "tests/a/test_b.py::test_c: 3 / 4"),
    ],
)
def test_folders_of_the_machine_are_left_out(line, kept):
    assert gpu_check._without_folders(line) == kept


@pytest.mark.slow
def test_a_program_out_of_time_is_ended_and_what_it_started_too(tmp_path):
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(99)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    outcome = run(program("slow", code), tmp_path, 1.0)
    assert time.monotonic() - begin < 60
    assert outcome.status == OUT_OF_TIME
    assert outcome.failures[0].startswith("slow: out of time: ")
    grandchild = int((tmp_path / "slow.log").read_text().split()[0])
    while not has_ended(grandchild):
        assert time.monotonic() - begin < 60
        time.sleep(0.01)


def test_without_a_gpu_the_programs_see_none_and_the_caller_keeps_its_own(
    stages, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    stages["good"] = (lambda device, folder: [program("look", code)]), 1
    arguments = ["--save", str(tmp_path / "machine.json"), "--logs", str(tmp_path)]
    assert gpu_check.main(["--device", "cpu", "--only", "good", *arguments]) == 0
    assert (tmp_path / "look.log").read_text() == "''\n"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_what_a_command_in_the_background_starts_can_be_interrupted():
    look = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    code = (
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from rsk.base import programs\n"
        "programs.interruptible()\n"
        f"subprocess.run([sys.executable, '-c', {look!r}])"
    )
    assert warm.run(code, os.environ).stdout == "True\n"


def test_things_that_a_program_checked_are_read(tmp_path):
    found = {PASSED: 3, FAILED: 1}, ["test_a: AssertionError"]
    outcome = run(program("tests", "raise SystemExit(1)", read=lambda _: found), tmp_path)
    assert (outcome.counts, outcome.failures) == (found[0], ["tests: test_a: AssertionError"])
    lenient = run(program("stderr", "pass", read=lambda _: ({}, ["a warning"])), tmp_path)
    assert lenient.status == FAILED


def test_a_program_may_be_too_slow(tmp_path):
    outcome = run(program("demo", "pass", at_most_s=0.0), tmp_path)
    assert outcome.status == FAILED
    assert "at most 0" in outcome.failures[0]


# --- what programs checked


def test_pytests_report_is_read(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
        "@pytest.mark.parametrize('x', [1])\ndef test_wrong(x): assert x == 2, 'no\\nmore'\n"
        "@pytest.fixture\ndef broken(): raise KeyError('b')\ndef test_error(broken): pass\n"
    )
    result = tmp_path / "found.xml"
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={result}"]
    arguments += [f"--rootdir={tmp_path}", "-c", "/dev/null", str(tmp_path)]
    run(Program("tests", [sys.executable, *arguments]), tmp_path)
    counts, failures = gpu_check._tests_in(result, "")
    assert counts == {PASSED: 1, FAILED: 2, "skipped": 1}
    assert [line.split(": ")[0].split("::")[-1] for line in failures] == [
        "test_wrong[1]",
        "test_error",
    ]


def test_a_run_of_the_tests_that_wrote_nothing_is_a_failure(tmp_path):
    assert gpu_check._tests_in(tmp_path / "none.xml", "") == ({}, [])


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["-n", "1", "--dist", "loadgroup"]])
def test_a_run_that_was_cut_off_still_says_which_tests_failed(options, tmp_path):
    if options:
        pytest.importorskip("xdist")
    (tmp_path / "test_some.py").write_text(
        "import os, pytest\n"
        "pytestmark = pytest.mark.xdist_group('some.py')\n"
        "def test_right(): pass\n"
        "@pytest.mark.parametrize('x', ['a b'])\ndef test_wrong(x): assert x == 2\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
    )
    arguments = ["-m", "pytest", "-v", "-p", "no:cacheprovider", *options]
    arguments += [f"--rootdir={tmp_path}", "-c", "/dev/null", str(tmp_path)]
    run(Program("tests", [sys.executable, *arguments]), tmp_path)
    printed, _ = (tmp_path / "tests.log").read_text().split("= FAILURES =")
    counts, (failure,) = gpu_check._tests_in(tmp_path / "none.xml", printed)
    assert counts == {PASSED: 1, FAILED: 1, "skipped": 1}
    assert failure.endswith("test_some.py::test_wrong[a b]: the run was ended before it said why")


def test_bad_calls_are_read():
    text = "rsk.sample, probs a str: was accepted\n140 bad calls, 1 not refused\n"
    expected = {"refused": 139, FAILED: 1}, ["rsk.sample, probs a str: was accepted"]
    assert gpu_check._refusals_in(text) == expected
    assert gpu_check._refusals_in("9 bad calls, 0 not refused\n") == ({"refused": 9, FAILED: 0}, [])
    assert gpu_check._refusals_in("Segmentation fault") == ({}, [])


# --- stages and the file


@pytest.fixture
def stages(monkeypatch):
    found = {
        "good": (lambda *_: [program("good", "pass"), program("too", "pass")], 2),
        "bad": (lambda *_: [program("bad", "raise SystemExit('rsk: it is broken')")], 1),
        "slow": (lambda *_: [program("slow", "import time; time.sleep(99)")], 1),
        "none": (lambda *_: [], 1),
    }
    monkeypatch.setattr(gpu_check, "STAGES", found)
    monkeypatch.chdir(TOP)
    return found


@pytest.mark.slow
def test_stages_go_on_past_a_failure_and_are_run_again_one_by_one(
    stages, tmp_path, capsys, monkeypatch
):
    file = tmp_path / "new" / "machine.json"
    common = ["--device", "cpu", "--save", str(file), "--logs", str(tmp_path), "--budget", "2"]
    assert gpu_check.main(common) == 1
    content = json.loads(file.read_text())
    assert content["schema"] == gpu_check.SCHEMA
    assert content["provenance"]["packages"]["torch"]
    found = {name: stage["status"] for name, stage in content["stages"].items()}
    assert found == {"good": PASSED, "bad": FAILED, "slow": OUT_OF_TIME, "none": "not run"}
    assert content["stages"]["good"]["counts"] == {PASSED: 2}
    assert content["stages"]["bad"]["failures"] == ["bad: failed: rsk: it is broken"]
    printed = capsys.readouterr().out
    assert "bad: failed: rsk: it is broken" in printed
    assert printed.index("good ") < printed.rindex("bad ")

    gpu_check.STAGES["bad"] = gpu_check.STAGES["good"]
    assert gpu_check.main([*common, "--only", "bad"]) == 0
    again = json.loads(file.read_text())["stages"]
    assert again["bad"]["counts"] == {PASSED: 2}
    assert again["slow"] == content["stages"]["slow"]


def test_what_it_cannot_do_is_said(stages, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "good,tuna"])
    assert "expected good, bad, slow, none, got tuna" in capsys.readouterr().err


def test_every_stage_has_programs_on_a_gpu():
    for name, (make, workers) in gpu_check.STAGES.items():
        programs = make("cuda", Path("somewhere"))
        assert programs and workers >= 1, name
        names = [one.name for one in programs]
        assert len(set(names)) == len(names)
    assert all(Path(TOP / path).is_file() for path in gpu_check.APART)
