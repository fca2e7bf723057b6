"""A document as one HTML page that needs nothing else: no font, no network, only its own script."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from rsk.base import folders
from rsk.export import formula, pandoc
from rsk.export.document import (
    Banner,
    Code,
    Document,
    Figure,
    Heading,
    Item,
    Labelled,
    Listing,
    Output,
    Table,
    Text,
    Tokens,
    formula_key,
)
from rsk.export.formula import FormulaError
from rsk.export.pandoc import Node, block, raw

MIME_TYPES = {"svg": "image/svg+xml", "png": "image/png"}
MOST_ROWS = 200
"""A longer table behind a figure is offered as a file only."""

_POINT = 4 / 3  # CSS pixels

Phrases = Mapping[str, Any]
"""What stands beside numbers and links: :func:`rsk.base.templates.phrases`."""


def write(document: Document, navigation: str = "") -> str:
    """The page of a document.

    Args:
        document: what to write.
        navigation: HTML put above and below it, such as links to the neighbouring pages.

    Raises:
        ExportError: a formula that cannot be drawn, with the notebook and the cell.
    """
    try:
        formulas, glyphs = formula.draw(document.formulas)
    except FormulaError as error:
        raise document.cells_of_formulas[error.key].error(str(error)) from error
    phrases = document.phrases
    named = (item.interactive for _, item in document.items if isinstance(item, Figure))
    scripts = list(dict.fromkeys(filter(None, named)))
    rewrite = _rewriter(formulas, phrases)
    blocks = [pandoc.walk(_blocks(item, phrases), rewrite) for _, item in document.items]
    return page(
        title=document.plain_title,
        heading=_inline(document.title, rewrite),
        byline=" · ".join(filter(None, [*document.authors, document.date])),
        contents=_contents(document.headings, rewrite, phrases["contents"]),
        body=glyphs + _keep_together(pandoc.write([b for part in blocks for b in part], "html5")),
        navigation=navigation,
        phrases=phrases,
        scripts=scripts,
    )


def _keep_together(body: str) -> str:
    """No line break between a formula and the punctuation beside it."""
    return re.sub(
        r'([(（「]?)(<svg role="img".*?</svg>)([.,;:!?)，。；：、）」]*)',
        lambda m: f'<span class="whole">{m[0]}</span>' if m[1] or m[3] else m[0],
        body,
        flags=re.DOTALL,
    )


def page(
    *,
    title: str,
    heading: str,
    byline: str,
    contents: str,
    body: str,
    phrases: Phrases,
    navigation: str = "",
    scripts: Sequence[str] = (),
) -> str:
    """Fill the page template; everything but ``title``, ``byline`` and ``phrases`` is HTML.

    ``scripts`` are the page's own, by their names in ``report/style``; no other one may run.
    """
    folder = folders.style_dir()
    code = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in scripts]
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    template = string.Template((folder / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        language=escape(phrases["language"]),
        skip=escape(phrases["skip"]),
        title=escape(title),
        style=(folder / "style.css").read_text(encoding="utf-8"),
        heading=heading,
        byline=f'<p class="byline">{escape(byline)}</p>' if byline else "",
        contents=contents,
        body=body,
        policy=f"; script-src {allowed}" if code else "",
        scripts="".join(f"<script>{text}</script>\n" for text in code),
        navigation=navigation,
        navigation_below=navigation.replace(f'"{phrases["pages"]}"', f'"{phrases["pages_again"]}"'),
    )


# --- items ------------------------------------------------------------------------------------


def _blocks(item: Item, phrases: Phrases) -> list[Node]:
    match item:
        case Text():
            return item.blocks
        case Figure():
            return _figure(item, phrases)
        case Table():
            opening = f'<figure class="table" id="{escape(item.label)}">'
            caption = _captioned(item, phrases)
            named = ["", [], [["name", item.name(phrases)]]]
            # The caption is not the table's own: on a small screen it would scroll away with it.
            table = {"t": "Table", "c": [named, *item.table["c"][1:]]}
            return [*_enclosed(opening, caption, ""), table, _html("</figure>")]
        case Listing():
            head = f'<span class="where">{escape(item.where)}</span>'
            if not item.label:
                opening, caption = '<figure class="listing">', [raw("html", head)]
            else:
                opening = f'<figure class="listing" id="{escape(item.label)}">'
                caption = [
                    *_captioned(item, phrases),
                    raw("html", f" {head}"),
                ]
            code = highlight(item.code, item.language, item.where)
            return _enclosed(opening, caption, f"{code}</figure>")
        case Tokens():
            return _tokens(item, phrases)
        case Banner():
            text = f"<strong>{escape(item.opening)}</strong>{escape(item.detail)}"
            return [_html(f'<p class="banner {escape(item.mode)}">{text}</p>')]
        case Code():
            return [_html(highlight(item.code, "python", phrases["code"]))]
        case Output():
            aligned = re.search(r"\S {3,}\S", item.text)  # as in a table, whose lines stay whole
            kind = "output columns" if aligned else "output"
            return [_html(_pre(kind, phrases["output"], escape(item.text)))]


def _html(text: str) -> Node:
    return {"t": "RawBlock", "c": ["html", text]}


def _enclosed(opening: str, caption: list[Node], rest: str) -> list[Node]:
    return [
        block([raw("html", f"{opening}<figcaption>"), *caption, raw("html", "</figcaption>")]),
        _html(rest),
    ]


def _captioned(item: Labelled, phrases: Phrases) -> list[Node]:
    return [raw("html", f'<span class="label">{item.name(phrases)}.</span> '), *item.caption]


def _figure(item: Figure, phrases: Phrases) -> list[Node]:
    address = f"data:{MIME_TYPES[item.suffix]};base64,{base64.b64encode(item.image).decode()}"
    width, height = (round(value * _POINT) for value in item.size)
    image = _scrolling(
        f'<img src="{address}" width="{width}" height="{height}" alt="{escape(item.alt)}">',
        item.name(phrases),
    )
    instead = _interactive(item, phrases) if item.interactive else ""
    opening = raw("html", f'<figure id="{escape(item.label)}">{image}{instead}<figcaption>')
    closing = raw("html", "</figcaption></figure>")
    figure = block([opening, *_captioned(item, phrases), closing])
    return [figure, *([] if item.data is None else [_data(item, item.data, phrases)])]


def _interactive(item: Figure, phrases: Phrases) -> str:
    """The place of what a script draws from the data behind a figure, and its phrases."""
    assert item.data is not None, "a figure without data is not interactive"
    rows = list(csv.reader(item.data["csv"].splitlines()))
    columns = {name: list(values) for name, *values in zip(*rows, strict=True)}
    given = {
        "tokens": columns["token"],
        **{name: [float(value) for value in columns[name]] for name in ("p", "q")},
        "words": phrases[item.interactive],
    }
    text = escape(json.dumps(given, ensure_ascii=False))
    return f'<div class="interactive" data-{item.interactive}="{text}"></div>'


def _data(item: Figure, behind: Any, phrases: Phrases) -> Node:
    """The numbers behind a figure: a table to unfold, and a file to keep."""
    csv = base64.b64encode(behind["csv"].encode()).decode()
    name = escape(phrases["data"].format(item.name(phrases)))
    address = f"data:text/csv;base64,{csv}"
    file = f'<a download="{escape(item.label)}.csv" href="{address}">{escape(phrases["csv"])}</a>'
    rows = behind["rows"]
    table = ""
    if len(rows) <= MOST_ROWS:
        sides = behind["align"]

        def row(cells: list[str], tag: str) -> str:
            return "".join(
                f'<{tag} style="text-align: {side};">{escape(text)}</{tag}>'
                for text, side in zip(cells, sides, strict=True)
            )

        body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
        table = _scrolling(
            f"<table><thead><tr>{row(behind['columns'], 'th')}</tr></thead>"
            f"<tbody>{body}</tbody></table>",
            name,
        )
    return _html(f'<details class="data"><summary>{name}</summary>{table}<p>{file}</p></details>')


def _tokens(item: Tokens, phrases: Phrases) -> list[Node]:
    spans = "".join(
        f'<span class="{escape(kind)}">{escape(text)}</span>' for text, kind in item.runs
    )
    kinds = dict.fromkeys(kind for _, kind in item.runs if kind != "prompt")
    marks = (f'<span class="{kind}">{escape(phrases[kind])}</span>' for kind in kinds)
    legend = escape(phrases["marked"]).format(escape(phrases["comma"]).join(marks))
    opening = f'<figure class="tokens" id="{escape(item.label)}">'
    caption = [
        *_captioned(item, phrases),
        raw("html", f'<span class="legend">{legend}</span>'),
    ]
    return _enclosed(opening, caption, f'<div class="text">{spans}</div></figure>')


def highlight(code: str, language: str, name: str) -> str:
    """Code as a ``<pre>`` in which tokens have pygments' short class names."""
    from pygments import highlight as colour
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound:
        lexer = get_lexer_by_name("text", stripnl=False)
    inner = colour(code, lexer, HtmlFormatter(nowrap=True)).rstrip("\n")
    return _pre("code", name, f"<code>{inner}</code>")


def _pre(kind: str, name: str, inner: str) -> str:
    """Text that scrolls sideways, with the keyboard too."""
    frame = f'class="{kind}" tabindex="0" role="group" aria-label="{escape(name)}"'
    return f"<pre {frame}>{inner}</pre>"


def _scrolling(inner: str, name: str) -> str:
    """Something that may be wider than a small screen, and then scrolls sideways."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="{escape(name)}">{inner}</div>'


# --- nodes ------------------------------------------------------------------------------------


_DATE = re.compile(r"(\d{4}-\d\d-\d\d)")  # browsers break it behind a hyphen
Rewrite = Callable[[Node], Node | list[Node] | None]


def _rewriter(formulas: Mapping[formula.Key, str], phrases: Phrases) -> Rewrite:
    def change(node: Node) -> Node | list[Node] | None:
        match node:
            case {"t": "Math", "c": [{"t": style}, _]}:
                drawn = formulas[formula_key(node)]
                if style == "DisplayMath":
                    name = escape(phrases["formula"])
                    frame = f'class="formula" tabindex="0" role="group" aria-label="{name}"'
                    drawn = f"<span {frame}>{drawn}</span>"
                return raw("html", drawn)
            case {"t": "Str", "c": text} if _DATE.search(text):
                return [
                    raw("html", f'<span class="whole">{part}</span>')
                    if _DATE.fullmatch(part)
                    else {"t": "Str", "c": part}
                    for part in _DATE.split(text)
                ]
            case {"t": "CodeBlock", "c": [[_, classes, _], code]}:
                return _html(highlight(code, classes[0] if classes else "", phrases["code"]))
            case {"t": "Header", "c": [level, [anchor, _, [[_, number]]], inlines]}:
                mark = f'<span class="number">{number}</span> ' if number else ""
                return {
                    "t": "Header",
                    "c": [level + 1, [anchor, [], []], [raw("html", mark), *inlines]],
                }
            case {"t": "Div", "c": [[_, ["details"], _], [title, *blocks]]}:
                opening = [raw("html", "<details><summary>"), *title["c"]]
                return [
                    block([*opening, raw("html", "</summary>")]),
                    *blocks,
                    _html("</details>"),
                ]
            case {"t": "Table", "c": [[anchor, classes, attributes], *rest]}:
                name = dict(attributes).get("name", str(phrases["table"]))
                start, end = _scrolling("\0", name).split("\0")
                return [
                    _html(start),
                    {"t": "Table", "c": [[anchor, classes, []], *rest]},
                    _html(end),
                ]
            case _:
                return None

    return change


def _inline(inlines: list[Node], rewrite: Rewrite) -> str:
    return pandoc.write([block(pandoc.walk(inlines, rewrite))], "html5").strip()


def _contents(headings: Sequence[Heading], rewrite: Rewrite, name: str) -> str:
    """Table of contents down to the second level, as nested lists."""
    shown = [heading for heading in headings if heading.level <= 2]
    if not shown:
        return ""
    # One call of pandoc: a paragraph for each title.
    titles: list[Node] = []
    for heading in shown:
        mark = f'<span class="number">{heading.number}</span> ' if heading.number else ""
        opening = raw("html", f'<a href="#{escape(heading.anchor)}">{mark}')
        inner = pandoc.walk(heading.title, rewrite)
        titles += [block([opening, *inner, raw("html", "</a>\0")])]
    anchors = pandoc.write(titles, "html5").split("\0")
    out = []
    depth = 0
    for heading, anchor in zip(shown, anchors, strict=False):
        level = min(heading.level, depth + 1)
        out.append("<ol><li>" if level > depth else "</li></ol>" * (depth - level) + "</li><li>")
        depth = level
        out.append(anchor.strip())
    entries = "".join(out) + "</li></ol>" * depth
    return (
        f'<nav class="contents" aria-label="{escape(name)}">'
        f"<details><summary>{escape(name)}</summary>"
        f"{entries}</details></nav>"
    )
