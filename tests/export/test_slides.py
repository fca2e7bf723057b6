"""A talk: its slides and its script come from one file, and what is wrong in it is named."""

from __future__ import annotations

import pytest
import spoken
from pypdf import PdfReader
from read_pdf import pages

from rsk import export
from rsk.export import ExportError
from rsk.export.talk import Drawn, Material, read

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="20pt" height="10pt"></svg>'
SMALL = """\
# The small talk {minutes=1}

Words under the title.

::: notes
The opening line.
:::

## Before {.script}

### First

Only $x$ in the script.

## One {minutes=2}

### It is B = 64 here {minutes=1}

![](figure:a){height=5}

- A point with $x^2$.

::: notes
Say "this".
:::

## Two {minutes=1}

### Code and text {minutes=1}

::: columns
::: {.column width=2}
![](source:rsk/sampler/random_words.py){first="def coin(" last="return"}
:::
::: column
::: big
![](tokens:t)
:::
:::
:::

::: notes
| do | see |
|----|-----|
| a  | b   |
:::
"""


def small(text=SMALL, **changes) -> Material:
    """The small talk's words, and what they may name."""
    fields = {
        "text": text,
        "figures": {"a": lambda: Drawn(SVG, (20.0, 10.0), "A line.", "Of $B$ requests.")},
        "texts": {"t": lambda: [("def ", "prompt"), ("add\n  x", "accepted")]},
        "epoch": 86400,
    }
    return Material(**{**fields, **changes})


@pytest.fixture
def build(tmp_path):
    """Write a talk's file and export it."""

    def run(text=SMALL, **changes):
        source = tmp_path / "talk.md"
        source.write_text(text, encoding="utf-8")
        return export.export_talk(source, small(text, **changes), tmp_path / "out")

    return run


# --- a small talk


def test_slides_and_script_hold_what_is_theirs(build):
    slides, script = build()
    first, second, third = pages(slides)
    assert "The small talk" in first
    assert "Words under the title." in first
    assert "It is B = 64 here" in second
    assert "def coin(" in third
    assert "rsk/sampler/random_words.py, lines " in third
    assert "add" in third
    said = " ".join(pages(script))
    for words in (
        *("1970-01-02", "Before", "First", "Only 𝑥 in the script.", "The opening line."),
        *("One (2 min)", "Slide 1 0:00 to 1:00 1 min", "Slide 2 1:00 to 2:00 1 min"),
        *("Of 𝐵 requests.", "Say “this”.", "Slide 3 2:00 to 3:00 1 min", "do see"),
    ):
        assert words in said, words
    for words in ("opening line", "Say", "Before", "do see", "Of 𝐵 requests."):
        assert words not in " ".join([first, second, third]), words


def test_the_presenter_stands_on_the_title_and_the_script(build):
    slides, script = build(presenter="Lin Mei-Hua")
    assert "Lin Mei-Hua" in pages(slides)[0] and "Lin Mei-Hua" not in pages(slides)[1]
    assert "Lin Mei-Hua" in pages(script)[0]
    assert PdfReader(slides).metadata.author == "Lin Mei-Hua"
    assert "Lin" not in " ".join(pages(build()[0]))


def test_marked_text_has_a_legend_and_plain_text_none(build):
    shown = pages(build()[0])[2]
    assert "Marked: accepted" in shown and "recovered" not in shown
    plain = {"t": lambda: [("def add", "prompt")]}
    assert "Marked" not in pages(build(texts=plain)[0])[2]


def test_notes_are_counted_as_they_are_spoken(tmp_path):
    source = tmp_path / "talk.md"
    notes = "one two, three's 4.5 $x$ " * 28 + "推測解碼。" * 55
    text = SMALL.replace("The opening line.", notes)
    source.write_text(text, encoding="utf-8")
    talk = read(source, small(text))
    first, second, third = spoken.slides(talk)
    assert spoken.minutes(talk, first) == pytest.approx(1 + 1)
    assert spoken.minutes(talk, second) == pytest.approx(2 / 140)
    assert spoken.minutes(talk, third) is None


def test_the_same_talk_gives_the_same_bytes(build):
    made = [path.read_bytes() for path in build()]
    assert made == [path.read_bytes() for path in build()]


LONG = "- A point.\n" * 30
WRONG = {
    "a figure that is unknown": ({"figure:a": "figure:b"}, {}, "line 17 .*no figure 'b'"),
    "a figure that is unused": ({"![](figure:a){height=5}": ""}, {}, "shows no figure 'a'"),
    "a text that is unknown": ({"tokens:t": "tokens:u"}, {}, "line 29 .*no tokens 'u'"),
    "a text that is unused": ({"![](tokens:t)": "x"}, {}, "shows no text 't'"),
    "no alt text": (
        {},
        {"figures": {"a": lambda: Drawn(SVG, (20.0, 10.0), " ", "C.")}},
        "line 17 .*no alt text",
    ),
    "no data for it": ({}, {"figures": {"a": lambda: figure_without_data()}}, "line 17 .*no times"),
    "a file that is missing": (
        {"rsk/sampler/random_words.py": "rsk/none.py"},
        {},
        "line 29 .*rsk/none.py",
    ),
    "a line that is missing": ({"def coin(": "def toss("}, {}, "line 29 .*'def toss"),
    "an end that is missing": ({'"return"': '"nothing"'}, {}, "line 29 .*'nothing' after"),
    "code that is too long": (
        {'first="def coin(" last="return"': 'first="import" last="def coin("'},
        {},
        "line 29 .*at most 12 of code",
    ),
    "a picture from elsewhere": ({"figure:a": "a.png"}, {}, "line 17 .*a.png"),
    "a picture in a sentence": ({"A point": "![x](figure:a) is"}, {}, "inside a paragraph"),
    "minutes that do not add up": ({"{minutes=2}": "{minutes=3}"}, {}, "take 2 minutes.*3"),
    "minutes that are no number": ({"text {minutes=1}": "text {minutes=x}"}, {}, "line 29 .*'x'"),
    "a slide without minutes": ({"here {minutes=1}": "here"}, {}, "line 17 .*slide has"),
    "a slide without notes": ({'::: notes\nSay "this".\n:::': ""}, {}, "line 17 .*::: notes"),
    "an unknown box": ({"::: big": "::: huge"}, {}, "line 29 .*huge"),
    "an unknown attribute": ({"{height=5}": "{depth=5}"}, {}, "line 17 .*unknown attribute depth"),
    "a height that is none": ({"{height=5}": "{height=x}"}, {}, "line 17 .*height: expected"),
    "a slide that is too full": ({"- A point with $x^2$.": LONG}, {}, "line 17 .*does not fit"),
    "a figure that is too high": ({"{height=5}": "{height=30}"}, {}, "does not fit"),
    "two titles": ({"## One": "# One"}, {}, "title, its one"),
    "text in a section": ({"## Two {minutes=1}": "## Two {minutes=1}\n\nx"}, {}, "holds slides"),
    "a formula": ({"$x^2$": "$\\foo$"}, {}, "line 17 .*cannot be converted"),
    "a box that is open": ({'Say "this".\n:::': "Say."}, {}, "line 17 .*never closed"),
}


def figure_without_data():
    raise ValueError("the benchmark has no times")


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named_and_the_old_files_stay(what, build, tmp_path):
    replaced, changes, message = WRONG[what]
    text = SMALL
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "out").mkdir()
    for name in ("slides.pdf", "script.pdf"):
        (tmp_path / "out" / name).write_text("the good one")
    with pytest.raises(ExportError, match=message) as caught:
        build(text, **changes)
    assert str(caught.value).startswith("talk.md")
    assert [p.read_text() for p in (tmp_path / "out").iterdir()] == ["the good one"] * 2


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"none\.md: No such file"):
        read(tmp_path / "none.md", small())


def test_lines_are_those_of_the_file_whatever_the_values_add(tmp_path):
    source = tmp_path / "talk.md"
    source.write_text(SMALL.replace("- A point", "{% for x in y %}\n- A point"), encoding="utf-8")
    filled = SMALL.replace("- A point", "- One more\n- Another\n- A point", 1)
    with pytest.raises(ExportError, match=r"talk\.md, line 30 .*no tokens 'u'"):
        export.export_talk(source, small(filled.replace("tokens:t", "tokens:u")), tmp_path)
    with pytest.raises(ExportError, match="expected headings, none of which depends on a value"):
        export.export_talk(source, small(SMALL + "\n### One more\n"), tmp_path)
