"""What the README promises: its example runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from rsk.base import folders
from rsk.course import running
from rsk.course.parameters import declared_parameters, match_parameters, parse_parameters

TOP = folders.checkout()
pytestmark = pytest.mark.skipif(TOP is None, reason="needs the source checkout")


@pytest.fixture(scope="module")
def readme() -> str:
    return (TOP / "README.md").read_text(encoding="utf-8")


def fences(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_example_runs_and_does_what_its_comments_say(readme):
    example, _ = fences(readme, "python")
    lines = [line for line in example.splitlines() if line.strip()]
    statements = [line for line in lines if not line.startswith("import")]
    assert len(statements) <= 10, "the README promises ten lines"
    done = subprocess.run(
        [sys.executable, "-c", example + "\nassert result.tokens.shape == (2, 5)\n"
         "n = result.num_accepted\nassert ((n >= 0) & (n <= 4)).all()\n"
         "kept = torch.arange(5) <= n[:, None]\n"
         "assert ((result.tokens >= 0) == kept).all()\n"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tensor(") == 2


@pytest.mark.slow
def test_the_example_in_transformers_runs(readme):
    pytest.importorskip("transformers")
    _, example = fences(readme, "python")
    done = subprocess.run(
        [sys.executable, "-c", example + "\nassert texts.shape[0] == 2 and texts.shape[1] > 40\n"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "def read(" in done.stdout and "class Queue:" in done.stdout


def test_every_link_leads_to_a_file(readme):
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert links
    missing = [link for link in links if "://" not in link and not (TOP / link).is_file()]
    assert not missing


def test_every_notebook_is_listed(readme):
    listed = re.findall(r"^\| \[(\d\d_\w+)\]", readme, re.MULTILINE)
    assert listed == [path.stem for path in running.notebooks()]


def test_every_make_target_exists(readme):
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake (\w[\w-]*)", readme))
    assert {"report", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_rsk_command_exists(readme):
    from typer.main import get_command

    from rsk.cli import app

    commands = get_command(app).commands
    used = re.findall(r"\brsk (\w+)((?: [^\s#]+)*)", "\n".join(fences(readme, "bash")))
    assert {"demo", "doctor", "generate", "benchmark", "report"} <= {name for name, _ in used}
    for name, arguments in used:
        options = {
            option for one in commands[name].params for option in (*one.opts, *one.secondary_opts)
        }
        for option in re.findall(r"(?<!\S)(--?[a-z][\w-]*)", arguments):
            assert option in options, f"rsk {name} {option}"


def test_the_first_screen_says_what_it_is_and_how_to_start(readme):
    first = readme[: readme.index("## ")]
    assert "make report" in first
    assert "make test" in first
    assert re.search(r"!\[[^\]]{20,}\]\(report/", first), "a picture of a result, with alt text"


def test_parameters_in_the_examples_are_known(readme):
    import nbformat

    declared = {
        path.stem: declared_parameters(nbformat.read(path, as_version=4), path.name)
        for path in running.notebooks()
    }
    given = parse_parameters(
        f"{name}={value.strip(chr(39))}"
        for name, value in re.findall(r"-p (\w+)=('[^']*'|\S+)", readme)
    )
    assert given
    match_parameters(given, declared)
