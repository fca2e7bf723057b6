"""What a browser without a network finds wrong with a page, as a reader would meet it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTHS = (360, 390, 820, 1280)
"""Of two telephones, a tablet and a laptop, in CSS pixels."""
ONLY_FAULTS = {"resultTypes": ["violations"]}
"""What is right need not be described, element by element."""
VARYING = ["color-contrast", "link-in-text-block", "scrollable-region-focusable"]
"""Of axe's rules, those that a page may keep in one scheme or at one width and break in another."""
AXE = {"light": (1280, ONLY_FAULTS), "dark": (360, {**ONLY_FAULTS, "runOnly": VARYING})}
"""At which width axe looks at a colour scheme, and for what: it takes seconds for a long page."""
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
TOO_WIDE = """() => {
  const edge = window.innerWidth;
  const scrolls = (node) => node && node !== document.body && (
    ['auto', 'scroll'].includes(getComputedStyle(node).overflowX) || scrolls(node.parentElement));
  const found = [...document.body.querySelectorAll('*')]
    .filter((node) => node.getBoundingClientRect().right > edge + 1 && !scrolls(node.parentElement))
    .map((node) => node.outerHTML.slice(0, 120));
  const width = document.documentElement.scrollWidth;
  return width > edge && !found.length ? [`the page, ${width} px`] : found;
}"""
"""What the window cuts off: whatever is not in a frame that scrolls."""
CUT_PICTURES = """() => [...document.querySelectorAll('img, svg[role=img]')]
  .filter((node) => {
    const frame = node.closest('.wide, .formula, figure, p, li, td, main').getBoundingClientRect();
    return node.getBoundingClientRect().right > frame.right + 1; })
  .map((node) => node.alt || node.getAttribute('aria-label'))"""
"""Pictures and formulas are scaled, and never scrolled."""
EMPTY_FORMULAS = """() => [...document.querySelectorAll('svg[role=img]')]
  .filter((svg) => ![...svg.querySelectorAll('use, path')].some((one) => {
    const box = one.getBoundingClientRect(); return box.width > 0 || box.height > 0; }))
  .filter((svg) => !svg.closest('details:not([open])'))
  .map((svg) => svg.getAttribute('aria-label'))"""
TEXT = """() => { const copy = document.querySelector('main').cloneNode(true);
  copy.querySelectorAll('pre, code, style, .text, .where').forEach((node) => node.remove());
  return copy.textContent; }"""
ALIKE = r"""() => {
  document.querySelectorAll('pre code').forEach((one) => { one.textContent = one.textContent; });
  const shape = (row) => row.outerHTML.replace(/>[^<]+</g, '>x<');
  document.querySelectorAll('tbody').forEach((body) => {
    const known = new Set();
    [...body.rows].forEach((row) => known.has(shape(row)) ? row.remove() : known.add(shape(row)));
  });
}"""
"""Thousands of words in code's colours and rows that differ in their words alone, each of which axe
would weigh."""
SOURCE_OF_A_FORMULA = re.compile(r"\\[A-Za-z]{2,}|\\\(|\$(?!\d)[^$\n]{1,80}\$|\[@[\w-]+\]")


@contextmanager
def started() -> Iterator[Browser]:
    """A Chromium of this machine; the test is skipped where there is none."""
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("no Chromium is installed here: the pages were not opened in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


def faults(browser: Browser, path: Path) -> list[str]:
    """All that is wrong with a page, at all widths and in two colour schemes.

    A request for anything but the page itself, a failed one, an error on the console, what
    :func:`cut_off` finds, a formula that was not drawn or not read, and what axe finds serious or
    critical.
    """
    with _opened(browser, path) as (page, found):
        found += _cut_off(page)
        page.emulate_media(color_scheme="dark")
        found += [f"dark, {one}" for one in _too_wide(page)]
        found += [f"an empty formula: {words}" for words in page.evaluate(EMPTY_FORMULAS)]
        found += [
            f"a formula or reference that was not read: {text}"
            for text in SOURCE_OF_A_FORMULA.findall(page.evaluate(TEXT))
        ]
        page.evaluate(ALIKE)
        for scheme, (width, options) in AXE.items():
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 900})
            found += [f"{scheme}, {width} px: {one}" for one in _axe(page, options)]
    return list(dict.fromkeys(found))


def cut_off(browser: Browser, path: Path) -> list[str]:
    """What does not fit: a page wider than the screen, a picture or formula wider than its frame.

    At all widths; of pictures and formulas with all that unfolds open or closed.
    """
    with _opened(browser, path) as (page, _):
        return _cut_off(page)


def _cut_off(page: Page) -> list[str]:
    """The same of a page that is open; all that unfolds is unfolded then."""
    found = []
    for is_open in ("false", "true"):
        page.evaluate(
            "() => document.querySelectorAll('details')"
            f".forEach((one) => {{ one.open = {is_open}; }})"
        )
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            found += [f"{width} px: cut off: {one}" for one in page.evaluate(CUT_PICTURES)]
    return found + _too_wide(page)


def _too_wide(page: Page) -> list[str]:
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        wide = page.evaluate(TOO_WIDE)
        found += [f"{width} px: wider than the screen: {one}" for one in wide]
    return found


@contextmanager
def _opened(browser: Browser, path: Path) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what it asked for and what went wrong, which grows as it is looked at."""
    context = browser.new_context(color_scheme="light", offline=True)
    page = context.new_page()
    found: list[str] = []
    address = path.resolve().as_uri()

    def asked(url: str) -> None:
        if url != address and not url.startswith("data:"):
            found.append(f"a request for {url}")

    page.on("request", lambda request: asked(request.url))
    page.on("requestfailed", lambda request: found.append(f"failed: {request.url}"))
    page.on("pageerror", lambda error: found.append(f"an error: {error}"))
    page.on(
        "console",
        lambda said: (
            found.append(f"on the console: {said.text}")
            if said.type in ("error", "warning")
            else None
        ),
    )
    page.goto(address, wait_until="load")
    try:
        yield page, found
    finally:
        context.close()


def _axe(page: Page, options: dict[str, list[str]]) -> list[str]:
    """What axe finds, the serious and the critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = []
    for violation in Axe().run(page, options=options).response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            where = "; ".join(node["html"][:100] for node in violation["nodes"][:3])
            count = len(violation["nodes"])
            found.append(f"{violation['id']} ({violation['impact']}, {count} places): {where}")
    return found
