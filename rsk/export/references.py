"""The title, numbers, references and formulas of a document."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsk.export import formula, pandoc
from rsk.export.document import (
    Cell,
    Document,
    ExportError,
    Heading,
    Labelled,
    Table,
    Text,
    formula_key,
)
from rsk.export.formula import FormulaError
from rsk.export.pandoc import NO_ATTRIBUTES, Node


def resolve(document: Document, pages: Mapping[str, str]) -> None:
    """Take the title, number sections and labels, resolve references, read the formulas.

    Args:
        document: as it was read; changed in place.
        pages: notebook name to the page that a link to it leads to.

    Raises:
        ExportError: no title, headings out of order, a label used twice, a reference or link to
            nothing, or a formula that cannot be read; with the cell.
    """
    _take_title(document)
    _number(document)
    _link(document, pages)
    _bind(document)
    convert_formulas(document)


def _take_title(document: Document) -> None:
    """The title is the one first-level heading, and the first thing in the notebook."""
    first = True
    for cell, item in document.items:
        if not isinstance(item, Text):
            continue
        kept = []
        for node in item.blocks:
            if node["t"] == "Header" and node["c"][0] == 1:
                if document.title:
                    raise cell.error("a second heading of level 1; the title is the only one")
                if not first:
                    raise cell.error("the title comes before all other text")
                document.title = node["c"][2]
            else:
                kept.append(node)
            first = False
        item.blocks = kept
    if not document.title:
        raise ExportError(f"{document.file} has no title: a first line such as '# Title'")


def _slug(text: str) -> str:
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-") or "section"


def _number(document: Document) -> None:
    """Number sections (from heading level 2) and labelled things, each kind by itself."""
    counters: list[int] = []
    anchors: set[str] = set()
    counts: dict[str, int] = {}
    level = 1
    for cell, item in document.items:
        if isinstance(item, Text):
            for node in pandoc.find(item.blocks, "Header"):
                title = pandoc.plain(node["c"][2]).strip()
                if node["c"][0] > level + 1:
                    raise cell.error(f"the heading {title!r} skips a level")
                if "[@" in title:
                    raise cell.error(f"the heading {title!r} holds a reference")
                level = node["c"][0]
                depth = level - 1
                number = ""
                if title not in document.phrases["unnumbered"]:
                    counters = [*counters[:depth], *[0] * (depth - len(counters))]
                    counters[-1] += 1
                    number = ".".join(map(str, counters))
                slug = anchor = f"sec-{_slug(title)}"
                copy = 1
                while anchor in anchors:
                    copy += 1
                    anchor = f"{slug}-{copy}"
                anchors.add(anchor)
                heading = Heading(depth, number, anchor, node["c"][2])
                document.headings.append(heading)
                node["c"] = [depth, [anchor, [], [["number", number]]], node["c"][2]]
        elif isinstance(item, Labelled) and item.label:
            if item.label in anchors:
                raise cell.error(f"the label {item.label!r} is used twice")
            anchors.add(item.label)
            counts[item.word] = item.number = counts.get(item.word, 0) + 1


def _link(document: Document, pages: Mapping[str, str]) -> None:
    """Resolve ``[@label]`` and the links to headings and other notebooks."""
    names = {
        heading.anchor: f"{document.phrases['section']} {heading.number}"
        for heading in document.headings
    }
    for heading in document.headings:
        if not heading.number:
            names[heading.anchor] = pandoc.plain(heading.title).strip()
    for _, item in document.items:
        if isinstance(item, Labelled) and item.label:
            names[item.label] = item.name(document.phrases)

    for cell, item in document.items:

        def change(node: Node, cell: Cell = cell) -> Node | list[Node] | None:
            if node["t"] == "Str" and "[@" in node["c"]:
                return _references(cell, node["c"], names)
            if node["t"] == "Link":
                return _target(cell, node, names, pages)
            return None

        if isinstance(item, Text):
            item.blocks = pandoc.walk(item.blocks, change)
        elif isinstance(item, Labelled):
            item.caption = pandoc.walk(item.caption, change)


_UNIT = r"(?:[µmn]s|s|min|pt|k?B|[MGT]B(?:/s)?)"
_TOGETHER = (  # words between which no line may end: the end of one, the beginning of the next
    (re.compile(r"\d$"), re.compile(rf"{_UNIT}\b")),
    (re.compile(rf"\d%?$|^{_UNIT}$"), re.compile(r"–$")),
    (re.compile(r"^–$"), re.compile(r"\d")),
    (re.compile(r"[\w)]$"), re.compile(r"[=×]$")),
    (re.compile(r"^[=×]$"), re.compile(r"[\w(]")),
)


def _bind(document: Document) -> None:
    """No line ends inside of a number with its unit, a range or an equation between words."""
    document.title = _bound(document.title)
    for _, item in document.items:
        match item:
            case Text():
                item.blocks = _bound(item.blocks)
            case Labelled():
                item.caption = _bound(item.caption)
                if isinstance(item, Table):
                    item.table = _bound(item.table)


def _bound(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _bound(value) for key, value in tree.items()}
    if not isinstance(tree, list):
        return tree
    nodes = [_bound(node) for node in tree]
    for at in range(1, len(nodes) - 1):
        match nodes[at - 1 : at + 2]:
            case [{"t": "Str", "c": left}, {"t": "Space" | "SoftBreak"}, {"t": "Str", "c": right}]:
                if any(end.search(left) and begin.match(right) for end, begin in _TOGETHER):
                    # Behind a dash a line may end even before such a space.
                    nodes[at] = {"t": "Str", "c": "\u2060\u00a0" if left == "–" else "\u00a0"}
    return nodes


def _references(cell: Cell, text: str, names: Mapping[str, str]) -> list[Node]:
    nodes: list[Node] = []
    at = 0
    for match in re.finditer(r"\[@([\w-]+)\]", text):
        if match[1] not in names:
            known = ", ".join(names) or "none"
            raise cell.error(f"the reference [@{match[1]}] leads nowhere; labels are {known}")
        if match.start() > at:
            nodes.append({"t": "Str", "c": text[at : match.start()]})
        inner = [{"t": "Str", "c": names[match[1]].replace(" ", "\u00a0")}]
        nodes.append({"t": "Link", "c": [NO_ATTRIBUTES, inner, [f"#{match[1]}", ""]]})
        at = match.end()
    if at < len(text):
        nodes.append({"t": "Str", "c": text[at:]})
    return nodes


def _target(
    cell: Cell, node: Node, names: Mapping[str, str], pages: Mapping[str, str]
) -> Node | list[Node] | None:
    _, inner, (target, title) = node["c"]
    if re.match(r"https?:|mailto:", target):
        return None
    if target.startswith("#"):
        if target[1:] in names:
            return None
        anchor = f"sec-{_slug(target[1:])}"
        if anchor not in names:
            raise cell.error(f"the link {target} leads to no heading")
        return {"t": "Link", "c": [NO_ATTRIBUTES, inner, [f"#{anchor}", title]]}
    page = pages.get(Path(target.split("#")[0]).stem) if ".ipynb" in target else None
    if page is not None:
        return {"t": "Link", "c": [NO_ATTRIBUTES, inner, [page, title]]}
    return list(inner)  # a file beside the notebook: a reader of the export does not have it


def convert_formulas(document: Document) -> None:
    """Read the formulas of a document.

    Raises:
        ExportError: one that cannot be read, with its cell.
    """
    trees: list[tuple[Cell, Any]] = [(document.first, document.title)]
    for cell, item in document.items:
        match item:
            case Text():
                trees.append((cell, item.blocks))
            case Labelled():
                trees.append((cell, item.caption))
    cells: dict[formula.Key, Cell] = {}
    for cell, tree in trees:
        for node in pandoc.find(tree, "Math"):
            cells.setdefault(formula_key(node), cell)
    document.cells_of_formulas = cells
    try:
        document.formulas = formula.convert(list(cells))
    except FormulaError as error:
        raise cells[error.key].error(str(error)) from error
