"""The talk: its words, numbers and figures are from the recorded data."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex

import pypdf
import pytest
from measured import story, twice
from read_pdf import bookmarks, pages
from studied import made_up
from test_values import found, slower

pytest.importorskip("matplotlib")

from rsk import export
from rsk.base import templates
from rsk.export import talk as talk_file
from rsk.figures import plotting
from rsk.report import measurements, talk, values
from rsk.report.computed_here import Written


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The talk from the recorded data: its slides, its script, and what they were made of."""
    got = measurements.gather()
    material = talk.material(got)
    once = {name: functools.cache(draw) for name, draw in material.figures.items()}
    material = dataclasses.replace(material, figures=once)
    folder = tmp_path_factory.mktemp("talk")
    source = templates.folder() / talk.SOURCE
    slides, script = export.export_talk(source, material, folder)
    return slides, script, material, got


def headings():
    text = (templates.folder() / talk.SOURCE).read_text(encoding="utf-8")
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
        assert not re.search(r"\{[{%]|\bnan\b", text)


def test_every_figure_on_a_slide_says_where_it_was_measured_and_can_be_heard(made):
    material = made[2]
    text = " ".join(pages(made[1]))  # the captions are in the script
    for source in (made[3].gpu, made[3].cpu, made[3].study):
        assert source.label in text
    reader = pypdf.PdfReader(made[0])
    objects = [item for item in all_objects(reader) if isinstance(item, dict)]
    alts = {str(item.get("/Alt")) for item in objects if item.get("/S") == "/Figure"}
    for name, draw in material.figures.items():
        assert draw().alt in alts, name


def sizes(page):
    """Size in points of each text on a page, with whether it is code."""
    found = []

    def visit(text, matrix, of_text, font, size):
        if text.strip():
            scale = abs(matrix[3] * of_text[3])
            found.append((round(size * scale, 2), "Mono" in str(font["/BaseFont"]), text.strip()))

    page.extract_text(visitor_text=visit)
    return found


def test_the_last_row_can_read_the_slides(made):
    for number, page in enumerate(pypdf.PdfReader(made[0]).pages, 1):
        found = sizes(page)
        assert len(found) > 2
        small = [one for one in found if one[0] < 14 - 0.01]
        assert not small, f"slide {number}: {small}"
        code = [one for one in found if one[1] and not re.search(r", lines? \d", one[2])]
        assert all(size >= 16 - 0.01 for size, *_ in code), f"slide {number}: {code}"


def test_code_on_slides_is_short(made):
    for name, runs in made[2].texts.items():
        assert "".join(text for text, _ in runs()).count("\n") < talk_file.MOST_LINES, name


def test_the_script_takes_the_time_it_states(made):
    source = templates.folder() / talk.SOURCE
    read = talk_file.read(source, made[2])
    timed = [(part.minutes, read.spoken_minutes(part)) for part in read.slides]
    spoken = [(planned, said) for planned, said in timed if said is not None]
    assert sum(said for _, said in spoken) == pytest.approx(sum(p for p, _ in spoken), abs=2)


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


@pytest.fixture(scope="module")
def written():
    return Written.by_the_pair(talk.PROMPT, talk.SEED, new_tokens=talk.NEW_TOKENS)


def test_the_demo_prints_the_text_that_the_slide_shows(made, written):
    from typer.testing import CliRunner

    from rsk.cli import app

    assert f"`{written.command}`" in made[2].text
    command = shlex.split(written.command)
    assert command[0] == "rsk"
    result = CliRunner().invoke(app, [*command[1:], "--device", "cpu", "--plain"])
    assert result.exit_code == 0, result.output
    assert "".join(text for text, _ in made[2].texts["generated"]()) in result.output
    assert f"{written.text.acceptance_rate:.3f} (by position" in result.output
    assert re.search(rf"pass: +{written.text.tokens_per_target_pass:.2f}\n", result.output)


# --- other data, other words


def words(written, **changes):
    """The talk's text, from other data."""
    fields = {"cpu": twice(story()), "gpu": twice(story(gpu=True)), "study": made_up(), **changes}
    return templates.render(talk.SOURCE, values.talk(found(**fields), written))


def titles(text):
    return re.findall(r"^### (.*?)(?: \{[^{}]*\})?$", text, re.MULTILINE)


def test_the_words_follow_the_data(written):
    before = words(written)
    assert (
        "640 µs as a loop, 500 µs in PyTorch's operators, or 30.0 µs" in before
        and "960 operators" not in before
    )
    assert not re.search(r"\bnan\b|\bNone\b", before)
    after = words(written, gpu=twice(slower(story(gpu=True), "baseline", 10)))
    assert "6.40 ms as a loop, 500 µs in PyTorch's operators, or 30.0 µs" in after
    changed = [a for a, b in zip(titles(before), titles(after), strict=True) if a != b]
    assert any("times as fast as PyTorch" in title for title in changed)
    assert len(changed) < len(titles(before)) / 2


def test_what_depends_on_who_wins_says_so(written):
    def only(word, **changes):
        (found,) = [title for title in titles(words(written, **changes)) if word in title]
        return found

    fast = only("One thread a request")
    slow = only("one thread", gpu=twice(slower(story(gpu=True), "thread_per_sequence", 100)))
    assert "loses to PyTorch" in slow and "already faster" in fast
    assert only("On a CPU").endswith("at B = 1 and 4")
    assert only("On a CPU", cpu=twice(slower(story(), "vectorized", 10))).endswith("the loop")
    assert "too, it is faster" in only("On a CPU", cpu=twice(slower(story(), "baseline", 10)))
    assert "not faster for it" in only("tokens a pass", study=made_up(speed=0.8))


def test_a_figure_is_drawn_the_same_twice_and_without_its_title():
    from rsk.figures import benchmarks

    first, second = (talk.for_slide(benchmarks.latency_by_batch(story())) for _ in range(2))
    assert first == second
    picture = benchmarks.latency_by_batch(story())
    assert first.alt == plotting.exhibit(picture).alt
    assert first.size[0] > 2 * first.size[1]
    assert plotting.exhibit(picture).title and not picture.fig.get_suptitle(), "the slide has one"


def test_the_drawings_refuse_what_cannot_be():
    from rsk.figures import slides

    with pytest.raises(ValueError, match="expected 0 to 3 tokens, got 4"):
        slides.one_request(4, 4)
    drawn = slides.one_request(4, 2)
    assert (drawn.data["read"] == "read in full").sum() == 2
    assert (drawn.data["read"] == "one number").sum() == 4
    steps = slides.passes(made_up()).data
    assert (steps["model"] == "draft").sum() == 4
