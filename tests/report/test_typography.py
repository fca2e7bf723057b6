"""The words in Traditional Chinese: nothing left in English, and set as Chinese is."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from measured import story, twice, with_cold
from test_values import found

pytest.importorskip("matplotlib")

from rsk.base import fonts, templates
from rsk.base.numbers import DASH
from rsk.figures import plotting
from rsk.report import chapters, measurements, talk, values
from rsk.report.computed_here import Compared, Here, Shortcut
from rsk.report.runs import Run
from rsk.report.values import Story
from rsk.sampler import registry

CHINESE = "zh-TW"
HAN = r"[\u4e00-\u9fff]"
WIDE = "，。；：、？！（）「」"
CHAPTERS = [path.name for path in sorted(templates.folder(CHINESE).glob("*.md"))]
LEFT = {"en": "## References", CHINESE: "## 參考文獻"}
"""Below this heading, the last one, stand titles in the language that they were published in."""


def read(name, language=CHINESE):
    text = (templates.folder(language) / name).read_text(encoding="utf-8")
    return text.split(LEFT[language])[0]


def as_filled_in(text):
    """A template as it reads: a number or a name for each value, and no code."""
    text = re.sub(r"```.*?```|\{#.*?#\}|!\[\]\([^)]*\)(\{[^\n]*\})?", "", text, flags=re.S)
    text = re.sub(r"\{\{(?:(?!\}\}).)*(say\.|\| label|[\u4e00-\u9fff])(?:(?!\}\}).)*\}\}", "", text)
    text = re.sub(r"\{\{.*?\}\}", "0", text, flags=re.S)
    return re.sub(r"\{%.*?%\}|\*\*", "", text, flags=re.S)


# --- what both languages share


@pytest.mark.parametrize("name", CHAPTERS)
def test_figures_tables_and_listings_come_in_the_same_order(name):
    shown = [re.findall(r"!\[\]\([^)]*\)(?:\{.*\})?|^## [a-z].*$", read(name, language), re.M)
             for language in ("en", CHINESE)]  # fmt: skip
    assert shown[0] == shown[1]


def test_macros_are_called_alike():
    english, chinese = (
        re.findall(r"\{% macro (\w+)\((.*)\)", read(templates.MACROS, language))
        for language in ("en", CHINESE)
    )
    assert [name for name, _ in english] == [name for name, _ in chinese]
    for (_, these), (_, those) in zip(english, chinese, strict=True):
        assert [re.sub("=.*", "", one) for one in these.split(", ")] == [
            re.sub("=.*", "", one) for one in those.split(", ")
        ]


# --- English


def english(text):
    """Sentences left over: several English words in a row."""
    return re.findall(r"(?:\b[A-Za-z][a-z]+\b[ ,]+){4,}[a-z]+", text)


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_english_sentence_is_left_over(name):
    assert english(re.sub(r"`[^`]*`", "", as_filled_in(read(name)))) == []


def test_an_english_sentence_is_found():
    text = "推測解碼（speculative decoding）。 The row is read once and never again."
    assert english(text) == ["The row is read once and never again"]


NAMES = {
    *registry.OURS, *registry.RIVALS, "transformers", "FlashInfer", "SGLang", "vLLM", "V1", "V2",
    "RuntimeError", "AcceleratorError", "NaN", "NVIDIA", "H100", "H200", "AMD", "EPYC", "rsk",
    "argmax", "mat", "floor", "sofa", "bed", "roof", "AVX2", "AVX512",
    "table", "chair", "dog", "warp", "logits", "top", "CPU", "GPU", "CUDA", "PyTorch", "Python",
    "rank", "graph", "UTC", "commit", "min", "max", "ms", "float32", "bfloat16", "torch", "MB",
    "kB", "GB", "miniature",
}  # fmt: skip
"""Words that are the same in Chinese: of code, of the example, and units."""


def untranslated(texts):
    label = templates.labels(CHINESE)
    shown = {text: label(text) for text in texts if isinstance(text, str) and "$" not in text}
    words = {
        text: set(re.findall(r"[A-Za-z][\w]+", line)) - NAMES
        for text, line in shown.items()
        if text != DASH
    }
    return {text: left for text, left in words.items() if left}


def cells(frame):
    return [*frame.columns, *(one for name in frame for one in frame[name])]


@pytest.mark.slow
def test_every_label_of_figures_and_tables_has_a_chinese_one():
    from matplotlib.text import Text

    got, here = found(gpu=with_cold(twice(story(gpu=True)))), Here(torch.device("cpu"))
    told, shortcut = Story.of(Run(got.gpu), Run(got.cpu)), Shortcut.watch(torch.device("cpu"))
    drawn = [draw() for draw in chapters._figures(got, here).values()]
    texts = [text for picture in drawn for text in cells(picture.data)]
    drawn += [draw() for draw in talk.pictures(got, told, shortcut).values()]
    texts += [text.get_text() for picture in drawn for text in picture.fig.findobj(Text)]
    for name, make in chapters._tables(got).items():
        frame = make().frame
        if name in ("tab-environment", "tab-machines"):  # but for names of hardware and versions
            texts += [*frame.columns, *frame.get("run", [])]
        else:
            texts += cells(frame)
    assert untranslated(texts) == {}
    assert untranslated(["time on the moon"])


def test_labels_are_looked_up_in_parts(monkeypatch):
    words = {"block {}, warp {}": "區塊 {}、束 {}", "{} of {}": "{}/{}", "one": "一", "two": "二"}
    monkeypatch.setattr(templates, "phrases", lambda language: {"labels": words})
    label = templates.labels("xx")
    assert label("block 1, warp 2") == "區塊 1、束 2"
    assert label(" one\nof  two") == " 一/二"
    assert label("three  ones") == "three  ones"
    assert templates.labels("en")("one") == "一"


def test_a_figure_is_named_in_chinese():
    from matplotlib.figure import Figure

    fig = Figure()
    ax = fig.add_subplot()
    ax.set_xlabel("temperature (0: greedy)")
    ax.set_ylabel("device time (baseline: call\ntime)")
    ax.plot([0], [0], label="measured")
    legend = fig.legend()
    plotting.translate(fig, CHINESE)
    assert ax.get_xlabel() == "溫度（0：貪婪）"
    assert ax.get_ylabel() == "裝置時間\n（baseline：呼叫時間）"
    assert legend.get_texts()[0].get_text() == "實測"
    assert ax.get_legend_handles_labels()[1] == ["實測"]


# --- punctuation and spaces


def faults(text):
    """Where a text is not set as Chinese is, each with what stands around it."""
    wrong = (
        rf"{HAN}[A-Za-z0-9`$]|[A-Za-z0-9`$]{HAN}",  # no space between Chinese and Latin letters
        rf"{HAN} +{HAN}",
        rf"[{WIDE}] +[^\s-]|[^\s-] +[{WIDE}]",
        rf"{HAN}[,.;:?!(]|[,;:?!)]{HAN}",
        r"[，、；：。][，、；：。]",
        rf"{HAN} *\n{HAN}|[{WIDE}] *\n(?!\d+\. )[A-Za-z0-9`$[]",  # would be a space
    )
    text = re.sub(r"\[@[\w-]+\]", "圖 1", text.replace("**", ""))
    return [
        text[max(0, match.start() - 8) : match.end() + 8]
        for pattern in wrong
        for match in re.finditer(pattern, text)
    ]


def test_faults_are_found():
    assert faults("快取（cache）要 3 µs，`fused` 也是；**見**[@fig-a]。") == []
    joined = "快取cache|要3 µs|快取， fused|快取,冷|快取 （冷）|快取 冷|冷。；|快取\n冷|冷，\nB"
    for text in joined.split("|"):
        assert faults(text), text


def here():
    """What is computed on the spot, without computing it."""
    made = Here(torch.device("cpu"))
    made.__dict__.update(
        kernels=Compared(list(registry.KERNELS), 100),
        verdict=SimpleNamespace(requests=1000, level=1e-4, bias=0.03, power=0.99),
        agreement=SimpleNamespace(requests=42, accepted=90, sampled=42, backends=["a", "fused"]),
        written=SimpleNamespace(
            count=96, accepted=64, text=SimpleNamespace(target_passes=32), runs=[("def", "prompt")],
            spec_len=4, temperature=0.5,
        ),
    )  # fmt: skip
    return made


@pytest.fixture(scope="module", params=["recorded", "made up", "slow"])
def measured(request):
    """Measurements with different things to say."""
    if request.param == "recorded":
        return measurements.gather()
    got = found(gpu=with_cold(twice(story(gpu=True))), cpu=twice(story()))
    if request.param == "slow":
        got = replace(got, study=found().study, set_aside=("run.json: 不完整",))
    return got


REPORT = sorted(set(CHAPTERS) - {"macros.md", "captions.md", "course.md", "decoding.md", "demo.md",
                                 "talk.md"})  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORT)
def test_chapters_are_set_as_chinese_is(name, measured):
    text = templates.render(name, values.report(measured, here()), CHINESE)
    text = text.split(LEFT[CHINESE])[0]
    text = re.sub(r"```.*?```|!\[\][^\n]*", "", text, flags=re.S)
    assert faults(text) == []


@pytest.mark.slow
def test_titles_and_captions_are_set_so_too(measured):
    shown = {}
    for draw in chapters._figures(measured, here()).values():
        picture = draw()
        shown[picture.label] = plotting.exhibit(picture, CHINESE)
    for name, make in chapters._tables(measured).items():
        shown[name] = templates.exhibit(name, make().values, CHINESE)
    told, shortcut = Story.of(Run(measured.gpu), Run(measured.cpu)), here().shortcut
    for name, draw in talk.pictures(measured, told, shortcut).items():
        shown[f"talk: {name}"] = plotting.exhibit(draw(), CHINESE)
    wrong = {name: [fault for text in words for fault in faults(text)]
             for name, words in shown.items()}  # fmt: skip
    assert {name: found for name, found in wrong.items() if found} == {}


def test_phrases_are_set_so_too():
    def texts(words):
        for value in words.values():
            yield from texts(value) if isinstance(value, dict) else [value]

    lines = [text for text in texts(templates.phrases(CHINESE)) if isinstance(text, str)]
    filled = "\n\n".join(re.sub(r"\{\w*\}", "0", line) for line in lines)
    assert fonts.is_needed(filled) and faults(filled) == []


def as_prose(markdown):
    """Without marks of lists, tables, slides and code; a cell of a table is a paragraph."""
    text = re.sub(r"```.*?```|\]\([^)]*\)(?=[^{]|$)", "", markdown, flags=re.S)
    text = re.sub(
        r"!\[\].*|\{(?:minutes|\.script|width)[^}]*\}|^:::.*$|^\d\. ", "", text, flags=re.M
    )
    return re.sub(r"\$\$.*?\$\$|[ \n]*\|[ \n]*|\n\s*\n", "\n\n", text, flags=re.S)


@pytest.mark.slow
def test_the_talk_is_set_so_too(measured):
    written = here().written
    written.__dict__.update(command="rsk generate")
    written.text.__dict__.update(acceptance_rate=0.7, tokens_per_target_pass=2.5)
    text = templates.render(talk.SOURCE, values.talk(measured, written), CHINESE)
    assert faults(as_prose(text)) == []


@pytest.mark.parametrize("name", ["README.zh-TW.md", "notebooks/README.zh-TW.md"])
def test_the_readmes_are_set_so_too(name):
    path = templates.folder().parents[1] / name
    if not path.is_file():
        pytest.skip("needs the source checkout")
    assert faults(as_prose(path.read_text(encoding="utf-8"))) == []


def test_the_demo_is_set_so_too():
    several = {"doubtful": [1, 4], "too_long": True, "settled": True, "certainty": 0.1}
    count = SimpleNamespace(operators=9, launches=None, synchronizations=4)
    for block, named in {
        "opening": {"spec_len": 4, "vocab_size": 32000, "on_gpu": True},
        "agreement": {"agreement": here().agreement},
        "certainty": {**several, "last": "CUDA"},
        "reason": {"batch_size": 4, "last": "C++", "is_kernel": True, "baseline": count,
                   "other": count},
    }.items():  # fmt: skip
        text = templates.render(f"demo.md#{block}", named, CHINESE)
        bare = re.sub(r"^\*\*(\d|[A-Za-z+]+)(\*\*)? +|\n", "\n\n", text, flags=re.M)
        assert faults(bare) == []
