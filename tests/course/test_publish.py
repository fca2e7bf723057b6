"""What notebooks publish: readable in a viewer, complete for the exporter, else refused."""

from __future__ import annotations

import base64
import math
from types import SimpleNamespace

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rsk.base import excerpt, templates
from rsk.course import labels, publish
from rsk.export.document import MIME


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    """What the notebook would show, in order."""
    labels.reset()
    bundles = []
    monkeypatch.setattr(publish, "_display", bundles.append)
    yield bundles
    plt.close("all")


def drawn(marks=3):
    fig, ax = plt.subplots(figsize=(4, 3))
    ax.plot(np.arange(marks), np.arange(marks) ** 0.5, ".")
    return fig


def a_figure(**changes):
    arguments = {"label": "fig-a", "caption": "A caption.", "alt": "A rising line.", **changes}
    publish.figure(arguments.pop("fig", None) or drawn(), **arguments)


def content(bundle):
    return bundle[MIME]


# --- figures


def test_a_figure_carries_picture_caption_alt_and_data(shown):
    frame = pd.DataFrame({"batch size": [1, 64], "time (ms)": [0.04, 66.92]})
    fig = drawn()
    publish.figure(fig, label="fig-a", caption="Time, $K = 4$.", alt="A rising line.", data=frame)
    bundle = shown[0]
    assert bundle["image/svg+xml"].startswith("<?xml")
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert content(bundle)["label"] == "fig-a"
    assert content(bundle)["caption"] == "Time, $K = 4$."
    assert content(bundle)["alt"] == "A rising line."
    assert content(bundle)["data"]["rows"] == [["1", "0.0400"], ["64", "66.9"]]
    assert content(bundle)["data"]["csv"] == "batch size,time (ms)\n1,0.04\n64,66.92\n"
    width, height = content(bundle)["size"]
    assert 200 < width < 320
    assert 150 < height < 240
    assert not plt.fignum_exists(fig.number)  # or Jupyter would show it a second time
    viewer = shown[1:]  # what a notebook viewer needs beside the picture; not exported
    assert [content(part) for part in viewer] == [{"kind": "viewer"}] * 2
    assert "Time, $K = 4$." in viewer[0]["text/markdown"]
    assert "66.9" in viewer[1]["text/html"]


def test_a_figure_with_values_finds_its_words_by_its_label(shown, monkeypatch):
    words = {"title": "Found {{ n }}", "caption": "Of {{ n }} points.", "alt": "A line."}
    seen = []

    def exhibit(label, values, language):
        seen.append((label, language))
        return templates.Exhibit(
            *(text.replace("{{ n }}", str(values["n"])) for text in words.values())
        )

    english = templates.phrases()
    monkeypatch.setattr(templates, "phrases", lambda language="en": english)
    monkeypatch.setattr(templates, "exhibit", exhibit)
    fig = drawn()
    publish.figure(fig, label="fig-a", values={"n": 3})
    assert fig.get_suptitle() == "Found 3"
    assert content(shown[0])["caption"] == "Of 3 points."
    publish.figure(drawn(), label="fig-b", values={"n": 4}, block="fig-a", language="xx")
    publish.table(pd.DataFrame({"a": [1]}), label="tab-a", values={"n": 5}, language="xx")
    assert content(shown[-1])["caption"] == "Of 5 points."
    assert seen == [("fig-a", "en"), ("fig-a", "xx"), ("tab-a", "xx")]


def test_the_same_figure_is_the_same_bytes(shown):
    for label in ("fig-a", "fig-b"):
        a_figure(label=label)
    first, second = (bundle for bundle in shown if "image/png" in bundle)
    assert first["image/svg+xml"] == second["image/svg+xml"]
    assert first["image/png"] == second["image/png"]


def test_very_many_marks_are_published_as_pixels(shown):
    fig, ax = plt.subplots()
    ax.scatter(*np.random.default_rng(0).normal(size=(2, 9000)))
    a_figure(fig=fig)
    assert "image/svg+xml" not in shown[0]
    assert base64.b64decode(shown[0]["image/png"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": ""}, "a label is letters"),
        ({"label": None}, "a label is letters"),
        ({"label": "fig 1"}, "a label is letters"),
        ({"caption": " "}, "caption that is not empty"),
        ({"alt": ""}, "alt text that is not empty"),
        ({"alt": None}, "alt text that is not empty"),
        ({"fig": "picture.png"}, "expected a matplotlib figure"),
        ({"fig": plt.Figure()}, "no axes"),
        ({"data": [1, 2]}, "expected a pandas DataFrame"),
    ],
)
def test_incomplete_figures_are_refused(shown, changes, message):
    with pytest.raises(ValueError, match=message):
        a_figure(**changes)
    assert shown == []
    a_figure()  # and a refused call takes no label


def test_a_label_is_used_once():
    a_figure()
    with pytest.raises(ValueError, match="'fig-a' is used already"):
        a_figure()
    with pytest.raises(ValueError, match="'fig-a' is used already"):
        publish.table(pd.DataFrame({"a": [1]}), label="fig-a", caption="A table.")


def test_running_a_cell_again_is_no_second_use(monkeypatch):
    cell = ("cell 1", 1)
    monkeypatch.setattr(labels, "_running_cell", lambda: cell)
    a_figure()
    cell = ("cell 1", 2)
    a_figure()
    with pytest.raises(ValueError, match="used already"):
        a_figure()  # twice in one run of the cell
    cell = ("cell 2", 3)
    with pytest.raises(ValueError, match="used already"):
        a_figure()


# --- tables


def test_a_table_is_formatted_and_aligned(shown):
    frame = pd.DataFrame(
        {"time": [1.48, np.nan], "speed-up": [35.57, 3.41], "ok": [True, False]},
        index=pd.Index(["baseline", "fused"], name="kernel"),
    )
    formats = {"speed-up": ".1f", "ok": lambda ok: "+" if ok else "-"}
    publish.table(frame, label="tab-a", caption="A table.", formats=formats)
    table = content(shown[0])
    assert table["columns"] == ["kernel", "time", "speed-up", "ok"]
    assert table["align"] == ["left", "right", "right", "left"]
    assert table["rows"] == [["baseline", "1.48", "35.6", "+"], ["fused", "–", "3.4", "-"]]
    assert "<td" in shown[0]["text/html"]
    assert "baseline\t1.48" in shown[0]["text/plain"]


def test_a_selection_of_rows_shows_no_row_numbers(shown):
    frame = pd.DataFrame({"a": [1, 2, 3]})
    publish.table(frame[frame["a"] > 1], label="tab-a", caption="A table.")
    assert content(shown[0])["columns"] == ["a"]


@pytest.mark.parametrize(
    ("frame", "changes", "message"),
    [
        (pd.DataFrame({"a": []}), {}, "no rows"),
        (pd.DataFrame({"a": [1]}), {"caption": ""}, "caption that is not empty"),
        (pd.DataFrame({"a": [1]}), {"label": "1a"}, "a label is letters"),
        (pd.DataFrame({"a": [1]}), {"formats": {"b": "d"}}, "the columns are a"),
        (pd.DataFrame({("a", "b"): [1]}), {}, "several levels"),
        ([[1, 2]], {}, "expected a pandas DataFrame"),
    ],
)
def test_incomplete_tables_are_refused(frame, changes, message):
    with pytest.raises(ValueError, match=message):
        publish.table(frame, **{"label": "tab-a", "caption": "A table.", **changes})


# --- prose


def test_prose_takes_its_numbers_from_data(shown):
    publish.prose(
        """At $B = {64}$ it takes {{ time }} ms, {{ ratio | fixed(1) }} times less; {{ n }} calls.
        Second line.""",
        time=0.04251,
        ratio=35.574,
        n=32000,
    )
    text = shown[0]["text/markdown"]
    assert text.startswith("At $B = {64}$ it takes 0.0425 ms, 35.6 times less; 32,000 calls.")
    assert text.endswith("\nSecond line.")


@pytest.mark.parametrize(
    ("text", "values", "message"),
    [
        ("{{ a }} and {{ b }}", {"a": 1}, "'b' is undefined; the values given are: a"),
        ("{{ a }}", {"a": 1, "b": 2}, "does not mention b"),
        ("{{ a }}", {"a": math.nan}, "a value is nan"),
        ("{{ a | fixed(1) }}", {"a": None}, "the values given are: a"),
        ("  ", {}, "text that is not empty"),
    ],
)
def test_prose_without_its_numbers_is_refused(text, values, message):
    with pytest.raises(ValueError, match=message):
        publish.prose(text, **values)


def test_a_passage_stands_in_the_templates(shown):
    publish.passage("course.md#solved", name="sums")
    assert shown[0]["text/markdown"] == "Exercise 'sums': solved."
    solved = "Exercise 'sums': solved."
    assert content(shown[0]) == {"kind": "prose", "text": solved, "language": "en"}
    with pytest.raises(ValueError, match=r"report/en/course\.md, line \d+: 'name' is undefined"):
        publish.passage("course.md#solved")


# --- banners


RECORDED = {
    "gpu": "NVIDIA H200",
    "driver": "570.86",
    "torch": "2.13.0",
    "date": "2026-11-20T10:00:00+00:00",
}


def test_a_banner_names_the_machine(shown):
    publish.banner("recorded", {**RECORDED, "cpu": "AMD EPYC", "other": 1})
    publish.banner("recorded", {**RECORDED, "gpu": None, "driver": None, "cpu": "AMD EPYC"})
    publish.banner("cpu", SimpleNamespace(**{**RECORDED, "cpu": "AMD EPYC"}))
    publish.banner("gpu", RECORDED)
    assert [bundle["text/plain"] for bundle in shown] == [
        "Recorded on NVIDIA H200, driver 570.86, PyTorch 2.13.0, 2026-11-20",
        "Recorded on AMD EPYC, PyTorch 2.13.0, 2026-11-20",
        "Measured here on CPU: AMD EPYC, PyTorch 2.13.0, 2026-11-20",
        "Measured here on GPU: NVIDIA H200, driver 570.86, PyTorch 2.13.0, 2026-11-20",
    ]


def test_a_banner_asks_this_machine(shown):
    import torch

    publish.banner("cpu")
    assert shown[0]["text/plain"].startswith("Measured here on CPU: ")
    assert torch.__version__ in shown[0]["text/plain"]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="without a GPU"):
            publish.banner("gpu")


@pytest.mark.parametrize("missing", ["gpu", "driver", "torch", "date"])
def test_a_recorded_result_is_labelled_in_full(missing):
    with pytest.raises(ValueError, match=f"missing: .*{missing}"):
        publish.banner("recorded", {**RECORDED, missing: ""})


def test_an_unknown_banner_is_refused():
    with pytest.raises(ValueError, match="'gpu', 'cpu' or 'recorded', not 'tpu'"):
        publish.banner("tpu")
    with pytest.raises(ValueError, match="missing: gpu, driver, torch, date"):
        publish.banner("recorded")


# --- source files


C_FILE = """\
#include <x.h>

// region constants
static const int A = 1'000'000;  // a "quote and a { brace
// endregion

int twice(int x);

// Doubles.
// In two lines.
template <typename T>
RSK_FUNCTION T
twice(T x, const char* s = "){") {
  if (x) { return twice(1); }
  return 2 * x;
}

struct Pair {
  int a;
  int sum() const { return a; }
};

int caller() { return twice(2) + Pair{1}.sum(); }
"""


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("constants", "static const int A", "brace"),
        ("twice", "// Doubles.", "}"),
        ("Pair", "struct Pair {", "};"),
        ("sum", "  int sum() const", "a; }"),
        ("caller", "int caller()", "sum(); }"),
    ],
)
def test_parts_of_a_c_file(tmp_path, shown, name, first, last):
    path = tmp_path / "kernel.cu"
    path.write_text(C_FILE)
    publish.source(path, name)
    code = content(shown[0])["code"]
    assert code.startswith(first.strip())
    assert code.endswith(last)
    assert content(shown[0])["language"] == "cuda"
    assert f"```cpp\n{code}\n```" in shown[0]["text/markdown"]
    assert str(tmp_path) not in shown[0]["text/markdown"]
    if name == "twice":
        assert "return 2 * x;" in code
        assert "struct" not in code


def test_parts_of_a_python_file(tmp_path, shown):
    path = tmp_path / "module.py"
    path.write_text(
        "class A:\n    @property\n    def b(self):\n        return 1\n\ndef b():\n    pass\n"
        '\ndef c(x):\n    """Add one.\n\n    Twice.\n    """\n    x += 1\n    return x + 1\n'
        '\ndef d():\n    """Nothing."""\n'
    )
    publish.source(path, "A.b")
    publish.source(path, "b")
    publish.source(path)
    for name in ("A.b()", "c()", "d()"):
        publish.source(path, name)
    method, function, whole, *bodies = map(content, shown)
    assert [body["code"] for body in bodies] == [
        "return 1",
        "x += 1\nreturn x + 1",
        '"""Nothing."""',
    ]
    assert bodies[1]["where"] == "module.py, lines 14 to 15"
    assert method["code"] == "@property\ndef b(self):\n    return 1"
    assert method["where"] == "module.py, lines 2 to 4"
    assert function["code"] == "def b():\n    pass"
    assert whole["code"] == path.read_text().strip()
    assert whole["where"] == "module.py"


def test_the_file_is_read_now_and_not_copied(tmp_path, shown):
    path = tmp_path / "a.py"
    for text in ("x = 1", "x = 2"):
        path.write_text(text)
        publish.source(path)
    assert [content(bundle)["code"] for bundle in shown] == ["x = 1", "x = 2"]


def test_a_python_object_shows_its_own_source(shown):
    publish.source(excerpt.find, label="lst-find", caption="Finding a file.")
    found = content(shown[0])
    assert found["code"].startswith("def find(path: Path) -> Path:")
    assert found["where"].startswith("rsk/base/excerpt.py, lines ")
    assert found["label"] == "lst-find"


def test_the_projects_own_kernels_can_be_shown(shown):
    publish.source("cuda/random_words.h", "mix")
    assert "0xBF58476D1CE4E5B9" in content(shown[0])["code"]
    assert content(shown[0])["where"].startswith("cuda/random_words.h, lines ")


def test_what_is_not_there_is_refused(tmp_path):
    path = tmp_path / "a.cu"
    path.write_text(C_FILE + "// region open\nint f() { return 1; }\nint f(int) { return 2; }\n")
    with pytest.raises(FileNotFoundError, match=r"no file cuda/none\.cu"):
        publish.source("cuda/none.cu")
    with pytest.raises(ValueError, match="has no region, function or class 'none'"):
        publish.source(path, "none")
    with pytest.raises(ValueError, match="has 2 region, function or class 'f'"):
        publish.source(path, "f")
    with pytest.raises(ValueError, match="region 'open' does not end"):
        publish.source(path, "open")
    with pytest.raises(ValueError, match="caption that is not empty"):
        publish.source(path, "Pair", label="lst-a")
    with pytest.raises(ValueError, match="a caption needs a label"):
        publish.source(path, "Pair", caption="Pair.")


def test_a_fence_is_longer_than_those_in_the_file(tmp_path, shown):
    path = tmp_path / "a.md"
    path.write_text("````\ncode\n````\n")
    publish.source(path)
    assert "\n`````markdown\n" in shown[0]["text/markdown"]


# --- generated text


def test_tokens_say_where_they_came_from(shown):
    publish.tokens(
        [("def ", "prompt"), ("f<T>", "accepted"), ("(", "recovered")],
        label="lst-text",
        caption="Text.",
    )
    assert content(shown[0])["runs"][1] == ("f<T>", "accepted")
    assert "f&lt;T&gt;" in shown[0]["text/html"]
    assert shown[0]["text/plain"] == "def f<T>("


@pytest.mark.parametrize(
    ("runs", "message"),
    [([], "there is no text"), ([("a", "rejected")], "unknown kind 'rejected'; expected one of")],
)
def test_tokens_that_say_nothing_are_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        publish.tokens(runs, label="lst-text", caption="Text.")
