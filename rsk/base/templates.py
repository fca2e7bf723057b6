"""The words that readers see: Markdown in ``report/<language>/``, filled in with named values.

A sentence stands there once, with Jinja expressions where it names a number::

    A call takes {{ gpu.largest.fused.call | us }} instead of {{ gpu.largest.baseline.call | us }}.

The filters are those of :mod:`rsk.base.numbers`, and ``label``, which is :func:`labels`; a number
without one is written as :func:`rsk.base.numbers.number` does. ``say`` holds the macros of
``macros.md``. A file is one text, or blocks that begin with ``## name``. Whatever cannot be filled
in is a :class:`TemplateError` that names the file and the line.
"""

from __future__ import annotations

import math
import numbers as numeric
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rsk.base import folders
from rsk.base.numbers import FILTERS, number

if TYPE_CHECKING:
    from jinja2 import Environment

LANGUAGE = "en"
"""Of the course, and of the report if no other is asked for."""
MACROS = "macros.md"
CAPTIONS = "captions.md"
"""The titles, captions and alt texts of figures, tables and listings, a block for each label."""


class TemplateError(ValueError):
    """A template cannot be filled in; the message names the file and the line."""


class Exhibit(NamedTuple):
    """The words of a figure, table or listing."""

    title: str
    """What was found, in a sentence above a figure; empty where it has none."""
    caption: str
    """What is shown and under which conditions; Markdown."""
    alt: str
    """What one would see in a picture; plain text."""


def languages() -> list[str]:
    """The languages that there are words in."""
    return sorted(path.parent.name for path in folders.report_dir().glob(f"*/{CAPTIONS}"))


def folder(language: str = LANGUAGE) -> Path:
    """The folder of a language.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if language not in languages():
        known = ", ".join(languages())
        raise ValueError(f"there are no words in {language!r}; languages: {known}")
    return folders.report_dir() / language


def render(name: str, values: Mapping[str, object] | None = None, language: str = LANGUAGE) -> str:
    """Fill in a file, such as ``"talk.md"``, or a block of one, ``"demo.md#opening"``.

    Args:
        name: of the file, and of the block.
        values: what the expressions may name.
        language: one of :func:`languages`.

    Raises:
        TemplateError: an unknown or missing value, a mistake in the template, or no such file or
            block.
    """
    import jinja2

    where = folder(language)
    try:
        environment = _environment(where)
        macros = environment.get_template(MACROS).module
        text = environment.get_template(name).render(values or {}, say=macros)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"{_shown(error.filename)}, line {error.lineno}: {error}") from error
    except jinja2.TemplateNotFound as error:
        raise TemplateError(f"{_shown(str(where))}: there is no {error.name}") from error
    except Exception as error:
        line = _line_of(error, where)
        if line is None:
            raise
        raise TemplateError(f"{line}: {error}") from error
    return text.strip()


def fill(text: str, values: Mapping[str, object]) -> str:
    """Fill in a text that stands elsewhere, such as in a notebook; all values have to occur.

    Raises:
        TemplateError: an unknown, unused or missing value, or a mistake; names the line.
    """
    import jinja2
    from jinja2 import meta

    environment = _environment(folder())
    try:
        named = meta.find_undeclared_variables(environment.parse(text))
        filled = environment.from_string(text).render(values)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"line {error.lineno}: {error}") from error
    except (jinja2.UndefinedError, TypeError, ValueError) as error:
        given = ", ".join(values) or "none"
        raise TemplateError(f"{error}; the values given are: {given}") from error
    if unused := sorted(set(values) - named):
        raise TemplateError(f"the text does not mention {', '.join(unused)}")
    return filled


def exhibit(label: str, values: Mapping[str, object], language: str = LANGUAGE) -> Exhibit:
    """The words of a figure, table or listing.

    Args:
        label: of its block in ``captions.md``.
        values: what the block may name.
        language: one of :func:`languages`.

    Raises:
        TemplateError: as :func:`render`; or the block has no caption.
    """
    text = render(f"{CAPTIONS}#{label}", values, language)
    found = {"title": "", "caption": "", "alt": ""}
    for part in re.split(r"\n\s*\n", text):
        key, colon, words = part.partition(":")
        if not colon or key.lower() not in found:
            raise TemplateError(
                f"{CAPTIONS}, {label}: expected Title:, Caption: or Alt:, got {part[:40]!r}"
            )
        found[key.lower()] = " ".join(words.split())
    if not found["caption"]:
        raise TemplateError(f"{CAPTIONS}, {label}: it has no caption")
    return Exhibit(**found)


def phrases(language: str = LANGUAGE) -> Mapping[str, Any]:
    """Words that the exports put beside numbers, such as "Figure": ``phrases.toml``."""
    return _toml((folder(language) / "phrases.toml").read_text(encoding="utf-8"))


_toml = cache(tomllib.loads)  # an export asks for them hundreds of times


def labels(language: str = LANGUAGE) -> Callable[[str], str]:
    """What turns an English label of a figure or table into one of a language.

    The code names axes, lines and columns in English. ``[labels]`` in ``phrases.toml`` has them in
    another language, as in ``"block {}, warp {}" = "區塊 {}、執行緒束 {}"``: ``{}`` stands for any
    text, which is looked up in its turn, and the first line that fits is taken. What has no line
    stays as it is, such as the name of a sampler. Line breaks do not count.
    """
    lines = [
        (re.compile("(.+?)".join(map(re.escape, english.split("{}")))), words)
        for english, words in phrases(language).get("labels", {}).items()
    ]

    def label(text: str) -> str:
        one_line = " ".join(text.split())
        for pattern, words in lines:
            if match := pattern.fullmatch(one_line):
                indent = text[: len(text) - len(text.lstrip())]
                return indent + str(words.format(*map(label, match.groups())))
        return text

    return label


# --- blocks of a file -------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A part of a file, below its heading."""

    line: int
    """Of the heading, from 1."""
    text: str


def blocks(text: str) -> dict[str, Block]:
    """The parts of a file that begin with ``## name``, by name; names are in small letters.

    Raises:
        TemplateError: a name that is used twice.
    """
    found: dict[str, Block] = {}
    starts = list(re.finditer(r"^## ([a-z][a-z0-9-]*)\n", text, flags=re.MULTILINE))
    ends = [*(start.start() for start in starts), len(text)][1:]
    for start, end in zip(starts, ends, strict=False):
        line = text.count("\n", 0, start.start()) + 1
        if start[1] in found:
            raise TemplateError(f"line {line}: two blocks are called {start[1]!r}")
        found[start[1]] = Block(line, text[start.end() : end])
    return found


# --- what a template names --------------------------------------------------------------------


@dataclass(frozen=True)
class Uses:
    """What the templates of a language refer to: the same in all of them."""

    values: frozenset[str]
    """Values with their attributes, such as ``gpu.largest.fused.call``."""
    attributes: frozenset[str]
    """All attributes that are read, whatever they are read from."""
    exhibits: frozenset[str]
    """What stands between the parentheses of ``![](...)``, and the blocks that there are."""
    references: frozenset[str]
    """Labels in ``[@...]``."""


def uses(language: str = LANGUAGE) -> dict[str, Uses]:
    """What each file of a language refers to, by the file's name.

    Raises:
        TemplateError: a mistake in a template.
    """
    import jinja2
    from jinja2 import meta, nodes

    found = {}
    for path in sorted(folder(language).glob("*.md")):
        text = path.read_text(encoding="utf-8")
        try:
            tree = _environment(path.parent).parse(text)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{_shown(str(path))}, line {error.lineno}: {error}") from error
        given = meta.find_undeclared_variables(tree) - {"say"}
        chains = {_chain(node) for node in tree.find_all((nodes.Name, nodes.Getattr))}
        found[path.name] = Uses(
            values=frozenset(name for name in chains if name and name.split(".")[0] in given),
            attributes=frozenset(node.attr for node in tree.find_all(nodes.Getattr)),
            exhibits=frozenset([*re.findall(r"!\[\]\(([^)]*)\)", text), *blocks(text)]),
            references=frozenset(re.findall(r"\[@([\w-]+)\]", text)),
        )
    return found


def _chain(node: Any) -> str | None:
    """``a.b.c`` of an expression that is only that."""
    from jinja2 import nodes

    match node:
        case nodes.Name(name=name):
            return str(name)
        case nodes.Getattr(node=inner, attr=attribute):
            outer = _chain(inner)
            return None if outer is None else f"{outer}.{attribute}"
        case nodes.Getitem(node=inner, arg=nodes.Const(value=value)):
            outer = _chain(inner)
            return None if outer is None else f"{outer}.{value}"
        case _:
            return None


# --- how it is done ---------------------------------------------------------------------------


# A statement or comment alone on its line leaves no blank line behind; the line is still counted.
_ALONE = re.compile(r"^[ \t]*(\{[%#](?:(?![-+]?[%#]\}).)*)([-+]?[%#]\})[ \t]*\n", re.MULTILINE)


@cache
def _environment(where: Path) -> Environment:
    import jinja2

    def load(name: str) -> tuple[str, str, Callable[[], bool]] | None:
        file, _, block = name.partition("#")
        path = where / file
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8")
        if block:
            found = blocks(text).get(block)
            if found is None:
                return None
            text = "{#" + "\n" * found.line + "#}" + found.text  # its lines keep their numbers
        read = path.stat().st_mtime_ns
        return _ALONE.sub(r"\1\n\2", text), str(path), lambda: path.stat().st_mtime_ns == read

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        undefined=jinja2.StrictUndefined,
        finalize=_written,
        autoescape=False,
    )
    environment.filters.update(FILTERS)
    own_labels = cache(partial(labels, where.name))  # made once, where a template uses one
    environment.filters["label"] = lambda text: own_labels()(text)
    return environment


def _written(value: Any) -> Any:
    """What an expression without a filter puts into the text."""
    if value is None or (isinstance(value, numeric.Real) and not math.isfinite(value)):
        raise ValueError(f"a value is {value}")
    return number(value) if isinstance(value, numeric.Number) else value


def _line_of(error: BaseException, where: Path) -> str | None:
    """The file and line of the template in which an error arose; the innermost one."""
    found, step = None, error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if Path(name).parent == where:
            found = f"{_shown(name)}, line {step.tb_lineno}"
        step = step.tb_next
    return found


def _shown(name: str | None) -> str:
    path = Path(name or "")
    top = folders.report_dir()
    return f"report/{path.relative_to(top).as_posix()}" if path.is_relative_to(top) else path.name
