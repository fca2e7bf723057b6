"""In a notebook, references read as words: the names that the exports give, or where to look."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import nbformat
import pytest

pytest.importorskip("matplotlib")

import matplotlib.pyplot as plt
import pandas as pd

from rsk.base import folders
from rsk.course import labels, publish
from rsk.export.document import MIME

if TYPE_CHECKING:
    from conftest import WholeCourse

LABEL = re.compile(r"\[@[\w-]+\]|\b(?:fig|tab|lst)-[\w-]+:")
"""A label as nobody should read it."""


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr(publish, "_display", bundles.append)
    return bundles


def read(bundles):
    """What a viewer shows of outputs, without pictures."""
    kinds = ("text/markdown", "text/html", "text/plain")
    return [str(bundle[kind]) for bundle in bundles for kind in kinds if kind in bundle]


def show_one_of_each():
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    frame = pd.DataFrame({"a": [1]})
    publish.prose("See [@lst-a]. [@fig-a] shows {{ n }}; so does [@tab-b].", n=1)
    publish.figure(fig, label="fig-a", caption="As in [@tab-a].", alt="A line.", data=frame)
    publish.table(frame, label="tab-a", caption="The data of [@fig-a].")
    publish.table(frame, label="tab-b", caption="Again.")
    publish.source("rsk/sampler/random_words.py", "coin", label="lst-a", caption="For [@fig-a].")
    publish.tokens([("a", "accepted")], label="lst-b", caption="As [@lst-a] says.")
    publish.prose("[@fig-a], [@tab-a], [@tab-b], [@lst-a] and [@lst-b]: {{ n }}.", n=5)


def test_a_reference_reads_as_a_name_or_as_where_to_look(shown):
    show_one_of_each()
    first, *_, last = [bundle["text/markdown"] for bundle in shown if "text/markdown" in bundle]
    assert first == "See the listing below. The figure below shows 1; so does the table below."
    assert last == "Figure 1, Table 1, Table 2, Listing 1 and Listing 2: 5."
    every = "\n".join(read(shown))
    assert not LABEL.search(every)
    for words in (
        *("**Figure 1.** As in the table below.", "Data of Figure 1"),
        *("Table 1. The data of Figure 1.", "Table 2. Again.", "**Listing 1.** For Figure 1."),
        "<b>Listing 2.</b> As Listing 1 says.",
    ):
        assert words in every, words
    # What the exports read keeps the references, to make links of them.
    assert shown[0][MIME]["text"].startswith("See [@lst-a].")


def test_the_names_are_those_of_the_export(shown, tmp_path):
    from nbformat import v4

    from rsk.export import export_site

    show_one_of_each()
    outputs = [v4.new_output("display_data", data=bundle) for bundle in shown]
    notebook = v4.new_notebook(
        cells=[
            v4.new_markdown_cell("# A title\n\nSee [the loop](#lst-a)."),
            v4.new_code_cell("show()", outputs=outputs, execution_count=1),
        ]
    )
    nbformat.write(notebook, tmp_path / "01_a.ipynb")
    _, page = export_site([tmp_path / "01_a.ipynb"], tmp_path / "site")
    text = page.read_text(encoding="utf-8").replace("\u00a0", " ")
    links = dict(re.findall(r'<a href="#((?:fig|tab|lst)-\w)">([^<]+ \d)</a>', text))
    for label, name in links.items():
        assert labels.read_aloud(f"[@{label}]") == name
    assert len(links) == 5
    assert '<a href="#lst-a">the loop</a>' in text


def test_a_cell_that_runs_again_keeps_its_number(monkeypatch):
    cell = ["a", 1]
    monkeypatch.setattr(labels, "_running_cell", lambda: tuple(cell))
    assert labels.claim("fig-a", "figure") == "Figure 1"
    cell[:] = "b", 2
    assert labels.claim("fig-b", "figure") == "Figure 2"
    cell[:] = "a", 3
    assert labels.claim("fig-a", "figure") == "Figure 1"
    cell[:] = "c", 4
    assert labels.claim("fig-c", "figure") == "Figure 3"


def test_cells_of_text_hold_no_label():
    for path in sorted(folders.notebooks_dir().glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                assert not LABEL.search(cell.source), f"{path.name}: {cell.source[:80]}"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_label_is_read_in_the_course(whole_course: WholeCourse) -> None:
    for path in sorted((whole_course.folder / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            outputs = [output["data"] for output in cell.get("outputs", []) if "data" in output]
            for text in read(outputs):
                assert not LABEL.search(text), f"{path.name}: {text[:200]}"
