"""The talk: its words, numbers and figures are from the recorded data."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex

import pypdf
import pytest
import spoken
from measured import story, twice
from read_pdf import bookmarks, pages
from studied import made_up
from test_values import found, slower

pytest.importorskip("matplotlib")

from rsk import export
from rsk.base import fonts, templates
from rsk.course import demo
from rsk.export import talk as talk_file
from rsk.figures import plotting
from rsk.report import measurements, talk, values
from rsk.report.computed_here import Written

TITLES = {"en": "From a Python loop to one kernel", "zh-TW": "從 Python 迴圈到一個核心函式"}


@pytest.fixture(scope="module", params=templates.languages())
def language(request):
    return request.param


@pytest.fixture(scope="module")
def recorded(language):
    """The recorded data, and what the talk is made of with it; each figure is drawn once."""
    got = measurements.gather()
    material = talk.material(got, language)
    once = {name: functools.cache(draw) for name, draw in material.figures.items()}
    return dataclasses.replace(material, figures=once), got


@pytest.fixture(scope="module")
def made(recorded, language, tmp_path_factory):
    """The talk from the recorded data: its slides, its script, and what they were made of."""
    if family := templates.phrases(language)["font"]:
        try:
            fonts.find(family)
        except fonts.FontError as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("talk")
    source = templates.folder(language) / talk.SOURCE
    slides, script = export.export_talk(source, recorded[0], folder)
    return slides, script, *recorded


def headings(language):
    text = (templates.folder(language) / talk.SOURCE).read_text(encoding="utf-8")
    return re.findall(r"^(#+) (.*?)(?: \{((?:minutes|\.script)[^{}]*)\})?$", text, re.MULTILINE)


def sections(language):
    """Those that are shown, with their minutes."""
    return [
        (title, about.removeprefix("minutes="))
        for level, title, about in headings(language)
        if level == "##" and about.startswith("minutes=")
    ]


def spaceless(text):
    """Chinese letters are set one by one: what is read from a page has spaces between them."""
    return "".join(text.split())


@pytest.mark.slow
def test_the_slides_are_tagged_titled_and_one_page_each(made, language):
    reader = pypdf.PdfReader(made[0])
    shown, script_only = 1, False
    for level, _, about in headings(language):
        script_only = "script" in about if level == "##" else script_only
        shown += level == "###" and not script_only
    assert len(reader.pages) == shown >= 20
    assert reader.metadata.title == TITLES[language]
    assert reader.root_object["/MarkInfo"]["/Marked"]
    assert reader.root_object["/Lang"] == language
    box = reader.pages[0].mediabox
    assert float(box.width) / float(box.height) == pytest.approx(16 / 9, rel=1e-3)
    marks = list(bookmarks(reader))
    assert {title for title, _ in sections(language)} <= set(marks)
    assert len(marks) == shown - 1 + 5  # every slide but the title, and the sections
    for number, text in enumerate(pages(made[0]), 1):
        assert f"{number} / {shown}" in text
        assert not re.search(r"\{[{%]|\bnan\b", text)


@pytest.mark.slow
def test_every_figure_on_a_slide_says_where_it_was_measured_and_can_be_heard(made, language):
    material = made[2]
    text = spaceless("".join(pages(made[1])))  # the captions are in the script
    label = templates.labels(language)
    for source in (made[3].gpu, made[3].cpu, made[3].study):
        assert spaceless(label(source.label)) in text
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


@pytest.mark.slow
def test_the_last_row_can_read_the_slides(made):
    for number, page in enumerate(pypdf.PdfReader(made[0]).pages, 1):
        found = sizes(page)
        assert len(found) > 2
        small = [one for one in found if one[0] < 14 - 0.01]
        assert not small, f"slide {number}: {small}"
        # The name of a file and its lines are no code.
        code = [one for one in found if one[1] and not re.match(r"(rsk|cuda)/|[\d ,]+$", one[2])]
        assert all(size >= 16 - 0.01 for size, *_ in code), f"slide {number}: {code}"


def test_code_on_slides_is_short(recorded):
    for name, runs in recorded[0].texts.items():
        assert "".join(text for text, _ in runs()).count("\n") < talk_file.MOST_LINES, name


def read_without_pictures(material, language):
    """The talk, read; its figures are not drawn, which needs a font."""
    drawn = talk_file.Drawn(b"", (20.0, 10.0), "A line.", "Caption.")
    material = dataclasses.replace(material, figures=dict.fromkeys(material.figures, lambda: drawn))
    return talk_file.read(templates.folder(language) / talk.SOURCE, material)


def test_the_script_takes_the_time_it_states(recorded, language):
    read = read_without_pictures(recorded[0], language)
    timed = [(part.minutes, spoken.minutes(read, part)) for part in spoken.slides(read)]
    known = [(planned, said) for planned, said in timed if said is not None]
    assert sum(said for _, said in known) == pytest.approx(sum(p for p, _ in known), abs=1)
    assert all(said == pytest.approx(planned, abs=0.25) for planned, said in known)


def all_objects(reader):
    for number in range(1, int(reader.trailer["/Size"])):
        try:
            yield reader.get_object(number)
        except (KeyError, ValueError, pypdf.errors.PdfReadError):
            continue


SAID = {
    "en": (
        *("Opening line.", "26:30 to 27:00", "do the audience sees if it fails"),
        *("command not found", "`rsk demo`", "return the same tokens, bit for bit"),
        *(
            "Why did the earlier kernel lose to PyTorch, and does this one?",
            "Does it work with a real model?",
        ),
        *("What is it used for?", "Is it exact?", "What about other GPUs?", "Why not Triton?"),
    ),
    "zh-TW": (
        *("開場白：", "26:30 至 27:00", "做什麼觀眾看到什麼失敗的話"),
        *("command not found", "`rsk demo --lang zh-TW`", "傳回的詞元逐位元相同"),
        *("為什麼先前的 CUDA 核心函式會輸給 PyTorch？這個會嗎？", "用真正的模型可以嗎？"),
        *("它用在哪裡？", "它是精確的嗎？", "其他的 GPU 呢？", "為什麼不用 Triton？"),
    ),
}


@pytest.mark.slow
def test_the_script_has_the_times_the_demo_and_the_questions(made, language):
    said = spaceless("".join(pages(made[1])))
    phrases = templates.phrases(language)
    assert [minutes for _, minutes in sections(language)] == ["5", "10", "5", "5", "2"]
    for section, minutes in sections(language):
        assert spaceless(section + phrases["in_minutes"].format(minutes)) in said
    for words in SAID[language]:
        assert spaceless(words.replace("`", "")) in said, words


QUOTED = {
    "en": ("return the same tokens, bit for bit", "Why?", "unclear"),
    "zh-TW": ("傳回的詞元逐位元相同", "為什麼？", "無法判定"),
}


def test_what_the_script_quotes_the_demo_prints(recorded, language):
    agreement = demo.Agreement(("baseline", "fused"), 2, 3, 2)
    printed = templates.render("demo.md#agreement", {"agreement": agreement}, language)
    printed += (templates.folder(language) / "demo.md").read_text(encoding="utf-8")
    for words in QUOTED[language]:
        assert words in printed, words
        assert f'"{words}' in recorded[0].text or f"「{words}」" in recorded[0].text, words


# --- the languages beside each other


def skeleton(language):
    """What is the same in every language: the parts with their minutes, and what they show."""
    text = (templates.folder(language) / talk.SOURCE).read_text(encoding="utf-8")
    shown = r"^(#{1,3}) .*?(\{(?:minutes|\.script)[^{}]*\})?$|^(!\[\]\(.*|:::+.*|\$\$)"
    parts = ["".join(found) for found in re.findall(shown, text, re.MULTILINE)]
    commands = re.findall(r"^::: command\n(.*)$", text, re.MULTILINE)
    return parts, [command.replace(f" --lang {language}", "") for command in commands]


def rows(text):
    """The lines of tables and lists: how many points a slide makes."""
    return re.findall(r"^(\||- |\d\. )", text, re.MULTILINE)


def test_both_languages_show_the_same_slides_in_the_same_time(language):
    assert skeleton(language) == skeleton(templates.LANGUAGE)
    texts = [
        (templates.folder(one) / talk.SOURCE).read_text(encoding="utf-8")
        for one in (language, templates.LANGUAGE)
    ]
    assert rows(texts[0]) == rows(texts[1])


@pytest.fixture(scope="module")
def written():
    return Written.by_the_pair(talk.PROMPT, talk.SEED, new_tokens=talk.NEW_TOKENS)


@pytest.mark.slow
def test_the_demo_prints_the_text_that_the_slide_shows(recorded, written):
    from typer.testing import CliRunner

    from rsk.cli import app

    material, _ = recorded
    assert f"`{written.command}`" in material.text
    command = shlex.split(written.command)
    assert command[0] == "rsk"
    result = CliRunner().invoke(app, [*command[1:], "--device", "cpu", "--plain"])
    assert result.exit_code == 0, result.output
    assert "".join(text for text, _ in material.texts["generated"]()) in result.output
    assert f"{written.text.acceptance_rate:.3f} (by position" in result.output
    assert re.search(rf"pass: +{written.text.tokens_per_target_pass:.2f}\n", result.output)


def numbers(text):
    """Those that have a unit or a point; one that is small and whole may be a word."""
    found = re.findall(r"\d[\d,]*(?:\.\d+)?(?: [µm]?s| [kMG]?B|%)?(?![A-Za-z0-9]| million)", text)
    return {one for one in found if re.search(r"[.sB%]", one)}


@pytest.mark.slow
def test_all_languages_say_the_same_numbers(written):
    named = values.talk(measurements.gather(), written)
    english, *others = [
        numbers(re.sub(r"\{minutes.*", "", templates.render(talk.SOURCE, named, language)))
        for language in templates.languages()
    ]
    assert len(english) > 50
    for other in others:
        assert other ^ english == set()


# --- other data, other words


def named(written, **changes):
    """What the talk may name, from other data."""
    fields = {"cpu": twice(story()), "gpu": twice(story(gpu=True)), "study": made_up(), **changes}
    return values.talk(found(**fields), written)


def words(written, **changes):
    """The talk's text, from other data."""
    return templates.render(talk.SOURCE, named(written, **changes))


def titles(text):
    return re.findall(r"^### (.*?)(?: \{[^{}]*\})?$", text, re.MULTILINE)


@pytest.mark.slow
def test_the_words_follow_the_data(written):
    before = words(written)
    assert (
        "640 µs as a loop, 500 µs in PyTorch at its fastest, or 30.0 µs" in before
        and "960 operators" not in before
    )
    assert not re.search(r"\bnan\b|\bNone\b", before)
    after = words(written, gpu=twice(slower(story(gpu=True), "baseline", 10)))
    assert "6.40 ms as a loop, 500 µs in PyTorch at its fastest, or 30.0 µs" in after
    changed = [a for a, b in zip(titles(before), titles(after), strict=True) if a != b]
    assert any("times as fast as PyTorch" in title for title in changed)
    assert len(changed) < len(titles(before)) / 2


@pytest.mark.slow
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


OTHER_DATA = {
    "one thread loses": lambda: {"gpu": twice(slower(story(gpu=True), "thread_per_sequence", 100))},
    "the loop wins on a CPU": lambda: {"cpu": twice(slower(story(), "vectorized", 10))},
    "PyTorch wins on a CPU": lambda: {"cpu": twice(slower(story(), "baseline", 10))},
    "speculation costs time": lambda: {"study": made_up(speed=0.8)},
    "fused is slow": lambda: {"gpu": twice(slower(story(gpu=True), "fused", 10))},
    "one run": lambda: {"gpu": story(gpu=True)},
}


@pytest.fixture(scope="module")
def unchanged(written):
    return named(written)


@pytest.mark.parametrize("what", OTHER_DATA)
def test_other_data_change_the_same_paragraphs_in_every_language(what, written, unchanged):
    changed = named(written, **OTHER_DATA[what]())

    def differs(language):
        before, after = (
            [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
            for text in (templates.render(talk.SOURCE, of, language) for of in (unchanged, changed))
        )
        return [a != b for a, b in zip(before, after, strict=True)]

    first, *others = map(differs, templates.languages())
    assert any(first) and not all(first)
    assert all(other == first for other in others)


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
