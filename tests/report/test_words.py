"""Words stand in templates alone, and every language says the same."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from measured import story, twice, with_cold
from test_values import found

pytest.importorskip("matplotlib")

from rsk.base import folders, templates
from rsk.course import publish
from rsk.figures import plotting
from rsk.report import chapters, measurements, talk
from rsk.report.chapters import Report
from rsk.report.computed_here import Here, Shortcut
from rsk.report.runs import Run
from rsk.report.values import Story
from rsk.sampler import build

PACKAGE = Path(plotting.__file__).parents[1]
CPU = torch.device("cpu")


# --- languages


def differences(language):
    """What a language's templates refer to, and the first language's do not, or the other way."""
    first, other = templates.uses(), templates.uses(language)
    faults = [f"{name}: missing" for name in set(first) ^ set(other)]
    for name in (set(first) & set(other)) - {templates.MACROS}:
        for kind in ("values", "exhibits", "references"):
            here, there = getattr(first[name], kind), getattr(other[name], kind)
            faults += [f"{name}: {kind}: {one}" for one in here ^ there]
    keys = phrases(templates.phrases()) ^ phrases(templates.phrases(language))
    keys = {key for key in keys if not key.startswith("labels.")}  # English ones are in the code
    return sorted(faults + [f"phrases.toml: {key}" for key in keys])


def phrases(words, above=""):
    """The names of phrases, each with what is filled into it."""
    found = set()
    for key, value in words.items():
        name = f"{above}{key}"
        if isinstance(value, dict):
            found |= phrases(value, f"{name}.")
        else:
            places = sorted(re.findall(r"\{\w*\}", value)) if isinstance(value, str) else []
            found.add(" ".join([name, *places]))
    return found


@pytest.mark.parametrize("language", templates.languages())
def test_all_languages_refer_to_the_same(language):
    assert differences(language) == []


@pytest.fixture
def second(tmp_path, monkeypatch):
    """A second language: the first one's words, and how to change a file of it."""
    shutil.copytree(templates.folder(), tmp_path / "en")
    shutil.copytree(templates.folder(), tmp_path / "xx")
    monkeypatch.setattr(folders, "report_dir", lambda: tmp_path)

    def change(name, old, new):
        path = tmp_path / "xx" / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    return change


@pytest.mark.slow
def test_what_a_language_leaves_out_or_adds_is_found(second):
    assert templates.languages() == ["en", "xx"] and differences("xx") == []
    second("abstract.md", "a single program on the GPU", "ein einziges Programm")
    assert differences("xx") == []
    second("abstract.md", "study.usual.expected", "study.usual.acceptance")
    second("results.md", "![](figure:fig-shapes)\n", "")
    second("problem.md", "[@tab-earlier]", "The table")
    second("phrases.toml", 'csv = "CSV file"\n', "")
    second("phrases.toml", "accepted {accepted}, recovered {recovered}, output", "{word} {output}")
    second("captions.md", "## fig-shapes\n", "## fig-words\n")
    assert differences("xx") == [
        "abstract.md: values: study.usual.acceptance",
        "abstract.md: values: study.usual.expected",
        "captions.md: exhibits: fig-shapes",
        "captions.md: exhibits: fig-words",
        "phrases.toml: csv",
        "phrases.toml: rule.output {accepted} {output} {recovered} {word}",
        "phrases.toml: rule.output {output} {output} {word} {word}",
        "problem.md: references: tab-earlier",
        "results.md: exhibits: figure:fig-shapes",
    ]


def no_compiler(kind):
    raise build.BuildError("no compiler")


@pytest.mark.slow
def test_a_report_in_a_second_language(second, monkeypatch):
    second("kernels.md", "## The kernel ladder", "## Die Leiter der Kerne")
    second("captions.md", "## fig-ladder\n\nTitle: {{", "## fig-ladder\n\nTitle: Die Leiter: {{")
    second("course.md", "**Recorded** on", "**Aufgezeichnet** auf")
    second("phrases.toml", 'language = "en"', 'language = "de"')
    second("phrases.toml", 'figure = "Figure"', 'figure = "Bild"')
    monkeypatch.setattr(measurements, "gather", lambda results=None: found())
    monkeypatch.setattr(build, "load", no_compiler)
    shown = []
    monkeypatch.setattr(publish, "_display", shown.append)
    report = Report(CPU, language="xx")
    report.show("kernels")
    words = [bundle["text/plain"] for bundle in shown]
    assert words[0].startswith("## Die Leiter der Kerne")
    assert any("**Not run here:** cuda/*.cu. no compiler" in text for text in words)
    assert any(bundle[publish.MIME].get("language") == "xx" for bundle in shown)
    report._exhibit("banner", "gpu", "")()
    assert shown[-1]["text/plain"].startswith("Aufgezeichnet auf a GPU")
    with pytest.raises(ValueError, match="no words in 'yy'; languages: en, xx"):
        Report(CPU, language="yy")


# --- chapters and exhibits


def chapters_of_the_report():
    """The chapters that notebook 08 shows, in order."""
    notebook = nbformat.read(folders.notebooks_dir() / "08_report.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return re.findall(r'report\.show\("([\w-]+)"\)', code)


def test_the_notebook_shows_every_chapter_and_says_nothing_itself():
    shown = chapters_of_the_report()
    assert len(shown) > 5
    others = {"captions", "macros", "course", "demo", "decoding", "talk"}
    assert set(shown) == {Path(name).stem for name in templates.uses()} - others
    notebook = nbformat.read(folders.notebooks_dir() / "08_report.ipynb", as_version=4)
    (note,) = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert note.metadata.tags == ["hide-cell"] and len(note.source) < 400


def test_what_chapters_show_exists_and_all_that_exists_is_shown():
    uses = templates.uses()
    named = set().union(*(uses[f"{name}.md"].exhibits for name in chapters_of_the_report()))
    got, here = found(), Here(CPU)
    figures = {f"figure:{name}" for name in chapters._figures(got, here)}
    tables = {f"table:{name}" for name in chapters._tables(got)}
    kinds = ("figure:", "table:")
    assert {name for name in named if name.startswith(kinds)} == figures | tables


@pytest.mark.slow
def test_every_figure_and_table_has_its_words():
    got, here = found(gpu=with_cold(twice(story(gpu=True)))), Here(CPU)
    for name, draw in chapters._figures(got, here).items():
        picture = draw()
        assert picture.label == name
        words = plotting.exhibit(picture)
        assert words.title and words.alt
    for name, make in chapters._tables(got).items():
        table = make()
        assert table.label == name and len(table.frame)
        assert templates.exhibit(name, table.values).caption
    told = Story.of(Run(got.gpu), Run(got.cpu))
    for draw in talk.pictures(got, told, Shortcut.watch(CPU)).values():
        words = plotting.exhibit(draw())
        assert words.caption and words.alt.endswith(".")


def test_what_stands_for_nothing_is_named_with_its_line(second, monkeypatch):
    monkeypatch.setattr(measurements, "gather", lambda results=None: found())
    monkeypatch.setattr(publish, "_display", lambda bundle: None)
    second("problem.md", "one thread walk", "![](figure:none)\n\none thread walk")
    report = Report(CPU, language="xx")
    report.show("problem")  # inside a sentence it is the exporter that refuses it
    second("problem.md", "![](figure:none)\n\none", "one")
    second("problem.md", "## The problem\n", "## The problem\n\n![](figure:none)\n")
    with pytest.raises(templates.TemplateError, match=r"xx/problem\.md, line 3: .*figure:none"):
        report.show("problem")


def test_a_fault_in_a_drawing_is_not_told_as_a_name_that_stands_for_nothing(second, monkeypatch):
    def damaged():
        raise KeyError("B = 64")

    monkeypatch.setattr(measurements, "gather", lambda results=None: found())
    monkeypatch.setattr(publish, "_display", lambda bundle: None)
    for kind, of_kind in (("figure", "_figures"), ("table", "_tables")):
        second("problem.md", "## The problem\n", f"![]({kind}:damaged)\n\n## The problem\n")
        report = Report(CPU, language="xx")
        getattr(report, of_kind)["damaged"] = damaged
        with pytest.raises(KeyError, match="B = 64"):
            report.show("problem")
        second("problem.md", f"![]({kind}:damaged)\n\n", "")


@pytest.mark.parametrize("language", templates.languages())
def test_no_number_is_typed_that_could_be_computed(language):
    units = "(?:µs|ms|s|MB|GB|TB/s|times|×|%)(?![A-Za-z0-9_%])|倍"
    measured = re.compile(rf"(?<![A-Za-z0-9_.])\d[\d.,]* ?(?:{units})")
    allowed = {"10%"}  # what a prediction may be off by
    for path in sorted(templates.folder(language).glob("*.md")):
        text = re.sub(r"\{[%{#].*?[%}#]\}|\$[^$]*\$", "", path.read_text("utf-8"), flags=re.S)
        assert set(measured.findall(text)) <= allowed, path.name


# --- no sentence in the code

WORDS = 6
"""A text of so many words that ends a sentence is one."""
NOT_SHOWN = {
    "doctor.py": "the messages of a command",
    "check/verdict.py": "the messages of the checks",
    "check/__main__.py": "the messages of a command",
    "check/grid.py": "the messages of a command",
    "export/formula.py": "Typst",
    "course/running.py": "the messages of a command",
    "measure/sharded.py": "the messages of a command",
    "measure/ideas.py": "predictions, as they were recorded",
}
CALLS = {"Option", "Argument", "ArgumentParser", "add_argument", "BuildError", "warn", "add_note"}
"""What takes errors and the texts of --help."""


def sentences(source):
    """Texts that a reader might see: constants with a full sentence, outside of errors and help."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def excused(node):
        while node in parents:
            above = parents[node]
            if isinstance(above, ast.Raise | ast.Assert):
                return True
            if isinstance(above, ast.Expr) and not isinstance(node, ast.Call):
                return True  # a docstring, of a module, a class, a function or a constant
            if isinstance(above, ast.Assign) and ast.unparse(above.targets[0]).endswith("__doc__"):
                return True
            if isinstance(above, ast.Call):
                name = getattr(above.func, "attr", getattr(above.func, "id", ""))
                if name in CALLS or name.endswith("Error"):
                    return True
            node = above
        return False

    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                part.value if isinstance(part, ast.Constant) else "x" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if isinstance(parents.get(node), ast.JoinedStr):
            continue
        sentence = r"(^|[.:*]\s|^\W+)[A-Zx][^\\]*?[a-z)%]{2}[.!?](\s|$)"
        if re.search(sentence, text) and len(text.split()) >= WORDS and not excused(node):
            yield node.lineno, " ".join(text.split())[:70]


def test_no_sentence_stands_in_the_code():
    faults = [
        f"rsk/{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() not in NOT_SHOWN
        for line, text in sentences(path.read_text(encoding="utf-8"))
    ]
    assert not faults, "a reader's sentence belongs to report/en/:\n" + "\n".join(faults)


def test_sentences_are_found():
    code = '''
"""A docstring that says in some words what it is for."""
CAPTION = "The time of a call, from the first to the last."
def f(n):
    """Another docstring that says in some words what it is."""
    print(f"It took {n} ms to do all of this work.")
    raise ValueError("this error tells somebody what was wrong here.")
LABEL = "time of one call until its result is there"
'''
    assert [line for line, _ in sentences(code)] == [3, 6]
