"""Markdown cells as nodes that both writers know: HTML in them resolved, pictures embedded."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rsk.export import pandoc
from rsk.export.document import Cell, ExportError
from rsk.export.pandoc import NO_ATTRIBUTES, Node


def parse(chunks: Sequence[tuple[Cell, str]], reader: str = pandoc.MARKDOWN) -> list[list[Node]]:
    """Blocks of each text. One call of pandoc for all: starting it costs more than the work."""
    if not chunks:
        return []
    text = "".join(
        f"\n\n<!--rsk:{at}-->\n\n{bare_environments(chunk)}\n"
        for at, (_, chunk) in enumerate(chunks)
    )
    parsed: list[list[Node]] = []
    for node in pandoc.parse(text, reader):
        marker = node["t"] == "RawBlock" and re.fullmatch(r"<!--rsk:(\d+)-->\s*", node["c"][1])
        if marker and int(marker[1]) == len(parsed):
            parsed.append([])
        elif marker or not parsed:
            break
        else:
            parsed[-1].append(node)
    if len(parsed) != len(chunks):
        cell, _ = chunks[max(0, len(parsed) - 1)]
        raise cell.error("a code fence (```), HTML comment or tag in it is never closed")
    return parsed


def bare_environments(text: str) -> str:
    """Put ``$$`` around an ``align`` that stands alone, as JupyterLab takes it for a formula."""
    skip = r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`|\$\$.*?\$\$"
    names = "align|equation|gather|eqnarray"
    bare = rf"(?P<tex>\\begin\{{(?P<name>{names})(?P<star>\*?)\}}.*?\\end\{{(?P=name)(?P=star)\}})"
    return re.sub(
        rf"{skip}|{bare}",
        lambda match: f"$${match['tex']}$$" if match["tex"] else match[0],
        text,
        flags=re.DOTALL,
    )


_INLINE_TAGS = {
    "sub": "Subscript",
    "sup": "Superscript",
    "b": "Strong",
    "strong": "Strong",
    "i": "Emph",
    "em": "Emph",
    "u": "Underline",
    "s": "Strikeout",
    "del": "Strikeout",
    "kbd": "Code",
    "code": "Code",
    "samp": "Code",
}
_TRANSPARENT_TAGS = {"div", "p", "center", "span", "small"}
_BLOCK_TAGS = {"details", "summary", "table", "thead", "tbody", "tr", "th", "td", "caption"}
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)\b[^>]*?(/?)>")
_BLOCK_PIECES = re.compile(
    r"<!--.*?-->|<details\b[^>]*>|</details\s*>|<summary\b[^>]*>.*?</summary\s*>"
    r"|<table\b.*?</table\s*>|</?(?:div|p|center|span|small)\b[^>]*>",
    re.DOTALL | re.IGNORECASE,
)


class Cleaner:
    """Turns HTML inside Markdown into nodes that every writer knows, and embeds pictures."""

    def __init__(self, cell: Cell, image: Callable[[Cell, str], str]) -> None:
        self.cell, self.image = cell, image

    def blocks(self, tree: list[Node]) -> list[Node]:
        """The same blocks, clean."""
        tree = self._nest(pandoc.walk(tree, self._node))
        self._refuse_unread(tree)
        return tree

    def _node(self, node: Node) -> Node | list[Node] | None:
        """Children are clean already: this is called from the leaves up."""
        kind = node["t"]
        content: Any = node.get("c")
        match kind:
            case "Plain" | "Para" | "Emph" | "Strong" | "Strikeout":
                return {"t": kind, "c": self._pair(content)}
            case "Header":
                return {"t": kind, "c": [content[0], content[1], self._pair(content[2])]}
            case "Link":
                return {"t": kind, "c": [content[0], self._pair(content[1]), content[2]]}
            case "Image":
                return self._picture(content)
            case "Table":  # let the writers choose the widths; pandoc takes them from the source
                content[2] = [[side, {"t": "ColWidthDefault"}] for side, _ in content[2]]
                return node
            case "BlockQuote":
                return {"t": kind, "c": self._nest(content)}
            case "BulletList":
                return {"t": kind, "c": [self._nest(entry) for entry in content]}
            case "OrderedList":
                return {"t": kind, "c": [content[0], [self._nest(entry) for entry in content[1]]]}
            case _:
                return None

    def _picture(self, content: list[Any]) -> Node:
        alt = pandoc.plain(content[1]).strip()
        if not alt:
            raise self.cell.error(f"the picture {content[2][0][:60]} has no alt text")
        data = self.image(self.cell, content[2][0])
        return {"t": "Image", "c": [NO_ATTRIBUTES, pandoc.words(alt), [data, ""]]}

    def _refuse_unread(self, tree: list[Node]) -> None:
        """Find what pandoc took for text though the author meant something else."""
        for node in pandoc.find(tree, "Str"):
            text = node["c"]
            if "$$" in text or re.search(r"\\[A-Za-z]", text):
                raise self.cell.error(
                    f"{text!r} looks like a formula that is not closed or not between $ signs "
                    "(a path goes between backquotes)"
                )
            if re.fullmatch(r"\|?:?-{2,}:?(\|:?-+:?)+\|?", text):
                raise self.cell.error("a table that could not be read; put a blank line before it")

    def _pair(self, inlines: list[Node]) -> list[Node]:
        """Inline HTML: ``<sub>2</sub>`` becomes one node around its content."""
        stack: list[tuple[str, list[Node]]] = [("", [])]
        for node in inlines:
            if node["t"] != "RawInline":
                stack[-1][1].append(node)
                continue
            text = node["c"][1]
            if text.startswith("<!--"):
                continue
            match = _TAG.fullmatch(text.strip())
            closing, name = (match[1], match[2].lower()) if match else ("", text)
            if name == "br":
                stack[-1][1].append({"t": "LineBreak"})
            elif name in _TRANSPARENT_TAGS:
                continue
            elif name not in _INLINE_TAGS:
                raise self._unsupported(text)
            elif not closing:
                stack.append((name, []))
            elif stack[-1][0] != name:
                raise self.cell.error(f"the HTML tag {text} closes nothing")
            else:
                _, inner = stack.pop()
                kind = _INLINE_TAGS[name]
                made = [NO_ATTRIBUTES, pandoc.plain(inner)] if kind == "Code" else inner
                stack[-1][1].append({"t": kind, "c": made})
        if len(stack) > 1:
            raise self.cell.error(f"the HTML tag <{stack[-1][0]}> is not closed")
        return stack[0][1]

    def _nest(self, blocks: list[Node]) -> list[Node]:
        """Block HTML: ``<details>`` and what is inside becomes a Div of class "details"."""
        stack: list[list[Node]] = [[]]
        titles: list[list[Node]] = []
        for piece in self._pieces(blocks):
            if isinstance(piece, dict):
                stack[-1].append(piece)
            elif re.match(r"<details", piece, re.IGNORECASE):
                stack.append([])
                titles.append(pandoc.words("Details"))
            elif re.match(r"</details", piece, re.IGNORECASE):
                if len(stack) == 1:
                    raise self.cell.error("</details> without <details> in the same cell")
                inner = stack.pop()
                stack[-1].append(details(titles.pop(), inner))
            elif not titles or stack[-1]:
                raise self.cell.error("<summary> comes first inside <details>")
            else:
                inner_html = re.sub(r"(?s)^<summary[^>]*>|</summary\s*>$", "", piece)
                titles[-1] = self._summary(inner_html)
        if len(stack) > 1:
            raise self.cell.error("<details> is not closed in the same cell")
        return stack[0]

    def _pieces(self, blocks: list[Node]) -> Iterable[Node | str]:
        """Blocks, with raw HTML cut into blocks and the tags of details and summary."""
        for node in blocks:
            if node["t"] != "RawBlock":
                yield node
                continue
            text, at = node["c"][1], 0
            allowed = {*_INLINE_TAGS, *_TRANSPARENT_TAGS, *_BLOCK_TAGS, "br"}
            for tag in _TAG.finditer(re.sub(r"(?s)<!--.*?-->", "", text)):
                if tag[2].lower() not in allowed:
                    raise self._unsupported(tag[0])
            for match in _BLOCK_PIECES.finditer(text):
                yield from self._html(text[at : match.start()])
                at = match.end()
                lower = match[0].lower()
                if lower.startswith(("<details", "</details", "<summary")):
                    yield match[0]
                elif lower.startswith("<table"):
                    yield from self._html(match[0])
            yield from self._html(text[at:])

    def _html(self, text: str) -> list[Node]:
        if not text.strip():
            return []
        return self.blocks(pandoc.parse(text, "html+tex_math_dollars"))

    def _summary(self, text: str) -> list[Node]:
        if "<" not in text and "$" not in text:
            return pandoc.words(html.unescape(text))
        return caption(self.cell, self._html(text))

    def _unsupported(self, tag: str) -> ExportError:
        return self.cell.error(f"the HTML {tag} has no form that both exports can show")


def details(title: list[Node], blocks: list[Node]) -> Node:
    """Something to unfold, as a Div whose first block is its title."""
    return {"t": "Div", "c": [["", ["details"], []], [pandoc.block(title), *blocks]]}


def caption(cell: Cell, blocks: list[Node]) -> list[Node]:
    """The text of a caption: one paragraph."""
    if len(blocks) != 1 or blocks[0]["t"] not in ("Para", "Plain"):
        raise cell.error("a caption is one paragraph of text")
    return list(blocks[0]["c"])
