"""What the READMEs promise: examples run, links lead somewhere, commands exist."""

from __future__ import annotations

import os
import re

import pytest
import warm

from rsk.base import folders
from rsk.course import running
from rsk.course.parameters import declared_parameters, match_parameters, parse_parameters

TOP = folders.checkout()
pytestmark = pytest.mark.skipif(TOP is None, reason="needs the source checkout")


IN_CHINESE = "README.zh-TW.md"
GUIDE = f"notebooks/{IN_CHINESE}"


def text_of(name) -> str:
    return (TOP / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readme() -> str:
    return text_of("README.md")


@pytest.fixture(params=["README.md", IN_CHINESE, GUIDE])
def each(request) -> str:
    return request.param


def fences(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_example_runs_and_does_what_its_comments_say(readme):
    example, _ = fences(readme, "python")
    lines = [line for line in example.splitlines() if line.strip()]
    statements = [line for line in lines if not line.startswith("import")]
    assert len(statements) <= 10, "the README promises ten lines"
    done = warm.run(
        example + "\nassert result.tokens.shape == (2, 5)\n"
        "n = result.num_accepted\nassert ((n >= 0) & (n <= 4)).all()\n"
        "kept = torch.arange(5) <= n[:, None]\n"
        "assert ((result.tokens >= 0) == kept).all()\n",
        os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tensor(") == 2


@pytest.mark.slow
def test_the_example_in_transformers_runs(readme):
    pytest.importorskip("transformers")
    _, example = fences(readme, "python")
    done = warm.run(example + "\nassert texts.shape[0] == 2 and texts.shape[1] > 40\n", os.environ)
    assert done.returncode == 0, done.stderr
    assert "def read(" in done.stdout and "class Queue:" in done.stdout


def anchors(text):
    return {
        "#" + re.sub(r"[^\w-]", "", title.lower().replace(" ", "-"))
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }


def test_every_link_leads_somewhere(each):
    links = re.findall(r"\]\(([^)]+)\)", text_of(each))
    assert links
    folder = (TOP / each).parent
    missing = [
        link
        for link in links
        if "://" not in link
        and link not in anchors(text_of(each))
        and not (folder / link).is_file()
        and not is_published(folder / link)
    ]
    assert not missing


def is_published(path):
    """Whether it is a copy that English has; tests/report/test_published.py holds the others."""
    report = TOP / "report"
    return path.parent.parent == report and (report / path.name).is_file()


@pytest.mark.parametrize(("name", "folder"), [("README.md", "notebooks/"), (GUIDE, "")])
def test_every_notebook_is_listed(name, folder):
    listed = re.findall(rf"^\| \[(\d\d_\w+)\]\({folder}\1\.ipynb\)", text_of(name), re.MULTILINE)
    assert listed == [path.stem for path in running.notebooks()]


def test_the_languages_are_one_click_away():
    assert "](README.zh-TW.md)" in text_of("README.md")[:200]
    assert "](README.md)" in text_of(IN_CHINESE)[:200]
    assert f"]({GUIDE})" in text_of("README.md") and f"]({GUIDE})" in text_of(IN_CHINESE)
    assert "](../README.zh-TW.md)" in text_of(GUIDE)[:200]


def test_every_make_target_exists(each):
    makefile = text_of("Makefile")
    targets = set(re.findall(r"\bmake (\w[\w-]*)", text_of(each)))
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_rsk_command_exists(each):
    from typer.main import get_command

    from rsk.cli import app

    commands = get_command(app).commands
    used = re.findall(r"\brsk (\w+)((?: [^\s#]+)*)", "\n".join(fences(text_of(each), "bash")))
    if each != GUIDE:
        assert {"demo", "doctor", "generate", "benchmark", "report"} <= {name for name, _ in used}
    for name, arguments in used:
        options = {
            option for one in commands[name].params for option in (*one.opts, *one.secondary_opts)
        }
        for option in re.findall(r"(?<!\S)(--?[a-z][\w-]*)", arguments):
            assert option in options, f"rsk {name} {option}"


def code(text, language):
    """The lines of the examples, without comments and without the choice of a language."""
    lines = "\n".join(fences(text, language)).splitlines()
    bare = (re.sub(r"  +#.*", "", line).replace(" --lang zh-TW", "") for line in lines)
    return [line.rstrip() for line in bare if line.strip()]


def test_the_examples_are_the_same_in_chinese(readme):
    chinese = text_of(IN_CHINESE)
    assert code(chinese, "python") == code(readme, "python")
    english = " ".join(code(readme, "bash"))
    for command in code(chinese, "bash"):
        assert all(part in english for part in re.split(r" (?=--)", command)), command


@pytest.mark.parametrize("name", ["README.md", IN_CHINESE])
def test_the_first_screen_says_what_it_is_and_how_to_start(name):
    text = text_of(name)
    first = text[: text.index("## ")]
    assert "make report" in first
    assert "make test" in first
    above = first[: first.index("\n- ")]
    assert re.search(r"!\[[^\]]{20,}\]\(report/", above), "a picture of a result, with alt text"
    assert first.count("report.html") == first.count("slides.pdf") == 2, "both languages"


def test_parameters_in_the_examples_are_known(readme):
    import nbformat

    readme += text_of(GUIDE)
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
