"""Templates of words: what fills them in, and what is wrong in them is named with its line."""

from __future__ import annotations

import pytest

from rsk.base import folders, templates
from rsk.base.templates import TemplateError

FILES = {
    "macros.md": """\
{% macro count(n, one, many) -%}
{{ n }} {{ one if n == 1 else many }}
{%- endmacro %}
""",
    "captions.md": """\
{# A note. #}

## fig-a

{% set doubled = 2 * size %}
Title: At B = {{ size }}

Caption: A caption of
two lines, {{ doubled }}.

Alt: A line.

## tab-a

Caption: A table.

## fig-bad

Title: no caption
""",
    "one.md": """\
# A title

{% set size = run.size %}
{% if size > 2 %}
Large: {{ size }}.
{% else %}
Small: {{ say.count(size, "request", "requests") }}.
{% endif %}
{% for name in names %}
- {{ name }}
{% endfor %}

See [@fig-a] and {{ run.time | us }}.

![](figure:fig-a)
""",
    "phrases.toml": 'figure = "Figure"\n',
}


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A small language; returns how to change a file of it."""
    monkeypatch.setattr(folders, "report_dir", lambda: tmp_path)

    def write(name, text, language="en"):
        path = tmp_path / language / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for name, text in FILES.items():
        write(name, text)
    return write


class Run:
    size = 32000
    time = 18.4


VALUES = {"run": Run(), "names": ["a", "b"]}


def test_values_are_filled_in_and_statements_leave_no_blank_lines(words):
    expected = (
        "# A title\n\nLarge: 32,000.\n- a\n- b\n\nSee [@fig-a] and 18.4 µs.\n\n![](figure:fig-a)"
    )
    assert templates.render("one.md", VALUES) == expected
    one = type("One", (), {"size": 1, "time": 1.0})
    assert "Small: 1 request.\n" in templates.render("one.md", {"run": one, "names": []})


def test_a_changed_sentence_is_read_again(words):
    templates.render("one.md", VALUES)
    words("one.md", "Another.")
    words("macros.md", FILES["macros.md"] + "{% macro more() -%}\nmore\n{%- endmacro %}\n")
    assert templates.render("one.md", VALUES) == "Another."
    words("two.md", "{{ say.more() }}")
    assert templates.render("two.md") == "more"


def test_a_block_is_rendered_alone_and_included(words):
    assert templates.exhibit("fig-a", {"size": 3}) == (
        "At B = 3",
        "A caption of two lines, 6.",
        "A line.",
    )
    assert templates.exhibit("tab-a", {}).title == ""
    words("two.md", 'Before. {% include "captions.md#tab-a" %}')
    assert " ".join(templates.render("two.md").split()) == "Before. Caption: A table."


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "one.md",
            "# A title\n\n{{ run.weight }}",
            r"report/en/one\.md, line 3: .*no attribute 'weight'",
        ),
        ("one.md", "\n{{ walk }}", r"report/en/one\.md, line 2: 'walk' is undefined"),
        ("one.md", "a\nb\n{% if %}", r"report/en/one\.md, line 3: "),
        ("one.md", "a\n{{ nothing }}", r"report/en/one\.md, line 2: a value is None"),
        ("one.md", "a\n{{ not_a_number }}", r"line 2: a value is nan"),
        ("one.md", "a\n{{ names | us }}", r"report/en/one\.md, line 2: "),
        ("one.md", "a\n{{ say.count(2, 2) }}", r"report/en/macros\.md, line 2: parameter 'many'"),
        ("one.md", 'a\n{% include "captions.md#none" %}', r"there is no captions\.md#none"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(words, name, text, message):
    words(name, text)
    values = {**VALUES, "nothing": None, "not_a_number": float("nan")}
    with pytest.raises(TemplateError, match=message):
        templates.render(name, values)


def test_a_fault_in_a_block_has_the_line_of_the_file(words):
    with pytest.raises(TemplateError, match=r"report/en/captions\.md, line 5: 'size' is undefined"):
        templates.exhibit("fig-a", {})
    with pytest.raises(TemplateError, match="fig-bad: it has no caption"):
        templates.exhibit("fig-bad", {})
    with pytest.raises(TemplateError, match="there is no captions.md#fig-none"):
        templates.exhibit("fig-none", {})
    words("captions.md", "## fig-a\n\nHeading: x\n")
    with pytest.raises(TemplateError, match="expected Title:, Caption: or Alt:, got 'Heading: x'"):
        templates.exhibit("fig-a", {})
    words("captions.md", "## fig-a\n\nx\n\n## fig-a\n")
    with pytest.raises(TemplateError, match="two blocks are called 'fig-a'"):
        templates.exhibit("fig-a", {})


def test_an_error_of_the_code_behind_a_value_is_not_the_templates(words):
    class Broken:
        @property
        def size(self):
            raise KeyError("inside")

    words("one.md", "{{ run.size }}")
    with pytest.raises((TemplateError, KeyError), match="inside"):
        templates.render("one.md", {"run": Broken()})


def test_a_language_is_a_folder_with_exhibits(words, tmp_path):
    words("captions.md", "## tab-a\n\nCaption: Eine Tabelle.\n", "de")
    words("macros.md", "", "de")
    (tmp_path / "build").mkdir()
    assert templates.languages() == ["de", "en"]
    assert templates.exhibit("tab-a", {}, "de").caption == "Eine Tabelle."
    with pytest.raises(ValueError, match=r"no words in 'xx'; languages: de, en"):
        templates.render("one.md", {}, "xx")


def test_the_labels_of_a_language_are_read_once(words, monkeypatch):
    words("one.md", "{{ 'warm' | label }}, {{ 'cold' | label }}, {{ 'new' | label }}", "de")
    for name in ("captions.md", "macros.md"):
        words(name, "", "de")
    read = []

    def phrases(language):
        read.append(language)
        return {"labels": {"warm": "warm", "cold": "kalt"}}

    monkeypatch.setattr(templates, "phrases", phrases)
    for _ in range(2):
        assert templates.render("one.md", {}, "de") == "warm, kalt, new"
    assert read == ["de"]


def test_what_a_file_refers_to(words):
    found = templates.uses()
    one = found["one.md"]
    assert one.values == {"run", "run.size", "run.time", "names"}
    assert one.exhibits == {"figure:fig-a"} and one.references == {"fig-a"}
    assert found["captions.md"].exhibits == {"fig-a", "tab-a", "fig-bad"}
    assert {"size", "time"} <= one.attributes
    words("one.md", "a\n{% if %}")
    with pytest.raises(TemplateError, match=r"one\.md, line 2"):
        templates.uses()


def test_a_text_from_elsewhere_is_filled_in(words):
    assert (
        templates.fill("At {{ size }}: {{ x | fixed(1) }}", {"size": 1000, "x": 2.25})
        == "At 1,000: 2.2"
    )
    for text, values, message in (
        ("{{ sise }}", {"size": 1}, "'sise' is undefined; the values given are: size"),
        ("{{ size }}", {"size": 1, "x": 2}, "does not mention x"),
        ("{{ size }}", {"size": None}, "a value is None"),
        ("a\n{{ size:.1f }}", {"size": 1}, "line 2"),
    ):
        with pytest.raises(ValueError, match=message):
            templates.fill(text, values)
