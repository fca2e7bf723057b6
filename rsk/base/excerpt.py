"""Parts of source files: a function, a class or a marked region, found in the real file."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

LANGUAGES = {
    ".py": "python",
    ".cu": "cuda",
    ".cuh": "cuda",
    ".h": "cpp",
    ".hpp": "cpp",
    ".cpp": "cpp",
    ".sh": "bash",
    ".toml": "toml",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".json": "json",
    ".md": "markdown",
}


def language(path: Path) -> str:
    """What a file is written in, as highlighters call it."""
    return LANGUAGES.get(path.suffix, "text")


def dedented(lines: Iterable[str]) -> str:
    """Lines of code without the indentation that they share."""
    return textwrap.dedent("\n".join(lines)).strip("\n")


def find(path: Path) -> Path:
    """A file of the project: in the checkout, or where the wheel keeps that folder.

    Raises:
        FileNotFoundError: it is in neither.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = [package.parent / path]  # an absolute path stays what it is
    if not path.is_absolute() and path.parts:
        candidates.append(package / f"_{path}")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"source: there is no file {path} in this project")


def shown_name(path: Path) -> str:
    """How a reader knows the file: its path from the project's top folder."""
    package = Path(__file__).resolve().parents[1]
    path = path.resolve()
    for root in (package, package.parent):
        if path.is_relative_to(root):
            inner = path.relative_to(root).as_posix()
            if root == package:
                return inner[1:] if inner.startswith("_") and "/" in inner else f"rsk/{inner}"
            return inner
    return path.name


def part(text: str, name: str, suffix: str, where: str) -> tuple[int, int]:
    """First and last line (from 1) of a region, function or class.

    Args:
        text: the file's text.
        name: of the region between the comments ``region NAME`` and ``endregion``, or of the
            definition; in Python also ``"Class.method"``, and ``"function()"`` for the code that
            runs when it is called, without its head and docstring.
        suffix: ``".py"`` for Python; anything else is read as C, C++ or CUDA.
        where: the file's name, for the error message.

    Raises:
        ValueError: none or several of that name.
    """
    found = _regions(text, name) or (
        _python_parts(text, name) if suffix == ".py" else _c_parts(text, name)
    )
    if len(found) != 1:
        count = "no" if not found else str(len(found))
        raise ValueError(f"source: {where} has {count} region, function or class {name!r}")
    return found[0]


_MARKER = re.compile(r"\s*(?:#|//|/\*)\s*#?(region|endregion)\b[ :]*(.*?)\s*(?:\*/)?\s*$")


def without_markers(lines: Iterable[str]) -> list[str]:
    """Lines of code but for those that say where a region begins or ends."""
    return [line for line in lines if not _MARKER.match(line)]


def _regions(text: str, name: str) -> list[tuple[int, int]]:
    found = []
    begin = None
    depth = 0
    for at, line in enumerate(text.splitlines(), 1):
        match = _MARKER.match(line)
        if not match:
            continue
        if match[1] == "region":
            if begin is None and match[2] == name:
                begin, depth = at + 1, 0
            elif begin is not None:
                depth += 1
        elif begin is not None and depth:
            depth -= 1
        elif begin is not None:
            found.append((begin, at - 1))
            begin = None
    if begin is not None:
        raise ValueError(f"source: region {name!r} does not end")
    return found


def _python_parts(text: str, name: str) -> list[tuple[int, int]]:
    found = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                full = f"{prefix}{child.name}"
                last = child.end_lineno or child.lineno
                if full == name:
                    first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                    found.append((first, last))
                elif f"{full}()" == name:
                    is_told = ast.get_docstring(child) is not None and len(child.body) > 1
                    found.append((child.body[is_told].lineno, last))
                visit(child, f"{full}.")

    visit(ast.parse(text), "")
    return found


# Comments, raw strings, strings and characters (not the separators in 1'000'000).
_C_TOKENS = re.compile(
    r"""//[^\n]*|/\*.*?\*/|R"\(.*?\)"|"(?:\\.|[^"\\\n])*"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])*'""",
    re.DOTALL,
)


def _c_parts(text: str, name: str) -> list[tuple[int, int]]:
    """Definitions of a function, struct or class in C, C++ or CUDA, with the comment above them."""
    blank = _C_TOKENS.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    found = []
    for match in re.finditer(rf"\b{re.escape(name)}\b", blank):
        before = blank[: match.start()].rsplit("\n", 1)[-1]
        is_type = re.search(r"\b(struct|class|enum|union)\s+(\w+\s+)*$", before)
        at = match.end()
        if not is_type:
            parameters = re.match(r"\s*\(", blank[at:])
            if not parameters:
                continue
            at = _closing(blank, at + parameters.end() - 1) + 1
        # A definition has a body before anything that would end a declaration or a call.
        body = re.match(r"[^;{}()=]*(?:noexcept\s*\([^)]*\)\s*)?\{", blank[at:])
        if not body or (not is_type and _inside_expression(before)):
            continue
        end = _closing(blank, at + body.end() - 1)
        first = _with_comment(text, blank, blank.count("\n", 0, match.start()))
        found.append((first + 1, blank.count("\n", 0, end) + 1))
    return found


def _inside_expression(before: str) -> bool:
    return bool(re.search(r"[=(,.]\s*$|\b(return|if|while|for|switch)\b", before))


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at ``start``."""
    pairs = {"(": ")", "{": "}"}
    opening, closing = text[start], pairs[text[start]]
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == opening) - (text[at] == closing)
        if depth == 0:
            return at
    raise ValueError(f"source: a {opening!r} is never closed")


def _with_comment(text: str, blank: str, line: int) -> int:
    """Go up from a definition's name to where its declaration, or the comment on it, begins."""
    lines, code = text.splitlines(), blank.splitlines()
    while line > 0:
        above = code[line - 1].strip()
        if not lines[line - 1].strip() or above.startswith("#") or above.endswith((";", "}", "{")):
            break
        line -= 1
    return line
