"""The font of a language whose letters Typst and matplotlib do not bring along.

A language names it in ``phrases.toml``. It comes from a package of pip's or from the system; PDFs
and pictures are made with the same file, so that they look the same.
"""

from __future__ import annotations

import atexit
import importlib.util
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CHINESE = "Noto Sans CJK TC"
PACKAGE = "noto_cjk_sans_otc"
HINT = "pip install 'rsk[zh]', or on Debian and Ubuntu: apt install fonts-noto-cjk"
_LETTERS = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]")
# A Chinese letter or a run of others, with the punctuation that opens no line and ends none.
_PIECE = (
    rf"[（「]*(?:{_LETTERS.pattern}|(?:[^\s{_LETTERS.pattern[1:-1]}]|\u00a0)+)[，。；：、）」]*"
)
_MARKS = "，。；：、）」"
"""Behind one of these a reader expects a line to end."""


class FontError(RuntimeError):
    """A font is missing. The message says what to install."""


def is_needed(text: str) -> bool:
    """Whether a text has letters, or punctuation, that only :data:`CHINESE` holds."""
    return bool(_LETTERS.search(text))


def unbreakable(text: str) -> list[str]:
    """The pieces of a text inside which no line ends: words, and single Chinese letters."""
    return re.findall(_PIECE, text)


def pieces(text: str) -> list[str]:
    """The same with the spaces behind them."""
    return re.findall(rf"{_PIECE}\s*", text)


def columns(text: str) -> int:
    """How wide a text is, in Latin letters: a Chinese one is as wide as two."""
    return len(text) + len(_LETTERS.findall(text))


def wrap(text: str, width: float) -> list[str]:
    """Lines of a text with Chinese letters, as few as the width allows.

    They end behind a mark where they can, and else none is much shorter than the others.

    Args:
        text: lines that it has are broken one by one.
        width: of a line, in matplotlib's bold Latin letters.
    """
    lines: list[str] = []
    for line in text.splitlines():
        fewest = len(_filled(line, width))
        found: list[list[str]] = [
            some
            for less in range(int(width), 0, -1)
            for some in (_filled(line, less, at_marks=True), _filled(line, less))
            if len(some) == fewest
        ]
        best = min(found[::-1] or [_filled(line, width)], key=_raggedness)
        lines += best
    return lines


def _filled(line: str, width: float, *, at_marks: bool = False) -> list[str]:
    """Full lines; ``at_marks``: what follows the last mark of a line goes on with the next one."""
    lines: list[list[str]] = [[]]
    for piece in pieces(line):
        if lines[-1] and sum(map(_width, [*lines[-1], piece])) > width:
            ends = [i + 1 for i, one in enumerate(lines[-1]) if one.rstrip()[-1:] in _MARKS]
            end = ends[-1] if at_marks and ends else len(lines[-1])
            lines.append(lines[-1][end:])
            del lines[-2][end:]
        lines[-1].append(piece)
    return list(map("".join, lines))


def _width(piece: str) -> float:
    """In matplotlib's bold Latin letters."""
    return 0.87 * len(piece) + 0.58 * len(_LETTERS.findall(piece))


def _raggedness(lines: list[str]) -> tuple[bool, int]:
    """How badly lines end: whether one is far shorter than another; how many end inside words."""
    lengths = list(map(columns, lines))
    inside = sum(line.rstrip()[-1:] not in _MARKS for line in lines[:-1])
    return 2 * min(lengths) < max(lengths), inside


def _folders() -> Iterator[Path]:
    """Where fonts are: pip's package first, then the system's folders."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent
    home = Path.home()
    if sys.platform == "win32":
        yield Path("C:/Windows/Fonts")
        yield home / "AppData/Local/Microsoft/Windows/Fonts"
    elif sys.platform == "darwin":
        yield from (home / "Library/Fonts", Path("/Library/Fonts"))
    else:
        yield from (home / ".local/share/fonts", home / ".fonts")
        yield from (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))


@cache
def find(family: str = CHINESE) -> tuple[Path, int]:
    """The file that holds a font, and which one of its collection it is.

    Args:
        family: as the font itself calls it.

    Raises:
        FontError: there is none here; says what to install.
    """
    from fontTools.ttLib import TTFont
    from fontTools.ttLib.sfnt import readTTCHeader

    stem = "".join(family.split()[:3]) + "*"  # one file often holds all languages' variants
    for folder in _folders():
        for path in sorted(folder.rglob(stem), key=lambda path: ("Regular" not in path.name, path)):
            if path.suffix.lower() not in (".ttc", ".otc", ".otf", ".ttf"):
                continue
            with path.open("rb") as file:
                is_collection = file.read(4) == b"ttcf"
                file.seek(0)
                count = readTTCHeader(file).numFonts if is_collection else 1
            for number in range(count):
                with TTFont(path, fontNumber=number, lazy=True) as font:
                    if font["name"].getDebugName(1) == family:
                        return path, number
    raise FontError(f"the font {family} is missing: {HINT}")


@cache
def face(family: str = CHINESE) -> Path:
    """A file with this font alone: matplotlib reads no more than the first of a collection.

    Raises:
        FontError: see :func:`find`.
    """
    from fontTools.ttLib import TTFont

    path, number = find(family)
    if path.suffix.lower() not in (".ttc", ".otc"):
        return path
    folder = Path(tempfile.mkdtemp(prefix="rsk-font-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    alone = folder / f"{path.stem}-{number}.otf"
    with TTFont(path, fontNumber=number, lazy=True) as font:
        font.save(alone)
    return alone
