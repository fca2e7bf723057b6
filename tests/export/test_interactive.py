"""The figure that can be tried: what it computes, by mouse and by keys, and who can read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import page_faults
import pytest
import torch
from test_export import pdf_text, save, shows

from rsk.base import folders
from rsk.course import labels, publish
from rsk.export import export_report
from rsk.figures import lessons

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TOKENS = ["mat", "floor", "sofa", "bed"]
P = torch.tensor([0.4, 0.3, 0.2, 0.1])
Q = torch.tensor([0.1, 0.5, 0.2, 0.2])


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with page_faults.started() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    labels.reset()
    picture = lessons.acceptance_rule(TOKENS, P, Q)
    path = tmp_path_factory.mktemp("rule") / "08_report.ipynb"
    return export_report(save([shows(publish.figure, **picture._asdict())], path))


@pytest.fixture
def page(chromium, report):
    context = chromium.new_context(viewport={"width": 820, "height": 900}, offline=True)
    page = context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.goto(report[0].resolve().as_uri())
    yield page
    assert page.said == []
    context.close()


def slider(page, which, word):
    return page.get_by_role("slider", name=f"{which} of {word}", exact=True)


def state(page):
    """The target, the draft and the output, as a screen reader has them."""

    def values(which):
        sliders = (slider(page, which, word) for word in TOKENS)
        return torch.tensor([float(one.get_attribute("aria-valuenow")) / 100 for one in sliders])

    outputs = [
        page.get_by_role("img", name=re.compile(rf"^{word}: accepted")).get_attribute("aria-label")
        for word in TOKENS
    ]
    accepted, recovered, output = torch.tensor(
        [[float(number) for number in re.findall(r"\d\.\d+", one)] for one in outputs]
    ).T
    return values("target p"), values("draft q"), accepted, recovered, output


def check(page):
    """The law of the output, recomputed from what the sliders say."""
    p, q, accepted, recovered, output = state(page)
    near = {"atol": 0.0062, "rtol": 0.0}  # two digits are shown
    for distribution in (p, q):
        torch.testing.assert_close(distribution.sum(), torch.tensor(1.0), atol=0.003, rtol=0.0)
    torch.testing.assert_close(accepted, p.minimum(q), **near)
    torch.testing.assert_close(recovered, (p - q).clamp(min=0), **near)
    torch.testing.assert_close(output, p, **near)
    kept = float(p.minimum(q).sum())
    said = page.locator(".totals").inner_text()
    numbers = [float(number) for number in re.findall(r"\d\.\d+", said)]
    assert numbers == pytest.approx([kept, 1 - kept, 1, 0], abs=0.0062)
    return p, q


def test_it_begins_as_the_figure_that_it_replaces(page):
    p, q = check(page)
    torch.testing.assert_close(p, P)
    torch.testing.assert_close(q, Q)
    assert not page.locator("figure img").is_visible()
    assert page.get_by_role("group", name="Try the acceptance rule").is_visible()
    assert page.locator(".said").inner_text() == ""


def test_keys_change_it_and_the_output_stays_the_target(page):
    floor = slider(page, "draft q", "floor")
    floor.focus()
    for key, value in (("ArrowDown", 49), ("PageDown", 44), ("ArrowLeft", 43), ("ArrowUp", 44)):
        page.keyboard.press(key)
        assert float(floor.get_attribute("aria-valuenow")) == value
        check(page)
    assert floor.get_attribute("aria-valuetext") == "0.44"
    assert page.locator(".said").inner_text().startswith("floor: drafted with probability 0.44")
    page.keyboard.press("End")
    assert float(floor.get_attribute("aria-valuenow")) == 50
    for word in ("mat", "bed", "sofa"):
        slider(page, "draft q", word).press("Home")
        check(page)
    slider(page, "target p", "mat").press("PageDown")
    p, _ = check(page)
    assert float(p[0]) == pytest.approx(0.35)
    before = page.evaluate("scrollY")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "draft q of mat"
    assert page.evaluate("scrollY") == before
    page.get_by_role("button", name="Start again").click()
    torch.testing.assert_close(check(page)[1], Q)


def test_a_bar_is_dragged(page):
    bar = slider(page, "draft q", "mat")
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + 0.8 * box["height"])
    page.mouse.down()
    for share in (0.6, 0.2, -0.5):  # beyond its top too
        page.mouse.move(x, box["y"] + share * box["height"])
        wanted = min(50, 50 * (1 - share))
        assert float(bar.get_attribute("aria-valuenow")) == pytest.approx(wanted, abs=0.5)
        check(page)
    page.mouse.up()
    page.mouse.move(x, box["y"] + box["height"])
    assert float(bar.get_attribute("aria-valuenow")) == 50


@pytest.mark.slow
def test_it_fits_and_all_can_read_it(chromium, report):
    assert page_faults.faults(chromium, report[0]) == []


def test_without_script_and_on_paper_the_picture_stands(chromium, report, page):
    assert "The acceptance rule for one position" in pdf_text(report[1])
    page.emulate_media(media="print")
    assert page.locator("figure img").is_visible()
    assert not page.locator(".rule").is_visible()
    context = chromium.new_context(java_script_enabled=False, offline=True)
    plain = context.new_page()
    plain.goto(report[0].resolve().as_uri())
    assert plain.locator("figure img").is_visible()
    assert not plain.locator(".interactive").is_visible()
    context.close()


def test_only_the_pages_own_script_runs(chromium, report, tmp_path):
    spoilt = report[0].read_text(encoding="utf-8")
    spoilt = spoilt.replace("</body>", "<script>document.title = 'changed'</script></body>")
    path = tmp_path / "spoilt.html"
    path.write_text(spoilt, encoding="utf-8")
    page = chromium.new_page()
    page.goto(path.as_uri())
    assert page.title() == "A title"
    assert page.locator(".rule").is_visible()
    page.close()


def test_the_script_is_short():
    lines = (folders.style_dir() / "rule.js").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
