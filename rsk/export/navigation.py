"""The ways between pages: to the neighbours, to the same page in another language, and an index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from rsk.base import templates
from rsk.export import html
from rsk.export.document import Document, Text
from rsk.export.html import Phrases
from rsk.export.pandoc import Node, plain

_SHOWN = {"prev": "← {}", "next": "{} →", "index": "{}"}


def links(entries: Sequence[tuple[str, str, str]], phrases: Phrases) -> str:
    """Links between pages: relation ("prev", "next" or "index"), address, text."""
    anchors = [
        f'<a rel="{relation}" href="{escape(address)}">{_SHOWN[relation].format(escape(text))}</a>'
        for relation, address, text in entries
    ]
    return _bar(anchors, phrases)


def languages(others: Mapping[str, str], phrases: Phrases) -> str:
    """Links to a page in other languages, each named in its own; nothing if there is none.

    Args:
        others: language (such as ``"zh-TW"``) to the address of the page in it.
        phrases: of the page's own language.
    """
    anchors = []
    for language, address in others.items():
        there = templates.phrases(language)
        code = escape(there["language"])
        attributes = f'rel="alternate" lang="{code}" hreflang="{code}" href="{escape(address)}"'
        anchors.append(f"<a {attributes}>{escape(there['name'])}</a>")
    return _bar(anchors, phrases) if anchors else ""


def _bar(anchors: Sequence[str], phrases: Phrases) -> str:
    return f'<nav class="pages" aria-label="{escape(phrases["pages"])}">{"".join(anchors)}</nav>'


def index(documents: Sequence[Document], extra: Sequence[tuple[str, str]]) -> str:
    """Index page of a site.

    Args:
        documents: the pages, each shown with what it answers: see :func:`goal`.
        extra: names and addresses of more links.
    """
    entries = [(f"{one.name}.html", one.plain_title, goal(one)) for one in documents]
    entries += [(address, name, "") for name, address in extra]
    body = "".join(
        f'<li><a href="{escape(address)}">{escape(name)}</a>'
        + (f"<p>{escape(summary)}</p>" if summary else "")
        + "</li>"
        for address, name, summary in entries
    )
    phrases = templates.phrases()
    body = f'<p>{escape(phrases["site"])}</p><ul class="index">{body}</ul>'
    title = phrases["site_title"]
    return html.page(
        title=title, heading=escape(title), byline="", contents="", body=body, phrases=phrases
    )


def goal(document: Document) -> str:
    """What a document answers: the first sentence of its goal, or of the document if it has none.

    The goal is the paragraph below the heading that ``phrases.toml`` calls so.
    """
    blocks: list[Node] = [
        node for _, item in document.items if isinstance(item, Text) for node in item.blocks
    ]
    named = (
        at + 1
        for at, node in enumerate(blocks)
        if node["t"] == "Header" and plain(node["c"][2]).strip() == document.phrases["goal"]
    )
    start = next(named, 0)
    paragraph = next((node for node in blocks[start:] if node["t"] == "Para"), None)
    if paragraph is None:
        return ""
    text = document.plain(paragraph)
    end = text.find(". ")
    return text if end < 0 else text[: end + 1]
