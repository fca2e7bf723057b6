"""Whatever is printed shows, in any encoding."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rsk
from rsk.base import terminal

PACKAGE = Path(rsk.__file__).parent
PATHS = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("12 µs ± 1, 3× – 2 → −1", "12 us +- 1, 3x - 2 -> -1"),
        ("“q ≤ p”, naïve…", '"q <= p", naive...'),
        ("██▌ 中文", "##. ??"),
        ("plain", "plain"),
    ],
)
def test_text_in_ascii(text, shown):
    assert terminal.plain(text) == shown


def test_an_error_in_a_line_whatever_it_says():
    assert terminal.error_line(ValueError("a\nb")) == "ValueError: a"
    assert terminal.error_line(AssertionError()) == "AssertionError"
    assert len(terminal.error_line(RuntimeError("x" * 5000))) < 400


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONUTF8": "0", "LC_ALL": "C"}, b"3x ?? u\n"),
        ({"PYTHONIOENCODING": "cp1252"}, b"3\xd7 ?? \xb5\n"),
        ({"PYTHONIOENCODING": "utf-8"}, "3× 中文 µ\n".encode()),
    ],
)
def test_what_a_stream_cannot_show_is_written_plainly(environment, expected):
    code = (  # of the file alone: the package imports PyTorch
        f"import runpy, sys; runpy.run_path({terminal.__file__!r})['accept_any_text']();"
        "text = '3\\xd7 \\u4e2d\\u6587 \\xb5'; print(text); print(text, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": PATHS} | environment,
        capture_output=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == (expected, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"PYTHONUTF8": "0", "LC_ALL": "C"}, {"PYTHONIOENCODING": "cp1252"}]
)
def test_commands_in_other_encodings(environment):
    """One after the other in a process: the imports take most of the time."""
    code = """
import runpy, sys
for command in (["doctor"], ["benchmark", "--help"]):
    sys.argv[1:] = command
    try:
        runpy.run_module("rsk", run_name="__main__")
    except SystemExit:
        print("ended", *command)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": PATHS} | environment,
        capture_output=True,
        check=False,
    )
    assert b"Error" not in done.stderr, done.stderr
    doctor, _, rest = done.stdout.partition(b"ended doctor")
    help_, ended, _ = rest.partition(b"ended benchmark --help")
    assert doctor.strip() and help_.strip() and ended, done.stdout


def test_every_program_of_the_package_accepts_any_text():
    programs = [
        path
        for path in PACKAGE.rglob("*.py")
        if re.search(
            r'^if __name__ == "__main__":\n +(?:sys.exit\()?main\(', path.read_text("utf-8"), re.M
        )
    ]
    assert len(programs) > 4
    for path in [*programs, PACKAGE / "cli.py"]:
        text = path.read_text("utf-8")
        assert "terminal.accept_any_text()" in text or "grid.command(" in text, path
