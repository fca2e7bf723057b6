"""The slides and the speaker's script of a talk, typeset: see :mod:`rsk.export.talk`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rsk.export import pandoc, pdf
from rsk.export.document import ExportError
from rsk.export.pandoc import Node, block, raw, raw_block
from rsk.export.talk import Division, Place, Talk, read_number

PREVIEW_PPI = 26  # of the slides' pictures in the script, where they are a seventh as wide
_PLAIN_DIVS = {"big", "small", "command"}


def write_slides(talk: Talk) -> tuple[bytes, list[bytes]]:
    """The slides as PDF, a page each, and small pictures of them as PNG.

    Raises:
        ExportError: a slide does not fit its page, or Typst cannot set it; names the line.
    """
    files: pdf.Files = {}
    templates = "report.typ", "slides.typ"
    blocks = _opening(talk, "slides.typ")
    opened: list[str] = []
    for at, part in enumerate(talk.parts):
        if not part.number or part.section is None:
            continue
        rewrite = _rewriter(talk, part, files)
        section = pandoc.plain(part.section.title).strip()
        opening = f"#title-slide({part.number}, {pdf.string(talk.presenter)}, [#none;"
        if part.level > 1:
            opens = str(section not in opened).lower()
            opened.append(section)
            opening = f"#slide({part.number}, {pdf.string(section)}, {opens}, [#none;"
        title = pandoc.walk(part.title, rewrite)
        blocks += [raw_block("typst", f"// item {at}")]
        blocks += [block([raw("typst", opening), *title, raw("typst", "])[")])]
        blocks += [*pandoc.walk(part.body, rewrite), raw_block("typst", "]")]
    body = pandoc.write(blocks, "typst")
    try:
        pages = pdf.typeset(talk.document, body, files, *templates)
    except ExportError as error:
        if match := re.search(r"slide (\d+) does not fit", str(error)):
            part = next(part for part in talk.parts if part.number == int(match[1]))
            raise part.place.error("it does not fit its page: show less") from error
        raise
    return pages, pdf.pictures(talk.document, body, files, *templates, ppi=PREVIEW_PPI)


def write_script(talk: Talk, previews: Sequence[bytes]) -> bytes:
    """The speaker's script as PDF: what to say with each slide, and when.

    Args:
        talk: as read.
        previews: small pictures of the slides.

    Raises:
        ExportError: Typst cannot set something; names the line.
    """
    files = {f"slide-{number}.png": picture for number, picture in enumerate(previews, 1)}
    blocks = _opening(talk, "script.typ")
    clock = 0.0
    first, *others = enumerate(talk.parts)
    opening = next(at for at, (_, part) in enumerate(others) if part is talk.sections[0])
    others.insert(opening + 1, first)  # the title slide is the first section's first
    for at, part in others:
        blocks.append(raw_block("typst", f"// item {at}"))
        rewrite = _rewriter(talk, part, files)
        title = pandoc.walk(part.title, rewrite)
        if part.number and part.minutes is not None:
            end = clock + part.minutes
            arguments = f'{part.number}, "{part.minutes:g}", {_clock(clock)}, {_clock(end)}'
            head = [raw("typst", f"#spoken({arguments}, [#none;"), *title, raw("typst", "])[")]
            blocks += [block(head), *pandoc.walk(part.notes, rewrite)]
            for node in pandoc.find(part.body, "Div"):
                if node["c"][0][1] == ["figure"]:
                    _, caption = talk.drawn[dict(node["c"][0][2])["name"]]
                    words = pandoc.walk(caption, rewrite)
                    call = raw("typst", "#conditions[#none;"), *words, raw("typst", "]")
                    blocks.append(block([*call]))
            blocks.append(raw_block("typst", "]"))
            clock = end
        elif part.level == 2:
            minutes = f"{part.minutes:g}" if part.minutes is not None else ""
            head = [raw("typst", f'#chapter("{minutes}", [#none;'), *title, raw("typst", "])")]
            blocks += [block(head), *pandoc.walk(part.body, rewrite)]
        else:
            blocks.append(block([raw("typst", "#part[#none;"), *title, raw("typst", "]")]))
            blocks += pandoc.walk(part.body, rewrite)
    body = pandoc.write(blocks, "typst")
    return pdf.typeset(talk.document, body, files, "report.typ", "script.typ")


def _opening(talk: Talk, template: str) -> list[Node]:
    """The import of the template and its show rule."""
    minutes = sum(part.minutes or 0 for part in talk.sections)
    fields = [
        f"title: {pdf.string(talk.document.plain_title)}",
        f"date: {pdf.string(talk.document.date)}",
        f"minutes: {pdf.string(f'{minutes:g}')}",
        f"presenter: {pdf.string(talk.presenter)}",
    ]
    name = Path(template).stem
    return [
        raw_block("typst", f'#import "{template}": *'),
        raw_block("typst", f"#show: {name}.with({', '.join(fields)})"),
    ]


def _clock(minutes: float) -> str:
    seconds = round(minutes * 60)
    return pdf.string(f"{seconds // 60}:{seconds % 60:02}")


def _rewriter(
    talk: Talk, part: Division, files: pdf.Files
) -> Callable[[Node], Node | list[Node] | None]:
    """What turns the nodes of a part into calls of the template."""
    usual = pdf.rewriter(part.place, files, talk.document)

    def change(node: Node) -> Node | list[Node] | None:
        match node:
            case {"t": "Div", "c": [[_, ["figure"], attributes], _]}:
                return _picture(talk, dict(attributes), files)
            case {"t": "Div", "c": [[_, ["source"], [[_, where]]], inner]}:
                return [*inner, raw_block("typst", f"#where({pdf.string(where)})")]
            case {"t": "Div", "c": [[_, ["column"], _], _]}:
                return None  # taken apart by the columns around it
            case {"t": "Div", "c": [[_, ["columns"], _], columns]}:
                return _side_by_side(part.place, columns)
            case {"t": "Div", "c": [[_, [name], _], inner]} if name in _PLAIN_DIVS:
                return [raw_block("typst", f"#{name}["), *inner, raw_block("typst", "]")]
            case {"t": "Div", "c": [[_, ["tokens"], attributes], _]}:
                runs = talk.texts[dict(attributes)["name"]]
                pairs = "".join(f"({pdf.string(a)}, {pdf.string(b)}), " for a, b in runs)
                return raw_block("typst", f"#marked(({pairs}))")
            case {"t": "Div", "c": [[_, classes, _], _]} if classes != ["details"]:
                raise part.place.error(f"::: {' '.join(classes) or '(nothing)'} is unknown")
            case _:
                return usual(node)

    return change


def _picture(talk: Talk, attributes: Mapping[str, str], files: pdf.Files) -> Node:
    name = attributes["name"]
    drawn, _ = talk.drawn[name]
    files[f"{name}.svg"] = drawn.svg
    width, height = drawn.size
    arguments = [pdf.string(f"{name}.svg"), pdf.string(drawn.alt), f"{width / height:.6g}"]
    if attributes["height"]:
        arguments.append(f"height: {attributes['height']}cm")
    return raw_block("typst", f"#picture({', '.join(arguments)})")


def _side_by_side(place: Place, columns: list[Node]) -> list[Node]:
    widths, content = [], []
    for column in columns:
        if column["t"] != "Div" or column["c"][0][1] != ["column"]:
            raise place.error("::: columns holds ::: column, and nothing else")
        given = {"width": "1", **dict(column["c"][0][2])}
        widths.append(f"{read_number(place, given, 'width'):g}fr")
        content += [raw_block("typst", "], ["), *column["c"][1]]
    opening = raw_block("typst", f"#side-by-side(({', '.join(widths)},), [")
    return [opening, *content[1:], raw_block("typst", "])")]
