"""The pages around the words: nothing is cut off, no plumbing shows, and one finds the way."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import page_faults
import pandas as pd
import pytest
from test_export import Page, a_figure, code, save, shows, text, whole_report

from rsk.base import folders, templates
from rsk.course import publish
from rsk.export import export_report, export_site
from rsk.report import published

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with page_faults.started() as started:
        yield started


# --- widths

LONG = "P(x) = " + " + ".join(f"\\min(p(x_{{{k}}}), q(x_{{{k}}}))" for k in range(20))
WIDE = pd.DataFrame({f"a column of number {at}": [123_456_789.0 + at] for at in range(14)})


@pytest.mark.slow
def test_nothing_is_cut_off_at_any_width(chromium, tmp_path):
    cells = [
        *whole_report(),
        text(f"## Wide things\n\n$$ {LONG} $$\n\n- In a list: ${LONG}$"),
        text("A word: " + "entschuldigungs" * 12 + " and `" + "code_" * 30 + "`."),
        shows(publish.table, WIDE, label="tab-wide", caption="Fourteen columns."),
        a_figure(label="fig-wide", caption="A picture."),
        code("x = 1  # " + "long " * 60, "printed " * 60 + "\n", "a      b\n" + "c   " * 90 + "\n"),
    ]
    save(cells, tmp_path / "notebooks" / "08_report.ipynb")
    for page in export_site(tmp_path):
        assert page_faults.cut_off(chromium, page) == []


@pytest.mark.parametrize(
    ("css", "caught"),
    [
        (".wide { overflow-x: visible; }", "wider"),
        ("main { overflow-x: hidden; } pre { width: 90rem; }", "wider"),
        ("figure img { min-width: 40rem; max-width: none; }", "cut off"),
        (".formula svg { max-width: none; width: 90em !important; }", "cut off"),
    ],
)
def test_what_is_cut_off_is_found(chromium, tmp_path, css, caught):
    cells = [*whole_report(), shows(publish.table, WIDE, label="tab-wide", caption="Wide.")]
    _, page = export_site([save(cells, tmp_path / "01_a.ipynb")], tmp_path / "site")
    spoilt = page.read_text(encoding="utf-8").replace("</style>", f"{css}</style>")
    page.write_text(spoilt, encoding="utf-8")
    assert any(caught in fault for fault in page_faults.cut_off(chromium, page))


# --- plumbing


def shown(tmp_path, *cells):
    """The code that the site shows of cells, each ``<pre>`` on its own."""
    notebook = save(cells, tmp_path / "01_a.ipynb")
    _, page = export_site([notebook], tmp_path / "site")
    found = re.findall(r'<pre class="code".*?</pre>', page.read_text(encoding="utf-8"), re.DOTALL)
    return [Page(one).text for one in found]


def test_code_that_only_publishes_is_not_shown(tmp_path):
    published = shows(publish.prose, "Of {{ n }} tokens.", n=3).outputs
    from_lesson = code("lesson.ladder_row(\n    record\n)\nguess.compare(3)")
    from_lesson.outputs = published
    in_a_loop = code("for one in sentences:\n    publish.markdown(one)")
    mixed = code('n = 3  # tokens\n\npublish.prose(\n    "Of {{ n }}",\n    n=n,\n)\n\nm = n')
    assert shown(tmp_path, from_lesson, in_a_loop, mixed) == ["n = 3 # tokens m = n"]


def test_other_code_is_shown(tmp_path):
    checked = code("check.assert_agrees(baseline)")
    printed = code("print(samples)", "[1, 2]\n")
    magic = code("%timeit f()")
    assigned = code("guess = lesson.predict(3)")
    assigned.outputs = shows(publish.prose, "{{ n }}", n=3).outputs
    found = shown(tmp_path, checked, printed, magic, assigned)
    assert found == [cell.source for cell in (checked, printed, magic, assigned)]


# --- the index, and other languages


def test_the_index_says_what_each_chapter_answers(tmp_path):
    goal = "Intro.\n\n## Goal\n\nIn $n$ minutes: see that. And more.\n\nAnd still more."
    with_goal = save([text(goal)], tmp_path / "01_a.ipynb", title="# One")
    without = save([text("The first words. The next.")], tmp_path / "02_b.ipynb", title="# Two")
    empty = save([], tmp_path / "03_c.ipynb", title="# Three")
    index, *_ = export_site([with_goal, without, empty], tmp_path / "site")
    page = index.read_text(encoding="utf-8")
    entries = [Page(entry).text for entry in re.findall(r"<li>.*?</li>", page)]
    assert entries == ["OneIn n minutes: see that.", "TwoThe first words.", "Three"]


def test_every_notebook_says_its_goal_in_a_line():
    for path in sorted(folders.notebooks_dir().glob("0[0-7]*.ipynb")):
        assert f"## {templates.phrases()['goal']}\\n" in path.read_text(encoding="utf-8"), path.name


def test_a_second_language_is_one_click_away(tmp_path, monkeypatch):
    shutil.copytree(templates.folder(), tmp_path / "en")
    style = folders.style_dir()
    monkeypatch.setattr(folders, "report_dir", lambda: tmp_path)
    monkeypatch.setattr(folders, "style_dir", lambda: style)
    notebook = save([text("Text.")], tmp_path / "08_report.ipynb")

    def switches(language):
        others = published.others(language)
        report, _ = export_report(notebook, tmp_path / language, others=others)
        page = Page(report.read_text(encoding="utf-8"))
        return [a for a in page.all("a") if a.get("rel") == "alternate"], page

    assert switches("en")[0] == []
    shutil.copytree(tmp_path / "en", tmp_path / "zh-TW")
    phrases = tmp_path / "zh-TW" / "phrases.toml"
    words = phrases.read_text(encoding="utf-8").replace('"English"', '"正體中文"')
    phrases.write_text(words.replace('language = "en"', 'language = "zh-TW"'), encoding="utf-8")
    (there, _), page = switches("en")
    assert (there["href"], there["lang"]) == ("zh-TW/report.html", "zh-TW")
    assert "正體中文" in page.text
    (back, _), _ = switches("zh-TW")
    assert (back["href"], back["lang"]) == ("../report.html", "en")
