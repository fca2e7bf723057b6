"""What a PDF says: the text of its pages, and its bookmarks."""

from __future__ import annotations

import re

import pypdf


def pages(path):
    """Each page's text, in one line."""
    return [
        re.sub(r"\s+", " ", page.extract_text().replace("\u00a0", " "))
        for page in pypdf.PdfReader(path).pages
    ]


def bookmarks(reader, outline=None):
    """Their titles, in order and whatever their depth."""
    for entry in reader.outline if outline is None else outline:
        if isinstance(entry, list):
            yield from bookmarks(reader, entry)
        else:
            yield entry.title.replace("\u00a0", " ")
