"""A language's font: found, used by PDFs and pictures alike, and named if it is missing."""

from __future__ import annotations

import re
import shutil

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("fontTools")

from rsk.base import folders, fonts, templates

LETTERS = "推測解碼，。目錄"


def a_font(family, shapes):
    """DejaVu under another name, in which each letter looks like one of its own."""
    from fontTools.ttLib import TTFont
    from matplotlib import get_data_path

    font = TTFont(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    for table in font["cmap"].tables:
        if table.isUnicode():
            table.cmap.update(zip(map(ord, LETTERS), shapes, strict=True))
    for record in font["name"].names:
        if record.nameID in (1, 4, 16):
            record.string = family
        elif record.nameID == 6:
            record.string = family.replace(" ", "")
    return font


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder with a collection whose second font is the one; its path."""
    from fontTools.ttLib import TTCollection

    folder = tmp_path / "fonts"
    folder.mkdir()
    collection = TTCollection()
    collection.fonts = [a_font("Noto Sans CJK JP", "ABCDEFGH"), a_font(fonts.CHINESE, "STUVWXYZ")]
    collection.save(str(folder / "NotoSansCJK-Regular.ttc"))
    (folder / "NotoSansCJK.txt").write_text("not a font")
    clear()
    monkeypatch.setattr(fonts, "_folders", lambda: iter([tmp_path / "none", folder]))
    yield folder / "NotoSansCJK-Regular.ttc"
    clear()


def clear():
    from matplotlib.font_manager import fontManager

    fonts.find.cache_clear()
    fonts.face.cache_clear()
    fontManager.ttflist = [one for one in fontManager.ttflist if one.name != fonts.CHINESE]


@pytest.fixture
def none(monkeypatch):
    clear()
    monkeypatch.setattr(fonts, "_folders", lambda: iter([]))
    yield
    clear()


@pytest.fixture
def chinese(tmp_path, monkeypatch):
    """A language that needs the font."""
    shutil.copytree(templates.folder(), tmp_path / "words" / "en")
    shutil.copytree(templates.folder(), tmp_path / "words" / "zh-TW")
    path = tmp_path / "words" / "zh-TW" / "phrases.toml"
    text = path.read_text(encoding="utf-8").replace('language = "en"', 'language = "zh-TW"')
    path.write_text(re.sub(r'font = ""', f'font = "{fonts.CHINESE}"', text), encoding="utf-8")
    style = folders.style_dir()
    monkeypatch.setattr(folders, "report_dir", lambda: tmp_path / "words")
    monkeypatch.setattr(folders, "style_dir", lambda: style)


def test_it_is_found_in_a_collection_and_taken_out_of_it(installed):
    from fontTools.ttLib import TTFont

    assert fonts.find() == (installed, 1)
    assert TTFont(fonts.face())["name"].getDebugName(1) == fonts.CHINESE


def test_what_needs_it_is_told_apart():
    assert fonts.is_needed("推測 decoding") and fonts.is_needed("，")
    assert not fonts.is_needed("Łukasz, 2 × 3 µs – “α” ≥ 1")


def test_a_missing_font_is_an_error_that_says_what_to_install(none):
    message = r"the font Noto Sans CJK TC is missing: pip install 'rsk\[zh\]', or .*fonts-noto-cjk"
    with pytest.raises(fonts.FontError, match=message):
        fonts.find()
    assert "rsk" in fonts.FontError.__module__  # the command line shows its message, no traceback


def test_pictures_are_drawn_with_it(installed):
    from matplotlib.figure import Figure

    from rsk.figures import plotting

    def drawn(label, title):
        fig = Figure(figsize=(4, 2))
        fig.add_subplot().set_xlabel(label)
        plotting.entitle(fig, title)
        return plotting.svg(fig)[0], fig._suptitle

    picture, title = drawn("解碼 = B", "解碼 = B")
    assert "NotoSansCJKTC" in picture
    assert title.get_fontweight() == "normal" and title.get_path_effects()  # outlined instead
    picture, title = drawn("decoding = B", "decoding = B")
    assert "NotoSansCJK" not in picture
    assert title.get_fontweight() == "bold" and not title.get_path_effects()


def test_pictures_without_it_are_refused(none, tmp_path):
    from matplotlib.figure import Figure

    from rsk.figures import plotting

    fig = Figure()
    plotting.entitle(fig, "解碼")
    with pytest.raises(fonts.FontError):
        plotting.svg(fig)
    with pytest.raises(fonts.FontError):
        plotting.save(fig, tmp_path / "picture.png")


def test_long_titles_are_broken_anywhere():
    from rsk.figures import plotting

    text = "推測解碼，" * 20 + "12.5 µs（草稿）"
    lines = plotting.wrap(text, plotting.TITLE_WIDTH)
    assert "".join(lines) == text
    assert all(1.45 * len(line) <= plotting.TITLE_WIDTH for line in lines)
    assert len(lines) == 3 and max(map(len, lines)) - min(map(len, lines)) <= 12
    assert not any(line[0] in "，）" or line[-1] == "（" for line in lines)
    assert plotting.wrap("推測\n解碼", 60) == ["推測", "解碼"]
    assert plotting.wrap("批次每一輪都最快：速度是最佳版本的幾倍呢", 25) == [
        "批次每一輪都最快：",
        "速度是最佳版本的幾倍呢",
    ]
    assert plotting.wrap("快：速度是最佳版本的幾倍呢這樣可以了", 25)[0] != "快："
    assert plotting.wrap("解碼", 1) == ["解", "碼"]


def test_what_a_line_cannot_break():
    assert fonts.unbreakable("解碼（µs），B = 4") == ["解", "碼", "（µs），", "B", "=", "4"]
    assert fonts.unbreakable("K\u00a0=\u00a04 個") == ["K\u00a0=\u00a04", "個"]


def chinese_notebook(path):
    from nbformat import v4, write

    from rsk.course import publish

    outputs = []
    show, publish._display = publish._display, outputs.append
    try:
        publish.markdown("# 推測解碼\n\n## 推測\n\n解碼，`解碼`，**解碼**。", "zh-TW")
    finally:
        publish._display = show
    made = [v4.new_output("display_data", data=bundle) for bundle in outputs]
    cell = v4.new_code_cell("show()", outputs=made, execution_count=1)
    write(v4.new_notebook(cells=[cell]), path)
    return path


def test_a_report_is_set_with_it(chinese, installed, tmp_path):
    import pypdf

    from rsk.export import export_report

    html, pdf = export_report(chinese_notebook(tmp_path / "08_report.ipynb"))
    assert '<html lang="zh-TW">' in html.read_text(encoding="utf-8")
    reader = pypdf.PdfReader(pdf)
    assert "推測解碼" in reader.pages[0].extract_text().replace(" ", "")
    assert reader.root_object["/Lang"] == "zh-TW"
    assert any("NotoSansCJKTC" in str(font) for font in embedded(reader))


def embedded(reader):
    for page in reader.pages:
        for font in page["/Resources"]["/Font"].values():
            yield font.get_object()["/BaseFont"]


TALK = "# A talk {minutes=1}\n\nWords.\n\n::: notes\nHello.\n:::\n\n## One {minutes=1}\n"


def test_a_name_in_chinese_is_set_with_it_in_any_language(installed, tmp_path):
    import pypdf

    from rsk.export import export_talk
    from rsk.export.talk import Material

    (tmp_path / "talk.md").write_text(TALK, encoding="utf-8")
    made = Material(TALK, {}, {}, epoch=0, presenter="推測")
    slides, _ = export_talk(tmp_path / "talk.md", made, tmp_path)
    reader = pypdf.PdfReader(slides)
    assert "推測" in reader.pages[0].extract_text()
    assert any("NotoSansCJKTC" in str(font) for font in embedded(reader))


def test_a_report_without_it_is_refused_and_the_old_one_stays(chinese, none, tmp_path):
    from rsk.export import export_report

    notebook = chinese_notebook(tmp_path / "08_report.ipynb")
    (tmp_path / "report.pdf").write_text("the old one")
    with pytest.raises(fonts.FontError, match="pip install"):
        export_report(notebook)
    assert (tmp_path / "report.pdf").read_text() == "the old one"
