"""What a document is made of, and what a published output is made of.

:mod:`rsk.export.notebook` reads it, :mod:`rsk.export.references` numbers and links it, and
:mod:`rsk.export.html` and :mod:`rsk.export.pdf` write it. What could not be shown faithfully is an
:class:`ExportError` in one of them; nothing is dropped in silence.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rsk.base import templates
from rsk.export import formula, pandoc
from rsk.export.formula import Formula
from rsk.export.pandoc import Node

MIME = "application/vnd.rsk+json"
"""MIME type of the part of a notebook's output that is read here; its ``kind`` says what it is."""
TOKEN_KINDS = ("prompt", "accepted", "recovered", "bonus")
"""Where a token of a generated text came from."""


class ExportError(RuntimeError):
    """The notebook cannot be exported. The message names the notebook, the cell and the reason."""


@dataclass(frozen=True)
class Cell:
    """Where something stands, for messages: notebook, cell number from 1, its first line."""

    notebook: str
    number: int
    first_line: str

    def error(self, reason: str) -> ExportError:
        """The error that names this cell."""
        return ExportError(f"{self.notebook}, cell {self.number} ({self.first_line}): {reason}")


# --- what a document is made of ---------------------------------------------------------------


@dataclass
class Text:
    """Markdown, as pandoc's blocks."""

    blocks: list[Node]


@dataclass
class Labelled:
    """Something with a number, a caption and a name to refer to it by."""

    label: str
    caption: list[Node]
    word = ""
    """Key of its name in ``phrases.toml``."""
    number = 0

    def name(self, phrases: Mapping[str, Any]) -> str:
        """What it is called in references, such as "Figure 3"."""
        return f"{phrases[self.word]} {self.number}"


@dataclass
class Figure(Labelled):
    """A picture: its bytes, their type ("svg" or "png"), its size in points, the data behind it."""

    alt: str
    image: bytes
    suffix: str
    size: tuple[float, float]
    data: Mapping[str, Any] | None
    interactive: str = ""
    """The script in ``report/style`` that takes its place on a page."""
    word = "figure"


@dataclass
class Table(Labelled):
    """A published table, as pandoc's Table node."""

    table: Node
    word = "table"


@dataclass
class Listing(Labelled):
    """A part of a source file. The label may be empty."""

    code: str
    language: str
    where: str
    word = "listing"


@dataclass
class Tokens(Labelled):
    """Generated text, each run with its kind."""

    runs: list[tuple[str, str]]
    word = "listing"


@dataclass
class Banner:
    """Where the results come from."""

    mode: str
    opening: str
    detail: str


@dataclass
class Code:
    """Code of a notebook cell."""

    code: str


@dataclass
class Output:
    """Plain text that a cell printed."""

    text: str


Item = Text | Figure | Table | Listing | Tokens | Banner | Code | Output


@dataclass
class Heading:
    """A section: level from 1, number ("2.1", or empty), anchor, title."""

    level: int
    number: str
    anchor: str
    title: list[Node]


@dataclass
class Document:
    """A notebook, or another source, ready to be written."""

    name: str
    title: list[Node]
    authors: list[str]
    epoch: int | None  # of the run, in seconds; None if the notebook does not say
    items: list[tuple[Cell, Item]] = field(default_factory=list)
    headings: list[Heading] = field(default_factory=list)
    formulas: dict[formula.Key, Formula] = field(default_factory=dict)
    cells_of_formulas: dict[formula.Key, Cell] = field(default_factory=dict)
    suffix: str = ".ipynb"
    language: str = templates.LANGUAGE

    @property
    def phrases(self) -> Mapping[str, Any]:
        """What the exports put beside numbers, in the document's language."""
        return templates.phrases(self.language)

    @property
    def file(self) -> str:
        """The name of the source, for messages."""
        return self.name + self.suffix

    @property
    def first(self) -> Cell:
        """Where the title stands, for messages."""
        return Cell(self.file, 1, "title")

    def plain(self, tree: Any) -> str:
        """The words of a tree, formulas included."""

        def say(node: Node) -> Node | None:
            if node["t"] != "Math":
                return None
            return {"t": "Str", "c": self.formulas[formula_key(node)].words}

        return pandoc.plain(pandoc.walk(tree, say)).strip()

    @property
    def plain_title(self) -> str:
        """The title in words."""
        return self.plain(self.title)

    @property
    def date(self) -> str:
        """The date of the run, or nothing."""
        if self.epoch is None:
            return ""
        return datetime.datetime.fromtimestamp(self.epoch, datetime.UTC).date().isoformat()


def formula_key(node: Node) -> formula.Key:
    """TeX of a Math node, and whether it is displayed."""
    style, tex = node["c"]
    return tex, style["t"] == "DisplayMath"
