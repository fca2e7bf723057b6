"""A document as a PDF, typeset by Typst: tagged, with alt texts, bookmarks and live references."""

from __future__ import annotations

import base64
import contextlib
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rsk.base import folders, fonts
from rsk.export import pandoc
from rsk.export.document import (
    Banner,
    Cell,
    Code,
    Document,
    ExportError,
    Figure,
    Item,
    Labelled,
    Listing,
    Output,
    Table,
    Text,
    Tokens,
    formula_key,
)
from rsk.export.pandoc import Node, block, raw

TEXT_WIDTH = 467.0  # points: A4 less the margins that report.typ sets
TABLE_SIZES = (9.0, 8.0, 7.0, 6.2)  # points, the largest that fits is taken
_EM = 0.53  # width of an average letter, half of a Chinese one; the others are narrower
_DIGIT, _POINT = 0.47, 0.28
_CELL_PADDING = 12.0  # points, both sides together
PROSE = 90  # characters in a cell: more is no longer an entry but text
CODE_COLUMNS = 96  # characters of code on a line of the page

Files = dict[str, bytes]


def write(document: Document) -> bytes:
    """The PDF of a document; the same bytes for the same document.

    Raises:
        ExportError: a formula or table that cannot be set, with the notebook and the cell.
    """
    files: Files = {}
    blocks: list[Node] = pandoc.walk(_head(document), rewriter(document.first, files, document))
    cells = [cell for cell, _ in document.items]
    items = _with_contents(item for _, item in document.items)
    for at, (cell, item) in enumerate(zip(cells, items, strict=True)):
        blocks.append(_typst(f"// item {at}"))
        rewrite = rewriter(cell, files, document)
        blocks += pandoc.walk(_blocks(cell, item, files), rewrite)
    body = pandoc.write(blocks, "typst")
    return typeset(document, body, files, "report.typ")


def _head(document: Document) -> list[Node]:
    fields = [
        f"authors: ({''.join(string(name) + ', ' for name in document.authors)})",
        f"date: {string(document.date)}",
        f"plain-title: {string(document.plain_title)}",
        "title: [",
    ]
    imports = _typst('#import "report.typ": *')
    opening = raw("typst", f"#show: report.with({', '.join(fields)}")
    return [imports, block([opening, *document.title, raw("typst", "])")])]


def _with_contents(items: Iterable[Item]) -> Iterable[Item]:
    """The items with the contents before the first numbered section, which is after an abstract."""
    there = False
    for item in items:
        if isinstance(item, Text) and not there:
            for at, node in enumerate(item.blocks):
                match node:
                    case {"t": "Header", "c": [_, [_, _, [[_, number]]], _]} if number:
                        contents = _typst("#table-of-contents")
                        item = Text([*item.blocks[:at], contents, *item.blocks[at:]])
                        there = True
                        break
        yield item


# --- items ------------------------------------------------------------------------------------


def _typst(text: str) -> Node:
    return pandoc.raw_block("typst", text)


def string(text: str) -> str:
    """A Typst string literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped.replace(chr(9), "    ")}"'


def _numbered(item: Labelled, function: str, arguments: str) -> list[Node]:
    """A call of the template: ``#function(number, [caption], arguments) <label>``."""
    opening = raw("typst", f'#{function}("{item.number}", [#none;')
    label = f" <{item.label}>" if item.label else ""
    return [block([opening, *item.caption, raw("typst", f"], {arguments}){label}")])]


def _blocks(cell: Cell, item: Item, files: Files) -> list[Node]:
    match item:
        case Text():
            return item.blocks
        case Figure():
            return _figure(item, files)
        case Table():
            size, inner = _table(cell, item.table)
            opening = raw("typst", f'#numbered-table("{item.number}", [#none;')
            middle = raw("typst", f"], {size}pt, ")
            closing = raw("typst", f") <{item.label}>")
            return [block([opening, *item.caption, middle, *inner, closing])]
        case Listing():
            code = f"{_code(item.code, item.language)}, where: {string(item.where)}"
            return _numbered(item, "listing", code) if item.label else [_typst(f"#code({code})")]
        case Tokens():
            runs = "".join(f"({string(text)}, {string(kind)}), " for text, kind in item.runs)
            return _numbered(item, "tokens", f"({runs})")
        case Banner():
            arguments = ", ".join(map(string, (item.mode, item.opening, item.detail)))
            return [_typst(f"#banner({arguments})")]
        case Code():
            return [_typst(f"#code({_code(item.code, 'python')})")]
        case Output():
            return [_typst(f"#output({string(_breakable(item.text))})")]


def _figure(item: Figure, files: Files) -> list[Node]:
    name = f"{item.label}.{item.suffix}"
    files[name] = item.image
    arguments = [f"{string(name)}, {string(item.alt)}, {min(item.size[0], TEXT_WIDTH):g}pt"]
    if item.data is not None:
        files[f"{item.label}.csv"] = item.data["csv"].encode()
        arguments.append(f"data: {string(item.label + '.csv')}")
    return _numbered(item, "picture", ", ".join(arguments))


def _code(code: str, language: str) -> str:
    known = {"cuda": "cpp", "text": ""}.get(language, language)
    return f"{string(_breakable(code))}, {string(known)}"


def _breakable(text: str) -> str:
    """Allow a line break inside runs without a space that are longer than a line."""
    return re.sub(rf"[^\s]{{{CODE_COLUMNS}}}", lambda match: match[0] + "\u200b", text)


# --- tables -----------------------------------------------------------------------------------


def _table(cell: Cell, node: Node) -> tuple[float, list[Node]]:
    """Text size in points and the inlines that make a Typst table of pandoc's."""
    _, _, columns, (_, head), bodies, (_, foot) = node["c"]
    rows = [row for _, _, inner, rows in bodies for row in [*inner, *rows]] + foot
    size = _fitting_size(cell, len(columns), [*head, *rows])
    sides = {"AlignRight": "right", "AlignCenter": "center"}
    aligns = ", ".join(sides.get(side["t"], "left") for side, _ in columns)
    widths = _widths(len(columns), rows)
    inlines = [raw("typst", f"table(columns: {widths}, align: ({aligns},), ")]
    if head:
        inlines += [raw("typst", "table.header("), *_rows(cell, head), raw("typst", "), ")]
    return size, [*inlines, *_rows(cell, rows), raw("typst", ")")]


def _widths(columns: int, rows: list[Any]) -> str:
    """The widths of columns, for Typst to find unless they hold prose: then by how much there is.

    The square root is between columns of one width and columns of one height.
    """
    texts = [[fonts.columns(pandoc.plain(entry[4])) for entry in entries] for _, entries in rows]
    if not any(length > PROSE for row in texts for length in row):
        return str(columns)
    whole = (sum(column) for column in zip(*texts, strict=True))
    return f"({', '.join(f'{math.sqrt(length):.1f}fr' for length in whole)},)"


def _rows(cell: Cell, rows: list[Any]) -> Iterable[Node]:
    for _, entries in rows:
        for _, _, rowspan, colspan, blocks in entries:
            spans = f"rowspan: {rowspan}, colspan: {colspan}"
            yield raw("typst", f"table.cell({spans})[#none;")
            for at, inner in enumerate(blocks):
                if inner["t"] not in ("Plain", "Para"):
                    raise cell.error("a table cell holds more than text")
                yield from [{"t": "LineBreak"}] if at else []
                yield from inner["c"]
            yield raw("typst", "], ")


def _fitting_size(cell: Cell, columns: int, rows: list[Any]) -> float:
    """The largest text size at which no column's longest word is cut off.

    Typst breaks lines inside cells, but not inside words and numbers. Where every cell fits on one
    line it decides on the size itself: it knows the widths, which are estimated here.
    """
    longest = [0.0] * columns
    for row, (_, entries) in enumerate(rows):
        if len(entries) == columns:  # rows with merged cells do not say which column is wide
            wider = 1.1 if row == 0 else 1.0  # the heading is bold
            for at, entry in enumerate(entries):
                words = fonts.unbreakable(pandoc.plain(entry[4]))
                longest[at] = max([longest[at], *(wider * _ems(word) for word in words)])
    for size in TABLE_SIZES:
        if sum(longest) * size + columns * _CELL_PADDING <= TEXT_WIDTH:
            return size
    raise cell.error(
        f"a table of {columns} columns is too wide for the page; leave out or split columns"
    )


def _ems(word: str) -> float:
    """About how wide a word is, in units of the text's size."""
    word = word.replace("\u2060", "")  # has no width
    digits, points = (len(re.findall(kind, word)) for kind in (r"\d", r"[\s.,:;'()]"))
    return _EM * (fonts.columns(word) - digits - points) + _DIGIT * digits + _POINT * points


# --- nodes ------------------------------------------------------------------------------------


def rewriter(
    cell: Cell, files: Files, document: Document
) -> Callable[[Node], Node | list[Node] | None]:
    """What turns pandoc's nodes into calls of the template, for :func:`rsk.export.pandoc.walk`."""

    def change(node: Node) -> Node | list[Node] | None:
        match node:
            case {"t": "Math", "c": [{"t": style}, _]}:
                formula = document.formulas[formula_key(node)]
                display = str(style == "DisplayMath").lower()
                arguments = f"block: {display}, alt: {string(formula.words)}, {formula.typst}.body"
                return raw("typst", f"#math.equation({arguments});")
            case {"t": "CodeBlock", "c": [[_, classes, _], code]}:
                return _typst(f"#code({_code(code, classes[0] if classes else '')})")
            case {"t": "Image", "c": [_, alt, [address, _]]}:
                return raw("typst", _image(address, pandoc.plain(alt), files))
            case {"t": "Header", "c": [level, [anchor, _, [[_, number]]], inlines]}:
                numbering = '"1.1"' if number else "none"
                call = raw("typst", f"#heading(level: {level}, numbering: {numbering})[#none;")
                return block([call, *inlines, raw("typst", f"] <{anchor}>")])
            case {"t": "Div", "c": [[_, ["details"], _], [title, *blocks]]}:
                start = [raw("typst", "#folded[#none;"), *title["c"], raw("typst", "][")]
                return [block(start), *blocks, _typst("]")]
            case {"t": "Para", "c": inlines} if (
                pandoc.plain(inlines).rstrip().endswith((":", "："))
            ):
                return block([raw("typst", "#announcing[#none;"), *inlines, raw("typst", "]")])
            case {"t": "Table"}:
                size, inner = _table(cell, node)
                opening = raw("typst", f"#plain-table({size}pt, ")
                return block([opening, *inner, raw("typst", ")")])
            case _:
                return None

    return change


def _image(address: str, alt: str, files: Files) -> str:
    match = re.match(r"data:image/([a-z+]+)(;base64)?,", address)
    assert match, "the reader embeds every picture"
    name = f"picture-{len(files)}.{ {'svg+xml': 'svg', 'jpeg': 'jpg'}.get(match[1], match[1]) }"
    files[name] = base64.b64decode(address[match.end() :])
    return f"#inline-picture({string(name)}, {string(alt)});"


# --- Typst ------------------------------------------------------------------------------------


def typeset(document: Document, body: str, files: Files, *templates: str) -> bytes:
    """The PDF of a text in Typst's language; ``// item N`` in it marks where items begin.

    Args:
        document: whose items those are, for messages.
        body: the text.
        files: pictures and data that it names.
        templates: files in ``report/style`` that it imports.

    Raises:
        ExportError: what Typst cannot set, with the item's cell.
    """
    # Universal accessibility: Typst then refuses what a reader could not hear.
    options = {"format": "pdf", "pdf_standards": ["ua-1"], "timestamp": document.epoch or 0}
    written = _compile(document, body, files, templates, options)
    assert isinstance(written, bytes)
    return written


def pictures(
    document: Document, body: str, files: Files, *templates: str, ppi: float
) -> list[bytes]:
    """The pages as PNG, with ``ppi`` pixels an inch; otherwise as :func:`typeset`."""
    written = _compile(document, body, files, templates, {"format": "png", "ppi": ppi})
    return [written] if isinstance(written, bytes) else list(written)


def _compile(
    document: Document,
    body: str,
    files: Files,
    templates: Iterable[str],
    options: Mapping[str, Any],
) -> bytes | list[bytes]:
    import typst

    system_fonts = False
    family = document.phrases["font"]
    if not family and fonts.is_needed(body):  # a name in Chinese, in a text in another language
        with contextlib.suppress(fonts.FontError):
            family = fonts.find() and fonts.CHINESE
    with tempfile.TemporaryDirectory(prefix="rsk-report-") as name:
        folder = Path(name)
        if family:  # alone: no other weight beside it is taken, and pages look alike everywhere
            shutil.copy(fonts.find(family)[0], folder)
        (folder / "phrases.typ").write_text(_phrases({**document.phrases, "font": family}), "utf-8")
        for template in templates:
            (folder / template).write_bytes((folders.style_dir() / template).read_bytes())
        for file, content in files.items():
            (folder / file).write_bytes(content)
        for _ in range(50):
            (folder / "main.typ").write_text(body, encoding="utf-8", newline="\n")
            try:
                written, warnings = typst.compile_with_warnings(
                    str(folder / "main.typ"),
                    root=str(folder),
                    # Typst's own fonts: the same pages on every machine.
                    ignore_system_fonts=not system_fonts,
                    font_paths=[name] if family else [],
                    **options,
                )
            except typst.TypstError as error:
                missing = re.search(r'the text `?"(.+?)"`? could not be displayed', error.message)
                if missing is None:
                    raise _located(document, body, error) from error
                if system_fonts:
                    # Nothing here can draw it: write the characters' numbers instead.
                    for character in dict.fromkeys(missing[1]):
                        body = body.replace(character, f"⟨U+{ord(character):04X}⟩")
                system_fonts = True
                continue
            if warnings:
                raise _located(document, body, warnings[0])
            return written
    raise ExportError(f"{document.file}: too many characters that no font can draw")


def _phrases(phrases: Mapping[str, Any]) -> str:
    """What the templates put beside numbers, as a dictionary of Typst's."""
    pairs = (f"{key}: {string(word)}, " for key, word in phrases.items() if isinstance(word, str))
    return f"#let phrases = ({''.join(pairs)})\n#let filled(text, ..values) = " + (
        'values.pos().fold(text, (text, value) => text.replace("{}", str(value), count: 1))\n'
    )


def _located(document: Document, body: str, error: Any) -> ExportError:
    """The error with the cell it comes from: the last item that begins above the line."""
    reason = " ".join([error.message, *(f"({hint})" for hint in error.hints)])
    line = re.search(r"main\.typ:(\d+)", getattr(error, "diagnostic", "") or "")
    items: list[str] = []
    if line:
        above = "\n".join(body.split("\n")[: int(line[1])])
        items = re.findall(r"^// item (\d+)$", above, flags=re.MULTILINE)
    if not items:
        return ExportError(f"{document.file}: Typst: {reason}")
    cell, _ = document.items[int(items[-1])]
    return cell.error(f"Typst: {reason}")
