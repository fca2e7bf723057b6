"""TeX formulas: in Typst for the PDF, as SVG for HTML, and in words for who cannot see them.

Pandoc alone reads the TeX, and Typst alone sets it, so both exports show the same formula. The SVG
consists of outlines: HTML needs no font and no script for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from rsk.export import pandoc
from rsk.export.pandoc import Node, PandocError

Key = tuple[str, bool]
"""TeX source, and whether it is displayed on a line of its own."""

_SIZE = 16  # points per em while drawing; the SVG's own lengths are in em
_SCALE = 1.08  # of the text around it: the math font looks smaller than a sans-serif


class FormulaError(ValueError):
    """A formula cannot be converted: its key and the reason."""

    def __init__(self, key: Key, reason: str) -> None:
        super().__init__(f"the formula {key[0].strip()!r} cannot be converted: {reason}")
        self.key = key


@dataclass(frozen=True)
class Formula:
    """One formula: as a Typst equation, and in a line of words."""

    typst: str
    words: str


def convert(keys: Sequence[Key]) -> dict[Key, Formula]:
    """Read TeX, all at once.

    Raises:
        FormulaError: the first formula that pandoc cannot read in full.
    """
    keys = list(dict.fromkeys(keys))
    try:
        return _convert(keys)
    except (PandocError, ValueError):
        for key in keys:  # one by one, to find it
            try:
                _convert([key])
            except (PandocError, ValueError) as error:
                raise FormulaError(key, str(error)) from error
        raise


def _convert(keys: Sequence[Key]) -> dict[Key, Formula]:
    if not keys:
        return {}
    typst = [piece.strip() for piece in _pieces(keys, "typst", "//formula\n")]
    mathml = _pieces(keys, "html5", "<!--formula-->", "--mathml")
    if not all(re.fullmatch(r"(?s)\$.*\$", text) for text in typst):
        raise ValueError("it does not become a formula")
    return {
        key: Formula(equation, _in_words(ElementTree.fromstring(math.strip())))
        for key, equation, math in zip(keys, typst, mathml, strict=True)
    }


def _pieces(keys: Sequence[Key], writer: str, mark: str, *options: str) -> list[str]:
    """What pandoc writes for each formula."""
    blocks: list[Node] = []
    for tex, display in keys:
        style = {"t": "DisplayMath" if display else "InlineMath"}
        blocks.append({"t": "RawBlock", "c": [writer.rstrip("5"), mark.strip()]})
        blocks.append(pandoc.block([{"t": "Math", "c": [style, tex.strip()]}]))
    return pandoc.write(blocks, writer, *options).split(mark)[1:]


# --- drawings ---------------------------------------------------------------------------------

_TYPST = f"""\
#set page(width: auto, height: auto, margin: 0pt, fill: none)
#set text(size: {_SIZE}pt)
#set par(leading: 0pt, spacing: 0pt)
#let inline(body) = math.equation(body)
#let rows(body) = {{ set par(leading: 0.65em); math.equation(block: true, body) }}
// Below the baseline: how much a high strut on it is raised by the formula beside it.
#let formula(body) = {{
  box(body)
  context {{
    let raised = measure(box({{ body; box(height: 500pt) }})).height
    [#metadata((raised - 500pt).pt()) <depth>]
  }}
}}
"""


def draw(formulas: Mapping[Key, Formula]) -> tuple[dict[Key, str], str]:
    """Draw formulas as SVG elements that stand in a line of text.

    Returns:
        The SVG of each formula, and one hidden SVG with the glyphs that they share.

    Raises:
        FormulaError: one that Typst cannot set.
    """
    import json

    import typst

    if not formulas:
        return {}, ""
    # Typst's error names a line: each formula's page begins on a line that names the formula.
    pages = [
        f"// page {at}\n#formula({'rows' if display else 'inline'}({item.typst}.body))"
        for at, ((_, display), item) in enumerate(formulas.items())
    ]
    text = _TYPST + "\n#pagebreak()\n".join(pages)
    try:
        made: Any = typst.compile(text.encode(), format="svg", ignore_system_fonts=True)
        found = typst.query(text.encode(), "<depth>", field="value", ignore_system_fonts=True)
    except typst.TypstError as error:
        line = re.search(r"\.typ:(\d+):", error.diagnostic)
        above = "\n".join(text.split("\n")[: int(line[1])]) if line else "// page 0"
        at = int(re.findall(r"^// page (\d+)$", above, flags=re.MULTILINE)[-1])
        raise FormulaError(list(formulas)[at], error.message) from error
    depths = json.loads(found)
    drawings = made if isinstance(made, list) else [made]
    glyphs: dict[str, str] = {}  # Typst's name of a glyph: its outline
    shapes: dict[Key, str] = {}
    for (key, item), svg, depth in zip(formulas.items(), drawings, depths, strict=True):
        shapes[key] = _inline(svg.decode(), item.words, None if key[1] else depth, glyphs)
    names = {glyph: f"g{at}" for at, glyph in enumerate(glyphs)}
    shared = "".join(
        f'<symbol id="{names[glyph]}" overflow="visible">{outline}</symbol>'
        for glyph, outline in glyphs.items()
    )
    for key, shape in shapes.items():
        shapes[key] = re.sub(r'href="#(\w+)"', lambda m: f'href="#{names[m[1]]}"', shape)
    hidden = 'width="0" height="0" aria-hidden="true" style="position:absolute"'
    return shapes, f"<svg {hidden}><defs>{shared}</defs></svg>"


def _inline(svg: str, words: str, depth: float | None, glyphs: dict[str, str]) -> str:
    """Typst's SVG in the text's size and colour; its glyphs are moved to ``glyphs``."""
    for match in re.finditer(r'<symbol id="(\w+)"[^>]*>(.*?)</symbol>', svg, re.DOTALL):
        glyphs.setdefault(match[1], match[2].replace(' d="M 0 0m ', ' d="m ').replace('Z "', 'Z"'))
    head = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    body = re.search(r"<svg[^>]*>(.*)</svg>", svg, re.DOTALL)
    assert head and body, "Typst writes the size of an SVG"
    width, height = (float(value) for value in head.groups())
    drawn = re.sub(r"<defs.*?</defs>", "", body[1], flags=re.DOTALL)
    drawn = drawn.replace("xlink:href", "href").replace(' x="0" y="0"', "")
    drawn = drawn.replace(' fill="#000000"', "").replace(' fill-rule="nonzero"', "")
    drawn = drawn.replace('stroke="#000000"', 'stroke="currentColor"')
    em = _SCALE / _SIZE
    style = f"width:{width * em:.3f}em;height:{height * em:.3f}em"
    if depth is not None:
        style += f";vertical-align:{-depth * em:.3f}em"
    label = words.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:.2f} {height:.2f}" '
        f'style="{style}" fill="currentColor">{drawn}</svg>'
    )


# --- words ------------------------------------------------------------------------------------

_SPACED = set("=<>≤≥≠≈∼~+−±×⋅·→←↔⇒⇔∈∉∪∩⊕≫≪:")
_ACCENTS = {"\u0302": "hat", "ˆ": "hat", "^": "hat", "\u0303": "tilde", "~": "tilde", "¯": "bar",
            "‾": "bar", "\u0304": "bar", "→": "arrow", "⃗": "arrow", "⏟": "", "⏞": ""}  # fmt: skip


def _in_words(math: ElementTree.Element) -> str:
    r"""MathML in one line: ``\frac{1}{a_n}`` is "1/a_n"."""
    text = re.sub(r"\s+", " ", _say(math))
    return text.replace("( ", "(").replace(" )", ")").replace(" ,", ",").strip()


def _say(node: ElementTree.Element) -> str:
    kind = node.tag.rsplit("}", 1)[-1]
    text = (node.text or "").strip()
    parts = [_say(child) for child in node]
    match kind:
        case "annotation":
            return ""
        case "mi" | "mn" | "mo" if text in _SPACED or (len(text) > 1 and text.isalpha()):
            return f" {text} "
        case "mo" if text == ",":
            return ", "
        case "mo" if text in ("\u2061", "\u2062"):  # invisible: of a function, times
            return ""
        case "mi" | "mn" | "mo":
            return text
        case "mtext":
            return node.text or ""
        case "mspace":
            return " "
        case "mfrac":
            return f"{_group(parts[0])}/{_group(parts[1])}"
        case "msqrt":
            return f"√({''.join(parts)})"
        case "mroot":
            return f"root {parts[1]} of ({parts[0]})"
        case "mover" | "munder" if parts[1].strip() in _ACCENTS:
            return f"{parts[0]} {_ACCENTS[parts[1].strip()]} "
        case "msub" | "munder":
            return f"{parts[0].rstrip()}_{_group(parts[1])}{_gap(parts[0])}"
        case "msup" | "mover":
            return f"{parts[0].rstrip()}^{_group(parts[1])}{_gap(parts[0])}"
        case "msubsup" | "munderover":
            low, high = _group(parts[1]), _group(parts[2])
            return f"{parts[0].rstrip()}_{low}^{high}{_gap(parts[0])}"
        case "mtable":
            return "; ".join(part.strip() for part in parts)
        case "mtr":
            return " ".join(part.strip() for part in parts if part.strip())
        case _:
            return "".join(parts)


def _gap(base: str) -> str:
    """Space after a sum, or a word such as argmax, and its index."""
    return " " if base.strip() in "∑∏∫" or base.endswith(" ") else ""


def _group(text: str) -> str:
    text = text.strip()
    return text if len(text) < 2 or text.isalnum() else f"({text})"
