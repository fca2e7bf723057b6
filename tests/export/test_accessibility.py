"""The pages in a real browser, without a network: nothing is fetched, all can read them.

Three kinds are opened: a report with one of everything in it, the report and the site of a whole
run of the course, and the published report.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import page_faults
import pytest
from test_export import save, whole_report

from rsk.base import folders
from rsk.course import labels
from rsk.export import export_report, export_site

if TYPE_CHECKING:
    from conftest import WholeCourse
    from playwright.sync_api import Browser


MOST_BYTES = 6_000_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with page_faults.started() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A report and a site that hold one of everything."""
    folder = tmp_path_factory.mktemp("pages")
    labels.reset()
    notebook = save(whole_report(), folder / "notebooks" / "08_report.ipynb")
    report, _ = export_report(notebook, folder)
    return [report, *export_site(folder)]


@pytest.mark.slow
def test_everything_that_a_page_can_hold_is_accessible(
    chromium: Browser, pages: list[Path]
) -> None:
    assert [path.name for path in pages] == ["report.html", "index.html", "08_report.html"]
    for path in pages:
        assert page_faults.faults(chromium, path) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_pages_of_the_course_are_accessible(
    chromium: Browser, whole_course: WholeCourse
) -> None:
    folder = whole_course.folder
    site = sorted((folder / "site").glob("*.html"))
    assert {page.stem for page in site} == {"index", *whole_course.parts} - {"export"}
    report = folder / "report.html"
    assert max(path.stat().st_size for path in [report, *site]) < MOST_BYTES
    # What is in report.html is in the site's page of it; its frame is that of the published one.
    found = {path.name: page_faults.faults(chromium, path) for path in site}
    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_that_the_report_shows_is_referred_to(whole_course: WholeCourse) -> None:
    page = (whole_course.folder / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r'<figure[^>]* id="([\w-]+)"', page)
    assert len(shown) > 15
    assert set(shown) <= set(re.findall(r'href="#([\w-]+)"', page))


@pytest.mark.slow
def test_the_published_report_is_accessible(chromium: Browser) -> None:
    checkout = folders.checkout()
    if checkout is None or not (checkout / "report" / "report.html").is_file():
        pytest.skip("there is no published report here")
    report = checkout / "report" / "report.html"
    assert report.stat().st_size < MOST_BYTES
    assert page_faults.faults(chromium, report) == []


PLANTED = {
    "<p><img src='https://example.org/a.png' alt='from elsewhere'></p>": "a request for https",
    "<p><img src='none.png' alt='not there'></p>": "failed: file:",
    "<script>document.title = 'changed'</script>": "on the console",
    "<p><img src='data:,' width='9' height='9'></p>": "image-alt",
    "<p style='color: #999; background: #ccc'>Pale words.</p>": "color-contrast",
    "<p style='width: 30rem'>A long paragraph of fixed width.</p>": "360 px: wider",
    "<table><tr><td>1</td></tr></table><p lang='xx-none'>?</p>": "valid-lang",
    "<p>Here $\\alpha$ was left as it is.</p>": "was not read: ",
    "<p>As [@fig-none] shows.</p>": "was not read: [@fig-none]",
    "<svg role='img' aria-label='a + b' width='9' height='9'></svg>": "an empty formula: a + b",
}


@pytest.mark.slow
def test_planted_faults_are_found(chromium: Browser, pages: list[Path], tmp_path: Path) -> None:
    planted = "".join(PLANTED)
    page = re.sub(
        "(<main[^>]*>)", lambda match: match[0] + planted, pages[0].read_text(encoding="utf-8")
    )
    path = tmp_path / "planted.html"
    path.write_text(page, encoding="utf-8")
    found = page_faults.faults(chromium, path)
    missed = [
        fault for fault, message in PLANTED.items() if not any(message in one for one in found)
    ]
    assert missed == [], found


def test_without_a_browser_the_tests_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_faults, "NAMES", ("no-such-browser",))
    with (
        pytest.raises(pytest.skip.Exception, match="no Chromium is installed here"),
        page_faults.started(),
    ):
        raise AssertionError("there is a browser")
