"""The talk: one Markdown file becomes the slides and the speaker's script, so that they agree.

The file is written as for pandoc's slide shows::

    # The talk's title {minutes=0.5}          the title slide, counted in the first section

    ## A section {minutes=5}                  the minutes of its slides have to add up to this

    ### What was found {minutes=1}            a slide: its title, and below it what it shows

    ![](figure:speed-up)                      a figure, its caption in the script; {height=8} in cm
    ![](source:rsk/sampler/baseline.py){first="for k" last="n += 1"}       lines of a source file
    ![](tokens:text)                          generated text, each run marked with its kind

    ::: notes
    What to say. It goes into the script only.
    :::

    ## Likely questions {.script}             a chapter of the script only; ### begins its parts

``::: columns`` holds columns (``::: {.column width=2}``), ``::: big`` large text, ``::: small``
small text, ``::: command`` what is typed in a terminal. The values are in the text already
(:mod:`rsk.base.templates`); headings do not depend on them, so that messages can name the line of
the file. What is unknown, missing or too large is an :class:`ExportError` that does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rsk.base import excerpt, templates
from rsk.export import markdown, pandoc, references
from rsk.export.document import Cell, Document, ExportError, Text
from rsk.export.pandoc import Node, block

MOST_LINES = 12
"""Of code on a slide; more are not read."""
MARKDOWN = pandoc.MARKDOWN + "+attributes+fenced_divs+smart"


class Drawn(NamedTuple):
    """A figure as it stands on a slide."""

    svg: bytes
    size: tuple[float, float]
    """Width and height in points; only their ratio counts."""
    alt: str
    caption: str
    """Markdown: the conditions."""


@dataclass(frozen=True)
class Material:
    """The talk's words, and all that they may name."""

    text: str
    """The Markdown, with its values."""
    figures: Mapping[str, Callable[[], Drawn]]
    texts: Mapping[str, Callable[[], Sequence[tuple[str, str]]]]
    """Generated text in runs, each with its kind: see :data:`rsk.export.document.TOKEN_KINDS`."""
    epoch: int
    """Date of what the talk says, in seconds."""
    language: str = templates.LANGUAGE
    presenter: str = ""
    """Who gives the talk; shown on the title slide."""


@dataclass(frozen=True)
class Place(Cell):
    """A line of the Markdown, for messages."""

    def error(self, reason: str) -> ExportError:
        """The error that names this line."""
        return ExportError(f"{self.notebook}, line {self.number} ({self.first_line}): {reason}")


@dataclass
class Division:
    """What a heading begins: the title, a section, a slide, or a chapter of the script."""

    place: Place
    level: int
    title: list[Node]
    minutes: float | None
    script_only: bool
    body: list[Node]
    notes: list[Node]
    number: int = 0
    """Of the slide, from 1; 0 if it is none."""
    section: Division | None = None


@dataclass
class Talk:
    """The file, read."""

    document: Document
    parts: list[Division]
    drawn: dict[str, tuple[Drawn, list[Node]]]
    """Figures by name, with their captions."""
    texts: dict[str, list[tuple[str, str]]]
    """Generated texts by name, in runs."""
    presenter: str = ""

    @property
    def sections(self) -> list[Division]:
        """What the slides are grouped into."""
        return _sections(self.parts)


def _sections(parts: Sequence[Division]) -> list[Division]:
    return [part for part in parts if part.level == 2 and not part.script_only]


# --- reading ----------------------------------------------------------------------------------


def read(path: Path, material: Material) -> Talk:
    """Read the Markdown and draw what it names.

    Args:
        path: the file, without its values; for the numbers of its lines.
        material: the words, and what they name.

    Raises:
        ExportError: the file is missing, or something in it is unknown or out of order; names the
            line.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}") from error
    # Never broken at the equals sign.
    text = re.sub(r"\b([BKV]) = (?=\d)", "\\1\u00a0=\u00a0", material.text)
    pieces = list(_pieces(path.name, text))
    places = [place for place, _ in _pieces(path.name, source)]
    if not pieces or len(places) != len(pieces):
        raise ExportError(f"{path.name}: expected headings, none of which depends on a value")
    pieces = [
        (replace(place, number=at.number), piece)
        for (place, piece), at in zip(pieces, places, strict=True)
    ]
    reader = _Reader(material)
    parts = [
        reader.part(place, blocks)
        for (place, _), blocks in zip(pieces, markdown.parse(pieces, MARKDOWN), strict=True)
    ]
    drawn = reader.captioned()
    for name in material.figures:
        if name not in drawn:
            raise ExportError(f"{path.name} shows no figure {name!r}, which was drawn for it")
    for name in material.texts:
        if name not in reader.texts:
            raise ExportError(f"{path.name} shows no text {name!r}, which was made for it")
    _arrange(parts)
    document = Document(
        path.stem,
        parts[0].title,
        [],
        material.epoch,
        suffix=path.suffix,
        language=material.language,
    )
    for part in parts:
        captions = [block(drawn[name][1]) for name in reader.shown_by.get(part.place, [])]
        tree = [block(part.title), *part.body, *part.notes, *captions]
        document.items.append((part.place, Text(tree)))
    references.convert_formulas(document)
    return Talk(document, parts, drawn, reader.texts, material.presenter)


def _pieces(name: str, text: str) -> Iterator[tuple[Place, str]]:
    """The text of each heading, with its place."""
    starts, fence = [], ""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if mark := re.match(r"\s*(```+|~~~+)", line):
            fence = "" if fence and mark[1].startswith(fence) else fence or mark[1]
        elif not fence and re.match(r"#{1,3} ", line):
            starts.append(number)
        elif not starts and line.strip():
            raise ExportError(f"{name}, line {number}: text before the title")
    for start, end in pairwise([*starts, len(lines) + 1]):
        first_line = re.sub(r"\s*\{[^{}]*\}$", "", lines[start - 1].replace("\u00a0", " "))
        place = Place(name, start, first_line[:70])
        yield place, "\n".join(lines[start - 1 : end - 1])


@dataclass
class _Reader:
    material: Material
    drawn: dict[str, Drawn] = field(default_factory=dict)
    shown_by: dict[Place, list[str]] = field(default_factory=dict)
    texts: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def part(self, place: Place, blocks: list[Node]) -> Division:
        head, *rest = blocks
        assert head["t"] == "Header", "a piece begins with its heading"
        level, (_, classes, attributes), title = head["c"]
        given = dict(attributes)
        unknown = [*(set(classes) - {"script"}), *(set(given) - {"minutes"})]
        if unknown:
            raise place.error(f"a heading may have minutes and .script, not {unknown[0]}")
        if any(node["t"] == "Header" for node in rest):
            raise place.error("headings have at most three levels, and stand alone")
        minutes = read_number(place, given, "minutes") if "minutes" in given else None

        def exhibit(node: Node) -> Node | None:
            match node:
                case {"t": "Para", "c": [{"t": "Image", "c": [about, _, [address, _]]}]}:
                    return self._exhibit(place, address, dict(about[2]))
                case _:
                    return None

        clean = markdown.Cleaner(place, _refuse).blocks(pandoc.walk(rest, exhibit))
        notes, body = [], []
        for node in clean:
            if node["t"] == "Div" and node["c"][0][1] == ["notes"]:
                notes += node["c"][1]
            else:
                body.append(node)
        return Division(place, level, title, minutes, "script" in classes, body, notes)

    def _exhibit(self, place: Place, address: str, about: dict[str, str]) -> Node:
        """What an address such as ``figure:speed-up`` stands for, as a Div or a block of code."""
        scheme, _, name = address.partition(":")
        known: Mapping[str, Any]
        match scheme:
            case "source":
                return self._source(place, name, about)
            case "figure":
                known = self.material.figures
            case "tokens":
                known = self.material.texts
            case _:
                raise place.error(f"{address}: a picture is a figure:, a source: or tokens:")
        if name not in known:
            raise place.error(f"there is no {scheme} {name!r}; there are {', '.join(known)}")
        if scheme == "figure":
            self.shown_by.setdefault(place, []).append(name)
            if name not in self.drawn:
                try:
                    self.drawn[name] = self.material.figures[name]()
                except ValueError as error:  # the data lack what it shows
                    raise place.error(f"the figure {name!r} cannot be drawn: {error}") from error
            if not self.drawn[name].alt.strip():
                raise place.error(f"the figure {name!r} has no alt text")
        elif name not in self.texts:
            self.texts[name] = list(self.material.texts[name]())
        height = f"{read_number(place, about, 'height'):g}" if "height" in about else ""
        about.pop("height", None)
        attributes = [["name", name], ["height", height]]
        if about:
            raise place.error(f"{address}: unknown attribute {next(iter(about))}")
        return {"t": "Div", "c": [["", [scheme], attributes], []]}

    def _source(self, place: Place, name: str, about: dict[str, str]) -> Node:
        """Lines of a file, from the first that holds one text to the next that holds another."""
        try:
            path = excerpt.find(Path(name))
        except FileNotFoundError as error:
            raise place.error(str(error)) from error
        lines = path.read_text(encoding="utf-8").splitlines()
        start = next((at for at, line in enumerate(lines) if about.get("first", "") in line), None)
        if start is None or "first" not in about:
            raise place.error(f"{name} has no line with {about.get('first')!r}")
        end = next(
            (at for at in range(start, len(lines)) if about.get("last", "\0") in lines[at]), None
        )
        if end is None:
            raise place.error(f"{name} has no line with {about.get('last')!r} after {start + 1}")
        if end - start >= MOST_LINES:
            count = end - start + 1
            raise place.error(f"{name}: {count} lines; a slide shows at most {MOST_LINES} of code")
        code = excerpt.dedented(lines[start : end + 1])
        phrases = templates.phrases(self.material.language)
        span = phrases["lines" if end > start else "line"].format(start + 1, end + 1)
        where = f"{excerpt.shown_name(path)}{span}"
        language = excerpt.language(path)
        return {"t": "Div", "c": [["", ["source"], [["where", where]]], [
            {"t": "CodeBlock", "c": [["", [language], []], code]}
        ]]}  # fmt: skip

    def captioned(self) -> dict[str, tuple[Drawn, list[Node]]]:
        """The figures with their captions read, all at once."""
        places = {name: place for place, names in self.shown_by.items() for name in names}
        chunks: list[tuple[Cell, str]] = [(places[n], d.caption) for n, d in self.drawn.items()]
        found = {}
        for (name, drawn), (place, _), blocks in zip(
            self.drawn.items(), chunks, markdown.parse(chunks), strict=True
        ):
            clean = markdown.Cleaner(place, _refuse).blocks(blocks)
            found[name] = drawn, markdown.caption(place, clean)
        return found


def read_number(place: Place, attributes: Mapping[str, str], name: str) -> float:
    """The number that an attribute holds."""
    try:
        value = float(attributes[name])
    except ValueError:
        value = math.nan
    if not 0 < value < 100:
        raise place.error(f"{name}: expected a number, got {attributes[name]!r}")
    return value


def _refuse(cell: Cell, target: str) -> str:
    raise cell.error(f"the picture {target} stands inside a paragraph")


def _arrange(parts: list[Division]) -> None:
    """Check the order of the parts, give the slides their numbers, and add up the minutes."""
    first, *others = parts
    if first.level != 1 or any(part.level == 1 for part in others):
        raise first.place.error("the file begins with the talk's title, its one '# ' heading")
    sections = _sections(others)
    if not sections:
        raise first.place.error("the talk has no section ('## ')")
    chapter: Division | None = None
    planned = {id(section): 0.0 for section in sections}
    number = 0
    for part in parts:
        if part.level == 2:
            chapter = part
            if not part.script_only and (part.body or part.notes):
                raise part.place.error("a section holds slides ('### '), and no text of its own")
            if not part.script_only and part.minutes is None:
                raise part.place.error("a section says how many minutes it takes: {minutes=5}")
            continue
        part.section = sections[0] if part is first else chapter
        if part.section is None:
            raise part.place.error("a slide stands in a section ('## ')")
        if part.section.script_only:
            continue
        number += 1
        part.number = number
        if part.minutes is None or not part.body or not part.notes:
            raise part.place.error("a slide has {minutes=...}, something to show, and ::: notes")
        planned[id(part.section)] += part.minutes
    for section in sections:
        found = planned[id(section)]
        if section.minutes is None or not math.isclose(found, section.minutes):
            raise section.place.error(
                f"its slides take {found:g} minutes, the section {section.minutes:g}"
            )
