"""The exports: everything arrives in both, nothing is fetched, and what is wrong is named."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pypdf
import pytest
from nbformat import v4

from rsk.base import folders, templates
from rsk.course import labels, publish
from rsk.export import ExportError, export_report, export_site, formula, markdown, notebook, pandoc
from rsk.export.document import MIME
from rsk.export.pdf import _widths

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5E"
    "rkJggg=="
)
START = "2026-11-20T09:30:00+00:00"


# --- notebooks, executed without a kernel


@pytest.fixture(autouse=True)
def _new_kernel(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


def text(source, *tags):
    return v4.new_markdown_cell(source, metadata={"tags": list(tags)})


def code(source, *outputs, tags=()):
    """A code cell that was run; an output is a bundle, or what it printed."""
    made = [
        v4.new_output("stream", text=output)
        if isinstance(output, str)
        else v4.new_output("display_data", data=output)
        if "output_type" not in output
        else output
        for output in outputs
    ]
    return v4.new_code_cell(source, outputs=made, execution_count=1, metadata={"tags": list(tags)})


def shows(call, *args, tags=(), **kwargs):
    """A code cell whose outputs are what a publishing call shows in a notebook."""
    bundles = []
    display, publish._display = publish._display, bundles.append
    try:
        call(*args, **kwargs)
    finally:
        publish._display = display
    return code(f"publish.{call.__name__}(...)", *bundles, tags=tags)


FRAME = pd.DataFrame(
    {"batch size": [1, 64], "baseline (ms)": [1.48, 66.92], "fused (ms)": [0.04, 0.321]}
)


def a_figure(label="fig-a", caption="Time, $K = 4$; see [@tab-a].", alt="A rising line.", **more):
    fig, ax = plt.subplots(figsize=(4, 2.5))
    ax.plot(FRAME["batch size"], FRAME["baseline (ms)"])
    return shows(publish.figure, fig, label=label, caption=caption, alt=alt, **more)


def save(cells, path, title="# A title", **metadata):
    cells = [text(title), *cells] if title else list(cells)
    notebook = v4.new_notebook(cells=cells, metadata={"papermill": {"start_time": START}})
    notebook.metadata.update(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def export(tmp_path):
    """Export cells as a report and return the HTML and the PDF's text."""

    def run(*cells, **metadata):
        html, pdf = export_report(save(cells, tmp_path / "run.ipynb", **metadata))
        return html.read_text(encoding="utf-8"), pdf_text(pdf)

    return run


def pdf_text(path):
    pages = [page.extract_text() for page in pypdf.PdfReader(path).pages]
    return re.sub(r"\s+", " ", "\n".join(pages))


class Page(HTMLParser):
    """What a page is made of: its elements, and its visible words."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.words, self.hidden = [], [], 0
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.hidden += tag in ("style", "title")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("style", "title")

    def handle_data(self, words):
        if not self.hidden:
            self.words.append(words)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


# --- one report with everything in it


WHOLE = """\
The work of Łukasz Kaiser and Nguyễn Văn An costs \\$5 and \\$10, or $5 and $10; H<sub>2</sub>O.
See [@fig-a], [@tab-a], [@lst-a], [@lst-t], [@sec-the-rule] and [the rule](#The-rule).

## Abstract

Short. [The baseline](02_baseline.ipynb), [a kernel](../cuda/x.cu), <https://example.org/paper>.

## The rule

Accept iff $u\\,q(d) < p(d)$; otherwise sample from

$$ r(v) = \\frac{\\max(p(v) - q(v), 0)}{\\sum_w \\max(p(w) - q(w), 0)} $$

\\begin{align}
\\mathbb{E}[n] &= \\sum_{k=1}^{K} \\alpha^k \\\\
 &= \\frac{\\alpha - \\alpha^{K+1}}{1 - \\alpha}
\\end{align}

| symbol | meaning |
|:--|--:|
| $B$ | requests |

<table><tr><th>raw</th></tr><tr><td>kept <b>bold</b></td></tr></table>

### Code

```python
def accept(u: float) -> bool:
    return u < 1
```
"""
EXERCISE = """\
## Exercise

<details><summary>Solution with <b>bold</b></summary>

It is $\\alpha^2$, as in

```python
answer = 42
```

</details>
"""


def whole_report():
    image = f"![A pixel](data:image/png;base64,{PIXEL})"
    return [
        code("batch_sizes = [1]", tags=["parameters"]),
        code("batch_sizes = [2]", tags=["injected-parameters"]),
        text(WHOLE),
        code("hidden = 1", "hidden code prints this\n"),
        code("unseen = 1", "nor this\n", tags=["hide-cell"]),
        code("quiet = 1", "nor that\n", tags=["hide-output"]),
        code("import tqdm", v4.new_output("stream", name="stderr", text="100%|###|\n")),
        shows(publish.banner, "recorded", {**RECORDED, "gpu": "NVIDIA H200"}),
        text("## Results\n\n" + image),
        a_figure(data=FRAME),
        shows(publish.table, FRAME, label="tab-a", caption="Times for $K = 4$."),
        shows(publish.prose, "It takes {{t}} ms at $B = 64$.", t=0.321),
        shows(publish.source, "cuda/random_words.h", "mix", label="lst-a", caption="The mixer."),
        shows(publish.source, "rsk/sampler/random_words.py", "coin"),
        shows(
            publish.tokens,
            [("def ", "prompt"), ("add", "accepted"), ("(\n", "recovered"), ("a", "bonus")],
            label="lst-t",
            caption="Text.",
        ),
        text(EXERCISE),
        text("## References\n\n1. A paper."),
    ]


RECORDED = {"driver": "570.86", "torch": "2.13.0", "date": "2026-11-20T10:00:00+00:00"}


def an_error(name="ValueError", value="\x1b[31mtoo bad\x1b[0m"):
    return v4.new_output("error", ename=name, evalue=value, traceback=[])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The report with everything in it: page, PDF reader, PDF text."""
    labels.reset()
    folder = tmp_path_factory.mktemp("whole")
    cells = whole_report()
    path = save(cells, folder / "08_report.ipynb", authors=[{"name": "Ana Müller"}, "Łukasz"])
    html, pdf = export_report(path, folder / "out")
    page = Page(html.read_text(encoding="utf-8"))
    return page, pypdf.PdfReader(pdf), pdf_text(pdf), html


def test_both_exports_carry_everything(whole):
    page, _, pdf, _ = whole
    for words in (
        "A title",
        "Ana Müller · Łukasz · 2026-11-20",
        "Łukasz Kaiser and Nguyễn Văn An costs $5 and $10, or $5 and $10",
        "See Figure 1, Table 1, Listing 1, Listing 2, Section 1 and the rule.",
        "1 The rule",
        "1.1 Code",
        "2 Results",
        "Figure 1. Time,",
        "see Table 1.",
        "Table 1. Times for",
        "Listing 1. The mixer. cuda/random_words.h, lines ",
        "Listing 2. Text. Marked: accepted, recovered, bonus.",
        "Recorded on NVIDIA H200, driver 570.86, PyTorch 2.13.0, 2026-11-20",
        "kept bold",
        "requests",
        "def accept(u: float) -> bool:",
        "It takes 0.321 ms at",
        "0xBF58476D1CE4E5B9",
        "def coin(seed: int, t: int) -> float:",
        "hidden code prints this",
        "Solution with bold",
        "answer = 42",
        "https://example.org/paper",
    ):
        assert words in page.text.replace("\u00a0", " "), words
        assert words in pdf.replace("\u00a0", " "), words
    for words in (
        "batch_sizes",
        "hidden = 1",
        "quiet = 1",
        "unseen",
        "nor this",
        "nor that",
        "100%",
        "\\frac",
    ):
        assert words not in page.text, words
        assert words not in pdf, words


def test_the_page_asks_for_nothing(whole):
    page, _, _, path = whole
    source = path.read_text(encoding="utf-8")
    assert not page.all("script")
    assert not re.search(r"@import|url\(|\bon\w+=|<iframe|<object|<embed", source)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            target = attributes.get(name) or ""
            inside = target.startswith(("data:", "#")) or not target
            outward = tag == "a" and target.startswith("https://")  # followed only when clicked
            assert inside or outward, (tag, name, target)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert path.stat().st_size < 6_000_000


def test_the_page_can_be_heard(whole):
    page, *_ = whole
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [image["alt"] for image in page.all("img")] == ["A pixel", "A rising line."]
    drawn = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert "u q(d) < p(d)" in [svg["aria-label"] for svg in drawn]
    assert all(svg["aria-label"].strip() for svg in drawn)
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for link in page.all("a"):
        if link["href"].startswith("#"):
            assert link["href"][1:] in names
    # Every glyph that a formula uses is there.
    assert {use["href"][1:] for use in page.all("use")} <= set(names)
    contents = [link["href"] for link in page.all("a") if link["href"].startswith("#sec-")]
    assert {"#sec-abstract", "#sec-the-rule", "#sec-code", "#sec-references"} <= set(contents)


def test_a_document_says_its_language_and_the_exports_follow(tmp_path, monkeypatch):
    words = tmp_path / "report"
    shutil.copytree(templates.folder(), words / "en")
    shutil.copytree(templates.folder(), words / "de")
    path = words / "de" / "phrases.toml"
    text = path.read_text(encoding="utf-8")
    german = {"en": "de", "Figure": "Bild", "Section": "Abschnitt", "Contents": "Inhalt"}
    german |= {"Data of {}": "Daten zu {}", "Skip to the content": "Zum Inhalt"}
    for old, new in german.items():
        assert f'"{old}"' in text
        text = text.replace(f'"{old}"', f'"{new}"')
    path.write_text(text, encoding="utf-8")
    style = folders.style_dir()
    monkeypatch.setattr(folders, "report_dir", lambda: words)
    monkeypatch.setattr(folders, "style_dir", lambda: style)
    cells = [
        shows(
            publish.markdown, "# Ein Titel\n\n## Das Bild\n\nSiehe [@fig-a], [@sec-das-bild].", "de"
        ),
        a_figure(caption="Zeit.", data=FRAME),
    ]
    html, pdf = export_report(save(cells, tmp_path / "run.ipynb", title=""))
    page = Page(html.read_text(encoding="utf-8"))
    assert page.all("html") == [{"lang": "de"}]
    shown = page.text.replace("\u00a0", " ")
    for text in ("Siehe Bild 1, Abschnitt 1.", "Bild 1. Zeit.", "Inhalt", "Daten zu Bild 1"):
        assert text in shown, text
    reader = pypdf.PdfReader(pdf)
    assert reader.trailer["/Root"]["/Lang"] == "de"
    assert "Bild 1. Zeit." in pdf_text(pdf)


def test_the_data_behind_a_figure_goes_along(whole):
    page, reader, _, _ = whole
    link = next(a for a in page.all("a") if a.get("download") == "fig-a.csv")
    rows = base64.b64decode(link["href"].partition(",")[2]).decode()
    assert pd.read_csv(io.StringIO(rows)).equals(FRAME)
    assert reader.attachments["fig-a.csv"] == [rows.encode()]


def test_the_pdf_is_tagged_and_has_bookmarks(whole):
    _, reader, _, _ = whole
    assert reader.metadata.title == "A title"
    assert reader.trailer["/Root"]["/MarkInfo"]["/Marked"]
    assert reader.trailer["/Root"]["/Lang"] == "en"

    def titles(outline):
        for entry in outline:
            yield from titles(entry) if isinstance(entry, list) else [entry.title]

    assert list(titles(reader.outline)) == [
        *("Abstract", "1 The rule", "1.1 Code", "2 Results", "3 Exercise", "References"),
    ]
    links = [
        note.get_object()
        for page in reader.pages
        for note in page.get("/Annots", [])
        if note.get_object()["/Subtype"] == "/Link"
    ]
    assert len([link for link in links if "/Dest" in link or "/D" in link.get("/A", {})]) >= 10


def test_the_contents_follow_the_abstract(whole):
    _, reader, _, _ = whole
    first = reader.pages[0].extract_text()
    assert first.index("Abstract") < first.index("Short.") < first.index("Contents")
    assert first.index("Contents") < first.index("The rule")


def test_a_caption_does_not_scroll_away_with_its_table(whole):
    source = whole[3].read_text(encoding="utf-8")
    start = source.index('<figure class="table" id="tab-a">')
    table = source[start : source.index("</figure>", start)]
    assert table.index("</figcaption>") < table.index('<div class="wide"') < table.index("<table")
    assert 'aria-label="Table 1"' in table
    assert "<th" in table[: table.index("</thead>")]


def test_the_same_notebook_gives_the_same_bytes(tmp_path):
    path = save(whole_report(), tmp_path / "08_report.ipynb")
    made = [
        [file.read_bytes() for file in export_report(path, tmp_path / name)] for name in ("a", "b")
    ]
    assert made[0] == made[1]


def test_a_notebook_of_the_course_is_by_the_authors_of_the_package(tmp_path):
    for name, authors in {"08_report": [notebook.AUTHORS], "mine": []}.items():
        path = save([text("Text.")], tmp_path / f"{name}.ipynb")
        assert notebook.read(path, all_code=False).authors == authors
    top = folders.checkout()
    if top is not None:
        for name in ("LICENSE", "CITATION.cff", "pyproject.toml"):
            assert notebook.AUTHORS in (top / name).read_text(encoding="utf-8")


def test_the_date_can_be_set(export, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    html, pdf = export(text("Text."))
    assert "1970-01-02" in html
    assert "1970-01-02" in pdf


def test_colours_can_be_read_in_both_modes():
    style = (folders.style_dir() / "style.css").read_text()
    modes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(modes) == 3  # light, dark, print

    def luminance(colour):
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for mode in modes:
        # What a mode leaves out is as in the first.
        colours = dict(re.findall(r"--(\w+): (#\w{6})", modes[0] + mode))
        backgrounds = {"paper", "panel", "accepted", "recovered", "bonus"}
        on = dict.fromkeys(set(colours) - backgrounds - {"line"}, ("paper", "panel"))
        on["ink"] = tuple(backgrounds)
        for front, behind in [(name, back) for name, backs in on.items() for back in backs]:
            light, dark = sorted(map(luminance, (colours[front], colours[behind])), reverse=True)
            ratio = (light + 0.05) / (dark + 0.05)
            assert ratio >= 4.5, f"{front} on {behind}: {ratio:.2f}"


# --- what is wrong is named, and nothing is half written


FIGURE_WITHOUT_PICTURE = {
    MIME: {"kind": "figure", "label": "f", "caption": "C.", "alt": "A.", "size": [9, 9]}
}
WRONG = {
    "an error": (lambda: code("run()", an_error()), "ended with ValueError: too bad"),
    "not run": (lambda: v4.new_code_cell("run()"), "was not run"),
    "no picture": (lambda: code("f()", FIGURE_WITHOUT_PICTURE), "picture of figure 'f' is missing"),
    "half a picture": (
        lambda: code("f()", {**FIGURE_WITHOUT_PICTURE, "image/png": "AAAA"}),
        "is not a PNG",
    ),
    "incomplete": (lambda: code("f()", {MIME: {"kind": "banner"}}), "incomplete"),
    "no label": (
        lambda: code("f()", {MIME: {"kind": "table", "caption": "C."}}),
        "a table without label or caption",
    ),
    "unknown": (lambda: code("f()", {MIME: {"kind": "x"}}), "unknown kind 'x'"),
    "bare picture": (
        lambda: code("plt.show()", {"image/png": PIXEL}),
        "use rsk.course.publish.figure",
    ),
    "HTML": (
        lambda: code("w", {"text/html": "<b>", "text/plain": "<IPython.core.display.HTML object>"}),
        "use rsk.course.publish",
    ),
    "reference": (lambda: text("See [@fig-none]."), r"\[@fig-none\] leads nowhere; labels are"),
    "reference in a caption": (lambda: a_figure(caption="As [@tab-z]."), r"\[@tab-z\] leads"),
    "link": (lambda: text("See [there](#nowhere)."), "link #nowhere leads to no heading"),
    "unknown command": (lambda: text("Here $\\foo{x}$."), r"'\\\\foo\{x\}' cannot be converted"),
    "formula in a caption": (lambda: a_figure(caption="As $\\foo$."), "cannot be converted"),
    "open formula": (lambda: text("Here $$ \\frac{a}{ $$."), "looks like a formula"),
    "TeX without $": (lambda: text("Here \\alpha."), "looks like a formula"),
    "numbered formula": (lambda: text("$$ a \\tag{1} $$"), "cannot be converted"),
    "fence": (lambda: text("```python\nx = 1"), "never closed"),
    "HTML tag": (lambda: text("<video src='x'></video>"), "<video src='x'> has no form"),
    "HTML block": (lambda: text("<script>x()</script>"), "<script> has no form"),
    "details": (lambda: text("<details>\n\nopen"), "<details> is not closed"),
    "end of details": (lambda: text("a\n\n</details>"), "without <details>"),
    "inline tag": (lambda: text("a <b>bold"), "<b> is not closed"),
    "table": (lambda: text("text\n| a | b |\n|---|---|\n| 1 | 2 |"), "blank line before it"),
    "missing file": (lambda: text("![alt](none.png)"), "picture none.png is missing"),
    "picture elsewhere": (lambda: text("![a](https://x.org/a.png)"), "not part of the notebook"),
    "no alt text": (lambda: text(f"![](data:image/png;base64,{PIXEL})"), "no alt text"),
    "heading": (lambda: text("## A\n\n#### B"), "'B' skips a level"),
    "two titles": (lambda: text("# Again"), "second heading of level 1"),
    "wide table": (
        lambda: shows(
            publish.table,
            pd.DataFrame({f"a_column_with_a_long_name_{at}": [1.0] for at in range(12)}),
            label="tab-w",
            caption="Wide.",
        ),
        "12 columns is too wide",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named_with_its_cell(what, tmp_path):
    make, message = WRONG[what]
    for name in ("report.html", "report.pdf"):
        (tmp_path / name).write_text("the good one")
    path = save([text("Text."), make(), text("More.")], tmp_path / "05_x.ipynb")
    with pytest.raises(ExportError, match=message) as caught:
        export_report(path)
    assert str(caught.value).startswith("05_x.ipynb, cell 3 (")
    assert (tmp_path / "report.html").read_text() == "the good one"
    assert (tmp_path / "report.pdf").read_text() == "the good one"
    assert len(list(tmp_path.iterdir())) == 3  # and nothing is left lying about


def test_a_label_in_two_cells_is_refused(export):
    first = a_figure(caption="A.")
    labels.reset()
    with pytest.raises(ExportError, match=r"cell 3 .* label 'fig-a' is used twice"):
        export(first, a_figure(caption="B."))


def test_a_notebook_without_title_or_file_is_refused(export, tmp_path):
    with pytest.raises(ExportError, match="has no title"):
        export(text("Text."), title="")
    with pytest.raises(ExportError, match="comes before all other text"):
        export(text("Text."), text("# Late"), title="")
    with pytest.raises(ExportError, match=r"no executed notebook .*08_report\.ipynb"):
        export_report(tmp_path)
    (tmp_path / "bad.ipynb").write_text("not a notebook")
    with pytest.raises(ExportError, match=r"bad\.ipynb is not a notebook"):
        export_report(tmp_path / "bad.ipynb")


def test_an_error_of_typst_names_the_cell(tmp_path, monkeypatch):
    from rsk.export import pdf

    call = pdf.string
    monkeypatch.setattr(pdf, "string", lambda words: "nonsense" if "9" in words else call(words))
    path = save([text("Text."), code("x", "9\n"), text("More.")], tmp_path / "x.ipynb")
    with pytest.raises(ExportError, match=r"x\.ipynb, cell 3 \(x\): Typst: .*nonsense"):
        export_report(path)


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    path = save([text("Text.")], tmp_path / "x.ipynb")
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(ExportError, match="out"):
        export_report(path, tmp_path / "out")


# --- traps


def test_dollars_underscores_and_code_stay_what_they_are(export):
    html, pdf = export(text("`a_b` costs \\$5, snake_case_name, `$x$`, a * b, <kbd>Ctrl</kbd>."))
    page = Page(html)
    for words in (page.text, pdf):
        assert "a_b costs $5, snake_case_name, $x$, a * b, Ctrl." in words
    assert "<svg role" not in html


def test_code_that_looks_like_markup_is_not_read(export):
    sample = "```tex\n\\begin{align} a \\end{align}\n# no heading\n[@fig-none]\n```\n\n`[@fig-x]`"
    html, pdf = export(text(sample))
    for words in (Page(html).text, pdf):
        assert "\\begin{align} a \\end{align} # no heading [@fig-none]" in words


def test_typst_markup_in_text_is_only_text(export):
    words = "#let x = 1; *not* = heading @label <label> // comment [bracket] _under_ `~` 1\\. - +"
    rows = [["= a", "- b", "#c"], ["1. d", "+ e", "/ f: g"], ["@h", "<i>", "\\j $k$"]]
    frame = pd.DataFrame(rows, columns=["*", "_", "//"])
    run = [("#import \\ $x$\n  = y", "accepted")]
    html, pdf = export(
        code("print()", words + "\n"),
        shows(publish.table, frame, label="t", caption="A \\# \\* _c_ \\[x\\] = - + `#x`."),
        shows(publish.tokens, run, label="u", caption="U."),
    )
    page = Page(html).text
    for expected in (words, "/ f: g", "\\j $k$", "A # * c [x] = - + #x.", "#import \\ $x$"):
        assert expected in page, expected
        assert expected in pdf, expected


def test_a_character_without_a_font_is_spelled_out(export):
    _, pdf = export(code("print()", "a \U0001f98a\n"))
    assert "a ⟨U+1F98A⟩" in pdf


def test_long_lines_and_wide_tables_stay_on_the_page(tmp_path):
    frame = pd.DataFrame({f"column {at}": [10.0**at] for at in range(9)})
    wordy = pd.DataFrame({"name": ["a"], "meaning": ["many words in one cell " * 12]})
    cells = [
        code("x", "x" * 300 + "\n" + "words " * 60 + "\n"),
        shows(publish.table, frame, label="t", caption="T."),
        shows(publish.table, wordy, label="w", caption="W."),
    ]
    _, pdf = export_report(save(cells, tmp_path / "x.ipynb"))
    right = 595.3 - 2.25 * 72 / 2.54  # the margin of an A4 page, in points
    placed = []

    def visit(piece, _, matrix, font, size):
        if piece.strip():
            placed.append(matrix[4])

    for page in pypdf.PdfReader(pdf).pages:
        page.extract_text(visitor_text=visit)
    assert placed
    assert max(placed) < right
    assert pdf_text(pdf).replace(" ", "").count("x") >= 300


def pages_of(path):
    """The text of each page of a PDF."""
    return [" ".join(page.extract_text().split()) for page in pypdf.PdfReader(path).pages]


def lines(count):
    return "\n\n".join(f"Line {at} of the text." for at in range(count))


def test_numbers_units_ranges_and_equations_stay_on_one_line(export):
    frame = pd.DataFrame({"time": ["2.15 ms (1.74 – 2.38 ms)"]})
    said = "It took 2.15 ms (481 µs\n– 1.05 ms) at B = 4 and 5% – 6% of B × V, 3 bits, a – b."
    html, _ = export(text(said), shows(publish.table, frame, label="t", caption="At K = 4."))
    for words in (
        "took 2.15~ms (481~µs~–|~1.05~ms) at B~=~4 and 5%~–|~6% of B~×~V, 3 bits, a – b.",
        "2.15~ms (1.74~–|~2.38~ms)",
        "At K~=~4.",
    ):
        assert words.replace("~", "\u00a0").replace("|", "\u2060") in html
    html, _ = export(text("On 2026-11-20. 於2026-11-20，之後"))
    whole = '<span class="whole">2026-11-20</span>'
    assert f"On {whole}. 於{whole}，之後" in html


def test_a_table_that_does_not_fit_leaves_no_hole(tmp_path):
    """Text that comes after it fills the page; it stands whole on the next."""
    frame = pd.DataFrame({"row": [f"row {at}" for at in range(25)]})
    cells = [text(lines(20)), shows(publish.table, frame, label="t", caption="T."), text(lines(40))]
    _, pdf = export_report(save(cells, tmp_path / "x.ipynb"))
    first, second, *_ = pages_of(pdf)
    assert "row 0" not in first and "row 0" in second and "row 24" in second
    assert first.count("Line") > 30


def test_a_table_longer_than_a_page_repeats_its_heading(tmp_path):
    frame = pd.DataFrame({"the heading": [f"row {at}" for at in range(70)]})
    table = shows(publish.table, frame, label="t", caption="T.")
    _, pdf = export_report(save([table, text("The end.")], tmp_path / "x.ipynb"))
    assert [page.count("the heading") for page in pages_of(pdf)] == [1, 1]


@pytest.mark.parametrize("count", [30, 32])
def test_what_announces_something_stands_beside_it(tmp_path, count):
    """Also where the page has room for it, and none for what it announces."""
    sample = "```python\n" + "code()\n" * 12 + "```"
    cells = [text(f"{lines(count)}\n\nWhat to run:\n\n{sample}")]
    _, pdf = export_report(save(cells, tmp_path / "x.ipynb"))
    for page in pages_of(pdf):
        assert ("What to run:" in page) == ("code()" in page)


def test_columns_of_prose_are_as_wide_as_they_need():
    def rows(*cells):
        content = {"columns": cells, "rows": [cells], "align": ["left"] * len(cells)}
        return notebook._table_node(content)["c"][4][0][3]

    assert _widths(2, rows("ab" * 10, "word " * 16)) == "2"
    assert _widths(2, rows("ab" * 50, "ab" * 200)) == "(10.0fr, 20.0fr,)"


def test_environments_alone_become_formulas_outside_of_code():
    bare = "\\begin{align*} a \\end{align*}"
    assert markdown.bare_environments(f"x\n{bare}\ny") == f"x\n$${bare}$$\ny"
    for kept in (f"$${bare}$$", f"```\n{bare}\n```", f"`{bare}`"):
        assert markdown.bare_environments(kept) == kept


@pytest.mark.parametrize(
    ("tex", "words"),
    [
        (r"\frac{1 - a^{K+1}}{1 - a}", "(1 − a^(K + 1))/(1 − a)"),
        (r"\sum_{v=0}^{V-1} \max(p_v - q_v, 0)", "∑_(v = 0)^(V − 1) max (p_v − q_v, 0)"),
        (r"\left\lfloor \frac{R\,T}{2^{62}}\right\rfloor", "⌊(R T)/(2^62)⌋"),
        (r"\begin{cases} 1 & x>0 \\ 0 & \text{otherwise} \end{cases}", "{1 x > 0; 0 otherwise"),
        (r"\hat p \sim \mathcal{N}(0, 1)", "p hat ∼ 𝒩(0, 1)"),
        (r"\sqrt{x} \cdot \operatorname{argmax}_v r_v", "√(x) ⋅ argmax_v r_v"),
    ],
)
def test_formulas_in_words(tex, words):
    assert formula.convert([(tex, False)])[tex, False].words == words


def test_formulas_stand_on_the_line(tmp_path):
    keys = [("x", False), ("p_q", False), (r"\frac{a}{b}", True)]
    shapes, glyphs = formula.draw(formula.convert(keys))
    below = [re.search(r"vertical-align:-([\d.]+)em", shapes[key]) for key in keys]
    assert float(below[0][1]) < 0.05 < float(below[1][1]) < 0.5
    assert below[2] is None  # a displayed formula has a line of its own
    assert glyphs.count("<symbol") == len({"x", "p", "q", "a", "b"})
    with pytest.raises(formula.FormulaError, match="cannot be converted"):
        formula.draw({("x", False): formula.Formula("$undefined$", "x")})


def test_pandoc_must_be_there(monkeypatch):
    import pypandoc

    def missing():
        raise OSError("No pandoc was found")

    monkeypatch.setattr(pypandoc, "get_pandoc_path", missing)
    pandoc._executable.cache_clear()
    with pytest.raises(pandoc.PandocError, match="pip install pypandoc_binary"):
        pandoc.parse("text")
    pandoc._executable.cache_clear()


# --- the site


def test_the_site_links_its_pages(tmp_path):
    names = ["00_quick_demo", "01_problem", "02_baseline"]
    for name in names:
        cells = [
            text("The first words of $x$ here.\n\n## Goal\n\nSee [that](02_baseline.ipynb)."),
            code("visible = 1", "printed\n"),
        ]
        save(cells, tmp_path / "notebooks" / f"{name}.ipynb", title=f"# Title of {name[:2]}")
    (tmp_path / "report.pdf").write_text("a report")
    pages = export_site(tmp_path)
    assert [path.name for path in pages] == ["index.html", *(f"{name}.html" for name in names)]
    index = Page(pages[0].read_text(encoding="utf-8"))
    assert "Title of 01See that." in index.text
    middle = Page(pages[2].read_text(encoding="utf-8"))
    assert "visible = 1" in middle.text
    assert [(a["rel"], a["href"]) for a in middle.all("a") if "rel" in a][:3] == [
        ("prev", "00_quick_demo.html"),
        ("index", "index.html"),
        ("next", "02_baseline.html"),
    ]
    assert "02_baseline.html" in [a["href"] for a in middle.all("a") if "rel" not in a]
    for path in pages:
        for link in Page(path.read_text(encoding="utf-8")).all("a"):
            if not link["href"].startswith(("#", "https:")):
                assert (path.parent / link["href"]).is_file(), link


def test_a_site_with_a_broken_notebook_is_not_begun(tmp_path):
    good = save([text("Text.")], tmp_path / "00_a.ipynb")
    bad = save([code("x", an_error())], tmp_path / "01_b.ipynb")
    with pytest.raises(ExportError, match=r"01_b\.ipynb, cell 2"):
        export_site([good, bad], tmp_path / "site")
    assert not (tmp_path / "site").exists()
    with pytest.raises(ValueError, match="out_dir"):
        export_site([good])
    with pytest.raises(ValueError, match="no executed notebook"):
        export_site(tmp_path)


# --- in a real kernel

SPOILT = {
    "an error": ("1 / 0", r"08_report\.ipynb: cell 2 of 2[\s\S]*ZeroDivisionError"),
    "a missing data file": (
        "from rsk.measure.records import Benchmark\nBenchmark.load('data/gone.json')",
        r"08_report\.ipynb: cell 2 of 2[\s\S]*data/gone\.json",
    ),
    "a missing figure": (
        "from IPython.display import publish_display_data\n"
        f"publish_display_data({FIGURE_WITHOUT_PICTURE!r})",
        r"08_report\.ipynb, cell 3 [\s\S]*the picture of figure 'f' is missing",
    ),
    "a reference to a figure that was not drawn": (
        "from rsk.course import publish\npublish.prose('See [@fig-none].')",
        r"08_report\.ipynb, cell 3 [\s\S]*\[@fig-none\] leads nowhere",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SPOILT)
def test_a_run_that_fails_says_why_and_keeps_the_good_report(
    what, write_notebook, tmp_path, monkeypatch
):
    from typer.testing import CliRunner

    from rsk.cli import app

    cell, message = SPOILT[what]
    path = write_notebook("08_report", cell)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, v4.new_markdown_cell("# A run"))
    nbformat.write(notebook, path)
    run = tmp_path / "run"
    run.mkdir()
    good = {name: f"the good {name}" for name in ("report.html", "report.pdf")}
    for name, content in good.items():
        (run / name).write_text(content)
    monkeypatch.setattr(folders, "notebooks_dir", lambda: path.parent)
    result = CliRunner().invoke(app, ["report", "--output", str(run)])
    assert result.exit_code == 1, result.output
    assert re.search(message, result.output), result.output
    assert {name: (run / name).read_text() for name in good} == good
    left = {entry.name for entry in run.iterdir()}
    assert left - {".lock"} <= {"notebooks", "results", *good}


@pytest.mark.slow
def test_a_notebook_run_by_papermill_is_exported(write_notebook, tmp_path):
    from rsk.course import running

    path = write_notebook(
        "08_report",
        "import matplotlib.pyplot as plt\nfrom rsk.course import publish\n"
        "fig, ax = plt.subplots()\n"
        "ax.plot([1, 2])\npublish.figure(fig, label='fig-a', caption='C.', alt='A line.')",
        "try:\n    publish.figure(fig, label='fig-a', caption='C.', alt='A line.')\n"
        "except ValueError as error:\n    print(error)",
        "publish.prose('Batch {{b}}, [@fig-a].', b=batch)",
        parameters="batch = 1",
    )
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, v4.new_markdown_cell("# A run"))
    nbformat.write(notebook, path)
    running.run_notebook(path, tmp_path / "run", {"batch": 7})
    html, pdf = export_report(tmp_path / "run")
    assert html == tmp_path / "run" / "report.html"
    for words in (Page(html.read_text(encoding="utf-8")).text, pdf_text(pdf)):
        assert "Batch 7, Figure 1." in words.replace("\u00a0", " ")
        assert "'fig-a' is used already" in words
    assert len(Page(html.read_text(encoding="utf-8")).all("img")) == 1


def test_a_large_figure_is_made_to_fit_the_page():
    from rsk.export import pdf
    from rsk.export.document import Figure

    for width, shown in ((900.0, pdf.TEXT_WIDTH), (300.0, 300.0)):
        figure = Figure("f", [], "Alt.", b"", "svg", (width, 100.0), None)
        (block,) = pdf._figure(figure, {})
        assert f", {shown:g}pt" in block["c"][-1]["c"][1]
