"""The talk: its slides and its script come from one file and from the recorded data."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex

import pypdf
import pytest
from measured import spread, story
from studied import made_up

pytest.importorskip("matplotlib")

from rsk import export
from rsk.base import folders
from rsk.course import kernel_records, publish
from rsk.export import ExportError
from rsk.export.talk import Drawn, Material, read
from rsk.measure.records import RecordError
from rsk.report import findings, talk
from rsk.report.facts import Evidence

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="20pt" height="10pt"></svg>'
SMALL = """\
# The {{what}} talk {minutes=1}

Words under the title.

::: notes
The opening line.
:::

## Before {.script}

### First

Only $x$ in the script.

## One {minutes=2}

### It is B = {{size}} here {minutes=1}

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


def small(**changes) -> Material:
    """What the small talk may name."""
    fields = {
        "values": {"what": "small", "size": 64},
        "figures": {"a": lambda: Drawn(SVG, (20.0, 10.0), "A line.", "Of $B$ requests.")},
        "texts": {"t": lambda: [("def ", "prompt"), ("add\n  x", "accepted")]},
        "epoch": 86400,
    }
    return Material(**{**fields, **changes})


def pages(path):
    return [
        re.sub(r"\s+", " ", page.extract_text().replace("\u00a0", " "))
        for page in pypdf.PdfReader(path).pages
    ]


def bookmarks(reader, outline=None):
    for entry in reader.outline if outline is None else outline:
        if isinstance(entry, list):
            yield from bookmarks(reader, entry)
        else:
            yield entry.title.replace("\u00a0", " ")


@pytest.fixture
def build(tmp_path):
    """Write a talk's file and export it."""

    def run(text=SMALL, **changes):
        source = tmp_path / "talk.md"
        source.write_text(text, encoding="utf-8")
        return export.export_talk(source, small(**changes), tmp_path / "out")

    return run


# --- a small talk


def test_slides_and_script_hold_what_is_theirs(build):
    slides, script = build()
    first, second, third = pages(slides)
    assert "The small talk" in first
    assert "Words under the title." in first
    assert "It is B = 64 here" in second
    assert "Of 𝐵 requests." in second
    assert "def coin(" in third
    assert "rsk/sampler/random_words.py, lines " in third
    assert "add" in third
    said = " ".join(pages(script))
    for words in (
        *("1970-01-02", "Before", "First", "Only 𝑥 in the script.", "The opening line."),
        *("One (2 min)", "Slide 1 0:00 to 1:00 1 min", "Slide 2 1:00 to 2:00 1 min"),
        *("Say “this”.", "Slide 3 2:00 to 3:00 1 min", "do see"),
    ):
        assert words in said, words
    for words in ("opening line", "Say", "Before", "do see"):
        assert words not in " ".join([first, second, third]), words


def test_the_same_talk_gives_the_same_bytes(build):
    made = [path.read_bytes() for path in build()]
    assert made == [path.read_bytes() for path in build()]


LONG = "- A point.\n" * 30
WRONG = {
    "a value that is unknown": (
        {"{{size}}": "{{sise}}"},
        {},
        r"line 17: no value for \{\{sise\}\}",
    ),
    "a value that is unused": ({"{{size}}": "64"}, {}, "does not mention the values size"),
    "not a number": ({}, {"values": {"what": "x", "size": float("nan")}}, r"line 17: .* is nan"),
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


# --- the talk


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The talk from the recorded data: its slides, its script, and what they were made of."""
    material = talk.material()
    once = {name: functools.cache(draw) for name, draw in material.figures.items()}
    material = dataclasses.replace(material, figures=once)
    folder = tmp_path_factory.mktemp("talk")
    source = folders.templates_dir() / talk.SOURCE
    slides, script = export.export_talk(source, material, folder)
    return slides, script, material


def headings():
    text = (folders.templates_dir() / talk.SOURCE).read_text(encoding="utf-8")
    return re.findall(r"^(#+) (.*?)(?: \{([^{}]*)\})?$", text, re.MULTILINE)


def test_the_slides_are_tagged_titled_and_one_page_each(made):
    reader = pypdf.PdfReader(made[0])
    shown, script_only = 1, False
    for level, _, about in headings():
        script_only = "script" in about if level == "##" else script_only
        shown += level == "###" and not script_only
    assert len(reader.pages) == shown >= 20
    assert reader.metadata.title == "From a Python loop to one kernel"
    assert reader.root_object["/MarkInfo"]["/Marked"]
    assert reader.root_object["/Lang"] == "en"
    box = reader.pages[0].mediabox
    assert float(box.width) / float(box.height) == pytest.approx(16 / 9, rel=1e-3)
    marks = list(bookmarks(reader))
    assert {"Problem", "Solutions", "Results", "Demo", "Conclusions"} <= set(marks)
    assert len(marks) == shown - 1 + 5  # every slide but the title, and the sections
    for number, text in enumerate(pages(made[0]), 1):
        assert f"{number} / {shown}" in text
        assert "{{" not in text


def test_every_figure_on_a_slide_says_where_it_was_measured_and_can_be_heard(made):
    material = made[2]
    text = " ".join(pages(made[0]))
    for label in ("gpu_label", "cpu_label", "decoding_label"):
        assert str(material.values[label]) in text
    reader = pypdf.PdfReader(made[0])
    objects = [item for item in all_objects(reader) if isinstance(item, dict)]
    alts = {str(item.get("/Alt")) for item in objects if item.get("/S") == "/Figure"}
    for name, draw in material.figures.items():
        assert draw().alt in alts, name


def all_objects(reader):
    for number in range(1, int(reader.trailer["/Size"])):
        try:
            yield reader.get_object(number)
        except (KeyError, ValueError, pypdf.errors.PdfReadError):
            continue


def test_the_script_has_the_times_the_demo_and_the_questions(made):
    said = " ".join(pages(made[1]))
    for section, minutes in (
        *(("Problem", 5), ("Solutions", 10), ("Results", 5), ("Demo", 5), ("Conclusions", 2)),
    ):
        assert f"{section} ({minutes} min)" in said
    assert "Opening line." in said
    assert "26:30 to 27:00" in said
    for words in ("do the audience sees if it fails", "rsk demo", "command not found"):
        assert words in said, words
    for question in (
        *("Why is it not always faster than PyTorch?", "Does it work with a real model?"),
        *("What is it used for?", "Is it exact?", "What about other GPUs?", "Why not Triton?"),
    ):
        assert question in said, question
    assert said.count("not measured") + said.count("Not measured") >= 3


def test_the_demo_prints_the_text_that_the_slide_shows(made):
    from typer.testing import CliRunner

    from rsk.cli import app

    material = made[2]
    command = shlex.split(str(material.values["generate_command"]))
    assert command[0] == "rsk"
    result = CliRunner().invoke(app, [*command[1:], "--device", "cpu", "--plain"])
    assert result.exit_code == 0, result.output
    assert "".join(text for text, _ in material.texts["generated"]()) in result.output
    assert f"{material.values['generated_acceptance']} (by position" in result.output
    assert re.search(rf"pass: +{material.values['generated_per_pass']}\n", result.output)


def test_no_number_is_typed_that_could_be_computed():
    text = (folders.templates_dir() / talk.SOURCE).read_text(encoding="utf-8")
    text = re.sub(r"\{[^{}]*\}|\$[^$]*\$", "", text)  # minutes, values and formulas
    assert not re.findall(r"\d[\d.,]* ?(?:µs|ms|s|MB|GB|times|×|%)(?!\w)", text)


# --- other data, other words


def evidence(cpu=None, gpu=None, study=None) -> Evidence:
    return Evidence(
        benchmark=cpu or story(),
        is_recorded=True,
        gpu=gpu or story(gpu=True),
        study=study or made_up(),
        study_is_recorded=True,
        quoted=findings.earlier_work(),
    )


def values(**changes):
    return talk.values(talk.Story.of(evidence(**changes)))


def slower(benchmark, name, factor):
    return dataclasses.replace(
        benchmark,
        records=tuple(
            dataclasses.replace(r, device=t, host=t, call=t)
            if r.implementation == name and (t := spread(r.call.median_us * factor, "wall"))
            else r
            for r in benchmark.records
        ),
    )


def test_the_numbers_follow_the_data():
    before = values()
    after = values(gpu=slower(story(gpu=True), "baseline", 10))
    assert after["gpu_base"] != before["gpu_base"]
    assert float(after["gpu_ratio"]) == pytest.approx(10 * float(before["gpu_ratio"]), rel=0.06)
    assert after["ladder_title"] != before["ladder_title"]
    assert after["speed_title"] != before["speed_title"]
    assert after["cpu_base"] == before["cpu_base"]


def test_the_titles_follow_the_data():
    assert values()["thread_title"].startswith("One thread a request: already faster")
    slow = slower(story(gpu=True), talk.THREAD, 100)
    assert "loses to PyTorch" in values(gpu=slow)["thread_title"]
    assert "times slower" in values(gpu=slow)["thread_ratio"]
    opening = "On a CPU it is slower than the loop"
    assert values()["cpu_vectorized_title"] == f"{opening} at B = 1 and 4"
    slow = slower(story(), "vectorized", 10)
    assert values(cpu=slow)["cpu_vectorized_title"] == opening
    fast = slower(story(), "baseline", 10)
    assert "too, it is faster" in values(cpu=fast)["cpu_vectorized_title"]
    assert "so it does not pay" in values(study=made_up(speed=0.8))["decoding_gain"]
    assert "not faster for it" in values(study=made_up(speed=0.8))["decoding_title"]


def test_all_values_can_be_written():
    text = "".join(f"{{{{{name}}}}}\n" for name in values())
    filled = publish.fill(text, values())
    assert not re.search(r"\bnan\b|\bNone\b", filled)


def test_a_missing_record_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_records, "gpu_runs", list)
    with pytest.raises(RecordError, match=r"data/benchmarks: the talk needs a run on a GPU"):
        talk.gather()
    monkeypatch.undo()
    monkeypatch.setattr(folders, "data_dir", lambda: tmp_path)
    with pytest.raises(RecordError, match=r"agreement\*\.json is missing"):
        talk._agreement()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "agreement.json").write_text("{}")
    with pytest.raises(RecordError, match=r"agreement\.json: expected a record of agreement"):
        talk._agreement()
    with pytest.raises(RecordError, match=r"data/decoding/\*\.json"):
        talk._newest("decoding/*.json", type(made_up()))


def test_an_implementation_that_was_not_measured_is_named():
    without = story(gpu=True)
    records = tuple(r for r in without.records if r.implementation != talk.THREAD)
    with pytest.raises(RecordError, match="thread_per_sequence was not measured at B = 16"):
        talk.Story.of(evidence(gpu=dataclasses.replace(without, records=records)))
    with pytest.raises(RecordError, match="vectorized was not counted"):
        counts = tuple(c for c in without.operations if c.implementation != "vectorized")
        values(gpu=dataclasses.replace(without, operations=counts))
    far = tuple(dataclasses.replace(r, batch_size=r.batch_size * 3) for r in without.records)
    with pytest.raises(RecordError, match="no batch size in common"):
        talk.Story.of(evidence(gpu=dataclasses.replace(without, records=far)))


def test_a_figure_is_drawn_the_same_twice_and_without_its_title():
    from rsk.figures import benchmarks

    first, second = (talk.for_slide(benchmarks.latency_by_batch(story())) for _ in range(2))
    assert first == second
    picture = benchmarks.latency_by_batch(story())
    assert first.alt == picture.alt
    assert first.size[0] > 2 * first.size[1]
    title = picture.fig.get_suptitle()
    assert title
    hidden = [t for t in picture.fig.texts if t.get_text() == title]
    talk.for_slide(picture)
    assert hidden
    assert not any(t.get_visible() for t in hidden)


def test_the_drawings_refuse_what_cannot_be():
    from rsk.figures import slides

    with pytest.raises(ValueError, match="expected 0 to 3 tokens, got 4"):
        slides.one_request(4, 4)
    drawn = slides.one_request(4, 2)
    assert (drawn.data["read"] == "read in full").sum() == 2
    assert (drawn.data["read"] == "one number").sum() == 4
    steps = slides.passes(made_up()).data
    assert (steps["model"] == "draft").sum() == 4
