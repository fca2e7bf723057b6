"""The copies in report/: rebuilt from recorded data alone, they say what the committed ones say."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pypdf
import pytest
from typer.testing import CliRunner

pytest.importorskip("matplotlib")

from rsk import cli
from rsk.base import folders, templates
from rsk.report import published
from rsk.sampler import build

TOP = folders.checkout()
pytestmark = pytest.mark.skipif(TOP is None, reason="needs the source checkout")
COPIES = ("report.html", "report.pdf", "slides.pdf", "script.pdf", published.PICTURE)
MOST_HTML, MOST_PDF = 6_000_000, 3_000_000  # bytes


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """A folder with the copies, made now."""
    if not build.available("emulator"):
        pytest.skip("no C++ compiler: the report compares the kernels in the emulator")
    folder = tmp_path_factory.mktemp("published")
    paths = published.rebuild(folder)
    assert [path.name for path in paths] == list(COPIES)
    return folder


class Words(HTMLParser):
    """The visible words of a page, a line for each element."""

    def __init__(self, source):
        super().__init__()
        self.words, self.hidden = [], 0
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("style", "svg", "script")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("style", "svg", "script")

    def handle_data(self, words):
        if not self.hidden and words.strip():
            self.words.append(" ".join(words.split()))


def lines(path):
    """What a reader reads, in lines."""
    if path.suffix == ".html":  # the links to other languages are not in a copy elsewhere
        text = path.read_text(encoding="utf-8")
        return Words(re.sub(r'<nav class="pages".*?</nav>', "", text, flags=re.S)).words
    if path.suffix == ".svg":  # the text is drawn as outlines, and stands in a comment beside them
        return re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))
    pages = [page.extract_text() for page in pypdf.PdfReader(path).pages]
    return [" ".join(line.split()) for page in pages for line in page.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", COPIES)
def test_the_committed_copy_says_what_a_new_one_says(name, rebuilt):
    copy = TOP / "report" / name
    remedy = "rebuild the copies in report/ with: rsk report --publish"
    assert copy.is_file(), f"report/{name} is missing; {remedy}"
    if copy.read_bytes() == (rebuilt / name).read_bytes():
        return  # as it is on one machine; elsewhere other versions may write the same words
    old, new = lines(copy), lines(rebuilt / name)
    for at, (before, after) in enumerate(zip(old, new, strict=False)):
        assert before == after, (
            f"report/{name} is out of date, first at line {at + 1}: it says\n  {before}\n"
            f"and from today's data and text it would say\n  {after}\n{remedy}"
        )
    assert len(old) == len(new), f"report/{name} is out of date at its end; {remedy}"


@pytest.mark.slow
@pytest.mark.parametrize("language", templates.languages())
def test_every_language_has_its_copies(language):
    folder = published.home(language)
    missing = [name for name in COPIES if not (folder / name).is_file()]
    assert not missing, f"build them with: rsk report --publish --lang {language}"


@pytest.mark.slow
def test_a_copy_is_measured_nowhere_else_than_recorded(rebuilt):
    text = " ".join(lines(rebuilt / "report.html"))
    assert "recorded on" in text
    assert "measured in this run" not in text
    assert not re.search(r"Measured here", text)


@pytest.mark.slow
def test_the_copies_stay_small(rebuilt):
    assert (rebuilt / "report.html").stat().st_size < MOST_HTML
    assert sum(path.stat().st_size for path in rebuilt.glob("*.pdf")) < MOST_PDF


def test_publishing_is_one_command_without_other_options(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(published, "rebuild", lambda folder, console, _: seen.append(folder))
    run = CliRunner().invoke
    assert run(cli.app, ["report", "--publish"]).exit_code == 0
    assert run(cli.app, ["report", "--publish", "--output", str(tmp_path)]).exit_code == 0
    assert seen == [None, tmp_path]
    others = ["--only", "05"], ["-p", "seed=1"], ["--full"], ["--no-export"], ["--presenter", "A"]
    for other in others:
        result = run(cli.app, ["report", "--publish", *other])
        assert result.exit_code == 2
        assert "--publish goes with no other option than --output and --lang, got" in result.output
    unknown = run(cli.app, ["report", "--publish", "--lang", "xx"])
    assert unknown.exit_code == 2 and "no words in 'xx'; languages: en" in unknown.output
    assert len(seen) == 2


def test_outside_of_a_checkout_a_folder_has_to_be_named(monkeypatch):
    monkeypatch.setattr(folders, "checkout", lambda: None)
    with pytest.raises(ValueError, match="name an --output"):
        published.rebuild()
